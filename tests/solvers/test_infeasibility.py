"""Why nothing is within budget: exact, and irreducible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.infeasibility import explain, floors
from solvers.problem import Capacity, Group, LocalLimit, Product, SelectionProblem, Table, ValueTable
from solvers.result import TerminationReason
from tests.references import all_choices, allowed, amounts, within_budget
from tests.solvers.instances import coupled_problem, resnet56


def conflicting(x: int, y: int, z: int = 100) -> SelectionProblem:
    """One group whose use of x falls and of y rises; z does not matter."""
    group = Group("a", np.array([1, 2, 3]), np.zeros(3), np.arange(3))
    falls, rises = Table((0,), np.array([9, 5, 1])), Table((0,), np.array([1, 5, 9]))
    capacities = (Capacity("x", x, (falls,)), Capacity("z", z, (rises,)), Capacity("y", y, (rises,)))
    return SelectionProblem((group,), capacities, 3)


@pytest.mark.parametrize("seed", range(150))
def test_floors_are_the_enumerated_minima(seed: int) -> None:
    """A budget is named exactly when no allowed choice keeps it, with the least amount and all of its parts."""
    problem = coupled_problem(seed)
    used = [amounts(problem, choice) for choice in all_choices(problem) if allowed(problem, choice)]
    if not used:
        return
    least = np.array(used).min(axis=0)
    found = {floor.resource: floor for floor in floors(problem)}
    for k, capacity in enumerate(problem.capacities):
        assert (capacity.resource in found) == (least[k] > capacity.limit)
        if capacity.resource in found:
            floor = found[capacity.resource]
            assert floor.exact
            assert floor.minimum == least[k]
            assert floor.shortfall == least[k] - capacity.limit
            assert sum(share.amount for share in floor.breakdown) == pytest.approx(least[k])


@pytest.mark.parametrize("seed", range(150))
def test_conflicts_are_irreducible_and_relaxations_least(seed: int) -> None:
    """All of the named budgets together are infeasible, fewer are not; the least limit that helps is proven."""
    problem = coupled_problem(seed)
    choices = list(all_choices(problem))
    if any(within_budget(problem, choice) for choice in choices):
        with pytest.raises(ValueError, match="Solve it"):
            explain(problem)
        return
    found = explain(problem)
    if found.floors or not found.relaxations:
        return
    named = [c for c in problem.capacities if f"{c.resource} at most {c.limit}" in found.conflict]
    assert len(named) == len(found.conflict)

    def feasible(capacities: list[Capacity]) -> bool:
        fewer = replace(problem, capacities=tuple(capacities))
        return any(within_budget(fewer, choice) for choice in choices)

    assert not feasible(named)
    assert all(feasible([other for other in named if other is not one]) for one in named)
    for way in found.relaxations:
        assert way.proven
        raised = [replace(c, limit=way.needed) if c.resource == way.resource else c for c in named]
        assert feasible(raised)
        short = [replace(c, limit=way.needed - 1) if c.resource == way.resource else c for c in named]
        assert not feasible(short)


def test_budgets_that_exclude_one_another_are_named_with_what_would_help() -> None:
    """x at most 4 needs the last level, y at most 4 the first: raise either to 9; z is innocent."""
    found = explain(conflicting(4, 4))
    assert found.conflict == ("x at most 4", "y at most 4")
    assert {way.resource: way.needed for way in found.relaxations} == {"x": 9, "y": 9}
    assert "Raise x from 4 to 9, or y from 4 to 9" in found.text
    assert found.text == Allocation().solve(conflicting(4, 4)).termination.text


def test_local_limits_and_forbidden_combinations_are_told_apart_from_budgets() -> None:
    """Without any budget nothing is allowed: the two that clash are named, the third is not."""
    groups = tuple(Group(f"g{g}", np.arange(1, 4), np.zeros(3), np.arange(3) + 3 * g) for g in range(2))
    wide = ValueTable((0, 1), np.where(np.add.outer(np.arange(3), np.arange(3)) < 4, -np.inf, 0.0), "wide")
    slim, roomy = LocalLimit(((0, 1), (1, 1)), 4, "conv3"), LocalLimit(((0, 1),), 3, "conv1")
    problem = SelectionProblem(groups, (), 6, (wide,), (roomy, slim))
    result = Allocation().solve(problem)
    assert result.termination.reason is TerminationReason.INFEASIBLE
    assert "'wide'" in result.termination.text
    assert "'conv3'" in result.termination.text
    assert "'conv1'" not in result.termination.text


def test_the_smallest_network_is_explained_by_layer() -> None:
    """The largest part comes first, with why it cannot go."""
    problem = resnet56()
    (floor,) = floors(problem.with_limits({"macs": 1000}))
    amounts_of = [share.amount for share in floor.breakdown]
    assert amounts_of == sorted(amounts_of, reverse=True)
    assert "smallest level 1 of 16" in floor.text
    assert floor.minimum == problem.used(problem.minimum_choice)[0]


def test_forbidden_combinations_raise_the_floor() -> None:
    """The smallest levels are forbidden together: the least of all allowed choices counts, not theirs."""
    groups = tuple(Group(f"g{g}", np.arange(1, 4), np.zeros(3), np.arange(3) + 3 * g) for g in range(2))
    table = ValueTable((0, 1), np.array([[-np.inf, 0, 0], [0, 0, 0], [0, 0, 0]]), "not both")
    terms = (Product((0,), 10), Product((1,), 1))
    problem = SelectionProblem(groups, (Capacity("macs", 11, terms),), 6, (table,))
    (floor,) = floors(problem)
    assert floor.minimum == 12
    assert Allocation().solve(problem.with_limits({"macs": 12})).choice == pytest.approx([0, 1])
