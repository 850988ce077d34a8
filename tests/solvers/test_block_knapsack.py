"""Block knapsack: the enumerated optimum, sweeps equal to fresh solves, and answers that are checked."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers import knapsack_instances as instances
from solvers.balanced_rows import balanced_rows
from solvers.block_knapsack import BlockKnapsack, check_blocks
from solvers.blocks import BlockLayers, BlockResult, largest
from solvers.bounds.sorted_layers import SortedLayer
from solvers.knapsack import Knapsack
from solvers.problem import Capacity, Product, SelectionProblem
from solvers.result import OPTIMAL_GAP, TerminationReason

EXACT = BlockKnapsack(gap_tolerance=0.0, time_limit=None)


def small(seed: int) -> BlockLayers:
    """Up to 4 layers of up to 5 blocks, some with negative or equal values; 1 to 3 limits, sometimes counts."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=int(rng.integers(1, 5)))
    values = tuple(np.round(rng.normal(0.5, 1.0, size=size), int(rng.integers(0, 4))) for size in sizes)
    costs = rng.integers(0, 9, size=(len(sizes), int(rng.integers(1, 4))))
    limits = (rng.uniform(0.0, 1.0) * (sizes @ costs)).astype(np.int64)
    if rng.random() < 0.5:
        return BlockLayers(values, costs, limits)
    low = rng.integers(0, 2, size=len(sizes))
    return BlockLayers(values, costs, limits, low, np.minimum(sizes, low + rng.integers(0, 5, size=len(sizes))))


def best_counts(blocks: BlockLayers) -> float:
    """Largest value over all counts; -inf when none is within the limits."""
    low, high = blocks.span
    tops = [np.r_[0.0, np.cumsum(np.sort(values)[::-1])] for values in blocks.values]
    best = -math.inf
    for counts in itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True))):
        if np.all(np.array(counts) @ np.asarray(blocks.costs) <= blocks.limits):
            best = max(best, math.fsum(float(top[k]) for top, k in zip(tops, counts, strict=True)))
    return best


def many(seed: int, size: int, resources: int = 1, layers: int = 24) -> BlockLayers:
    """Lognormal values in layers of different sizes, limits at 12 to 14 % of everything."""
    return instances.blocks(seed, size, (0.12, 0.13, 0.14)[:resources], layers)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_answer_is_the_enumerated_optimum(seed: int) -> None:
    """Exact solve = exhaustive search over counts, and every fact checks."""
    blocks = small(seed)
    best, result = best_counts(blocks), EXACT.solve(blocks)
    if best == -math.inf:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert result.counts is result.objective is result.bound is None
        return
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert result.objective == pytest.approx(best, abs=1e-9)
    assert result.bound is not None
    assert result.bound >= best
    check_blocks(blocks, result)


