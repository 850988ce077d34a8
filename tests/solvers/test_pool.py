"""Several good selections."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.pool import Pool
from solvers.result import relative_gap
from solvers.verify import is_maximal
from tests.references import all_choices, best_choice, value, within_budget
from tests.solvers.instances import coupled_problem, resnet56


@pytest.mark.parametrize("seed", range(80))
def test_entries_are_distinct_feasible_and_never_above_the_bound(seed: int) -> None:
    """The first is the best of all; each has its value and its gap to the bound; equal calls give equal pools."""
    problem = coupled_problem(seed)
    pool = Pool(5, allocation=Allocation(gap_tolerance=0.0, time_limit=None))
    found = pool.solve(problem)
    best = best_choice(problem)
    assert (best is None) == (not found.entries)
    if best is None:
        return
    assert found.result.certificate is not None
    assert found.entries[0].value == pytest.approx(best.value, abs=1e-9)
    assert len({tuple(entry.choice) for entry in found.entries}) == len(found.entries) <= 5
    for entry in found.entries:
        choice = tuple(entry.choice.tolist())
        assert within_budget(problem, choice)
        assert entry.value == value(problem, choice)
        assert entry.gap == relative_gap(entry.value, found.result.certificate.bound, problem.total_value)
        assert np.array_equal(entry.selection, problem.selection(entry.choice))
    again = pool.solve(problem)
    assert [entry.choice.tolist() for entry in again.entries] == [entry.choice.tolist() for entry in found.entries]


def test_the_second_entry_is_nearly_always_the_second_best() -> None:
    """Among the choices to which nothing can be added, on 300 problems; moves find it, no proof does."""
    hits = total = 0
    for seed in range(300):
        problem = coupled_problem(seed)
        maximal = [c for c in all_choices(problem) if within_budget(problem, c) and is_maximal(problem, c)]
        if len(maximal) > 1:
            total += 1
            entries = Pool(2, allocation=Allocation(gap_tolerance=0.0, time_limit=None)).solve(problem).entries
            second = sorted(value(problem, choice) for choice in maximal)[-2]
            hits += len(entries) == 2 and entries[1].value >= second - 1e-9
    assert hits >= 0.9 * total > 0


def test_a_networks_pool_is_near_optimal_and_as_distinct_as_asked() -> None:
    """Ten selections of a ResNet-56 that differ in at least three groups, all within a hundredth of what is lost."""
    problem = resnet56()
    found = Pool(10, distance=3, most_gap=0.01).solve(problem)
    assert len(found.entries) == 10
    for i, one in enumerate(found.entries):
        assert one.gap <= 0.01
        assert all(np.count_nonzero(one.choice != other.choice) >= 3 for other in found.entries[:i])


def test_bad_pools_are_refused() -> None:
    """Sizes and distances below 1."""
    for size, distance in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Pool(size, distance)
