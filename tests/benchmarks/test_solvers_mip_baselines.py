"""CP-SAT and HiGHS get the same problem as our solvers: their proven answers are the best choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.solvers.instances import problem
from benchmarks.solvers.mip_baselines import cp_sat, highs, highs_can
from benchmarks.solvers.networks import resnet18
from benchmarks.solvers.trace import Trace, points_of
from solvers.problem import SelectionProblem
from tests.solvers.instances import random_problem

SECONDS = 20.0


def best_of_all(given: SelectionProblem) -> float | None:
    """Largest value within budget, by looking at every choice."""
    choices = itertools.product(*(range(len(group)) for group in given.groups))
    return max((given.value(choice) for choice in choices if given.evaluate(choice).feasible), default=None)


def test_cp_sat_is_exact() -> None:
    """On small random problems, tables and triple products among them, CP-SAT finds the best choice or none."""
    for seed in range(40):
        given = random_problem(seed)
        best, found = best_of_all(given), cp_sat(given, SECONDS)
        assert (found.choice is None) == (best is None)
        if found.choice is not None and best is not None and found.bound is not None:
            assert given.value(found.choice) == pytest.approx(best, abs=1e-6)
            assert found.bound >= best - 1e-12


def test_highs_is_exact() -> None:
    """On those of the random problems that have pairs alone, HiGHS finds the best choice or none."""
    seen = 0
    for seed in range(150):
        given = random_problem(seed)
        if not highs_can(given):
            continue
        seen += 1
        best, found = best_of_all(given), highs(given, SECONDS)
        assert (found.choice is None) == (best is None)
        if found.choice is not None:
            assert given.value(found.choice) == pytest.approx(best, abs=1e-6)
    assert seen > 5


def test_both_agree_on_a_network() -> None:
    """On the shape of ResNet-18 both prove the same value."""
    given = problem(resnet18(), {"macs": 0.5}, step=32)
    one, other = cp_sat(given, SECONDS), highs(given, SECONDS)
    assert one.choice is not None
    assert other.choice is not None
    assert given.value(one.choice) == pytest.approx(given.value(other.choice), abs=1e-8)
    assert one.trace.points[-1][1] < 1e-5


def test_start_stands() -> None:
    """Without time for anything, the start is CP-SAT's answer, without a bound."""
    given = problem(resnet18(), {"latency_ns": 0.6}, step=16)
    found = cp_sat(given, 1e-3, start=given.minimum_choice)
    assert found.choice is not None
    assert given.evaluate(found.choice).feasible


def test_highs_refuses_tables() -> None:
    """Latency tables are left to CP-SAT, with a reason."""
    given = problem(resnet18(), {"latency_ns": 0.6}, step=32)
    assert not highs_can(given)
    with pytest.raises(ValueError, match="Use cp_sat"):
        highs(given, SECONDS)


def test_trace() -> None:
    """Only improvements are kept, and a row's fact gives them back."""
    trace = Trace()
    for seconds, gap in ((0.1, None), (0.2, 0.5), (0.3, 0.6), (0.4, np.inf), (0.5, 0.25)):
        trace.add(gap, seconds)
    assert points_of(trace.fact) == [(0.2, 0.5), (0.5, 0.25)]
    assert points_of({}) == []
