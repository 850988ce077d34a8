"""Orders in which whole blocks keep the most: from several beginnings, by turns of best blocks and best assignment.

The given order is one beginning, so that nothing is ever lost. The others put together what is alike at once: by the
total of each row, and by the leading singular vector of the square roots of the scores (which are magnitudes for the
score |w|^2). From each, :class:`solvers.permutation.PermutedBlocks` takes turns; the best end is disturbed a few
times and improved again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solvers.permutation import BlockMatrix, PermutedBlocks
from solvers.result import Limit
from structprune.arrange.freedom import Part

__all__ = ["best_orders", "kept_share"]

TURNS = 12
TOLERANCE = 1e-4  # a run that gains less in a turn over all axes has arrived
KICKS = 4
POWER_STEPS = 30

Orders = tuple[np.ndarray, ...]


def best_orders(part: Part, seed: int) -> Orders:
    """Return the order of each axis, ``(n,)`` each: entry ``order[i]`` comes to place ``i``."""
    lengths = {number: size for m in part.matrices for number, size in zip(m.axes, m.values.shape[:2], strict=True)}
    given = [np.arange(lengths[axis]) for axis in range(len(part.axes))]
    best, most = tuple(given), total(part.matrices, tuple(given))
    for begin in (given, by_totals(part, given), by_likeness(part, given, seed), None):
        # The last run disturbs the best orders so far.
        method = PermutedBlocks(turns=TURNS, tolerance=TOLERANCE, kicks=KICKS if begin is None else 0, seed=seed)
        found = method.solve(part.matrices, best if begin is None else begin, fixed=sorted(part.fixed))
        if found.termination.limit is Limit.INTERRUPTED:
            raise KeyboardInterrupt
        orders = tuple(settled(part.matrices, axis, order) for axis, order in enumerate(found.orders))
        value = total(part.matrices, orders)
        if value > most:
            best, most = orders, value
    return best


def kept_share(matrix: BlockMatrix, orders: Orders) -> float:
    """Return what the best blocks of a matrix keep."""
    sums = matrix.block_values(orders)
    return float(sums[matrix.best_blocks(sums)].sum())


def total(matrices: Sequence[BlockMatrix], orders: Orders) -> float:
    """Return what all matrices keep together."""
    return sum(kept_share(matrix, orders) for matrix in matrices)


def unfolded(part: Part, axis: int) -> np.ndarray:
    """Return everything that the entries of an axis hold, side by side, ``(n, m)``."""
    sides = [(m.values.swapaxes(0, side), m) for m in part.matrices for side in (0, 1) if m.axes[side] == axis]
    return np.concatenate([values.reshape(len(values), -1) for values, _ in sides], axis=1)


def by_totals(part: Part, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return each axis with its heaviest entries first."""
    return [
        order if axis in part.fixed else np.argsort(-unfolded(part, axis).sum(axis=1), kind="stable")
        for axis, order in enumerate(given)
    ]


def by_likeness(part: Part, given: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return each axis along the direction in which its entries differ most."""
    rng = np.random.default_rng(seed)
    orders = []
    for axis, order in enumerate(given):
        if axis in part.fixed:
            orders.append(order)
            continue
        table = np.sqrt(np.abs(unfolded(part, axis)))
        table -= table.mean(axis=0)
        direction = rng.standard_normal(len(table))
        for _ in range(POWER_STEPS):  # power iteration
            direction = table @ (table.T @ direction)
            direction /= np.linalg.norm(direction) or 1.0
        orders.append(np.argsort(direction, kind="stable"))
    return orders


def settled(matrices: Sequence[BlockMatrix], axis: int, order: np.ndarray) -> np.ndarray:
    """Return the order with entries that lie in the same block of every matrix ascending: the blocks are the same."""
    sizes = {m.block[side] for m in matrices for side in (0, 1) if m.axes[side] == axis}
    segments = np.stack([np.arange(len(order)) // size for size in sorted(sizes)])
    return order[np.lexsort((order, *segments[::-1]))]
