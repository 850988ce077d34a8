"""What others do to choose inputs before a refit, re-implemented plainly: NumPy, no code of theirs.

All take one map and how many structures stay, and return the kept structures, ``(size,)`` booleans.
"""

from __future__ import annotations

import numpy as np

from solvers.quadratic import BoolArray, FloatArray, IntArray, QuadraticMap

__all__ = ["activation", "brute_force", "elimination", "local_search", "magnitude"]


def magnitude(one: QuadraticMap, keep: int) -> BoolArray:
    """Largest norms of the weights (Li et al. 2017)."""
    return _largest((one.weight**2).sum(axis=0)[one.groups].sum(axis=1), keep)


def activation(one: QuadraticMap, keep: int) -> BoolArray:
    """Largest weight times activation: ``sum |W_i|^2 H_ii`` (after Sun et al. 2024, for structures)."""
    return _largest(((one.weight**2).sum(axis=0) * np.diag(one.moment))[one.groups].sum(axis=1), keep)


def elimination(one: QuadraticMap, keep: int, rounds: int | None = None) -> BoolArray:
    """Optimal brain surgeon for groups: remove the cheapest, update the others, down-date the inverse.

    With ``rounds`` as many structures go at once as it takes to be done in so many rounds (the first phase of OSSCAR,
    Meng et al. 2024); None removes one at a time (Hassibi and Stork 1993; ZipLM, Kurtic et al. 2023).
    """
    weight, inverse = one.weight.copy(), np.asarray(np.linalg.inv(one.moment), dtype=np.float64)
    alive = np.arange(len(one.groups))
    at_once = 1 if rounds is None else max(1, -(-(len(alive) - keep) // rounds))
    while len(alive) > keep:
        count = min(at_once, len(alive) - keep)
        chosen = np.argsort(_rises(weight, inverse, one.groups[alive]), kind="stable")[:count]
        gone = one.groups[alive[chosen]].ravel()
        columns = inverse[:, gone]
        solved = np.linalg.solve(inverse[np.ix_(gone, gone)], np.concatenate([weight[:, gone].T, columns.T], axis=1))
        weight -= solved[:, : len(weight)].T @ columns.T
        inverse -= columns @ solved[:, len(weight) :]
        alive = np.delete(alive, chosen)
    kept = np.zeros(len(one.groups), dtype=bool)
    kept[alive] = True
    return kept


def local_search(one: QuadraticMap, start: BoolArray, first: int = 0) -> BoolArray:
    """Drop t and add t, each by its own score; accept if the loss falls, else halve t (OSSCAR, Meng et al. 2024).

    One input per structure. ``first`` is the first t; 0 takes a tenth of what stays. The inverse of the kept moment is
    computed anew for every trial.
    """
    cross = one.moment @ one.weight.T
    energy = float((one.weight.T * cross).sum())
    kept = start.copy()
    inverse, fitted, loss = _refit(one.moment, cross, energy, np.flatnonzero(kept))
    step = first or max(1, int(kept.sum()) // 10)
    step = min(step, int(kept.sum()), int((~kept).sum()))
    while step >= 1:
        inside = np.flatnonzero(kept)
        drops = (fitted**2).sum(axis=1) / np.diag(inverse)
        trial = kept.copy()
        trial[inside[np.argsort(drops, kind="stable")[:step]]] = False
        left, outside = np.flatnonzero(trial), np.flatnonzero(~trial)
        half_inverse, half_fitted, _ = _refit(one.moment, cross, energy, left)
        border = one.moment[np.ix_(outside, left)]
        rest = cross[outside] - border @ half_fitted
        schur = np.diag(one.moment)[outside] - ((border @ half_inverse) * border).sum(axis=1)
        adds = (rest**2).sum(axis=1) / schur
        trial[outside[np.argsort(-adds, kind="stable")[:step]]] = True
        new_inverse, new_fitted, new_loss = _refit(one.moment, cross, energy, np.flatnonzero(trial))
        if new_loss < loss * (1 - 1e-9):
            kept, inverse, fitted, loss = trial, new_inverse, new_fitted, new_loss
        else:
            step //= 2
    return kept


def brute_force(one: QuadraticMap, keep: int, batch: int = 2000) -> tuple[BoolArray, float]:
    """The best of all selections and its loss."""
    size = len(one.groups)
    cross = one.moment @ one.weight.T
    energy = float((one.weight.T * cross).sum())
    masks = np.array([mask for mask in range(1 << size) if mask.bit_count() == keep])
    best, least = np.zeros(size, dtype=bool), np.inf
    for start in range(0, len(masks), batch):
        chosen = (masks[start : start + batch, None] >> np.arange(size)) & 1
        inside = one.groups[np.nonzero(chosen)[1].reshape(len(chosen), keep)].reshape(len(chosen), -1)
        factors = np.linalg.cholesky(one.moment[inside[:, :, None], inside[:, None, :]])
        explained = (np.linalg.solve(factors, cross[inside]) ** 2).sum(axis=(1, 2))
        place = int(np.argmax(explained))
        if 0.5 * (energy - explained[place]) < least:
            best, least = chosen[place].astype(bool), 0.5 * (energy - float(explained[place]))
    return best, least


def _largest(scores: FloatArray, keep: int) -> BoolArray:
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[:keep]] = True
    return kept


def _rises(weight: FloatArray, inverse: FloatArray, groups: IntArray) -> FloatArray:
    """``tr(W_g ([H^-1]_gg)^-1 W_g')`` of every group."""
    if groups.shape[1] == 1:
        return np.asarray((weight[:, groups[:, 0]] ** 2).sum(axis=0) / np.diag(inverse)[groups[:, 0]])
    parts = weight[:, groups].transpose(1, 2, 0)
    blocks = inverse[groups[:, :, None], groups[:, None, :]]
    return np.asarray((parts * np.linalg.solve(blocks, parts)).sum(axis=(1, 2)))


def _refit(
    moment: FloatArray, cross: FloatArray, energy: float, inside: IntArray
) -> tuple[FloatArray, FloatArray, float]:
    """Inverse of the kept moment, fitted weights and twice the loss."""
    inverse = np.asarray(np.linalg.inv(moment[np.ix_(inside, inside)]), dtype=np.float64)
    fitted = inverse @ cross[inside]
    return inverse, fitted, energy - float((fitted * cross[inside]).sum())
