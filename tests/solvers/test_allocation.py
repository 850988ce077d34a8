"""Allocation: the best levels, and a proof."""

from __future__ import annotations

import time

import numpy as np
import pytest

from solvers.allocation import Allocation, Progress
from solvers.bounds import least_reachable
from solvers.problem import Capacity, Group, Product, SelectionProblem, Table
from solvers.result import OPTIMAL_GAP, Limit, TerminationReason
from tests.references import best_choice
from tests.solvers.instances import (
    block_layers,
    clique,
    coupled_problem,
    joint_hubs,
    permuted,
    random_problem,
    resnet50,
    resnet56,
)
from tests.solvers.laws import check_laws


def check_optimum(problem: SelectionProblem, settings: Allocation) -> None:
    """The answer is what enumeration finds, with a proof; or there is none and the answer says so."""
    best, result = best_choice(problem), settings.solve(problem)
    if best is None:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert result.choice is result.selection is result.certificate is None
        return
    check_laws(problem, result)
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert result.certificate is not None
    assert result.certificate.objective == pytest.approx(best.value, abs=1e-9)
    assert result.certificate.bound >= best.value


def exact(seed: int) -> Allocation:
    """Settings of an exact solve; a fifth with tables too small for exact elimination."""
    return Allocation(gap_tolerance=0.0, time_limit=None, max_cells=10 if seed % 5 == 0 else 10**6)


@pytest.mark.parametrize("batch", range(10))
def test_the_answer_is_the_enumerated_optimum(batch: int) -> None:
    """Exact solve = exhaustive search on 500 problems of budgets alone."""
    for seed in range(50 * batch, 50 * batch + 50):
        check_optimum(random_problem(seed), exact(seed))


@pytest.mark.parametrize("batch", range(10))
def test_coupled_groups_have_the_enumerated_optimum(batch: int) -> None:
    """The same on 500 problems with value tables, forbidden combinations, local limits and links."""
    for seed in range(50 * batch, 50 * batch + 50):
        check_optimum(coupled_problem(seed), exact(seed))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_coupled_groups_have_the_enumerated_optimum_in_ten_thousand_problems(batch: int) -> None:
    """The same on 10,000 others."""
    for seed in range(2000 + 500 * batch, 2500 + 500 * batch):
        check_optimum(coupled_problem(seed), exact(seed))


@pytest.mark.parametrize("batch", range(4))
def test_early_stops_keep_every_law(batch: int) -> None:
    """With a tolerance, few nodes or no time the bound still holds and the choice is still maximal."""
    for seed in range(1000 + 50 * batch, 1050 + 50 * batch):
        problem = coupled_problem(seed)
        best = best_choice(problem)
        if best is None:
            continue
        for settings in (Allocation(0.2), Allocation(0.0, max_nodes=1), Allocation(0.0, time_limit=0.0)):
            result = settings.solve(problem)
            if result.certificate is None:
                # Tables that do not rise can hide the choices within budget.
                assert result.termination.reason is TerminationReason.UNKNOWN
                assert result.termination.limit is not None
                continue
            check_laws(problem, result)
            assert result.certificate.bound >= best.value
            if result.termination.limit is None:
                assert result.certificate.gap <= max(settings.gap_tolerance, OPTIMAL_GAP)


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_groups_does_not_matter(seed: int) -> None:
    """Permuting groups leaves the optimal value."""
    problem = coupled_problem(seed)
    other = permuted(problem, np.random.default_rng(seed).permutation(len(problem.groups)))
    first, second = (Allocation(gap_tolerance=0.0).solve(p).certificate for p in (problem, other))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.objective == pytest.approx(second.objective, abs=1e-9)


def test_more_budget_is_never_worse() -> None:
    """Objective and bound rise with the budget when solved to optimality, on random problems and a network."""
    for seed in range(20):
        problem = coupled_problem(seed)
        objectives, bounds = [], []
        for extra in (0, 5, 20, 100):
            larger = problem.with_limits({c.resource: c.limit + extra for c in problem.capacities})
            certificate = Allocation(gap_tolerance=0.0).solve(larger).certificate
            if certificate is not None:
                objectives.append(certificate.objective)
                bounds.append(certificate.bound)
        assert np.all(np.diff(objectives) >= -1e-9)
        assert np.all(np.diff(bounds) >= -1e-9)
    certificates = [Allocation().solve(resnet56(macs=macs)).certificate for macs in (0.2, 0.3, 0.4, 0.6)]
    found = [c for c in certificates if c is not None]
    assert all(a.objective < b.objective and a.bound < b.bound for a, b in zip(found, found[1:], strict=False))


