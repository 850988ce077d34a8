"""Balance: equally many entries per group of rows, counts per row."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.balanced import Balanced, is_balanced
from solvers.coverage import Coverage
from solvers.result import TerminationReason


def enumerated(values: np.ndarray, balanced: Balanced) -> float | None:
    """Best value, group by group, over all sets of ``keep`` entries; None when a group has none."""
    total = 0.0
    for first in range(0, len(values), balanced.rows_per_group):
        part = values[first : first + balanced.rows_per_group]
        best = -np.inf
        for entries in combinations(range(part.size), balanced.keep):
            mask = np.zeros(part.size, dtype=bool)
            mask[list(entries)] = True
            if is_balanced(mask.reshape(part.shape), balanced):
                best = max(best, float(part.ravel()[mask].sum()))
        if best == -np.inf:
            return None
        total += best
    return total


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_answer_is_the_enumerated_best(seed: int) -> None:
    """Random groups and counts, a last group that may be smaller, all signs, ties."""
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    values = rng.normal(size=(rows, columns)) if rng.random() < 0.6 else np.round(rng.normal(size=(rows, columns)))
    low = int(rng.integers(0, 3))
    most = None if rng.random() < 0.4 else low + int(rng.integers(3))
    balanced = Balanced(int(rng.integers(0, 7)), int(rng.integers(1, 4)), low, most)
    best = enumerated(values, balanced)
    result = balanced.solve(values)
    if best is None:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert "Choose keep in that range" in result.termination.text
        return
    assert result.selection is not None
    assert is_balanced(result.selection, balanced)
    assert result.objective == pytest.approx(best, abs=1e-12)
    assert result.bound == result.objective
    assert result.termination.reason is TerminationReason.OPTIMAL


def test_one_group_is_coverage_of_rows() -> None:
    """Balance of a single group and coverage with the same counts, solved as a flow, keep equal value."""
    values = np.random.default_rng(0).normal(size=(12, 20))
    balanced, covered = Balanced(70, 12, 3, 9).solve(values), Coverage(70, 3, 9).solve(values)
    assert balanced.objective == pytest.approx(covered.objective, rel=1e-12)


def test_rows_of_one_keep_their_best() -> None:
    """A group per row is top-k of each row; ties go to the first columns."""
    values = np.array([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    selection = Balanced(2).solve(values).selection
    assert np.array_equal(selection, [[False, True, True, False], [True, True, False, False]])  # type: ignore[arg-type]


def test_permuting_groups_permutes_the_mask() -> None:
    """Groups do not interact."""
    values = np.random.default_rng(1).normal(size=(6, 10))
    balanced = Balanced(8, 2, 1, 6)
    moved = np.concatenate([values[4:], values[:4]])
    first, second = balanced.solve(values).selection, balanced.solve(moved).selection
    assert first is not None
    assert np.array_equal(np.concatenate([first[4:], first[:4]]), second)  # type: ignore[arg-type]


def test_mistakes_are_named() -> None:
    """NaN, and counts that contradict each other."""
    with pytest.raises(ValueError, match="Got 4 that are NaN or infinite"):
        Balanced(1).solve(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="row_maximum of at least row_minimum"):
        Balanced(1, 1, 2, 1)
    with pytest.raises(ValueError, match="rows_per_group of at least 1"):
        Balanced(1, 0)
