"""Multiple-choice knapsack: the enumerated optimum, proofs that hold and proofs that do not, and laws of budgets."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers.knapsack_instances import layers
from solvers.allocation import Allocation
from solvers.bounds.core import reduce, search
from solvers.bounds.multiple_choice import MultipleChoice, relax
from solvers.knapsack import Knapsack
from solvers.knapsack_check import CoreCheck
from solvers.knapsack_core import narrow_core
from solvers.problem import Capacity, Group, Link, LocalLimit, Product, SelectionProblem, Table, ValueTable
from solvers.result import Certificate, Limit, Result, TerminationReason, relative_gap
from solvers.verify import is_feasible
from tests.references import best_choice
from tests.solvers.instances import permuted
from tests.solvers.knapsacks import small_separable
from tests.solvers.laws import check_laws

EXACT = Knapsack(gap_tolerance=0.0, time_limit=None)


def certified(result: Result) -> Certificate:
    """The certificate of a result that has one."""
    assert result.certificate is not None
    return result.certificate


def check_optimum(seed: int) -> None:
    """Exact solve = exhaustive search; infeasible exactly when no choice is within budget."""
    problem = small_separable(seed)
    best, result = best_choice(problem), EXACT.solve(problem)
    if best is None:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert result.choice is result.selection is result.certificate is None
        return
    check_laws(problem, result)
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert certified(result).objective == pytest.approx(best.value, abs=1e-9)
    assert certified(result).bound >= best.value


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_the_answer_is_the_enumerated_optimum(seed: int) -> None:
    """With one to four budgets, tables that rise or not, ties and plateaus."""
    check_optimum(seed)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(10))
def test_the_answer_is_the_enumerated_optimum_many_times(batch: int) -> None:
    """10,000 problems."""
    for seed in range(1000 * batch, 1000 * batch + 1000):
        check_optimum(seed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_cut_lists_weaken_the_bound_and_never_falsify_it(seed: int, beam: int, whole: bool) -> None:
    """A search with lists of 1 to 4 partial choices bounds the optimum, and returns only choices within budget."""
    problem = small_separable(seed)
    best = best_choice(problem)
    if best is None:
        return
    classes = MultipleChoice.of(problem)
    relaxed = relax(classes)
    core = reduce(classes, np.ones(len(classes.values), dtype=bool))
    assert core is not None
    found = search(core, relaxed.prices[None], -1e6, beam, 10**6, whole=whole)
    assert found.bound >= best.value - 1e-9
    if found.options is not None:
        assert is_feasible(problem, found.options - classes.starts[:-1])


@pytest.mark.parametrize("seed", range(30))
def test_the_bound_at_any_prices_holds(seed: int) -> None:
    """No choice within budget exceeds the Lagrangian bound, whatever the prices; its minimum is the least found."""
    problem = small_separable(seed)
    best = best_choice(problem)
    if best is None:
        return
    classes, rng = MultipleChoice.of(problem), np.random.default_rng(seed)
    least = relax(classes).bound
    for _ in range(20):
        bound, options = classes.evaluate(rng.exponential(size=len(classes.room)) * rng.choice([0.0, 0.01, 1.0]))
        assert bound >= best.value
        assert bound >= least - 1e-6 * max(1.0, abs(least))
        assert np.all((options >= classes.starts[:-1]) & (options < classes.starts[1:]))


@pytest.mark.parametrize(("budgets", "stairs"), [(1, False), (1, True), (2, False), (2, True), (3, True)])
def test_layers_of_a_network_are_solved_to_the_optimum(budgets: int, stairs: bool) -> None:
    """30 layers of 48 structures: proven optimal, and the proof checks."""
    problem = layers(3, 30, 48, budgets, stairs)
    result = EXACT.solve(problem)
    assert result.termination.reason is TerminationReason.OPTIMAL
    check_laws(problem, result)


@pytest.mark.parametrize("stairs", [False, True])
def test_a_hundred_and_sixty_layers_are_solved_to_one_in_a_million(stairs: bool) -> None:
    """160 groups with 128 levels and one budget."""
    problem = layers(0, 160, 128, 1, stairs)
    result = Knapsack().solve(problem)
    check_laws(problem, result)
    assert certified(result).gap <= 1e-6


def test_it_agrees_with_branch_and_bound_over_levels() -> None:
    """Two solvers that share no search find the same optimum."""
    for seed in range(10):
        problem = layers(seed, 8, 12, 1 + seed % 2, seed % 3 == 0)
        ours, theirs = EXACT.solve(problem), Allocation(gap_tolerance=0.0, time_limit=None).solve(problem)
        assert certified(ours).objective == pytest.approx(certified(theirs).objective, rel=1e-12)


def greedy(problem: SelectionProblem) -> float:
    """Raise the group that gains most per priced cost, one level at a time, while anything fits."""
    choice = problem.minimum_choice
    limits = [capacity.limit for capacity in problem.capacities]
    while True:
        base, best = problem.used(choice), (0.0, -1)
        for g, group in enumerate(problem.groups):
            if choice[g] + 1 == len(group):
                continue
            raised = choice.copy()
            raised[g] += 1
            used = problem.used(raised)
            if any(amount > limit for amount, limit in zip(used, limits, strict=True)):
                continue
            cost = sum((b - a) / limit for a, b, limit in zip(base, used, limits, strict=True))
            gain = group.values[raised[g]] - group.values[choice[g]]
            best = max(best, (gain / max(cost, 1e-12), g))
        if best[1] < 0:
            return problem.value(choice)
        choice[best[1]] += 1


@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_the_marginal_greedy(seed: int) -> None:
    """At the default tolerance, and stopped at once."""
    problem = layers(seed, 10, 12, 1 + seed % 3, seed % 2 == 0)
    floor = greedy(problem)
    for solver in (Knapsack(), Knapsack(max_states=0)):
        assert certified(solver.solve(problem)).objective >= floor


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_more_budget_is_never_worse(seed: int, budgets: int) -> None:
    """The optimum rises with every limit."""
    problem = layers(seed, 6, 8, budgets, seed % 2 == 0)
    before = -math.inf
    for factor in (0.5, 0.75, 1.0, 1.1, 3.0):
        limits = {capacity.resource: int(capacity.limit * factor) for capacity in problem.capacities}
        result = EXACT.solve(problem.with_limits(limits))
        if result.certificate is not None:
            assert result.certificate.objective >= before - 1e-9
            before = result.certificate.objective


@pytest.mark.parametrize("seed", range(8))
def test_permuted_groups_have_the_same_optimum(seed: int) -> None:
    """The order of groups does not matter."""
    problem = layers(seed, 7, 9, 1 + seed % 3, True)
    other = permuted(problem, np.random.default_rng(seed).permutation(7))
    first, second = certified(EXACT.solve(problem)), certified(EXACT.solve(other))
    assert first.objective == pytest.approx(second.objective, rel=1e-13)


def test_two_runs_are_equal_to_the_byte() -> None:
    """Choice, bound and proof repeat, with a node limit and without."""
    for solver in (Knapsack(time_limit=None), Knapsack(time_limit=None, gap_tolerance=0.0, max_states=20_000)):
        for budgets in (1, 3):
            problem = layers(1, 40, 32, budgets, True)
            one, two = (certified(solver.solve(problem)) for _ in range(2))
            assert one.choice.tobytes() == two.choice.tobytes()
            assert (one.objective, one.bound, one.gap) == (two.objective, two.bound, two.gap)
            assert [leaf.prices.tobytes() for leaf in one.leaves] == [leaf.prices.tobytes() for leaf in two.leaves]


def test_false_certificates_fail() -> None:
    """Another bound, objective, choice, amount, price, or a missing leaf."""
    problem = layers(5, 25, 32, 2, True)
    result = EXACT.solve(problem)
    true = certified(result)
    true.verify(problem)
    low = true.objective - 1e-3 * (problem.total_value - true.objective)
    worse = true.choice.copy()
    worse[int(np.argmax(worse))] -= 1
    value = problem.value(worse)
    false = [
        replace(true, bound=low, gap=relative_gap(true.objective, low, problem.total_value)),
        replace(true, objective=true.objective + 1.0),
        replace(true, choice=worse),
        replace(true, gap=0.5),
        replace(true, used={name: amount - 1 for name, amount in true.used.items()}),
        replace(true, leaves=()),
        replace(true, leaves=tuple(replace(leaf, prices=-leaf.prices - 1.0) for leaf in true.leaves)),
        replace(true, leaves=tuple(replace(leaf, high=np.maximum(leaf.low, leaf.high - 1)) for leaf in true.leaves)),
        # A worse choice with its own true facts: the bound that it claims is below the optimum.
        replace(true, choice=worse, objective=value, bound=value, gap=0.0, used=problem.evaluate(worse).used),
    ]
    for certificate in false:
        with pytest.raises(ValueError, match="Expected"):
            certificate.verify(problem)


def test_a_proof_by_prices_alone_does_not_pass_for_more() -> None:
    """A certificate without its searches proves the Lagrangian bound and nothing better."""
    problem = layers(5, 25, 32, 1, True)
    true = certified(EXACT.solve(problem))
    assert isinstance(true.check, CoreCheck)
    without = CoreCheck(replace(true.check.proof, beam=0))
    with pytest.raises(ValueError, match="not proven"):
        replace(true, check=without).verify(problem)
    weak, _ = MultipleChoice.of(problem).evaluate(true.leaves[0].prices)
    gap = relative_gap(true.objective, weak, problem.total_value)
    replace(true, check=without, bound=weak, gap=gap).verify(problem)


def two_groups() -> tuple[Group, Group]:
    """Two groups of three levels."""
    levels, values = np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0])
    return Group("a", levels, values, np.arange(3)), Group("b", levels, values, np.arange(3, 6))


def test_groups_that_interact_are_refused() -> None:
    """With the name of what ties them, and of the solver that can."""
    groups = two_groups()
    plain = (Capacity("macs", 10, (Product((0,), 1),)),)
    tied = [
        SelectionProblem(groups, (Capacity("macs", 10, (Product((0, 1), 1),)),), 6),
        SelectionProblem(groups, (Capacity("macs", 10, (Table((0, 1), np.ones((3, 3), dtype=np.int64)),)),), 6),
        SelectionProblem(groups, plain, 6, value_tables=(ValueTable((0, 1), np.zeros((3, 3))),)),
        SelectionProblem(groups, plain, 6, local_limits=(LocalLimit(((0, 1), (1, 1)), 5),)),
        SelectionProblem(groups, plain, 6, links=(Link((0, 1)),)),
    ]
    for problem in tied:
        with pytest.raises(ValueError, match=r"Use solvers\.allocation\.Allocation"):
            Knapsack().solve(problem)


def test_amounts_beyond_64_bits_are_refused() -> None:
    """They would overflow; the message says what to do."""
    problem = SelectionProblem(two_groups(), (Capacity("macs", 10, (Product((0,), 2**62),)),), 6)
    with pytest.raises(ValueError, match="larger unit"):
        Knapsack().solve(problem)


def test_an_unreachable_limit_is_an_outcome() -> None:
    """The text names the resource, the smallest reachable amount and the shortfall."""
    problem = SelectionProblem(two_groups(), (Capacity("macs", 3, (Product((0,), 2), Product((1,), 3))),), 6)
    result = Knapsack().solve(problem)
    assert result.termination.reason is TerminationReason.INFEASIBLE
    assert "macs: limit 3, smallest reachable 5 (short by 2)" in result.termination.text


def test_limits_that_exclude_each_other_are_proven_infeasible() -> None:
    """Each alone can be kept, both together cannot."""
    up, down = np.array([0, 5, 9]), np.array([9, 5, 0])
    groups = two_groups()
    capacities = tuple(Capacity(name, 9, (Table((0,), t), Table((1,), t))) for name, t in (("up", up), ("down", down)))
    result = Knapsack().solve(SelectionProblem(groups, capacities, 6))
    assert result.termination.reason is TerminationReason.OPTIMAL
    capacities = tuple(replace(capacity, limit=8) for capacity in capacities)
    result = Knapsack().solve(SelectionProblem(groups, capacities, 6))
    assert result.termination.reason is TerminationReason.INFEASIBLE


def test_slack_budgets_and_empty_problems_are_trivial() -> None:
    """Everything that has value is kept; no groups are kept at once."""
    problem = SelectionProblem(two_groups(), (Capacity("macs", 100, (Product((0,), 2),)),), 6)
    result = EXACT.solve(problem)
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert certified(result).objective == problem.total_value
    for capacities in ((), (Capacity("macs", 5, (Product((), 5),)),)):
        empty = SelectionProblem((), capacities, 0)
        result = EXACT.solve(empty)
        assert result.termination.reason is TerminationReason.OPTIMAL
        certified(result).verify(empty)
    result = EXACT.solve(SelectionProblem((), (Capacity("macs", 4, (Product((), 5),)),), 0))
    assert result.termination.reason is TerminationReason.INFEASIBLE


@pytest.mark.parametrize("seed", range(40))
def test_a_core_of_all_options_holds_the_optimum(seed: int) -> None:
    """The program over the narrow core loses nothing but the options left out; it takes one option of each class."""
    problem = small_separable(seed)
    best = best_choice(problem)
    classes = MultipleChoice.of(problem)
    if best is None or not len(classes):
        return
    prices = np.zeros(len(problem.capacities))
    found = narrow_core(classes, prices, len(classes.values), nodes=10_000, seconds=None)
    assert found is not None
    assert np.array_equal(classes.owner[found], np.arange(len(classes)))
    assert classes.values[found].sum() == pytest.approx(classes.values[best.choice + classes.starts[:-1]].sum())


def test_a_narrow_core_holds_a_choice_close_to_the_bound() -> None:
    """With four budgets 60 options beyond one per class are enough for 2e-5 of the value; exchanges end at 4e-5."""
    classes = MultipleChoice.of(layers(0, 160, 128, 4, True))
    relaxed = relax(classes)
    found = narrow_core(classes, relaxed.prices, 60, nodes=2_000, seconds=None)
    assert found is not None
    assert (classes.used(found) <= classes.room).all()
    assert classes.values[found].sum() >= relaxed.bound * (1 - 2e-5)


def test_a_time_limit_of_nothing_returns_a_choice_within_budget() -> None:
    """With a bound that holds, and it says that time was the limit."""
    problem = layers(2, 40, 32, 3, True)
    started = time.perf_counter()
    result = Knapsack(gap_tolerance=0.0, time_limit=0.0).solve(problem)
    assert time.perf_counter() - started < 5.0
    check_laws(problem, result)
    assert result.termination.limit is Limit.TIME
    assert result.termination.reason is TerminationReason.FEASIBLE


def test_a_limit_on_states_is_reported() -> None:
    """The work limit is deterministic and ends the search with what is known."""
    problem = layers(2, 40, 32, 3, True)
    result = Knapsack(gap_tolerance=0.0, time_limit=None, max_states=1000).solve(problem)
    check_laws(problem, result)
    assert result.termination.limit is Limit.NODES
    assert "max_states" in result.termination.text


def test_the_keyboard_stops_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C returns the best choice so far with its certificate."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solvers.knapsack_search.search_box", interrupted)
    problem = layers(2, 20, 32, 2, True)
    result = EXACT.solve(problem)
    check_laws(problem, result)
    assert result.termination.limit is Limit.STOPPED


@pytest.mark.parametrize("bad", [{"gap_tolerance": -1.0}, {"time_limit": -1.0}, {"max_states": -1}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    """Negative tolerances and limits mean nothing."""
    with pytest.raises(ValueError, match="at least 0"):
        Knapsack(**bad)  # type: ignore[arg-type]
