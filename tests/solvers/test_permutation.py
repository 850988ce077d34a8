"""Permuted blocks: each turn is best for what is held, and the whole never loses."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from solvers.bounds.permuted import permuted_bound
from solvers.permutation import (
    BlockMatrix,
    PermutedBlocks,
    PermutedResult,
    assignment_step,
    is_permuted_blocks,
    swap_step,
)
from solvers.result import Limit, TerminationReason

SEEDS = st.integers(0, 2**32 - 1)


def random_matrix(seed: int, largest: int = 12) -> BlockMatrix:
    """Any shape, blocks that need not divide it, any number kept, all signs or none."""
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(1, largest + 1, size=2))
    block = int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1))
    values = rng.normal(size=(rows, columns)) if rng.random() < 0.3 else rng.lognormal(size=(rows, columns))
    grid = -(-rows // block[0]), -(-columns // block[1])
    balanced = bool(rng.random() < 0.4)
    keep = int(rng.integers(0, grid[1] + 1)) * grid[0] if balanced else int(rng.integers(0, grid[0] * grid[1] + 1))
    return BlockMatrix(values, block, keep, balanced=balanced)


def with_taps(matrix: BlockMatrix, taps: int) -> BlockMatrix:
    """Return a matrix of this size and these blocks for each tap, which keeps as many blocks of each on average."""
    values = np.random.default_rng(0).lognormal(size=(*matrix.values.shape, taps))
    return BlockMatrix(values, matrix.block, matrix.keep * taps, balanced=matrix.balanced)


def check(matrix: BlockMatrix, result: PermutedResult) -> None:
    """Orders permute, blocks are whole, the objective is the mask's value, the bound beyond it, no turn lost."""
    for order, length in zip(result.orders, matrix.values.shape[:2], strict=True):
        assert np.array_equal(np.sort(order), np.arange(length))
    (selection,) = result.selections
    assert is_permuted_blocks(matrix, result.orders, selection)
    assert int(result.blocks[0].sum()) == matrix.keep
    assert result.objective == pytest.approx(float(matrix.values[selection].sum()), rel=1e-12, abs=1e-12)
    assert result.bound >= result.objective
    assert np.all(np.diff(result.history) >= 0)
    assert result.objective == pytest.approx(result.history[-1], rel=1e-12, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_every_answer_keeps_the_laws(seed: int) -> None:
    """With either step, on matrices of any shape, of one or several taps."""
    matrix = random_matrix(seed)
    matrix = with_taps(matrix, 1 + seed % 3) if seed % 2 else matrix
    for step in (assignment_step, swap_step):
        result = PermutedBlocks(step=step, restarts=1, kicks=2, seed=seed).solve(matrix)
        check(matrix, result)
        assert result.objective >= PermutedBlocks(turns=0).solve(matrix).objective


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_a_turn_is_an_exact_assignment(seed: int) -> None:
    """As good as scipy's assignment of items to slots, never below one turn of swaps, whatever the segments."""
    rng = np.random.default_rng(seed)
    size, kinds = int(rng.integers(1, 16)), int(rng.integers(1, 5))
    segments = np.sort(rng.integers(0, kinds, size=size)) if rng.random() < 0.5 else rng.integers(0, kinds, size=size)
    earnings = rng.normal(size=(size, kinds)) * 10.0 ** rng.integers(-3, 4)
    orders = [step(earnings, segments) for step in (assignment_step, swap_step)]
    best, swapped = (float(earnings[order, segments].sum()) for order in orders)
    at = earnings[:, segments]
    rows, columns = linear_sum_assignment(at, maximize=True)
    assert all(np.array_equal(np.sort(order), np.arange(size)) for order in orders)
    assert best == pytest.approx(float(at[rows, columns].sum()), rel=1e-9, abs=1e-9)
    assert best >= swapped - 1e-9 * abs(swapped)
    assert swapped >= float(at.trace()) - 1e-9 * abs(swapped)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_the_bound_holds_for_every_order(seed: int) -> None:
    """Against all orders and block sets of small matrices."""
    matrix = random_matrix(seed, largest=4)
    rows, columns = matrix.values.shape
    best = -np.inf
    for first in permutations(range(rows)):
        for second in permutations(range(columns)):
            sums = matrix.block_values((np.array(first), np.array(second)))
            if matrix.balanced:
                each = matrix.keep // len(sums)
                value = float(np.sort(sums, axis=1)[:, sums.shape[1] - each :].sum())
            else:
                value = max(sum(c) for c in combinations(sums.ravel().tolist(), matrix.keep))
            best = max(best, value)
    bound = permuted_bound(matrix.values, matrix.block, matrix.keep, matrix.balanced)
    found = PermutedBlocks(restarts=20).solve(matrix)
    assert bound >= best - 1e-9
    assert found.objective <= best + 1e-9
    check(matrix, found)


@pytest.mark.parametrize("block", [4, 8])
def test_planted_blocks_are_found(block: int) -> None:
    """Blocks hidden by a shuffle are recovered to 95 % of what single entries keep; 200 random orders reach 20 %."""
    rng = np.random.default_rng(block)
    grid = 64 // block
    planted = np.kron(rng.random((grid, grid)) < 0.5, np.ones((block, block)))
    values = np.abs(rng.normal(size=(64, 64))) * np.maximum(planted, 0.01)
    matrix = BlockMatrix(
        values[rng.permutation(64)][:, rng.permutation(64)], (block, block), int(planted.sum()) // block**2
    )
    given_value = PermutedBlocks(turns=0).solve(matrix).objective
    room = float(np.sort(values, axis=None)[-int(planted.sum()) :].sum()) - given_value
    found, drawn = PermutedBlocks(restarts=20).solve(matrix), PermutedBlocks(restarts=200, turns=0).solve(matrix)
    assert (found.objective - given_value) / room >= 0.95
    assert (drawn.objective - given_value) / room <= 0.20


def test_one_tap_is_a_matrix() -> None:
    """The same orders and blocks are found."""
    matrix = random_matrix(5)
    tapped = BlockMatrix(matrix.values[:, :, None], matrix.block, matrix.keep, balanced=matrix.balanced)
    plain, found = (PermutedBlocks(restarts=2).solve(each) for each in (matrix, tapped))
    assert all(np.array_equal(a, b) for a, b in zip(plain.orders, found.orders, strict=True))
    assert np.array_equal(plain.selections[0], found.selections[0][:, :, 0])
    assert found.bound == plain.bound


def test_shared_axes_move_together() -> None:
    """A layer's outputs and the next one's inputs get one order, better than either layer's own for both."""
    rng = np.random.default_rng(0)
    hidden = np.kron(rng.random((4, 4)) < 0.5, np.ones((4, 4))) + 0.01
    outputs = np.kron(rng.random((4, 6)) < 0.5, np.ones((4, 2))) + 0.01
    order = rng.permutation(16)
    first = BlockMatrix(np.asarray(hidden[order][:, rng.permutation(16)], np.float64), (4, 4), 8, axes=(0, 1))
    second = BlockMatrix(np.asarray(outputs[order][:, rng.permutation(12)], np.float64), (4, 2), 12, axes=(0, 2))
    both = PermutedBlocks(restarts=10).solve([first, second])
    assert len(both.orders) == 3
    for matrix, selection in zip((first, second), both.selections, strict=True):
        assert is_permuted_blocks(matrix, both.orders, selection)
    apart = PermutedBlocks(restarts=10).solve(first).orders
    forced = PermutedBlocks(restarts=10).solve([first, second], start=[*apart, np.arange(12)], fixed=(0, 1))
    assert both.objective >= forced.objective
    assert np.array_equal(forced.orders[0], apart[0])
    value = float(first.values[both.selections[0]].sum() + second.values[both.selections[1]].sum())
    assert both.objective == pytest.approx(value, rel=1e-12)
    assert both.objective <= both.bound


def test_matrices_of_different_blocks_share_an_axis() -> None:
    """Blocks of 3 rows in one and 2 in the other: slots that lie alike in both form the segments."""
    rng = np.random.default_rng(1)
    first = BlockMatrix(rng.lognormal(size=(10, 7)), (3, 2), 6, axes=(0, 1))
    second = BlockMatrix(rng.lognormal(size=(5, 10)), (2, 2), 7, axes=(2, 0))
    result = PermutedBlocks(restarts=3).solve([first, second])
    assert np.all(np.diff(result.history) >= 0)
    assert is_permuted_blocks(first, result.orders, result.selections[0])
    assert is_permuted_blocks(second, result.orders, result.selections[1])


def test_kicks_never_lose_and_leave_fixed_axes_alone() -> None:
    """More kicks with the same seed keep at least as much."""
    matrix = BlockMatrix(np.random.default_rng(6).lognormal(size=(32, 32)), (4, 4), 20)
    values = [PermutedBlocks(kicks=kicks).solve(matrix).objective for kicks in (0, 2, 8)]
    assert values == sorted(values)
    assert values[0] < values[-1]
    result = PermutedBlocks(kicks=3).solve(matrix, fixed=(0,))
    assert np.array_equal(result.orders[0], np.arange(32))


def test_equal_seeds_give_equal_answers() -> None:
    """Restarts are drawn from the seed; scaling all values changes nothing."""
    matrix = BlockMatrix(np.random.default_rng(2).lognormal(size=(40, 30)), (4, 4), 30)
    scaled = BlockMatrix(matrix.values * 2.0, (4, 4), 30)
    first, second, third = (PermutedBlocks(restarts=3, kicks=3, seed=7).solve(m) for m in (matrix, matrix, scaled))
    for other in (second, third):
        assert all(np.array_equal(a, b) for a, b in zip(first.orders, other.orders, strict=True))
        assert np.array_equal(first.selections[0], other.selections[0])
    assert first.objective == second.objective


def test_no_time_returns_the_given_order() -> None:
    """The limit is named and the answer is whole blocks."""
    matrix = BlockMatrix(np.random.default_rng(3).lognormal(size=(16, 16)), (4, 4), 5)
    result = PermutedBlocks(time_limit=0.0, restarts=5).solve(matrix)
    check(matrix, result)
    assert np.array_equal(result.orders[0], np.arange(16))
    assert result.termination.limit is Limit.TIME
    assert result.termination.reason is TerminationReason.FEASIBLE


def test_an_interrupt_returns_the_best_so_far() -> None:
    """Ctrl-C within the second turn loses nothing that the first found."""
    calls = []

    def interrupted(earnings: np.ndarray, segments: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return assignment_step(earnings, segments)

    matrix = BlockMatrix(np.random.default_rng(4).lognormal(size=(24, 24)), (4, 4), 12)
    result = PermutedBlocks(step=interrupted).solve(matrix)
    check(matrix, result)
    assert result.termination.limit is Limit.INTERRUPTED
    assert result.objective > PermutedBlocks(turns=0).solve(matrix).objective


def test_all_or_nothing_is_optimal() -> None:
    """Keeping every block or none leaves no choice, and the answer says so."""
    values = np.random.default_rng(5).lognormal(size=(6, 6))
    for keep in (0, 9):
        assert PermutedBlocks().solve(BlockMatrix(values, (2, 2), keep)).termination.reason is TerminationReason.OPTIMAL


def test_mistakes_are_named() -> None:
    """NaN, counts that are not possible, axes that clash, orders that are none."""
    values = np.ones((4, 6))
    with pytest.raises(ValueError, match="Got 24 that are NaN"):
        BlockMatrix(np.full((4, 6), np.nan), (2, 2), 1)
    with pytest.raises(ValueError, match=r"Expected to keep 0 .. 6 blocks. Got 7"):
        BlockMatrix(values, (2, 2), 7)
    with pytest.raises(ValueError, match="multiple of the 2 rows"):
        BlockMatrix(values, (2, 2), 3, balanced=True)
    with pytest.raises(ValueError, match="quadratic assignment"):
        BlockMatrix(np.ones((4, 4)), (2, 2), 1, axes=(0, 0))
    with pytest.raises(ValueError, match="Expected axis 0 of length 4"):
        PermutedBlocks().solve([BlockMatrix(values, (2, 2), 1), BlockMatrix(values.T, (2, 2), 1)])
    with pytest.raises(ValueError, match="Expected a permutation for each axis"):
        PermutedBlocks().solve(BlockMatrix(values, (2, 2), 1), start=[np.zeros(4), np.arange(6)])
    with pytest.raises(ValueError, match="Expected axes 0, 1"):
        PermutedBlocks().solve([])
