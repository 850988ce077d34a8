"""Problems made smaller: same values, same amounts, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.problem import Capacity, Group, Link, Product, SelectionProblem, ValueTable
from solvers.reduction import with_levels, without_links
from tests.references import all_choices, allowed, amounts, value
from tests.solvers.instances import coupled_problem


@pytest.mark.parametrize("seed", range(200))
def test_without_links_the_same_choices_are_left(seed: int) -> None:
    """Reduced choices stand for exactly those that keep the links; values, amounts and violations agree."""
    problem = coupled_problem(seed)
    reduced = without_links(problem)
    possible = {choice for choice in all_choices(problem) if allowed(problem, choice)}
    if reduced is None:
        assert not possible
        return
    assert not reduced.problem.links
    met = set()
    for choice in all_choices(reduced.problem):
        lifted = tuple(reduced.lift(choice).tolist())
        lowered = reduced.lower(lifted)
        assert lowered is not None
        assert tuple(lowered) == choice
        assert amounts(reduced.problem, choice) == amounts(problem, lifted)
        assert allowed(reduced.problem, choice) == allowed(problem, lifted)
        if allowed(problem, lifted):
            met.add(lifted)
            assert value(reduced.problem, choice) == pytest.approx(value(problem, lifted), abs=1e-12)
    assert met == possible


@pytest.mark.parametrize("seed", range(100))
def test_fewer_levels_are_the_same_problem_on_them(seed: int) -> None:
    """Values, amounts and what is allowed, for random subsets of levels."""
    problem, rng = coupled_problem(seed), np.random.default_rng(seed)
    kept = [np.flatnonzero(rng.random(len(group)) < 0.6) for group in problem.groups]
    kept = [levels if levels.size else np.array([0]) for levels in kept]
    reduced = without_links(problem)
    if reduced is None or problem.links:
        return
    smaller = with_levels(problem, kept)
    for choice in all_choices(smaller.problem):
        lifted = tuple(smaller.lift(choice).tolist())
        assert all(index in levels for index, levels in zip(lifted, kept, strict=True))
        assert amounts(smaller.problem, choice) == amounts(problem, lifted)
        assert allowed(smaller.problem, choice) == allowed(problem, lifted)
        assert value(smaller.problem, choice) == value(problem, lifted)


def test_a_choice_that_breaks_a_link_has_no_reduced_one() -> None:
    """Neither has one with a level that only some of the linked groups have."""
    groups = (
        Group("a", np.array([1, 2, 4]), np.zeros(3), np.arange(4)),
        Group("b", np.array([2, 3, 4]), np.zeros(3), np.arange(4, 8)),
    )
    reduced = without_links(SelectionProblem(groups, (), 8, links=(Link((0, 1)),)))
    assert reduced is not None
    assert reduced.problem.groups[0].levels.tolist() == [2, 4]
    assert reduced.lower([0, 0]) is None
    assert reduced.lower([1, 2]) is None
    assert reduced.lift([1]).tolist() == [2, 2]


def test_products_of_groups_linked_by_index_stay_exact() -> None:
    """Levels differ, so the product becomes a table; beyond 64 bits it is refused."""
    groups = tuple(Group(f"g{g}", np.array([g + 1, 10 * g + 7]), np.zeros(2), np.arange(20) + 20 * g) for g in range(2))
    capacity = Capacity("macs", 10, (Product((0, 1, 1), 3),))
    reduced = without_links(SelectionProblem(groups, (capacity,), 40, links=(Link((0, 1), True),)))
    assert reduced is not None
    assert [reduced.problem.used([i])[0] for i in range(2)] == [3 * 1 * 4, 3 * 7 * 17**2]
    huge = Capacity("macs", 10, (Product((0, 1), 2**62),))
    with pytest.raises(ValueError, match=r"below 2\^63"):
        without_links(SelectionProblem(groups, (huge,), 40, links=(Link((0, 1), True),)))


def test_linked_groups_that_are_forbidden_together_have_no_problem() -> None:
    """Every common level is excluded by a value table over the two."""
    groups = tuple(Group(f"g{g}", np.arange(2), np.zeros(2), np.array([g])) for g in range(2))
    table = ValueTable((0, 1), np.array([[-np.inf, 0.0], [0.0, -np.inf]]))
    assert without_links(SelectionProblem(groups, (), 2, (table,), links=(Link((0, 1)),))) is None
