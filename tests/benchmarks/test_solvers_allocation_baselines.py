"""The baselines stay within budget and do what their rules say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.solvers.allocation_baselines import BASELINES, Baseline, Costs, hull_steps
from benchmarks.solvers.instances import problem
from benchmarks.solvers.networks import mobilenet_v2, resnet18, resnet50
from solvers.problem import Capacity, Group, Link, Product, SelectionProblem
from tests.solvers.instances import random_problem

EACH = pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.name)
SEEDS = range(150)


def best_of_all(given: SelectionProblem) -> float | None:
    """Largest value within budget, by looking at every choice."""
    choices = itertools.product(*(range(len(group)) for group in given.groups))
    return max((given.value(choice) for choice in choices if given.evaluate(choice).feasible), default=None)


@EACH
def test_within_budget(baseline: Baseline) -> None:
    """Whatever a baseline finds holds every limit, and keeps no more than the best choice does."""
    found = 0
    for seed in SEEDS:
        given = random_problem(seed)
        choice = baseline.choose(given)
        if choice is not None:
            found += 1
            assert given.evaluate(choice).feasible
            best = best_of_all(given)
            assert best is not None
            assert given.value(choice) <= best + 1e-9
    assert found > len(SEEDS) // 3


@EACH
def test_generous_budget(baseline: Baseline) -> None:
    """With room for everything, everything is kept."""
    given = problem(mobilenet_v2(), {"macs": 1.0}, step=16)
    choice = baseline.choose(given)
    assert choice is not None
    assert given.value(choice) == pytest.approx(1.0)


@EACH
def test_uses_the_budget(baseline: Baseline) -> None:
    """On a real shape the budget is used up to 2 %: baselines are brought to the budget with care."""
    given = problem(resnet18(), {"macs": 0.5}, step=8)
    choice = baseline.choose(given)
    assert choice is not None
    assert given.used(choice)[0] >= 0.98 * given.capacities[0].limit


@EACH
def test_impossible_budget(baseline: Baseline) -> None:
    """Where not even the smallest network fits, there is no choice."""
    given = problem(resnet18(), {"macs": 0.5}, step=16)
    assert baseline.choose(given.with_limits({"macs": 1})) is None


@EACH
def test_repeats(baseline: Baseline) -> None:
    """Equal problems give equal choices."""
    first, again = (baseline.choose(problem(resnet18(), {"macs": 0.4, "latency_ns": 0.5})) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.tolist() == again.tolist()


@EACH
def test_removable_branches(baseline: Baseline) -> None:
    """Branches that go whole are kept, at a width that the tables allow."""
    given = problem(resnet50(), {"latency_ns": 0.6}, step=32, removable=True)
    choice = baseline.choose(given)
    assert choice is not None
    assert given.evaluate(choice).feasible
    assert all(given.groups[g].levels[choice[g]] > 0 for table in given.value_tables for g in table.groups)


def test_links_are_refused() -> None:
    """A rule that knows budgets alone says so."""
    groups = tuple(
        Group(name, np.array([1, 2]), np.arange(2.0), start + np.arange(2)) for start, name in ((0, "a"), (2, "b"))
    )
    given = SelectionProblem(groups, (), 4, links=(Link((0, 1)),))
    with pytest.raises(ValueError, match="Expected budgets"):
        BASELINES[0].choose(given)


def test_costs_follow_moves() -> None:
    """After any moves the used amounts are those that the problem itself counts."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        given = random_problem(seed)
        costs = Costs(given, given.minimum_choice)
        for _ in range(10):
            group = int(rng.integers(len(given.groups)))
            level = int(rng.integers(len(given.groups[group])))
            expected = costs.fits(group, level)
            costs.move(group, level)
            assert tuple(costs.used.tolist()) == given.used(costs.chosen())
            assert costs.feasible == expected == given.evaluate(costs.chosen()).feasible


def test_hull() -> None:
    """Steps go from the cheapest level along the concave hull; dearer levels of less value are passed over."""
    base, steps = hull_steps(np.array([0.0, 1.0, 4.0, 3.0, 5.0]), np.array([2.0, 3.0, 4.0, 5.0, 6.0]), 7)
    assert base == 0
    assert [(step.before, step.after) for step in steps] == [(0, 2), (2, 4)]
    assert [step.value / step.cost for step in steps] == [2.0, 0.5]
    assert steps[0].group == 7


def test_threshold_is_blind_to_cost() -> None:
    """Of two equal layers of which one is dear, thresholds keep equally much; greedy keeps more of the cheap one."""
    values = np.cumsum(np.sort(np.random.default_rng(0).lognormal(size=20))[::-1])
    groups = tuple(
        Group(name, np.arange(1, 21), values, start + np.arange(20)) for name, start in (("a", 0), ("b", 20))
    )
    given = SelectionProblem(groups, (Capacity("macs", 105, (Product((0,), 1), Product((1,), 10))),), 40)
    chosen = {}
    for baseline in BASELINES:
        choice = baseline.choose(given)
        assert choice is not None
        chosen[baseline.name] = choice
    for name in ("uniform", "global threshold", "normalised threshold"):
        assert chosen[name][1] + 1 == 9  # 9 + 10 * 9 = 99; what is left fills the cheap layer
    assert chosen["greedy down"][0] > 10
    assert given.value(chosen["greedy down"]) >= given.value(chosen["global threshold"])