@pytest.mark.parametrize("seed", range(40))
def test_blocks_of_different_costs_are_solved_too(seed: int) -> None:
    """Exact solve = exhaustive search over subsets when every block has its own cost."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=int(rng.integers(1, 4)))
    resources = int(rng.integers(1, 3))
    values = tuple(rng.normal(0.5, 1.0, size=size) for size in sizes)
    costs = tuple(rng.integers(0, 9, size=(size, resources)) for size in sizes[:-1])
    costs += (rng.integers(0, 9, size=(int(sizes[-1]), resources)),)
    flat, amounts = np.concatenate(values), np.concatenate(costs)
    limits = (rng.uniform(0.1, 0.9) * amounts.sum(axis=0)).astype(np.int64)
    best = max(
        math.fsum(flat[list(kept)])
        for count in range(len(flat) + 1)
        for kept in itertools.combinations(range(len(flat)), count)
        if np.all(amounts[list(kept)].sum(axis=0) <= limits)
    )
    blocks = BlockLayers(values, costs, limits)
    result = EXACT.solve(blocks)
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert result.objective == pytest.approx(best, abs=1e-9)
    check_blocks(blocks, result)


def test_one_cost_given_per_block_is_one_cost_per_layer() -> None:
    """Both forms have the same optimum."""
    blocks = many(4, 300, layers=6)
    rows = tuple(np.tile(cost, (values.size, 1)) for cost, values in zip(blocks.costs, blocks.values, strict=True))
    apart = BlockLayers(blocks.values, rows, blocks.limits)
    first, second = EXACT.solve(blocks), BlockKnapsack(time_limit=None).solve(apart)
    assert not apart.uniform
    assert first.objective is not None
    assert second.bound is not None
    assert second.objective is not None
    assert second.objective <= first.objective * (1 + 1e-12) <= second.bound * (1 + 2e-12)
    check_blocks(apart, second)


@pytest.mark.parametrize("resources", [1, 2, 3])
@pytest.mark.parametrize("size", [2_000, 200_000])
def test_many_blocks_are_solved_closely(size: int, resources: int) -> None:
    """A gap of a few blocks, and a proof that checks."""
    blocks = many(7, size, resources)
    result = BlockKnapsack().solve(blocks)
    assert result.gap is not None
    assert result.gap <= (1e-6 if resources == 1 else 3e-4 if size == 2_000 else 1e-6)
    assert (result.termination.reason is TerminationReason.OPTIMAL) == (result.gap <= OPTIMAL_GAP)
    check_blocks(blocks, result)


def same(one: BlockResult, two: BlockResult) -> bool:
    """Whether two results agree in everything but the time."""
    arrays = ("counts", "used", "limits", "prices")
    equal = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays)
    return equal and (one.objective, one.bound, one.gap) == (two.objective, two.bound, two.gap)


@pytest.mark.parametrize("resources", [1, 2])
def test_a_sweep_equals_fresh_solves(resources: int) -> None:
    """Whatever was solved before with the same sort, and again with the same budgets."""
    blocks = many(1, 5_000, resources)
    solver = BlockKnapsack(time_limit=None)
    budgets = [(blocks.limits * factor).astype(np.int64) for factor in (2.0, 0.5, 1.0, 0.5)]
    prepared = solver.prepare(blocks)
    swept = prepared.sweep(budgets)
    fresh = [solver.solve(BlockLayers(blocks.values, blocks.costs, limits)) for limits in budgets]
    assert all(same(one, two) for one, two in zip(swept, fresh, strict=True))
    assert same(swept[1], swept[3])


def test_more_budget_is_never_worse() -> None:
    """The value rises with the limit, and each bound holds for all smaller limits."""
    blocks = many(2, 3_000)
    factors = (0.0, 0.1, 0.3, 0.9, 1.0, 3.0, 20.0)
    swept = EXACT.prepare(blocks).sweep([(blocks.limits * factor).astype(np.int64) for factor in factors])
    values = [result.objective for result in swept]
    assert all(value is not None for value in values)
    assert values == sorted(values)  # type: ignore[type-var]
    assert swept[-1].objective == pytest.approx(sum(float(each.sum()) for each in blocks.values), rel=1e-12)


def test_selections_keep_the_best_of_each_layer() -> None:
    """As many as counted, none less valuable than one that goes; of equal values the first."""
    blocks = many(3, 1_000, layers=5)
    result = BlockKnapsack().solve(blocks)
    assert result.counts is not None
    for mask, values, count in zip(result.selection(blocks), blocks.values, result.counts, strict=True):
        assert mask.sum() == count
        assert not mask.any() or mask.all() or values[mask].min() >= values[~mask].max()
    assert largest(np.array([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [False, True, True, False]


def test_arguments_stay_untouched() -> None:
    """Neither sorting nor solving writes to the values."""
    blocks = many(3, 500, layers=5)
    before = [values.copy() for values in blocks.values]
    BlockKnapsack().solve(blocks)
    assert all(np.array_equal(one, two) for one, two in zip(before, blocks.values, strict=True))
    assert all(values.flags.writeable for values in blocks.values)


def test_false_results_fail() -> None:
    """Another objective, bound, count or amount is found out."""
    blocks = many(5, 400, 2, layers=8)
    true = EXACT.solve(blocks)
    check_blocks(blocks, true)
    assert true.counts is not None
    assert true.objective is not None
    assert true.used is not None
    other = true.counts.copy()
    other[int(np.argmax(other))] -= 1
    lower = true.objective - 1e-6 * abs(true.objective)
    false = [
        replace(true, objective=true.objective * (1 + 1e-6)),
        replace(true, bound=lower),
        replace(true, counts=other),
        replace(true, used=true.used - 1),
        replace(true, limits=true.used - 1),
    ]
    for result in false:
        with pytest.raises(ValueError, match="Expected"):
            check_blocks(blocks, result)


def test_sums_of_sorted_values_are_those_of_numpy() -> None:
    """Across the borders of the pieces that are summed together."""
    values = np.random.default_rng(0).normal(size=10_000)
    layer, ranked = SortedLayer(values), np.sort(values)[::-1]
    for count in (0, 1, 4095, 4096, 4097, 8192, 9999, 10_000):
        assert layer.top(count) == pytest.approx(float(ranked[:count].sum()), rel=1e-12)
    assert layer.tops(4000, 4200) == pytest.approx(np.cumsum(ranked)[3999:4200], rel=1e-12)
    for threshold in (-10.0, 0.0, float(ranked[17]), 10.0):
        assert layer.count_above(threshold) == int((values > threshold).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (np.array([1.0, np.nan]), np.ones(3))}, "finite values in layer 0"),
        ({"values": (np.ones((2, 2)), np.ones(3))}, "layer 0 of shape"),
        ({"values": (np.array([1, 2]), np.ones(3))}, "float type"),
        ({"costs": np.array([[1], [-1]])}, "at least 0"),
        ({"costs": np.array([[1, 2], [1, 2]])}, r"shape \(2, 1\)"),
        ({"costs": np.array([[2**61], [1]])}, "below 2"),
        ({"minimum": np.array([1, 4])}, "minimum <= maximum"),
        ({"maximum": np.array([1, 4])}, "number of blocks"),
        ({"maximum": np.array([1])}, r"maximum of shape \(2,\)"),
        ({"costs": (np.ones((2, 1), dtype=np.int64), np.array([1])), "minimum": np.array([1, 0])}, "no minimum"),
    ],
)
def test_wrong_blocks_are_refused(change: dict[str, object], message: str) -> None:
    """With the layer's number and what to do."""
    right: dict[str, object] = {"values": (np.ones(2), np.ones(3)), "costs": np.array([[1], [1]]), "limits": [3]}
    with pytest.raises(ValueError, match=message):
        BlockKnapsack().solve(BlockLayers(**{**right, **change}))  # type: ignore[arg-type]


