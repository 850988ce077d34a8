"""The symmetric sweep tableau of a least squares problem, over structures that are in or out.

For the moment H, the cross moments G = H W' and the kept inputs S (P are the others), with K = H_SS^-1,

    A = [ -K        K H_SP               ]      R = [ K G_S          ]      Q = R R'
        [ H_PS K    H_PP - H_PS K H_SP   ]          [ G_P - H_PS R_S ]

holds all that one needs to know of taking structures in and out. Exchanging any set T of inputs (those in S leave,
those in P enter) changes the loss by ``-1/2 tr(A_TT^-1 Q_TT)``, and the tableau by a matrix of rank |T| (Goodnight 1979
for one input; here with J = 1 at inputs that enter and -1 at those that leave):

    A_UU -= A_UT B A_TU    A_UT = A_UT B J    A_TT = -J B J    R_U -= A_UT B R_T    R_T = J B R_T    B = A_TT^-1

No formula needs the outputs once Q is known, so their number does not matter. The part of a tableau that belongs to
some structures changes by itself under exchanges among these: a search may run on a small part and hand over what it
found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

from solvers.quadratic import BoolArray, FloatArray, IntArray, ReducedMap

__all__ = ["Sheet", "Tableau"]

#: Columns that are mirrored at a time: a strip of so many stays in the cache.
STRIP = 64


@dataclass(eq=False)
class Sheet:
    """A and Q of one map, structures in the tableau's order; ``each`` inputs per structure."""

    moves: FloatArray  # A, Fortran order
    gains: FloatArray  # Q, Fortran order
    each: int


class Tableau:
    """Tableaux of several maps over the same structures, the kept ones first.

    Attributes
    ----------
    order
        Structures by place, ``(size,)``; the first ``count`` are kept.
    count
        How many are kept.
    sheets
        A and Q of every map, in this order.
    loss
        Loss of the kept structures.
    """

    def __init__(self, sheets: Sequence[Sheet], order: IntArray, count: int, loss: float = 0.0) -> None:
        self.sheets = list(sheets)
        self.order = order
        self.count = count
        self.loss = loss

    @classmethod
    def fresh(cls, maps: Sequence[ReducedMap], selection: BoolArray) -> Tableau:
        """Compute the tableau of ``selection``."""
        order = np.concatenate([np.flatnonzero(selection), np.flatnonzero(~selection)])
        count = int(selection.sum())
        found = [_sheet(one, order, count) for one in maps]
        return cls([sheet for sheet, _ in found], order, count, sum(loss for _, loss in found))

    @property
    def selection(self) -> BoolArray:
        """The kept structures, ``(size,)``, of a tableau over all of them."""
        kept = np.zeros(len(self.order), dtype=bool)
        kept[self.order[: self.count]] = True
        return kept

    def part(self, leave: IntArray, enter: IntArray) -> Tableau:
        """The tableau of some structures by itself: kept places ``leave`` and other places ``enter``.

        Its ``order`` holds places of this tableau, its ``loss`` is this tableau's.
        """
        places = np.concatenate([leave, enter])
        sheets = []
        for sheet in self.sheets:
            index = inputs(places, sheet.each)
            take = np.ix_(index, index)
            sheets.append(Sheet(by_columns(sheet.moves[take]), by_columns(sheet.gains[take]), sheet.each))
        return Tableau(sheets, places, len(leave), self.loss)

    def gain(self, places: IntArray) -> float:
        """How much the loss falls if the structures at ``places`` are exchanged, those kept out and the others in."""
        total = 0.0
        for sheet in self.sheets:
            index = inputs(places, sheet.each)
            take = np.ix_(index, index)
            total += 0.5 * float(np.trace(np.linalg.solve(sheet.moves[take], sheet.gains[take])))
        return total

    def exchange(self, leave: IntArray, enter: IntArray, gain: float | None = None) -> None:
        """Exchange as many kept places ``leave`` for places ``enter``; each then takes the other's place.

        ``gain`` is what `gain` would say, where that is known.
        """
        places = np.concatenate([leave, enter])
        self.loss -= self.gain(places) if gain is None else gain
        signs = np.concatenate([-np.ones(len(leave)), np.ones(len(enter))])
        for sheet in self.sheets:
            _exchange(sheet, places, signs)
        swap = np.concatenate([enter, leave])
        for sheet in self.sheets:
            to, source = inputs(places, sheet.each), inputs(swap, sheet.each)
            for array in (sheet.moves, sheet.gains):
                array[:, to] = array[:, source]
                array[to, :] = array[source, :]
        self.order[places] = self.order[swap]

    def drift(self, maps: Sequence[ReducedMap], rng: np.random.Generator) -> float:
        """Largest relative error of A and Q at a random vector, of what H and G say it should be.

        A maps (y_S, x_P) to (-x_S, y_P) where y = H x, and R = T G with T = [-A_SS 0; -A_PS I].
        """
        worst = 0.0
        for sheet, one in zip(self.sheets, maps, strict=True):
            index = inputs(self.order, one.each)
            kept = self.count * one.each
            x = np.zeros(len(index))
            x[index] = rng.standard_normal(len(index))
            y = one.moment @ x
            given, wanted = np.r_[y[index[:kept]], x[index[kept:]]], np.r_[-x[index[:kept]], y[index[kept:]]]
            worst = max(worst, _distance(sheet.moves @ given, wanted))
            v = rng.standard_normal(len(index))
            whole = np.zeros(len(index))
            whole[index] = np.r_[-(sheet.moves[:kept] @ v), v[kept:]]  # T'v
            outputs = one.weight @ (one.moment @ whole)
            cross = (one.moment @ (one.weight.T @ outputs))[index]
            seen = np.r_[np.zeros(kept), cross[kept:]] - sheet.moves[:, :kept] @ cross[:kept]
            worst = max(worst, _distance(sheet.gains @ v, seen))
        return worst


