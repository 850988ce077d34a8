"""Coverage: the best mask within counts per row and column."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.coverage import Coverage, CoveringChoice, is_covering
from solvers.oracle import State, top
from solvers.oracle_loops import SequentialSelection, dense_and_sparse
from solvers.result import OPTIMAL_GAP, TerminationReason
from solvers.transport import maximum_transport


def enumerated(values: np.ndarray, coverage: Coverage) -> float | None:
    """Best value over all sets of ``keep`` entries, None when no set satisfies the counts."""
    best = None
    for entries in combinations(range(values.size), coverage.keep):
        mask = np.zeros(values.shape, dtype=bool)
        mask.ravel()[list(entries)] = True
        if is_covering(mask, coverage) and not np.any(np.isneginf(values[mask])):
            value = float(values[mask].sum())
            best = value if best is None else max(best, value)
    return best


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_answer_is_the_enumerated_best(seed: int) -> None:
    """Random counts of every kind, entries that must go, all signs, ties: value, bound or infeasible as enumerated."""
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    values = rng.normal(size=(rows, columns)) if rng.random() < 0.7 else np.round(rng.normal(size=(rows, columns)))
    values[rng.random(values.shape) < 0.1] = -np.inf
    low = rng.integers(0, 2, size=rows)
    coverage = Coverage(
        int(rng.integers(0, rows * columns + 1)),
        low,
        low + rng.integers(0, columns + 1, size=rows),
        int(rng.integers(0, 2)),
        None if rng.random() < 0.5 else int(rng.integers(1, rows + 1)),
    )
    best = enumerated(values, coverage)
    result = coverage.solve(values)
    if best is None:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert result.selection is result.objective is result.bound is result.gap is None
        assert len(result.termination.text) > 40
        return
    assert result.selection is not None
    assert result.bound is not None
    assert is_covering(result.selection, coverage)
    assert result.objective == pytest.approx(best, abs=1e-9)
    assert result.objective == pytest.approx(float(values[result.selection].sum()), abs=1e-12)
    assert best - 1e-12 <= result.bound <= best + 1e-9
    assert result.termination.reason is TerminationReason.OPTIMAL


def test_without_counts_the_best_entries_stay() -> None:
    """Coverage of nothing is top-k."""
    values = np.random.default_rng(0).normal(size=(20, 30))
    result = Coverage(50).solve(values)
    assert result.objective == pytest.approx(float(np.sort(values.ravel())[-50:].sum()), rel=1e-12)


def test_every_row_and_column_lives() -> None:
    """At 5 % of the entries top-k leaves columns without one; coverage does not, at the least loss."""
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(32, 64)) * rng.lognormal(sigma=2.0, size=64)
    free, covered = Coverage(102).solve(values), Coverage(102, 1, None, 1).solve(values)
    assert free.selection is not None
    assert covered.selection is not None
    assert np.any(free.selection.sum(axis=0) == 0)
    assert covered.selection.sum(axis=0).min() >= 1
    assert covered.selection.sum(axis=1).min() >= 1
    assert (covered.objective or 0.0) <= (free.objective or 0.0)


def test_the_bound_holds_for_values_of_any_size() -> None:
    """Values over thirty decades: the rounding to integers is in the bound, and the gap is told."""
    rng = np.random.default_rng(2)
    for seed in range(20):
        values = np.exp(np.random.default_rng(seed).uniform(-60, 60, size=(3, 3)))
        coverage = Coverage(4, 1, 2, 1)
        best = enumerated(values, coverage)
        result = coverage.solve(values)
        assert best is not None
        assert result.bound is not None
        assert result.gap is not None
        assert result.bound >= best * (1 - 1e-15)
        assert (result.termination.reason is TerminationReason.OPTIMAL) == (result.gap <= OPTIMAL_GAP)
    huge = Coverage(8, 1).solve(rng.exponential(size=(4, 5)) * 1e300)
    assert huge.termination.reason is TerminationReason.OPTIMAL


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_coarse_scale_keeps_the_bound(seed: int) -> None:
    """With integers as coarse as a few units the mask may lose, the bound never falls below the optimum."""
    values = np.random.default_rng(seed).exponential(size=(3, 4))
    best = enumerated(values, Coverage(5, 1, 3, 1))
    rows, columns = np.ones(3, dtype=np.int64), np.ones(4, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solvers.transport._COST_ROOM", 64.0)
        found = maximum_transport(values, rows, 3 * rows, columns, 3 * columns, 5)
    assert found is not None
    assert best is not None
    assert found.bound >= best


def test_order_of_rows_and_size_of_values_do_not_matter() -> None:
    """Permuting rows and columns, or doubling all values, gives the same mask elsewhere."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(12, 10))
    rows, columns = rng.permutation(12), rng.permutation(10)
    coverage = Coverage(40, 2, 5, 2, 6)
    plain, moved = coverage.solve(values), coverage.solve(2 * values[rows][:, columns])
    assert plain.selection is not None
    assert np.array_equal(plain.selection[rows][:, columns], moved.selection)  # type: ignore[arg-type]


