"""The front of one budget: certified at every point, and rising."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.bounds import Lagrangian
from solvers.pareto import ParetoFront
from solvers.result import TerminationReason
from tests.references import best_choice
from tests.solvers.instances import coupled_problem, resnet56


@pytest.mark.parametrize("seed", range(60))
def test_every_point_is_what_a_solve_of_its_own_finds(seed: int) -> None:
    """Exact fronts of small problems are the enumerated optima, infeasible limits included; every proof holds."""
    problem = coupled_problem(seed)
    exact = Allocation(gap_tolerance=0.0, time_limit=None)
    front = ParetoFront("resource0", count=5, allocation=exact).solve(problem)
    for point in front.points:
        alone = front.problem(problem, point)
        best, certificate = best_choice(alone), point.result.certificate
        assert (best is None) == (certificate is None)
        if best is not None and certificate is not None:
            certificate.verify(alone)
            assert certificate.objective == pytest.approx(best.value, abs=1e-9)
            assert point.result.termination.reason is TerminationReason.OPTIMAL


def test_a_networks_front_rises_and_every_point_is_certified() -> None:
    """Values and bounds rise with the limit, though each point stops at the tolerance."""
    problem = resnet56()
    dense = problem.used([len(group) - 1 for group in problem.groups])[0]
    limits = [int(dense * share) for share in np.linspace(0.1, 1.0, 10)]
    front = ParetoFront("macs", limits, allocation=Allocation(time_limit=None)).solve(problem)
    certificates = [point.result.certificate for point in front.points]
    found = [certificate for certificate in certificates if certificate is not None]
    assert len(found) == 10
    assert np.all(np.diff([certificate.objective for certificate in found]) >= 0)
    assert np.all(np.diff([certificate.bound for certificate in found]) >= 0)
    assert all(certificate.gap <= 1e-3 for certificate in found)
    for point, certificate in zip(front.points, found, strict=True):
        certificate.verify(front.problem(problem, point))
    assert found[-1].objective == problem.total_value


def test_default_limits_reach_from_the_least_to_the_dense_amount() -> None:
    """The first point keeps least, the last everything."""
    problem = resnet56()
    points = ParetoFront("macs", count=3).solve(problem).points
    assert points[0].limit == problem.used(problem.minimum_choice)[0]
    assert points[0].result.choice is not None
    assert np.array_equal(points[0].result.choice, problem.minimum_choice)
    assert points[-1].limit == problem.used([len(group) - 1 for group in problem.groups])[0]


def test_bad_fronts_are_refused() -> None:
    """An unknown resource, no limits."""
    with pytest.raises(ValueError, match="one of the resources"):
        ParetoFront("joules").solve(resnet56())
    with pytest.raises(ValueError, match="at least one limit"):
        ParetoFront("macs", [])


def test_tables_are_shared_only_between_limits() -> None:
    """A Lagrangian moves to other limits of its problem, not to another problem."""
    problem = resnet56()
    shared = Lagrangian(problem)
    other = problem.with_limits({"macs": 10**7})
    top = np.array([len(group) - 1 for group in problem.groups])
    prices = np.array([1e-6])
    assert shared.at(other).evaluate(prices, problem.minimum_choice, top).bound == pytest.approx(
        Lagrangian(other).evaluate(prices, problem.minimum_choice, top).bound, rel=1e-14
    )
    with pytest.raises(ValueError, match="other limits"):
        shared.at(resnet56(1))
