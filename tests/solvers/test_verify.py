"""The verifier: it finds what is false."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.problem import Capacity, Group, Link, Product, SelectionProblem
from solvers.result import Certificate, relative_gap
from solvers.verify import check_cover, is_feasible, is_maximal
from tests.references import all_choices, value, within_budget
from tests.solvers.instances import coupled_problem, resnet56


@cache
def solved() -> tuple[SelectionProblem, Certificate]:
    """A ResNet-56 with a proof of several leaves."""
    problem = resnet56()
    certificate = Allocation(gap_tolerance=0.0, max_nodes=8).solve(problem).certificate
    assert certificate is not None
    assert len(certificate.leaves) > 2
    assert any(leaf.inner is not None for leaf in certificate.leaves)
    assert certificate.fixings
    return problem, certificate


def test_a_true_certificate_passes() -> None:
    """For its own problem."""
    problem, certificate = solved()
    certificate.verify(problem)


def test_a_smaller_bound_fails() -> None:
    """Even when the gap is made to match."""
    problem, certificate = solved()
    bound = certificate.objective + 0.1 * (certificate.bound - certificate.objective)
    gap = relative_gap(certificate.objective, bound, problem.total_value)
    with pytest.raises(ValueError, match="not proven"):
        replace(certificate, bound=bound, gap=gap).verify(problem)


def test_a_missing_leaf_fails() -> None:
    """Whichever it is."""
    problem, certificate = solved()
    for number in range(len(certificate.leaves)):
        leaves = certificate.leaves[:number] + certificate.leaves[number + 1 :]
        with pytest.raises(ValueError, match="cover"):
            replace(certificate, leaves=leaves).verify(problem)


def test_a_shrunk_leaf_fails() -> None:
    """One level less is not covered."""
    problem, certificate = solved()
    leaf = certificate.leaves[0]
    high = leaf.high.copy()
    high[int(np.argmax(high - leaf.low))] -= 1
    with pytest.raises(ValueError, match="cover"):
        replace(certificate, leaves=(replace(leaf, high=high), *certificate.leaves[1:])).verify(problem)


def test_a_leaf_that_leaves_more_out_fails() -> None:
    """What it says nothing about has to be in other leaves, what it claims has to be within the bound."""
    problem, certificate = solved()
    number = next(i for i, leaf in enumerate(certificate.leaves) if leaf.inner is not None)
    leaf = certificate.leaves[number]
    assert leaf.inner is not None
    for inner in ((leaf.low, leaf.high), (leaf.high + 1, leaf.high)):
        others = certificate.leaves[:number] + certificate.leaves[number + 1 :]
        with pytest.raises(ValueError, match="cover|not proven"):
            replace(certificate, leaves=(replace(leaf, inner=inner), *others)).verify(problem)


def test_levels_left_out_need_their_proof() -> None:
    """Other prices, fewer levels kept, or levels that do not exist are found."""
    problem, certificate = solved()
    first, *rest = certificate.fixings
    widest = int(np.argmax([len(kept) for kept in first.kept]))
    fewer = tuple(kept[:1] if g == widest else kept for g, kept in enumerate(first.kept))
    beyond = tuple(kept + 1000 if g == widest else kept for g, kept in enumerate(first.kept))
    for fixing, message in (
        (replace(first, prices=0.0 * first.prices), "not proven"),
        (replace(first, kept=fewer), "not proven"),
        (replace(first, kept=beyond), "levels"),
        (replace(first, kept=first.kept[:-1]), "levels"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(certificate, fixings=(fixing, *rest)).verify(problem)
    with pytest.raises(ValueError, match="cover|outside|not proven"):
        replace(certificate, fixings=()).verify(problem)


def test_other_prices_fail() -> None:
    """A leaf without prices proves only the total value; negative prices prove nothing."""
    problem, certificate = solved()
    for factor, message in ((0.0, "not proven"), (-1.0, "at least 0")):
        leaves = tuple(replace(leaf, prices=factor * leaf.prices) for leaf in certificate.leaves)
        with pytest.raises(ValueError, match=message):
            replace(certificate, leaves=leaves).verify(problem)


@pytest.mark.parametrize(
    ("field", "message"), [("objective", "objective"), ("used", "used"), ("allowed", "used"), ("gap", "gap")]
)
def test_a_changed_number_fails(field: str, message: str) -> None:
    """Objective, amounts, limits and gap are recomputed."""
    problem, certificate = solved()
    old = getattr(certificate, field)
    changes: dict[str, Any] = {field: {"macs": old["macs"] - 1} if isinstance(old, dict) else old * 1.01}
    with pytest.raises(ValueError, match=message):
        replace(certificate, **changes).verify(problem)


def test_another_choice_fails() -> None:
    """Larger than the budget, or of another value."""
    problem, certificate = solved()
    dense = np.array([len(group) - 1 for group in problem.groups])
    with pytest.raises(ValueError, match="not feasible"):
        replace(certificate, choice=dense).verify(problem)
    with pytest.raises(ValueError, match="objective"):
        replace(certificate, choice=problem.minimum_choice).verify(problem)


def test_another_problem_fails() -> None:
    """A smaller budget is not kept, a larger one allows more."""
    problem, certificate = solved()
    for factor in (0.9, 1.1):
        with pytest.raises(ValueError, match="Expected"):
            certificate.verify(problem.with_limits({"macs": int(problem.capacities[0].limit * factor)}))


def test_a_pinwheel_with_a_hole_is_no_cover() -> None:
    """Boxes that overlap no plane but leave the middle open are refused."""
    lows = np.array([[0, 0], [0, 1], [1, 2], [2, 0]])
    highs = np.array([[1, 0], [0, 2], [2, 2], [2, 1]])
    with pytest.raises(ValueError, match="cover"):
        check_cover(lows, highs, np.zeros(2, int), np.full(2, 2))
    check_cover(np.array([[0, 0], [2, 0]]), np.array([[1, 2], [2, 2]]), np.zeros(2, int), np.full(2, 2))


@pytest.mark.parametrize("seed", range(60))
def test_feasible_and_maximal_mean_what_they_say(seed: int) -> None:
    """Against the definition on every choice."""
    problem = replace(coupled_problem(seed), links=())
    for choice in all_choices(problem):
        assert is_feasible(problem, choice) == within_budget(problem, choice)
        if not within_budget(problem, choice):
            continue
        raised = [
            (*choice[:g], choice[g] + 1, *choice[g + 1 :])
            for g, group in enumerate(problem.groups)
            if choice[g] + 1 < len(group)
        ]
        better = [other for other in raised if value(problem, other) >= value(problem, choice)]
        assert is_maximal(problem, choice) == (not any(within_budget(problem, other) for other in better))


def test_linked_groups_rise_together() -> None:
    """Maximal when no level that all of them have is free, whatever one of them could do alone."""
    groups = tuple(Group(f"g{g}", np.arange(4), np.arange(4.0), np.arange(3) + 3 * g) for g in range(2))
    terms = (Product((0,), 1), Product((1,), 1))
    problem = SelectionProblem(groups, (Capacity("params", 3, terms),), 6, links=(Link((0, 1)),))
    assert is_maximal(problem, [1, 1])
    assert not is_maximal(problem, [0, 0])
