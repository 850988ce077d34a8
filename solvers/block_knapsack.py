"""Knapsack over many small blocks in layers, 10^7 and more.

    maximise   sum of the values of the kept blocks
    subject to sum_l k_l cost_lr <= limit_r  for r = 1 .. m,    minimum_l <= k_l <= maximum_l,

where layer ``l`` keeps ``k_l`` blocks, its most valuable ones. The values of each layer are sorted once; a bound is
then a binary search per layer (`solvers.bounds.sorted_layers`), and the next budget costs milliseconds. Near the
priced counts the layers are a small multiple-choice knapsack, which `solvers.knapsack_search` solves, with its proof.

Where the blocks of a layer cost different amounts, every block becomes a class of its own: in or out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from solvers.blocks import BlockLayers, BlockResult
from solvers.bounds.multiple_choice import MultipleChoice, descend
from solvers.bounds.sorted_layers import SortedLayer, SortedLayers
from solvers.knapsack_search import KnapsackSearch
from solvers.problem import FloatArray, IntArray
from solvers.result import ROUNDING, Termination, TerminationReason, relative_gap
from solvers.terms import frozen_integers

#: Counts on each side of the priced one that are looked at first, and at most.
_REACH = (48, 4096)


@dataclass(frozen=True)
class BlockKnapsack:
    """Chooses blocks within one or several limits.

    Parameters
    ----------
    gap_tolerance, time_limit, seed
        See `solvers.knapsack.Knapsack`. The time limit does not interrupt the sort.
    max_states
        Most partial choices that are formed for one budget.
    """

    gap_tolerance: float = 1e-6
    time_limit: float | None = 20.0
    max_states: int = 2_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gap_tolerance", "time_limit", "max_states"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for the strictest setting.")

    def prepare(self, blocks: BlockLayers) -> PreparedBlocks:
        """Sort once, for any number of limits."""
        return PreparedBlocks(self, blocks)

    def solve(self, blocks: BlockLayers) -> BlockResult:
        """Sort and solve."""
        started = time.perf_counter()
        return self.prepare(blocks).solve(started=started)


class PreparedBlocks:
    """Sorted blocks, ready for any limits; made by `BlockKnapsack.prepare`."""

    def __init__(self, settings: BlockKnapsack, blocks: BlockLayers) -> None:
        self.settings = settings
        self.blocks = blocks
        if blocks.uniform:
            assert isinstance(blocks.costs, np.ndarray)
            layers = tuple(SortedLayer(values, f"layer {number}") for number, values in enumerate(blocks.values))
            self.sorted = SortedLayers(layers, blocks.costs, *blocks.span)

    @cached_property
    def items(self) -> MultipleChoice:
        """Every block as a class: out or in."""
        resources = len(self.blocks.limits)
        rows = [
            np.broadcast_to(np.asarray(cost).reshape(-1, resources), (values.size, resources))
            for cost, values in zip(self.blocks.costs, self.blocks.values, strict=True)
        ]
        values = np.concatenate([each.astype(np.float64) for each in self.blocks.values])
        if not np.all(np.isfinite(values)):
            raise ValueError("Expected finite values. Got NaN or infinite ones. Check the scores.")
        costs = np.concatenate(rows)
        both = np.stack([np.zeros_like(values), values], axis=1).ravel()
        amounts = np.stack([np.zeros_like(costs), costs], axis=1).reshape(-1, resources).T.copy()
        return MultipleChoice(both, amounts, np.arange(0, 2 * len(values) + 1, 2, dtype=np.int64), self.blocks.limits)

    def sweep(self, limits: Sequence[ArrayLike]) -> list[BlockResult]:
        """One result per budget, each equal to a fresh solve."""
        return [self.solve(each) for each in limits]

    def solve(self, limits: ArrayLike | None = None, started: float | None = None) -> BlockResult:
        """Choose within ``limits``, shape ``(m,)``; those of the problem when not given."""
        started = time.perf_counter() if started is None else started
        room = self.blocks.limits if limits is None else frozen_integers(np.atleast_1d(np.asarray(limits)), "limits")
        if room.shape != self.blocks.limits.shape:
            raise ValueError(f"Expected limits of shape {self.blocks.limits.shape}. Got {room.shape}. Give one each.")
        return self._solve_layers(room, started) if self.blocks.uniform else self._solve_items(room, started)

    # --- layers of equal costs -------------------------------------------------------------------------------------

    def _solve_layers(self, limits: IntArray, started: float) -> BlockResult:
        least = self.sorted.minimum @ self.sorted.costs
        if np.any(least > limits):
            return self._infeasible(least, limits, started)
        units = np.maximum(1.0, np.abs(limits.astype(np.float64)))
        layers = self.sorted
        relaxed = descend(
            lambda prices: layers.evaluate(prices, limits), units, layers.spread, layers.rounding, evaluations=80
        )
        counts = layers.evaluate(relaxed.prices, limits).choice
        reach = np.full(len(counts), _REACH[0], dtype=np.int64)
        while True:
            first = np.maximum(layers.minimum, counts - reach)
            last = np.minimum(layers.maximum, counts + reach)
            classes = layers.between(first, last, limits)
            search = self._search(classes, layers.total, started)
            if search.best is not None:
                outside = relaxed.bound - layers.edge(relaxed.prices, counts, first, last)
                outside += layers.rounding(relaxed.prices)
                bound = min(relaxed.bound, max(search.bound, outside))
                search.bound = max(bound, search.objective)
                if search.gap() <= self.settings.gap_tolerance or outside <= search.bound or search.expired():
                    break
            elif np.all(first == layers.minimum) and np.all(last == layers.maximum):
                break
            if reach[0] >= _REACH[1] and search.best is not None:
                break
            reach = reach * 4
        result = self._result(search.termination(_named(limits)), limits, relaxed.prices, started)
        if search.best is None:
            return result
        counts = search.best - search.classes.starts[:-1] + first
        bound = search.bound + layers.rounding(np.zeros(len(limits)))
        return replace(
            result,
            counts=counts,
            objective=search.objective,
            bound=bound,
            gap=relative_gap(search.objective, bound, layers.total),
            used=counts @ layers.costs,
            proof=(search.proof, first, last),
        )

    def _search(self, classes: MultipleChoice, total: float, started: float) -> KnapsackSearch:
        given = self.settings
        search = KnapsackSearch(classes, total, given.gap_tolerance, given.time_limit, given.max_states, started)
        search.run()
        return search

    def _result(self, termination: Termination, limits: IntArray, prices: FloatArray, started: float) -> BlockResult:
        """A result without a choice."""
        seconds = time.perf_counter() - started
        return BlockResult(None, None, None, None, None, limits, prices, termination, self.settings.seed, seconds)

    def _infeasible(self, least: IntArray, limits: IntArray, started: float) -> BlockResult:
        texts = [
            f"resource {k}: limit {limits[k]}, smallest reachable {least[k]} (short by {least[k] - limits[k]})"
            for k in np.flatnonzero(least > limits)
        ]
        text = f"{'; '.join(texts)}. Raise the limit, or lower the minimum counts."
        termination = Termination(TerminationReason.INFEASIBLE, None, text)
        return self._result(termination, limits, np.zeros(len(limits)), started)

    # --- blocks of different costs ---------------------------------------------------------------------------------

    def _solve_items(self, limits: IntArray, started: float) -> BlockResult:
        if np.any(limits < 0):
            return self._infeasible(np.zeros_like(limits), limits, started)
        items = replace(self.items, room=limits)
        search = self._search(items, float(np.maximum(items.values, 0.0).sum()), started)
        assert search.best is not None  # nothing kept is within every limit of at least 0
        ends = np.cumsum([each.size for each in self.blocks.values])[:-1]
        kept = tuple(np.split((search.best % 2).astype(bool), ends))
        none = np.zeros(0, dtype=np.int64)
        return replace(
            self._result(search.termination(_named(limits)), limits, search.prices, started),
            counts=np.array([int(each.sum()) for each in kept], dtype=np.int64),
            objective=search.objective,
            bound=search.bound,
            gap=search.gap(),
            used=items.used(search.best),
            kept=kept,
            proof=(search.proof, none, none),
        )


def _named(limits: IntArray) -> str:
    return ", ".join(f"resource {k} at most {limit}" for k, limit in enumerate(limits.tolist()))


def check_blocks(blocks: BlockLayers, result: BlockResult) -> None:
    """Recompute a result's counts, amounts, objective and bound from the blocks.

    Raises
    ------
    ValueError
        Something in the result is false, or the result has no choice.
    """
    kept = result.selection(blocks)
    if result.objective is None or result.bound is None or result.used is None or result.proof is None:
        raise ValueError("Expected a choice with its proof. Got a result without. There is nothing to check.")
    counts = np.array([int(each.sum()) for each in kept], dtype=np.int64)
    low, high = blocks.span
    rows = [np.asarray(cost).reshape(-1, len(result.limits)) for cost in blocks.costs]
    used = np.zeros(len(result.limits), dtype=np.int64)
    for row, mask in zip(rows, kept, strict=True):
        used += row[0] * int(mask.sum()) if len(row) == 1 else row[mask].sum(axis=0)
    if (
        result.counts is None
        or not np.array_equal(counts, result.counts)
        or np.any(counts < low)
        or np.any(counts > high)
    ):
        raise ValueError(f"Expected counts {counts.tolist()[:8]} within their bounds. Got {result.counts}.")
    if not np.array_equal(used, result.used) or np.any(used > result.limits):
        raise ValueError(f"Expected used {used} within {result.limits}. Got {result.used}. The amounts are not true.")
    value = float(sum(float(each[mask].sum(dtype=np.float64)) for each, mask in zip(blocks.values, kept, strict=True)))
    scale = float(sum(np.abs(each).sum(dtype=np.float64) for each in blocks.values))
    if not abs(value - result.objective) <= ROUNDING * scale:
        raise ValueError(f"Expected the objective {value!r}. Got {result.objective!r}. It is not true.")
    proven = _proven(blocks, result, value, ROUNDING * scale)
    if not result.objective - ROUNDING * scale <= proven <= result.bound + ROUNDING * scale:
        raise ValueError(f"Expected a proof of the bound {result.bound!r}. Got {proven!r}. The bound is not proven.")


def _proven(blocks: BlockLayers, result: BlockResult, floor: float, slack: float) -> float:
    """The bound at the result's prices, or that of the repeated search when it is needed."""
    assert result.bound is not None
    assert result.proof is not None
    proof, first, last = result.proof
    fresh = PreparedBlocks(BlockKnapsack(), blocks)
    enough = result.bound + slack
    if not blocks.uniform:
        return max(floor, *proof.bounds(replace(fresh.items, room=result.limits), floor, enough))
    layers = fresh.sorted
    at_prices = layers.evaluate(result.prices, result.limits)
    if at_prices.bound <= enough:
        return at_prices.bound
    classes = layers.between(first, last, result.limits)
    outside = at_prices.bound - layers.edge(result.prices, at_prices.choice, first, last)
    return max(floor, outside + layers.rounding(result.prices), *proof.bounds(classes, floor, enough))
