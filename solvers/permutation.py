"""Permuted blocks: an order of rows and columns in which whole blocks can go and most of the value stays.

Pruning blocks of a matrix keeps less than pruning its entries, unless the rows and columns that are wanted together
stand together. The orders are free whenever neighbouring layers follow them (or gather), so they are chosen:

    maximise   sum over kept blocks of the values in them,    over orders of rows and columns and ``keep`` blocks,

by turns: for given orders the best blocks are the heaviest; for given blocks and columns, putting row ``i`` into row
block ``g`` earns ``sum of values[i, columns of g's kept blocks]``, whatever the other rows do, so that the best order
of the rows is a linear assignment (TETRIS exchanges pairs of rows instead). No turn loses value.

Several matrices may share axes, as a layer's outputs and the next one's inputs do: earnings then add up. A matrix whose
rows and columns are the same axis would make it a quadratic assignment and is refused.

References
----------
Ji et al., "TETRIS: tile-matching the tremendous irregular sparsity", NeurIPS 2018: blocks, turns and exchanges.
Lourenco, Martin, Stuetzle, "Iterated local search", Handbook of Metaheuristics (2003): kicks.
Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics Quarterly 2 (1955).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from solvers.bounds.permuted import permuted_bound
from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.result import OPTIMAL_GAP, ROUNDING, Limit, Termination, TerminationReason, relative_gap
from solvers.structured import checked_values, total_value
from solvers.transport import maximum_transport

__all__ = ["BlockMatrix", "PermutedBlocks", "PermutedResult", "assignment_step", "is_permuted_blocks", "swap_step"]

Orders: TypeAlias = tuple[IntArray, ...]

#: Given earnings ``(n, S)`` of each item in each segment of slots, and the segment of each slot ``(n,)``, in which
#: item ``s`` now stands at slot ``s``: the item for each slot, ``(n,)``.
Step: TypeAlias = Callable[[FloatArray, IntArray], IntArray]

#: Part of an axis that a kick moves.
_KICK = 0.2


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """A matrix of values that keeps ``keep`` whole blocks of the permuted rows and columns.

    Parameters
    ----------
    values
        ``(R, C)``, finite, higher = keep; or ``(R, C, T)`` for the T taps of a convolution, whose rows and columns are
        permuted alike while each tap has blocks of its own.
    block
        Rows and columns of a block. The last blocks of an axis that it does not divide are smaller.
    keep
        Number of kept blocks, of ``ceil(R / block[0]) * ceil(C / block[1])`` (for every tap).
    axes
        Which axis of the problem the rows follow and which the columns; matrices that name the same axis are permuted
        together there.
    balanced
        Whether every row of blocks keeps equally many; ``keep`` then is a multiple of their number.

    Raises
    ------
    ValueError
        Values that are no finite table, empty blocks, counts that are not possible, the same axis twice.
    """

    values: FloatArray
    block: tuple[int, int]
    keep: int
    axes: tuple[int, int] = (0, 1)
    balanced: bool = False

    def __post_init__(self) -> None:
        values = checked_values(self.values, 3 if np.ndim(self.values) == 3 else 2)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        if len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(f"Expected a block of at least 1 x 1. Got {self.block}. Give its rows and columns.")
        if not 0 <= self.keep <= math.prod(self.grid):
            raise ValueError(f"Expected to keep 0 .. {math.prod(self.grid)} blocks. Got {self.keep}. Count blocks.")
        if self.balanced and self.keep % self.grid[0]:
            raise ValueError(
                f"Expected to keep a multiple of the {self.grid[0]} rows of blocks, which keep equally many. "
                f"Got {self.keep}. Round it, or leave out balanced."
            )
        if self.axes[0] == self.axes[1] or min(self.axes) < 0:
            raise ValueError(
                f"Expected two different axes, numbered from 0. Got {self.axes}. A matrix whose rows and columns are "
                "permuted alike is a quadratic assignment; permute one of them and gather."
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Numbers of blocks along rows and columns, and of taps where there are any."""
        rows, columns, *taps = self.values.shape
        return -(-rows // self.block[0]), -(-columns // self.block[1]), *taps

    def block_values(self, orders: Orders) -> FloatArray:
        """Sum of the values in each block of the permuted matrix, ``grid``."""
        rows, columns = (orders[axis] for axis in self.axes)
        return _sums(_sums(self.values[rows], self.block[0], 0)[:, columns], self.block[1], 1)

    def best_blocks(self, sums: FloatArray) -> BoolArray:
        """The heaviest blocks, ties to the first, ``grid``."""
        if self.balanced:
            by_row = sums.reshape(len(sums), -1)
            first = np.argsort(-by_row, axis=1, kind="stable")[:, : self.keep // len(sums)]
            kept = np.zeros(by_row.shape, dtype=bool)
            np.put_along_axis(kept, first, True, axis=1)
            return kept.reshape(sums.shape)
        kept = np.zeros(sums.shape, dtype=bool)
        kept.ravel()[np.argsort(-sums.ravel(), kind="stable")[: self.keep]] = True
        return kept

    def earnings(self, side: int, orders: Orders, blocks: BoolArray) -> FloatArray:
        """What each item of an axis earns in each of its blocks: ``(R, grid[0])`` for rows, ``(C, grid[1])`` else."""
        values, mask = (self.values, blocks) if side == 0 else (self.values.swapaxes(0, 1), blocks.swapaxes(0, 1))
        other = 1 - side
        sums = _sums(values[:, orders[self.axes[other]]], self.block[other], 1)
        earned: FloatArray = sums.reshape(len(sums), -1) @ mask.reshape(len(mask), -1).T.astype(np.float64)
        return earned

    def selection(self, orders: Orders, blocks: BoolArray) -> BoolArray:
        """Kept entries in the matrix's own order, in the shape of its values."""
        rows, columns = (orders[axis] for axis in self.axes)
        kept = np.zeros(self.values.shape, dtype=bool)
        row_blocks, column_blocks = (np.arange(n) // b for n, b in zip(self.values.shape[:2], self.block, strict=True))
        kept[np.ix_(rows, columns)] = blocks[np.ix_(row_blocks, column_blocks)]
        return kept


def _sums(values: FloatArray, size: int, axis: int) -> FloatArray:
    """Sums of consecutive entries along an axis."""
    return np.add.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)


@dataclass(frozen=True, eq=False)
class PermutedResult:
    """Orders, kept blocks, and what they keep.

    Attributes
    ----------
    orders
        For each axis the item at each place, ``(n,)``: the permuted matrix is ``values[orders[0]][:, orders[1]]``.
    blocks
        Kept blocks of each permuted matrix, in the shape of its grid.
    selections
        Kept entries of each matrix in its own order, True = kept.
    objective, bound, gap
        Kept value, a bound on it over all orders (see `solvers.bounds.permuted`), and the relative gap between them.
    history
        Kept value after every turn of the best run, never falling; the first is that of the given orders.
    termination, seed, seconds
        As in every result.
    """

    orders: Orders
    blocks: tuple[BoolArray, ...]
    selections: tuple[BoolArray, ...]
    objective: float
    bound: float
    gap: float
    history: tuple[float, ...]
    termination: Termination
    seed: int
    seconds: float


def assignment_step(earnings: FloatArray, segments: IntArray) -> IntArray:
    """The best item for each slot: a linear assignment in which slots of a segment earn alike, as a flow."""
    sizes = np.bincount(segments, minlength=earnings.shape[1])
    one = np.ones(len(earnings), dtype=np.int64)
    found = maximum_transport(earnings, one, one, sizes, sizes, len(earnings))
    assert found is not None  # as many slots as items
    chosen = found.selection.argmax(axis=1)
    order = np.empty(len(segments), dtype=np.int64)
    order[np.argsort(segments, kind="stable")] = np.argsort(chosen, kind="stable")
    return order


def swap_step(earnings: FloatArray, segments: IntArray) -> IntArray:
    """Items for slots by exchanging the best pair until no exchange earns more: the step of TETRIS."""
    order = np.arange(len(segments))
    at = earnings[:, segments]  # what item i earns at slot s
    here = at.diagonal().copy()
    gains = at + at.T - here[:, None] - here[None, :]
    least = ROUNDING * max(float(np.abs(earnings).max(initial=0.0)), np.finfo(np.float64).tiny)
    for _ in range(len(order) ** 2):
        first, second = divmod(int(gains.argmax()), len(order))
        if not gains[first, second] > least:
            break
        at[[first, second]] = at[[second, first]]
        order[[first, second]] = order[[second, first]]
        here[first], here[second] = at[first, first], at[second, second]
        for slot in (first, second):
            gains[slot] = gains[:, slot] = at[slot] + at[:, slot] - here[slot] - here
    return order


@dataclass(frozen=True)
class PermutedBlocks:
    """Chooses orders and blocks by turns, from the given orders, from random ones, and from the best ones disturbed.

    Parameters
    ----------
    restarts
        Runs from random orders after the first one; the best run counts.
    kicks
        Runs after these from the best orders so far with a fifth of each moved around: iterated local search, which
        finds more than as many restarts.
    step
        How an axis is ordered: `assignment_step` (the best order for the kept blocks) or `swap_step`.
    turns
        Most turns over all axes in a run.
    tolerance
        A run ends when a turn raises the kept value by no more than this fraction.
    time_limit
        Wall seconds, checked between steps; the orders given always are an answer.
    seed
        Of random orders and kicks.

    Raises
    ------
    ValueError
        Numbers below 0.
    """

    restarts: int = 0
    kicks: int = 0
    step: Step = assignment_step
    turns: int = 50
    tolerance: float = 1e-6
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("restarts", "kicks", "turns", "tolerance", "time_limit"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for none.")

    def solve(
        self,
        matrices: BlockMatrix | Sequence[BlockMatrix],
        start: Sequence[ArrayLike] | None = None,
        fixed: Sequence[int] = (),
    ) -> PermutedResult:
        """Orders and blocks of one or several matrices.

        Parameters
        ----------
        matrices
            Those that share axes are permuted together there.
        start
            Order of each axis to begin with, ``(n,)`` each; None begins with the given order.
        fixed
            Axes that keep the order of ``start``.

        Raises
        ------
        ValueError
            No matrices, axes of different length under one number, orders that are no permutations.
        """
        given = (matrices,) if isinstance(matrices, BlockMatrix) else tuple(matrices)
        orders = _checked_orders(axis_lengths(given), start)
        return _Run(self, given, orders, frozenset(fixed)).solve()


def axis_lengths(matrices: Sequence[BlockMatrix]) -> list[int]:
    """Length of each axis. Raises ValueError when matrices disagree, or an axis has none."""
    lengths: dict[int, int] = {}
    for number, matrix in enumerate(matrices):
        for axis, length in zip(matrix.axes, matrix.values.shape[:2], strict=True):
            if lengths.setdefault(axis, length) != length:
                raise ValueError(
                    f"Expected axis {axis} of length {lengths[axis]} in every matrix. Got {length} in matrix {number}. "
                    "Give axes of different length different numbers."
                )
    if not lengths or set(lengths) != set(range(len(lengths))):
        raise ValueError(f"Expected axes 0, 1, ... of at least one matrix. Got {sorted(lengths)}. Number them so.")
    return [lengths[axis] for axis in range(len(lengths))]


def _checked_orders(lengths: list[int], start: Sequence[ArrayLike] | None) -> list[IntArray]:
    orders = [np.arange(length) for length in lengths] if start is None else [np.array(order) for order in start]
    if len(orders) != len(lengths) or any(
        order.shape != (length,) or not np.array_equal(np.sort(order), np.arange(length))
        for order, length in zip(orders, lengths, strict=True)
    ):
        raise ValueError(f"Expected a permutation for each axis, of lengths {lengths}. Got {start!r}. Name each once.")
    return [order.astype(np.int64) for order in orders]


class _Run:
    def __init__(
        self, settings: PermutedBlocks, matrices: tuple[BlockMatrix, ...], orders: list[IntArray], fixed: frozenset[int]
    ) -> None:
        self.settings, self.matrices, self.fixed = settings, matrices, fixed
        self.started = time.perf_counter()
        self.limit: Limit | None = None
        self.start = orders
        self.best: tuple[float, Orders, tuple[BoolArray, ...], tuple[float, ...]] | None = None

    def expired(self) -> bool:
        limit = self.settings.time_limit
        if limit is not None and time.perf_counter() - self.started >= limit:
            self.limit = Limit.TIME
        return self.limit is not None

    def solve(self) -> PermutedResult:
        rng = np.random.default_rng(self.settings.seed)
        try:
            self.climb(self.start)
            for _ in range(self.settings.restarts):
                drawn = [rng.permutation(len(order)) for order in self.start]
                if self.expired():
                    break
                self.climb([self.start[a] if a in self.fixed else order for a, order in enumerate(drawn)])
            for _ in range(self.settings.kicks):
                if self.expired():
                    break
                self.climb(self.kicked(rng))
        except KeyboardInterrupt:
            self.limit = Limit.INTERRUPTED
        if self.best is None:
            self.offer(tuple(self.start), *self.blocks(tuple(self.start)), [])
        return self.result()

    def kicked(self, rng: np.random.Generator) -> list[IntArray]:
        """The best orders with some items of each axis in each other's places."""
        assert self.best is not None
        orders = [order.copy() for order in self.best[1]]
        for axis, order in enumerate(orders):
            if axis not in self.fixed:
                moved = rng.permutation(len(order))[: max(2, round(_KICK * len(order)))]
                order[moved] = order[np.roll(moved, 1)]
        return orders

    def blocks(self, orders: Orders) -> tuple[tuple[BoolArray, ...], float]:
        """Heaviest blocks of every matrix, and the value in them."""
        blocks, parts = [], []
        for matrix in self.matrices:
            sums = matrix.block_values(orders)
            blocks.append(matrix.best_blocks(sums))
            parts.append(math.fsum(sums[blocks[-1]].tolist()))
        return tuple(blocks), math.fsum(parts)

    def offer(self, orders: Orders, blocks: tuple[BoolArray, ...], value: float, history: list[float]) -> None:
        if self.best is None or value > self.best[0]:
            self.best = value, orders, blocks, tuple(history)

    def climb(self, start: list[IntArray]) -> None:
        """One run: order axis after axis until nothing is earned."""
        orders = list(start)
        blocks, value = self.blocks(tuple(orders))
        history = [value]
        self.offer(tuple(orders), blocks, value, history)
        for _ in range(self.settings.turns):
            before = value
            for axis in range(len(orders)):
                if axis in self.fixed or self.expired():
                    continue
                moved = [*orders]
                moved[axis] = self.ordered(axis, tuple(orders), blocks)
                # A step is exact up to rounding: what does not raise the value is not taken.
                new_blocks, new_value = self.blocks(tuple(moved))
                if new_value > value:
                    orders, blocks, value = moved, new_blocks, new_value
                history.append(value)
            self.offer(tuple(orders), blocks, value, history)
            if value - before <= self.settings.tolerance * abs(before) or self.limit is not None:
                return

    def ordered(self, axis: int, orders: Orders, blocks: tuple[BoolArray, ...]) -> IntArray:
        """The axis's new order, by the step."""
        length = len(orders[axis])
        # Slots earn alike when they lie in the same block of every matrix: those form a segment.
        sides = [
            (matrix, kept, matrix.axes.index(axis))
            for matrix, kept in zip(self.matrices, blocks, strict=True)
            if axis in matrix.axes
        ]
        places = np.stack([np.arange(length) // matrix.block[side] for matrix, _, side in sides])
        kinds, segments = np.unique(places, axis=1, return_inverse=True)
        earnings = np.zeros((length, kinds.shape[1]))
        for (matrix, kept, side), kind in zip(sides, kinds, strict=True):
            earnings += matrix.earnings(side, orders, kept)[:, kind]
        chosen: IntArray = orders[axis][self.settings.step(earnings[orders[axis]], segments.ravel())]
        return chosen

    def result(self) -> PermutedResult:
        assert self.best is not None
        _, orders, blocks, history = self.best
        selections = tuple(m.selection(orders, kept) for m, kept in zip(self.matrices, blocks, strict=True))
        kept = [m.values[chosen].tolist() for m, chosen in zip(self.matrices, selections, strict=True)]
        objective = math.fsum(value for part in kept for value in part)
        bound = math.fsum(
            permuted_bound(m.values.reshape(len(m.values), -1), m.block, m.keep, m.balanced) for m in self.matrices
        )
        total = math.fsum(total_value(m.values) for m in self.matrices)
        bound = max(bound, objective)
        gap = relative_gap(objective, bound, total)
        reason = TerminationReason.OPTIMAL if gap <= OPTIMAL_GAP else TerminationReason.FEASIBLE
        text = (
            "No orders and blocks keep more value."
            if reason is TerminationReason.OPTIMAL
            else f"At most {100 * gap:.3g} % of the lost value is avoidable. The bound lets every row and column "
            "choose for itself and is seldom reached; more kicks may find better orders."
        )
        limit = None if reason is TerminationReason.OPTIMAL else self.limit
        termination = Termination(reason, limit, text)
        seconds = time.perf_counter() - self.started
        return PermutedResult(
            orders, blocks, selections, objective, bound, gap, history, termination, self.settings.seed, seconds
        )


def is_permuted_blocks(matrix: BlockMatrix, orders: Orders, selection: ArrayLike) -> bool:
    """Whether a mask, seen in the orders, consists of ``keep`` whole blocks (equally many in each row if balanced)."""
    rows, columns = (orders[axis] for axis in matrix.axes)
    permuted = np.asarray(selection, dtype=bool)[np.ix_(rows, columns)].astype(np.float64)
    filled = _sums(_sums(permuted, matrix.block[0], 0), matrix.block[1], 1)
    ones = np.ones(matrix.values.shape)
    sizes = _sums(_sums(ones, matrix.block[0], 0), matrix.block[1], 1)
    whole = filled == sizes
    per_row = whole.reshape(len(whole), -1).sum(axis=1)
    even = not matrix.balanced or bool(np.all(per_row == per_row[0]))
    return bool(np.all(whole | (filled == 0))) and int(per_row.sum()) == matrix.keep and even