def test_equal_problems_give_equal_answers() -> None:
    """Same choice, bound and proof, for any seed."""
    first, second = (Allocation(gap_tolerance=2e-4, max_nodes=100, seed=s).solve(resnet56()) for s in (0, 1))
    assert first.certificate is not None
    assert second.certificate is not None
    assert np.array_equal(first.certificate.choice, second.certificate.choice)
    assert first.certificate.bound == second.certificate.bound
    assert len(first.certificate.leaves) == len(second.certificate.leaves)
    for one, other in zip(first.certificate.leaves, second.certificate.leaves, strict=True):
        assert np.array_equal(one.prices, other.prices)
        assert np.array_equal(one.low, other.low)
    assert (first.seed, second.seed) == (0, 1)


@pytest.mark.parametrize("problem", [resnet56(), resnet56(1, 0.25), resnet56(2, 0.5, 0.4), joint_hubs()])
def test_resnet56_is_certified_to_one_percent_of_what_is_lost(problem: SelectionProblem) -> None:
    """One and two budgets, hubs in joint products, in seconds."""
    started = time.perf_counter()
    result = Allocation(gap_tolerance=1e-3, time_limit=20.0).solve(problem)
    assert time.perf_counter() - started < 20.0
    check_laws(problem, result)
    assert result.certificate is not None
    assert result.certificate.gap <= 0.01


@pytest.mark.parametrize("step", [1, 8])
def test_resnet50_is_certified_to_one_thousandth_of_what_is_lost(step: int) -> None:
    """Multiples of 8 channels, and every width although the largest plain table would have 10^9 cells."""
    problem = resnet50(step=step)
    result = Allocation(gap_tolerance=1e-3, time_limit=30.0).solve(problem)
    check_laws(problem, result)
    assert result.certificate is not None
    assert result.certificate.gap <= 1e-3


def test_a_clique_of_products_still_has_a_bound() -> None:
    """Fourteen groups in products with one another have no small elimination order: split buckets, a wider gap."""
    problem = clique(14)
    result = Allocation(max_nodes=20).solve(problem)
    check_laws(problem, result)
    assert result.certificate is not None
    assert result.certificate.gap <= 0.2


def test_progress_reports_bounds_that_only_fall() -> None:
    """The reported bound is that of the whole problem, and the objective only rises."""
    seen: list[Progress] = []
    Allocation(gap_tolerance=2e-4, max_nodes=200).solve(resnet56(), seen.append)  # type: ignore[arg-type]
    assert np.all(np.diff([progress.bound for progress in seen]) <= 0)
    assert np.all(np.diff([progress.objective or 0.0 for progress in seen]) >= 0)


def test_a_million_blocks_are_nearly_exact() -> None:
    """Independent layers with up to 10^5 levels: a gap of at most 10^-6 at the root."""
    problem = block_layers(10**6)
    result = Allocation(gap_tolerance=1e-6).solve(problem)
    check_laws(problem, result)
    assert result.certificate is not None
    assert len(result.certificate.leaves) == 1


def test_infeasible_names_resource_limit_and_least_amount() -> None:
    """The text tells what would work."""
    problem = resnet56(params=0.5)
    least = least_reachable(problem)
    short = problem.with_limits({"params": least["params"] - 1})
    result = Allocation().solve(short)
    assert result.termination.reason is TerminationReason.INFEASIBLE
    text = result.termination.text
    assert f"params: limit {least['params'] - 1}, smallest reachable {least['params']}" in text
    assert "macs" not in text
    assert Allocation().solve(problem.with_limits({"params": least["params"]})).certificate is not None


def test_budgets_that_only_conflict_together_are_infeasible() -> None:
    """Two tables that fall and rise: each limit is reachable, both together are not."""
    group = Group("a", np.array([1, 2]), np.array([0.0, 1.0]), np.arange(2))
    falls, rises = Table((0,), np.array([5, 1])), Table((0,), np.array([1, 5]))
    problem = SelectionProblem((group,), (Capacity("x", 2, (falls,)), Capacity("y", 2, (rises,))), 2)
    result = Allocation().solve(problem)
    assert result.termination.reason is TerminationReason.INFEASIBLE
    assert "together" in result.termination.text