def inputs(places: IntArray, each: int) -> IntArray:
    """The inputs of structures, side by side."""
    if each == 1:
        return places
    return np.asarray((places[:, None] * each + np.arange(each)).ravel(), dtype=np.int64)


def by_columns(symmetric: FloatArray) -> FloatArray:
    """The same symmetric matrix in Fortran order; the transpose of one in C order, which needs no copy."""
    return symmetric.T if symmetric.flags.c_contiguous else np.asfortranarray(symmetric)


def mirror(lower: FloatArray) -> None:
    """Copy what lies below the diagonal of a square matrix above it, in place."""
    for start in range(0, len(lower), STRIP):
        end = start + STRIP
        corner = lower[start:end, start:end]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
        lower[start:end, end:] = lower[end:, start:end].T


def _distance(got: FloatArray, wanted: FloatArray) -> float:
    return float(np.linalg.norm(got - wanted)) / max(float(np.linalg.norm(wanted)), 1e-300)


def _sheet(one: ReducedMap, order: IntArray, count: int) -> tuple[Sheet, float]:
    """A and Q from H and W alone, and the loss."""
    index = inputs(order, one.each)
    split = count * one.each
    moves = by_columns(one.moment[index][:, index])
    moment = moves.T
    # G_S = H_SS W_S + H_SP W_P, so R_S = W_S + K H_SP W_P and R_P = (H_PP - H_PS K H_SP) W_P: no difference of
    # large numbers is left.
    rows = one.weight.T[index]
    removed = rows[split:].copy()
    inner = moment[split:, split:]
    if split:
        border = moment[:split, split:]
        factor, failed = dpotrf(moment[:split, :split].T, lower=1)
        if failed:
            raise np.linalg.LinAlgError("Expected a positive definite moment. Got one that is not. Add damping.")
        inverse, _ = dpotri(factor, lower=1, overwrite_c=0)
        mirror(inverse)
        through, _ = dpotrs(factor, border, lower=1)
        rows[:split] += through @ removed
        inner -= border.T @ through
        moves[:split, :split] = -inverse
        moves[:split, split:] = through
        moves[split:, :split] = through.T
    rows[split:] = inner @ removed
    loss = 0.5 * float(np.sum(removed * rows[split:]))
    return Sheet(moves, by_columns(rows @ rows.T), one.each), loss


def _exchange(sheet: Sheet, places: IntArray, signs: FloatArray) -> None:
    """Sweep A and Q in place on the inputs of ``places``; see the module's formulas."""
    index = inputs(places, sheet.each)
    moves, gains = sheet.moves, sheet.gains
    sign = np.repeat(signs, sheet.each)
    # Both matrices are symmetric and stored by columns: a row of the transpose lies side by side.
    columns = moves.T[index]
    pivot = columns[:, index]
    inverse = np.linalg.inv((pivot + pivot.T) / 2)
    through = inverse @ columns
    dgemm(-1.0, through.T, columns.T, beta=1.0, c=moves, trans_b=True, overwrite_c=True)
    signed = through * sign[:, None]
    signed[:, index] = -sign[:, None] * inverse * sign
    moves[:, index] = signed.T
    moves[index, :] = signed
    # R' = R - C R_T with C = A_UT B, and C_T = I - J B so that R'_T = J B R_T.
    through[:, index] = np.eye(len(index)) - inverse * sign
    columns = gains.T[index]
    half = columns - columns[:, index] @ (through / 2)
    left, right = np.concatenate([through, half]), np.concatenate([half, through])
    dgemm(-1.0, left.T, right.T, beta=1.0, c=gains, trans_b=True, overwrite_c=True)
