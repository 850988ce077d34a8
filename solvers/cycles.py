"""Optimal b-matchings of many tiles at once, by exchanges along improving cycles.

An exchange lets row ``i`` take column ``j`` from row ``i'``, which takes another column from a further row, and so on
around a cycle. One more row, *slack*, holds the unused room of every column, and one more column that of every row, so
that a mask with at most ``n`` entries per row and column is a table of integers with exact sums. The best exchange
between two rows is

    w(i, i') = min_j  v_i'j - v_ij   over columns that i lacks and i' has,

and a mask is optimal exactly when the graph of rows with these lengths has no cycle of negative length (Klein 1967).
Bellman and Ford's distances then are prices of the rows that prove it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.problem import BoolArray, FloatArray, IntArray

__all__ = ["improve_tiles", "row_prices"]

#: Cycles must gain more than this, for values of at most 1 in absolute value: above the rounding of their sums.
_GAIN = 1e-12


def improve_tiles(tiles: FloatArray, kept: BoolArray, n: int, rounds: int, expired: Callable[[], bool]) -> None:
    """Exchange along improving cycles, in place, until every tile is optimal, the rounds are over or time is.

    Parameters
    ----------
    tiles
        Values ``(T, m, m)``, at most 1 in absolute value.
    kept
        Masks ``(T, m, m)`` with at most ``n`` entries per row and column.
    """
    open_ = np.arange(len(tiles))
    for _ in range(rounds):
        if not open_.size or expired():
            return
        values, masks = tiles[open_], kept[open_]
        lengths, via = _exchanges(values, masks, n)
        before, changed = _shortest(lengths)[1:]
        improved = np.zeros(len(open_), dtype=bool)
        for t in np.flatnonzero(changed):
            improved[t] = _exchange(values[t], masks[t], before[t].tolist(), via[t])
        kept[open_] = masks
        open_ = open_[improved]


def row_prices(tiles: FloatArray, kept: BoolArray, n: int) -> FloatArray:
    """Prices of the rows ``(T, m)``; for an optimal mask they make `solvers.bounds.tiles.tile_bounds` tight."""
    prices = np.zeros(tiles.shape[:2])
    if not 0 < n < tiles.shape[1]:
        # All entries above 0 fit in, or none: free rows, or rows that cost as much as their best entry.
        return prices if n else tiles.max(axis=2)
    size = max(1, (1 << 22) // tiles.shape[1] ** 3)
    for first in range(0, len(tiles), size):
        part = slice(first, first + size)
        distances = _shortest(_exchanges(tiles[part], kept[part], n)[0])[0]
        prices[part] = distances[:, :-1] - distances[:, -1:]
    return prices


def _exchanges(values: FloatArray, masks: BoolArray, n: int) -> tuple[FloatArray, IntArray]:
    """Length of the best exchange from row to row, ``(T, m + 1, m + 1)``, and its column; the slack row is last.

    ``lengths[t, i, i']`` is what is lost when row ``i`` takes a column from row ``i'``; infinite when it cannot.
    """
    count, side, _ = values.shape
    worth = np.zeros((count, side + 1, side + 1))
    worth[:, :side, :side] = values
    takes, gives = np.ones(worth.shape, dtype=bool), np.ones(worth.shape, dtype=bool)
    takes[:, :side, :side], gives[:, :side, :side] = ~masks, masks
    gives[:, :side, side] = masks.sum(axis=2) < n
    gives[:, side, :side] = masks.sum(axis=1) < n
    cost_of_taking = np.where(takes, -worth, np.inf)
    cost_of_giving = np.where(gives, worth, np.inf)
    lengths = np.full(worth.shape, np.inf)
    via = np.zeros(worth.shape, dtype=np.int64)
    for column in range(side + 1):
        through = cost_of_taking[:, :, None, column] + cost_of_giving[:, None, :, column]
        better = through < lengths
        np.copyto(lengths, through, where=better)
        np.copyto(via, column, where=better)
    return lengths, via


def _shortest(lengths: FloatArray) -> tuple[FloatArray, IntArray, BoolArray]:
    """Distances of the rows from a node that reaches all at length 0 (Bellman and Ford).

    Returns the distances ``(T, V)``, the row before each on its shortest path (-1 for none), and whether the rows
    before each other form a cycle, which then has negative length, ``(T,)``. Distances without a cycle are final.
    """
    count, nodes, _ = lengths.shape
    distances = np.zeros((count, nodes))
    before = np.full((count, nodes), -1)
    cyclic = np.zeros(count, dtype=bool)
    active = np.arange(count)
    for number in range(nodes):
        through = distances[active, :, None] + (lengths if len(active) == count else lengths[active])
        best = through.argmin(axis=1)
        reached = np.take_along_axis(through, best[:, None, :], axis=1)[:, 0]
        shorter = reached < distances[active] - _GAIN
        distances[active] = np.where(shorter, reached, distances[active])
        before[active] = np.where(shorter, best, before[active])
        if number & (number + 1) == 0 or number == nodes - 1:
            # Cycles of two rows show after two steps, longer ones later: looking after 1, 2, 4, ... steps is enough.
            cyclic[active] = _have_cycles(before[active])
        active = active[shorter.any(axis=1) & ~cyclic[active]]
        if not active.size:
            break
    return distances, before, cyclic


def _have_cycles(before: IntArray) -> BoolArray:
    """Whether following ``before`` never ends, ``(T,)``: after V steps a path without a cycle has."""
    count, nodes = before.shape
    # Node V stands for the end; each squaring doubles the steps.
    step = np.full((count, nodes + 1), nodes)
    np.copyto(step[:, :nodes], before, where=before >= 0)
    for _ in range(nodes.bit_length()):
        step = np.take_along_axis(step, step, axis=1)
    found: BoolArray = (step < nodes).any(axis=1)
    return found


def _cycles(before: list[int]) -> list[list[int]]:
    """All cycles of ``i -> before[i]``; no two share a row, so that all can be exchanged at once."""
    seen = [-1] * len(before)
    cycles = []
    for start in range(len(before)):
        row = start
        while row >= 0 and seen[row] < 0:
            seen[row] = start
            row = before[row]
        if row >= 0 and seen[row] == start:
            cycle = [row]
            while before[cycle[-1]] != row:
                cycle.append(before[cycle[-1]])
            cycles.append(cycle)
    return cycles


def _exchange(values: FloatArray, mask: BoolArray, before: list[int], via: IntArray) -> bool:
    """Apply the improving cycles to one mask, in place; whether there was one."""
    side = len(values)
    improved = False
    for cycle in _cycles(before):
        given, taken = [], []
        for giver in cycle:
            taker = before[giver]
            column = int(via[taker, giver])
            # Slack gives and takes without an entry of its own.
            if column < side:
                given += [(giver, column)] * (giver < side)
                taken += [(taker, column)] * (taker < side)
        if sum(values[entry] for entry in taken) <= sum(values[entry] for entry in given):
            continue
        # A row may pass on the column that it takes: what is given goes first.
        for entry in given:
            mask[entry] = False
        for entry in taken:
            mask[entry] = True
        improved = True
    return improved
