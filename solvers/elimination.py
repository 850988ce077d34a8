"""Second-order elimination of groups of inputs of linear maps, with exact updates of the survivors.

For a map ``y = W x`` with second moment ``H = E[x x']``, removing the inputs in ``g`` and re-fitting the others
raises ``1/2 E|y - y'|^2`` by

    1/2 tr(W_g ([H^-1]_gg)^-1 W_g'),     with the update   W <- W - W_g ([H^-1]_gg)^-1 [H^-1]_g:

(the optimal brain surgeon of Hassibi and Stork 1993 for a group). The inverse is down-dated, never recomputed. The
reverse of the order of removal is a nested order, and the accumulated loss is the curve over widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.quadratic import QuadraticMap

__all__ = ["Elimination", "QuadraticMap", "eliminate"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Elimination:
    """Nested order and loss curve.

    Attributes
    ----------
    order
        Structures, best first, ``(size,)``: the reverse of the order of removal.
    loss
        ``loss[x]`` is the loss when the best ``x`` are kept and re-fitted, ``(size + 1,)``, ``loss[size] = 0``.
    """

    order: NDArray[np.int64]
    loss: FloatArray


def eliminate(maps: Sequence[QuadraticMap], *, exact_below: int = 64) -> Elimination:
    """Remove one structure after another, each time the one whose loss over all ``maps`` is least.

    While more than ``2 * exact_below`` structures are left, several go at once (one in ``exact_below``): they are
    removed jointly and exactly, only their choice ignores how they interact.

    Raises
    ------
    ValueError
        If the maps do not agree on the number of structures, or a moment is not positive definite.
    """
    size = len(maps[0].groups)
    if any(len(one.groups) != size for one in maps):
        raise ValueError(f"Expected maps over the same structures. Got {[len(one.groups) for one in maps]} of them.")
    weights = [_compressed(one.weight) for one in maps]
    inverses = [_inverse(one.moment) for one in maps]
    alive = np.arange(size)
    removed: list[int] = []
    loss = [0.0]
    while alive.size:
        rises = np.zeros(alive.size)
        for one, weight, inverse in zip(maps, weights, inverses, strict=True):
            rises += _rises(weight, inverse, one.groups[alive])
        count = max(1, alive.size // exact_below)
        chosen = np.argsort(rises, kind="stable")[:count]
        joint = 0.0
        for one, weight, inverse in zip(maps, weights, inverses, strict=True):
            joint += _remove(weight, inverse, one.groups[alive[chosen]].ravel())
        share = np.cumsum(rises[chosen])
        share = share / share[-1] if share[-1] > 0 else np.arange(1, count + 1) / count
        start = loss[-1]
        loss.extend((start + joint * share).tolist())
        removed.extend(alive[chosen].tolist())
        alive = np.delete(alive, chosen)
    return Elimination(np.array(removed[::-1], dtype=np.int64), np.array(loss[::-1]))


def _compressed(weight: FloatArray) -> FloatArray:
    """A matrix with the same W'W and at most as many rows as columns: the losses depend on nothing else."""
    weight = np.array(weight, dtype=np.float64)
    return np.asarray(np.linalg.qr(weight, mode="r")) if len(weight) > weight.shape[1] else weight


def _inverse(moment: FloatArray) -> FloatArray:
    try:
        np.linalg.cholesky(moment)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "Expected a positive definite second moment. Got one that is not. Add damping to its diagonal."
        ) from error
    inverse = np.linalg.inv(moment)
    return (inverse + inverse.T) / 2


def _rises(weight: FloatArray, inverse: FloatArray, groups: NDArray[np.int64]) -> FloatArray:
    """Loss of removing each group alone, ``(len(groups),)``."""
    if groups.shape[1] == 1:
        inputs = groups[:, 0]
        return 0.5 * (weight[:, inputs] ** 2).sum(axis=0) / inverse[inputs, inputs]
    blocks = inverse[groups[:, :, None], groups[:, None, :]]
    parts = weight[:, groups].transpose(1, 2, 0)  # (groups, s, m)
    solved = np.linalg.solve(blocks, parts)
    return 0.5 * (parts * solved).sum(axis=(1, 2))


def _remove(weight: FloatArray, inverse: FloatArray, inputs: NDArray[np.int64]) -> float:
    """Remove ``inputs`` from both arrays in place; return the loss."""
    columns = inverse[:, inputs]
    solved = np.linalg.solve(inverse[np.ix_(inputs, inputs)], np.concatenate([weight[:, inputs].T, columns.T], axis=1))
    of_weight, of_inverse = solved[:, : len(weight)], solved[:, len(weight) :]
    loss = 0.5 * float((weight[:, inputs].T * of_weight).sum())
    weight -= of_weight.T @ columns.T
    inverse -= columns @ of_inverse
    weight[:, inputs] = 0.0
    inverse[inputs, :] = 0.0
    inverse[:, inputs] = 0.0
    return max(loss, 0.0)