def test_more_room_is_never_worse() -> None:
    """Lower minima and higher maxima can only help."""
    values = np.random.default_rng(4).normal(size=(8, 9))
    objectives = [Coverage(30, low, 9 - 2 * low, low).solve(values).objective for low in (2, 1, 0)]
    assert all(a <= b + 1e-12 for a, b in zip(objectives, objectives[1:], strict=False))  # type: ignore[operator]


def test_equal_values_give_equal_masks() -> None:
    """Ties are broken the same way each time."""
    values = np.random.default_rng(5).integers(0, 2, size=(15, 15))
    first, second = (Coverage(60, 2, None, 2).solve(values) for _ in range(2))
    assert np.array_equal(first.selection, second.selection)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("coverage", "message"),
    [
        (Coverage(3, 1), "rows need 4 .. 12"),
        (Coverage(13), "keep is 13"),
        (Coverage(5, 4), "Row 0 must keep at least 4 entries and may keep 3 at most"),
        (Coverage(5, 0, None, [0, 5, 0]), "Column 1 must keep at least 5"),
        (Coverage(6, [3, 0, 0, 0], 3, 0, [1, 1, 4]), ""),
    ],
)
def test_what_cannot_be_is_explained(coverage: Coverage, message: str) -> None:
    """Infeasible counts say which row or column is short, and are no exception."""
    result = coverage.solve(np.ones((4, 3)))
    if message:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert message in result.termination.text
    else:
        assert result.termination.reason is TerminationReason.OPTIMAL


def test_rows_and_columns_can_clash() -> None:
    """Each alone is possible, both are not: the text says so."""
    values = np.zeros((2, 2))
    values[0, 0] = values[1, 0] = -np.inf
    result = Coverage(2, 1, 2, 0, [2, 1]).solve(values)
    assert result.termination.reason is TerminationReason.INFEASIBLE


def test_mistakes_are_named() -> None:
    """NaN, plus infinity, wrong numbers of counts, negative counts."""
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="Got 4 that are NaN or infinite"):
            Coverage(1).solve(np.full((2, 2), wrong))
    with pytest.raises(ValueError, match="Expected row_minimum as one integer"):
        Coverage(1, [1, 1, 1]).solve(np.ones((2, 2)))
    with pytest.raises(ValueError, match="Expected column_maximum as one integer"):
        Coverage(1, 0, None, 0, -1).solve(np.ones((2, 2)))
    with pytest.raises(ValueError, match="Expected keep of at least 0"):
        Coverage(-1).solve(np.ones((2, 2)))


class Fixed:
    """An oracle whose values stay what they are: block magnitudes of a trained layer."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.ravel()

    @property
    def size(self) -> int:
        """Number of blocks."""
        return self.table.size

    def fit(self, kept: np.ndarray) -> float:
        """The value that is gone."""
        return float(self.table[~kept].sum())

    def values(self, kept: np.ndarray) -> np.ndarray:
        """The same at each step."""
        return self.table


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_falling_schedule_ends_within_the_counts(seed: int) -> None:
    """Nested phases with caps per row and column: never stuck, exact at each step, and best at the end."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(6, 5)) * rng.lognormal(sigma=1.5, size=(6, 1))
    coverage = Coverage(9, 0, 2, 1, 4)
    states: list[State] = []
    schedule = dense_and_sparse(30, 9, cycles=1, dense=1, sparsify=6, sparse=1)
    loop = SequentialSelection(schedule, choose=CoveringChoice((6, 5), coverage))
    result = loop.solve(Fixed(values), progress=states.append)
    assert [int(state.kept.sum()) for state in states] == list(schedule)
    assert all(not np.any(after.kept & ~before.kept) for before, after in zip(states, states[1:], strict=False))
    assert is_covering(result.selection.reshape(6, 5), coverage)
    best = coverage.solve(values)
    assert float(values.ravel()[result.selection].sum()) == pytest.approx(best.objective)


def test_a_choice_without_counts_is_the_best_so_many() -> None:
    """Whatever is allowed and however many are asked for beyond the final number."""
    rng = np.random.default_rng(6)
    values, allowed = rng.normal(size=20), rng.random(20) < 0.8
    chosen = CoveringChoice((4, 5), Coverage(5))(values, allowed, 9)
    assert np.array_equal(chosen, top(values, allowed, 9))


def test_a_choice_that_cannot_be_met_is_refused() -> None:
    """A grid of another shape, fewer than the final number, rows with nothing left."""
    choice = CoveringChoice((2, 2), Coverage(2, 1))
    with pytest.raises(ValueError, match="Expected 4 values for a table of 2 x 2"):
        choice(np.zeros(5), np.ones(5, dtype=bool), 2)
    with pytest.raises(ValueError, match="Expected at least 2 to keep"):
        choice(np.zeros(4), np.ones(4, dtype=bool), 1)
    with pytest.raises(ValueError, match="Row 0 must keep at least 1"):
        choice(np.zeros(4), np.array([False, False, True, True]), 2)
