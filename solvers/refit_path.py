"""Greedy paths of selections with refit: out of the full set (backward) or into the empty one (forward).

Both take pivots in the same recursion. With A, Q of the tableau (`solvers.tableau`) restricted to the structures not
yet taken, a pivot g changes the others by

    c = A_:g A_gg^-1,    A <- A - c A_g:,    z = Q_:g - c Q_gg / 2,    Q <- Q - c z' - z c',

and changes the loss by 1/2 tr(A_gg^-1 Q_gg). Backward starts at A = H^-1, Q = W'W and takes the smallest change (the
optimal brain surgeon of Hassibi and Stork 1993 for groups), forward starts at A = H, Q = GG' with G = HW' and takes the
largest (orthogonal least squares, Chen, Cowan and Grant 1991). Only diagonal blocks and the pivots' columns are needed
at once: all else is brought up to date once in a panel, by matrix products, as in a blocked Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm, dsyr2k
from scipy.linalg.lapack import dpotrf, dpotri

from solvers.quadratic import FloatArray, IntArray, ReducedMap
from solvers.tableau import by_columns, inputs, mirror

__all__ = ["Path", "backward", "forward"]

#: Inputs taken between two updates of the whole matrices.
PANEL = 192


@dataclass(frozen=True, eq=False)
class Path:
    """Structures in the order in which they were taken, and the change of the loss with each.

    Attributes
    ----------
    taken
        ``(steps,)``.
    changes
        ``(steps,)``, at least 0: rises of a backward path, falls of a forward one.
    """

    taken: IntArray
    changes: FloatArray


def backward(maps: Sequence[ReducedMap], steps: int, stop: Callable[[], bool] | None = None) -> Path:
    """Remove ``steps`` structures, each time the one whose removal costs least."""
    return _walk([_Front(_inverse(one.moment), one.weight.T @ one.weight, one.each) for one in maps], steps, 1.0, stop)


def forward(maps: Sequence[ReducedMap], steps: int, stop: Callable[[], bool] | None = None) -> Path:
    """Take in ``steps`` structures, each time the one that lowers the loss most."""
    fronts = []
    for one in maps:
        cross = one.cross
        fronts.append(_Front(one.moment.copy(), cross @ cross.T, one.each))
    return _walk(fronts, steps, -1.0, stop)


def _inverse(moment: FloatArray) -> FloatArray:
    factor, failed = dpotrf(moment.T, lower=1, clean=1)
    if failed:
        raise np.linalg.LinAlgError("Expected a positive definite moment. Got one that is not. Add damping.")
    lower, _ = dpotri(factor, lower=1, overwrite_c=1)
    mirror(lower)
    return np.asarray(lower)


def _walk(fronts: list[_Front], steps: int, sign: float, stop: Callable[[], bool] | None) -> Path:
    alive = np.arange(fronts[0].count)
    taken: list[int] = []
    changes: list[float] = []
    widest = max(front.each for front in fronts)
    while len(taken) < steps and not (stop is not None and stop()):
        open_ = np.ones(len(alive), dtype=bool)
        panel = min(max(1, PANEL // widest), steps - len(taken))
        for front in fronts:
            front.begin(panel)
        for _ in range(panel):
            places = np.flatnonzero(open_)
            change = np.zeros(len(places))
            for front in fronts:
                change += front.changes(places)
            best = int(np.argmin(sign * change))
            place = int(places[best])
            taken.append(int(alive[place]))
            changes.append(max(0.5 * float(change[best]), 0.0))
            open_[place] = False
            for front in fronts:
                front.take(place)
        rest = np.flatnonzero(open_)
        alive = alive[rest]
        if len(taken) < steps:
            for front in fronts:
                front.settle(rest)
    return Path(np.array(taken, dtype=np.int64), np.array(changes))


class _Front:
    """A and Q of one map over the structures not yet taken; columns of the running panel are kept apart."""

    def __init__(self, moves: FloatArray, gains: FloatArray, each: int) -> None:
        self.moves, self.gains, self.each = by_columns(moves), by_columns(gains), each
        self.count = len(moves) // each

    def begin(self, panel: int) -> None:
        width, size = panel * self.each, len(self.moves)
        self.used = 0
        # Now A = moves - ratio column' and Q = gains - ratio half' - half ratio'.
        self.column, self.ratio, self.half = (np.empty((size, width), order="F") for _ in range(3))
        index = np.arange(size).reshape(self.count, self.each)
        self.blocks = self.moves[index[:, :, None], index[:, None, :]].copy()
        self.worth = self.gains[index[:, :, None], index[:, None, :]].copy()

    def changes(self, places: IntArray) -> FloatArray:
        """``tr(A_ii^-1 Q_ii)`` of these structures."""
        blocks, worth = self.blocks[places], self.worth[places]
        if self.each == 1:
            return np.asarray(worth[:, 0, 0] / blocks[:, 0, 0])
        return np.asarray(np.einsum("gij,gji->g", np.linalg.inv(blocks), worth))

    def take(self, place: int) -> None:
        """Pivot on a structure."""
        each, used = self.each, self.used
        own = slice(place * each, (place + 1) * each)
        ratio, half = self.ratio[:, :used], self.half[:, :used]
        column = self.moves[:, own] - ratio @ self.column[own, :used].T
        worth = self.gains[:, own] - ratio @ half[own].T - half @ ratio[own].T
        ratio = column @ np.linalg.inv(column[own])
        half = worth - ratio @ (worth[own] / 2)
        new = slice(used, used + each)
        self.column[:, new], self.ratio[:, new], self.half[:, new] = column, ratio, half
        self.used += each
        shape = (self.count, each, each)
        if each == 1:
            self.blocks[:, 0, 0] -= ratio[:, 0] * column[:, 0]
            self.worth[:, 0, 0] -= 2 * ratio[:, 0] * half[:, 0]
            return
        by_group = ratio.reshape(shape)
        self.blocks -= by_group @ column.reshape(shape).transpose(0, 2, 1)
        cross = by_group @ half.reshape(shape).transpose(0, 2, 1)
        self.worth -= cross + cross.transpose(0, 2, 1)

    def settle(self, rest: IntArray) -> None:
        """Bring A and Q of the structures at ``rest`` up to date and forget the others."""
        index = inputs(rest, self.each)
        kept = (array[index, : self.used] for array in (self.ratio, self.half, self.column))
        ratio, half, column = (np.asfortranarray(array) for array in kept)
        self.moves, self.gains = (by_columns(array[index][:, index]) for array in (self.moves.T, self.gains.T))
        dgemm(-1.0, ratio, column, beta=1.0, c=self.moves, trans_b=True, overwrite_c=True)
        dsyr2k(-1.0, ratio, half, beta=1.0, c=self.gains, overwrite_c=True, lower=1)
        mirror(self.gains)
        self.count = len(rest)
