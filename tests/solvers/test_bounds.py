"""Lagrangian bounds and exact statements about boxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.bounds import Boxes, Lagrangian, least_reachable, plan, upper_hull
from solvers.bounds.boxes import least
from solvers.problem import Capacity, Group, Product, SelectionProblem
from tests.references import all_choices, allowed, amounts, lagrangian, within_budget
from tests.solvers.instances import coupled_problem, random_problem


def unlinked(seed: int) -> SelectionProblem:
    """A random problem with value tables and local limits in half of the cases."""
    return replace(coupled_problem(seed), links=()) if seed % 2 else random_problem(seed)


def random_box(problem: SelectionProblem, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a random box of level indices."""
    low = np.array([rng.integers(0, len(group)) for group in problem.groups])
    high = np.array([rng.integers(a, len(group)) for a, group in zip(low, problem.groups, strict=True)])
    return low, high


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("cells", [10**6, 20, 3])
def test_elimination_is_exact_and_mini_buckets_only_raise_it(seed: int, cells: int) -> None:
    """The bound is the enumerated maximum; with split buckets it is at least that."""
    problem, rng = unlinked(seed), np.random.default_rng(seed)
    low, high = random_box(problem, rng)
    prices = rng.exponential(size=len(problem.capacities)) * rng.choice([0.0, 0.01, 0.1, 1.0])
    bounds = Lagrangian(problem, cells)
    found, rounding = bounds.evaluate(prices, low, high), bounds.rounding(prices)
    expected = lagrangian(problem, prices, low, high)
    assert found.bound >= expected
    assert np.all(low <= found.choice)
    assert np.all(found.choice <= high)
    # A limit on one group alone is the boxes' matter.
    if found.exact and expected > -np.inf and all(len(limit.terms) > 1 for limit in problem.local_limits):
        assert found.bound <= expected + 2 * rounding
        assert lagrangian(problem, prices, found.choice, found.choice) >= expected - rounding


@pytest.mark.parametrize("seed", range(150))
def test_conjugates_row_by_row_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a group is linear in some summands and not in others, also when that pays off only in large problems."""
    monkeypatch.setattr(plan, "_ROW_WORK", 0)
    monkeypatch.setattr(plan, "_POINT_WORK", 0)
    test_elimination_is_exact_and_mini_buckets_only_raise_it(seed, 10**6)
    test_elimination_is_exact_and_mini_buckets_only_raise_it(seed, 20)


def test_one_group_and_its_linear_neighbours_need_no_joint_table() -> None:
    """Ten groups of 2,000 levels around one hub are exact within 2,000 cells."""
    groups = [Group("hub", np.arange(1, 101), np.sqrt(np.arange(1, 101)), np.arange(100))]
    for g in range(10):
        order = np.arange(100 + 2000 * g, 2100 + 2000 * g)
        groups.append(Group(f"leaf{g}", np.arange(1, 2001), np.log(np.arange(1, 2001)), order))
    terms = tuple(Product((0, g), g) for g in range(1, 11))
    problem = SelectionProblem(tuple(groups), (Capacity("macs", 10**6, terms),), 20100)
    top = np.array([len(group) - 1 for group in groups])
    found = Lagrangian(problem, max_cells=2000).evaluate(np.array([1e-4]), problem.minimum_choice, top)
    assert found.exact
    best = -np.inf
    for index, level in enumerate(groups[0].levels):
        leaves = sum((group.values - 1e-4 * g * level * group.levels).max() for g, group in enumerate(groups) if g)
        best = max(best, float(groups[0].values[index] + leaves))
    assert found.bound == pytest.approx(best + 100.0)


def test_negative_prices_are_refused() -> None:
    """They would not give a bound."""
    problem = random_problem(0)
    prices = -np.ones(len(problem.capacities))
    with pytest.raises(ValueError, match="at least 0"):
        Lagrangian(problem).evaluate(prices, problem.minimum_choice, problem.minimum_choice)


@pytest.mark.parametrize("seed", range(200))
def test_tightened_boxes_lose_no_choice_within_budget(seed: int) -> None:
    """Every choice within budget of the box is in the smaller box; a single choice that stays is within budget."""
    problem, rng = unlinked(seed), np.random.default_rng(seed)
    low, high = random_box(problem, rng)
    smaller = Boxes(problem).tighten(low, high)
    for choice in all_choices(problem):
        inside = np.all(low <= choice) and np.all(high >= choice)
        if inside and within_budget(problem, choice):
            assert smaller is not None
            assert np.all(smaller[0] <= choice)
            assert np.all(smaller[1] >= choice)
    if smaller is not None and np.array_equal(*smaller):
        assert problem.evaluate(smaller[0]).feasible


@pytest.mark.parametrize("seed", range(200))
def test_least_reachable_is_the_enumerated_minimum(seed: int) -> None:
    """Per resource and over allowed choices, also with tables that do not rise with the level, and links."""
    problem = coupled_problem(seed)
    used = [amounts(problem, choice) for choice in all_choices(problem) if allowed(problem, choice)]
    if used:
        assert list(least_reachable(problem).values()) == np.array(used).min(axis=0).tolist()
    else:
        assert all(least(problem, capacity.resource).amount is None for capacity in problem.capacities)


@pytest.mark.parametrize("shape", ["random", "concave", "convex", "flat", "noise", "long"])
def test_hull_supports_every_slope(shape: str) -> None:
    """The maximum of y - p x over all points is the maximum over the hull, and hull slopes decrease."""
    rng = np.random.default_rng(0)
    size = 20_000 if shape == "long" else 200
    x = np.cumsum(rng.integers(1, 5, size)).astype(float)
    y = {
        "random": rng.normal(size=size),
        "concave": np.sqrt(x),
        "convex": x**2,
        "flat": np.zeros(size),
        "noise": np.cumsum(np.full(size, 0.1)),
        "long": np.cumsum(rng.exponential(size=size)),
    }[shape]
    hull = upper_hull(x, y)
    assert np.all(np.diff(np.diff(y[hull]) / np.diff(x[hull])) < 0)
    for p in rng.normal(size=50) * 3:
        assert (y - p * x).max() == pytest.approx((y[hull] - p * x[hull]).max(), rel=1e-12)
