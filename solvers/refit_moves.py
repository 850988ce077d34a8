"""Exchanges of kept and removed structures that lower the loss of a selection with refit.

The gain of every swap (i out, j in) follows from the tableau alone. With C = A_ji K_ii^-1 (K_ii = -A_ii),

    2 gain_ij = tr((A_jj + C K_ii C')^-1 (Q_jj + C Q_ij + Q_ji C' + C Q_ii C')) - tr(K_ii^-1 Q_ii),

a few products of whole matrices where a structure has one input. Where it has several, a bound that needs no inverse
per pair says which pairs to look at: with A and Q whitened by the Cholesky factors of K_ii and A_jj, M = C whitened,
X and Y the whitened rows R_j and R_i,

    |(I + MM')^-1/2 (X + MY)|^2 <= |X + MY|^2    and    <= (|X| + |M| / sqrt(1 + |M|^2) |Y|)^2.

The best candidates are then exchanged one after another on their own small tableau, and the outcome is handed to the
large one as one exchange: a whole scan pays for many swaps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.quadratic import FloatArray, IntArray
from solvers.tableau import Sheet, Tableau

__all__ = ["best_swaps", "swap_bounds", "swap_gains"]

#: Inputs on either side of the small tableau.
CANDIDATES = 64

#: Pairs whose exact gain is computed in one batch.
BATCH = 512


def swap_gains(tableau: Tableau) -> FloatArray:
    """Exact gain of every swap, ``(kept, others)``: how much the loss falls when kept i and other j change places."""
    count, rest = tableau.count, len(tableau.order) - tableau.count
    total = np.zeros((count, rest))
    leave, enter = np.divmod(np.arange(count * rest), max(rest, 1))
    for sheet in tableau.sheets:
        if sheet.each == 1:
            total += _single_gains(sheet, count)
        else:
            total += _block_gains(sheet, leave, enter + count).reshape(count, rest)
    return total


def swap_bounds(tableau: Tableau) -> FloatArray:
    """Upper bounds of all swap gains, ``(kept, others)``; the gains themselves where structures have one input."""
    count, rest = tableau.count, len(tableau.order) - tableau.count
    total = np.zeros((count, rest))
    for sheet in tableau.sheets:
        total += _single_gains(sheet, count) if sheet.each == 1 else _block_bounds(sheet, count)
    return total


def best_swaps(tableau: Tableau, least: float, stop: Callable[[], bool], depth: int = 0) -> tuple[IntArray, IntArray]:
    """Kept places to leave and as many other places to enter; both empty if nothing gains more than ``least``.

    An answer found in time is empty only if no single swap gains more. With ``depth``, chains of so many swaps that
    gain together are looked for, too, where no single one does.
    """
    nothing = np.zeros(0, dtype=np.int64)
    if tableau.count == 0 or tableau.count == len(tableau.order):
        return nothing, nothing
    scores = swap_bounds(tableau)
    side = max(8, CANDIDATES // max(sheet.each for sheet in tableau.sheets))
    leave, enter = _candidates(scores, side), _candidates(scores.T, side) + tableau.count
    if float(scores.max()) > least:
        small = tableau.part(leave, enter)
        _steepest(small, least, stop)
        if tableau.loss - small.loss > least:
            return _difference(small, leave, enter)
        single = _first_exact(tableau, scores, least)
        if len(single[0]):
            return single
    if depth > 1 and not stop():
        small = tableau.part(leave, enter)
        if _chain(small, depth, least):
            return _difference(small, leave, enter)
    return nothing, nothing


def _difference(small: Tableau, leave: IntArray, enter: IntArray) -> tuple[IntArray, IntArray]:
    """The places, of the large tableau, that a search on a small one exchanged in the end."""
    inside = small.order[: small.count]
    return leave[~np.isin(leave, inside)], enter[np.isin(enter, inside)]


def _chain(tableau: Tableau, depth: int, least: float) -> bool:
    """The best of all beginnings of a chain of best swaps, whatever they cost, each structure moved once at most.

    After Kernighan and Lin 1970. Leaves the tableau there and says whether it gained.
    """
    start, order = tableau.loss, tableau.order.copy()
    best, found = start - least, order
    open_rows, open_columns = np.ones(tableau.count, dtype=bool), np.ones(len(order) - tableau.count, dtype=bool)
    for _ in range(min(depth, tableau.count, len(open_columns))):
        gains = np.where(open_rows[:, None] & open_columns, swap_gains(tableau), -np.inf)
        row, column = divmod(int(np.argmax(gains)), len(open_columns))
        gain = float(gains[row, column])
        open_rows[row] = open_columns[column] = False
        tableau.exchange(np.array([row]), np.array([column + tableau.count]), gain)
        if tableau.loss < best:
            best, found = tableau.loss, tableau.order.copy()
    tableau.order = found
    return found is not order


def _candidates(scores: FloatArray, side: int) -> IntArray:
    """The rows with the largest entries, at most ``side``, in order."""
    best = scores.max(axis=1)
    return np.sort(np.argsort(-best, kind="stable")[:side])


def _steepest(tableau: Tableau, least: float, stop: Callable[[], bool]) -> None:
    """Do the best swap of a small tableau while there is one."""
    while not stop():
        gains = swap_gains(tableau)
        row, column = divmod(int(np.argmax(gains)), gains.shape[1])
        gain = float(gains[row, column])
        if gain <= least:
            break
        tableau.exchange(np.array([row]), np.array([column + tableau.count]), gain)


def _first_exact(tableau: Tableau, bounds: FloatArray, least: float) -> tuple[IntArray, IntArray]:
    """The best swap of the first batch, by bound, that holds one with more than the least gain."""
    rest = bounds.shape[1]
    likely = np.argsort(-bounds, axis=None, kind="stable")
    likely = likely[: int((bounds > least).sum())]
    for start in range(0, len(likely), BATCH):
        leave, enter = np.divmod(likely[start : start + BATCH], rest)
        gains = np.zeros(len(leave))
        for sheet in tableau.sheets:
            if sheet.each == 1:
                gains += _single_gains(sheet, tableau.count)[leave, enter]
            else:
                gains += _block_gains(sheet, leave, enter + tableau.count)
        best = int(np.argmax(gains))
        if gains[best] > least:
            return leave[best : best + 1], enter[best : best + 1] + tableau.count
    nothing = np.zeros(0, dtype=np.int64)
    return nothing, nothing


def _single_gains(sheet: Sheet, count: int) -> FloatArray:
    """All pairs at once, one input per structure."""
    diagonal, worth = np.diag(sheet.moves), np.diag(sheet.gains)
    inverse, own = -diagonal[:count, None], worth[:count, None]
    ratio = sheet.moves[:count, count:] / inverse
    top = sheet.gains[:count, count:] * (2 * ratio)
    ratio *= ratio
    top += ratio * own
    top += worth[None, count:]
    ratio *= inverse
    ratio += diagonal[None, count:]
    top /= ratio
    top -= own / inverse
    top *= 0.5
    return top


def _block_gains(sheet: Sheet, leave: IntArray, enter: IntArray) -> FloatArray:
    """Exact gains of the pairs (leave, enter), places."""
    each, size = sheet.each, len(sheet.moves) // sheet.each
    if not len(leave):
        return np.zeros(0)
    moves = sheet.moves.reshape(size, each, size, each)
    gains = sheet.gains.reshape(size, each, size, each)
    kept, at = np.unique(leave, return_inverse=True)
    inverse = np.linalg.inv(-moves[kept, :, kept, :])
    own = gains[kept, :, kept, :]
    drop = np.einsum("gij,gji->g", inverse, own)
    across = moves[enter, :, leave, :]
    ratio = across @ inverse[at]
    turned = ratio.transpose(0, 2, 1)
    pivot = moves[enter, :, enter, :] + ratio @ across.transpose(0, 2, 1)
    cross = ratio @ gains[leave, :, enter, :]
    top = gains[enter, :, enter, :] + cross + cross.transpose(0, 2, 1) + ratio @ own[at] @ turned
    gain = np.einsum("gij,gji->g", np.linalg.inv(pivot), top) - drop[at]
    return np.asarray(0.5 * gain)


def _block_bounds(sheet: Sheet, count: int) -> FloatArray:
    """Bounds of all swap gains of one map, from the whitened tableau."""
    each, size = sheet.each, len(sheet.moves) // sheet.each
    rest = size - count
    index = np.arange(size)
    moves = sheet.moves.reshape(size, each, size, each)
    gains = sheet.gains.reshape(size, each, size, each)
    pivots = moves[index, :, index, :] * np.where(index < count, -1.0, 1.0)[:, None, None]
    white = np.linalg.inv(np.linalg.cholesky(pivots))
    worth = white @ gains[index, :, index, :] @ white.transpose(0, 2, 1)  # Y Y' and X X'
    norms = np.trace(worth, axis1=1, axis2=2)
    across = _whitened(sheet.moves, white, count)  # M' by blocks, (kept, each, others, each)
    cross = _whitened(sheet.gains, white, count)  # Y X' by blocks
    through = (worth[:count] @ across.reshape(count, each, rest * each)).reshape(count, each, rest, each)
    first = norms[None, count:] + np.einsum("iajb,iajb->ij", across, 2 * cross + through)
    length = np.einsum("iajb,iajb->ij", across, across)
    share = np.sqrt(length / (1 + length))
    second = (np.sqrt(norms[None, count:]) + share * np.sqrt(norms[:count, None])) ** 2
    bounds = 0.5 * (np.minimum(first, second) - norms[:count, None])
    # Rounding of sums of this size must not hide a gain.
    return np.asarray(bounds + 1e-12 * (norms[:count, None] + norms[None, count:]))


def _whitened(matrix: FloatArray, white: FloatArray, count: int) -> FloatArray:
    """L_i^-1 matrix_ij L_j^-T for kept i and others j, ``(kept, each, others, each)``."""
    each = white.shape[1]
    rest = len(white) - count
    block = matrix[: count * each, count * each :]
    left = white[:count] @ block.reshape(count, each, rest * each)
    right = left.reshape(count * each, rest, each).transpose(1, 0, 2) @ white[count:].transpose(0, 2, 1)
    return np.asarray(right.transpose(1, 0, 2).reshape(count, each, rest, each))