def test_costs_and_limits_are_integers() -> None:
    """Floats are refused rather than rounded."""
    with pytest.raises(TypeError, match="integer"):
        BlockLayers((np.ones(2),), np.array([[1.5]]), np.array([3]))
    with pytest.raises(TypeError, match="integer"):
        BlockLayers((np.ones(2),), np.array([[1]]), np.array([3.5]))


def test_a_minimum_beyond_the_limit_is_an_outcome() -> None:
    """The text says which resource and by how much; there is nothing to select."""
    blocks = BlockLayers((np.ones(4),), np.array([[3]]), np.array([5]), np.array([2]))
    result = BlockKnapsack().solve(blocks)
    assert result.termination.reason is TerminationReason.INFEASIBLE
    assert "resource 0: limit 5, smallest reachable 6 (short by 1)" in result.termination.text
    with pytest.raises(ValueError, match="Expected a choice"):
        result.selection(blocks)


def test_balanced_rows_keep_equally_many_per_row() -> None:
    """The group's value is the sum of each row's best, its selection those blocks, and it enters a problem as it is."""
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(4, 6)) ** 2, rng.normal(size=(3, 8)) ** 2]
    groups = (balanced_rows("a", matrices[0]), balanced_rows("b", matrices[1], first=24, minimum=1, maximum=5))
    for group, matrix, first in zip(groups, matrices, (0, 1), strict=True):
        ranked = np.sort(matrix, axis=1)[:, ::-1]
        for k, value in enumerate(group.values, start=first):
            assert value == pytest.approx(float(ranked[:, :k].sum()))
    assert groups[0].levels.tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert groups[1].levels.tolist() == [3, 6, 9, 12, 15]
    problem = SelectionProblem(groups, (Capacity("blocks", 25, (Product((0,), 1), Product((1,), 1))),), 48)
    result = Knapsack(gap_tolerance=0.0).solve(problem)
    assert result.selection is not None
    assert result.choice is not None
    for start, matrix, group, index in zip((0, 24), matrices, groups, result.choice, strict=True):
        mask = result.selection[start : start + 24].reshape(matrix.shape)
        count = group.levels[index] // len(matrix)
        assert np.all(mask.sum(axis=1) == count)
        assert float(matrix[mask].sum()) == pytest.approx(float(group.values[index]))


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 2)), np.array([[np.inf]])])
def test_rows_that_are_no_matrix_are_refused(values: np.ndarray) -> None:
    """Vectors, empty and infinite matrices."""
    with pytest.raises(ValueError, match="Expected"):
        balanced_rows("a", values)