def test_a_slack_budget_keeps_everything() -> None:
    """Nothing lost, gap 0, optimal."""
    problem = resnet56(macs=1.0)
    result = Allocation().solve(problem)
    check_laws(problem, result)
    assert result.selection is not None
    assert result.selection.all()
    assert result.termination.reason is TerminationReason.OPTIMAL


def test_levels_rise_into_slack_even_without_gain() -> None:
    """Structures worth nothing are kept when they are free to keep."""
    group = Group("a", np.arange(10), np.minimum(np.arange(10), 4.0), np.arange(9))
    problem = SelectionProblem((group,), (Capacity("macs", 7, (Product((0,), 1),)),), 9)
    assert Allocation().solve(problem).choice == [7]


def test_no_capacities_means_the_largest_values() -> None:
    """An empty list of budgets is a problem too."""
    problem = random_problem(3)
    free = SelectionProblem(problem.groups, (), problem.size)
    result = Allocation().solve(free)
    check_laws(free, result)
    assert result.certificate is not None
    assert result.certificate.objective == pytest.approx(free.total_value)


def test_a_time_limit_is_kept_and_never_claims_optimality() -> None:
    """The answer says that time was the limit, and its certificate holds."""
    problem = resnet50(step=1)  # its first bound alone takes longer than the limit
    started = time.perf_counter()
    result = Allocation(gap_tolerance=0.0, time_limit=0.3, max_nodes=10**6).solve(problem)
    assert time.perf_counter() - started < 3.0
    check_laws(problem, result)
    assert result.termination.limit is Limit.TIME
    assert result.termination.reason is TerminationReason.FEASIBLE


def test_a_node_limit_is_reported() -> None:
    """With its number."""
    result = Allocation(gap_tolerance=0.0, max_nodes=3).solve(resnet56())
    assert result.termination.limit is Limit.NODES
    assert "3 nodes" in result.termination.text


def test_progress_can_stop_the_search() -> None:
    """Returning True ends it with the best choice so far."""
    seen: list[Progress] = []

    def stop(progress: Progress) -> bool:
        seen.append(progress)
        return len(seen) == 2

    problem = resnet56()
    result = Allocation(gap_tolerance=0.0).solve(problem, stop)
    check_laws(problem, result)
    assert result.termination.limit is Limit.STOPPED
    assert len(seen) == 2
    assert seen[0].objective is not None
    assert seen[0].bound >= seen[0].objective


@pytest.mark.parametrize("bad", [{"gap_tolerance": -1.0}, {"time_limit": -1.0}, {"max_nodes": -1}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    """Negative tolerances and limits mean nothing."""
    with pytest.raises(ValueError, match="at least 0"):
        Allocation(**bad)  # type: ignore[arg-type]


def test_huge_amounts_are_compared_exactly() -> None:
    """Costs beyond 64 bits: one unit decides."""
    group = Group("a", np.array([1, 10**6 - 1, 10**6]), np.array([0.0, 1.0, 2.0]), np.arange(10**6))
    for limit, level in ((10**24, 2), (10**24 - 1, 1)):
        problem = SelectionProblem((group,), (Capacity("macs", limit, (Product((0, 0, 0, 0), 1),)),), 10**6)
        assert Allocation(gap_tolerance=0.0).solve(problem).choice == [level]


def test_results_say_where_the_time_went_and_what_the_bound_is() -> None:
    """Phases in order within the wall time, with their nodes; slack per budget; the bound's kind; versions."""
    problem = resnet56(macs=0.5, params=0.5)
    result = Allocation(gap_tolerance=1e-6, max_nodes=4).solve(problem)
    certificate = result.certificate
    assert certificate is not None
    assert [phase.name for phase in result.phases] == ["root bound", "first choices", "fixing levels", "branching"]
    assert 0 < sum(phase.seconds for phase in result.phases) <= result.seconds
    assert result.phases[0].evaluations > 0
    assert sum(phase.nodes for phase in result.phases) == result.phases[-1].nodes <= 4
    assert certificate.slack == {name: certificate.allowed[name] - used for name, used in certificate.used.items()}
    assert certificate.kind.startswith("Lagrangian")
    assert {"python", "numpy", "ortools"} <= set(result.versions)
