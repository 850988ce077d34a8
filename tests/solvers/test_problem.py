"""The problem: exact amounts, clear refusals, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solvers.problem import Capacity, Group, Product, SelectionProblem, Table
from tests.references import all_choices, amounts
from tests.solvers.instances import random_problem


def two_groups(**changes: Any) -> SelectionProblem:
    """Two groups with a product between them."""
    first = Group("a", np.array([0, 2, 4]), np.array([0.0, 1.0, 1.5]), np.array([3, 1, 0, 2]))
    second = Group("b", np.array([1, 3]), np.array([0.5, 2.0]), np.array([6, 5, 4]))
    terms = (Product((0, 1), 5), Product((0, 0), 2), Product((), 7))
    given: dict[str, Any] = {"groups": (first, second), "capacities": (Capacity("macs", 50, terms),), "size": 8}
    return SelectionProblem(**(given | changes))


@pytest.mark.parametrize("seed", range(50))
def test_used_amounts_are_the_sum_of_the_terms(seed: int) -> None:
    """Merged terms give what the terms give one by one."""
    problem = random_problem(seed)
    for choice in all_choices(problem):
        assert list(problem.used(choice)) == amounts(problem, choice)


def test_evaluate_gives_value_amount_and_feasibility() -> None:
    """5 * 2 * 3 + 2 * 2^2 + 7 = 45 of 50, and 5 * 4 * 3 + 2 * 4^2 + 7 = 99 is too much."""
    problem = two_groups()
    assert problem.evaluate([1, 1]) == type(problem.evaluate([1, 1]))(3.0, {"macs": 45}, True)
    assert not problem.evaluate([2, 1]).feasible


def test_amounts_beyond_64_bits_are_exact() -> None:
    """One unit too much is too much, also at 10^24."""
    group = Group("wide", np.array([1, 10**6]), np.array([0.0, 1.0]), np.arange(10**6))
    terms = (Product((0, 0, 0, 0), 1),)
    for limit, feasible in ((10**24, True), (10**24 - 1, False)):
        problem = SelectionProblem((group,), (Capacity("macs", limit, terms),), 10**6)
        assert problem.evaluate([1]).feasible is feasible


def test_selection_keeps_the_first_of_the_order_and_what_no_group_names() -> None:
    """Level 2 of group a keeps structures 3 and 1, level 1 of group b keeps 6, and 7 belongs to nobody."""
    kept = two_groups().selection([1, 0])
    assert np.flatnonzero(kept).tolist() == [1, 3, 6, 7]


def test_total_value_is_the_sum_of_the_largest_values() -> None:
    """Whatever the costs."""
    assert two_groups().total_value == 3.5


def test_save_and_load_give_the_same_problem(tmp_path: Path) -> None:
    """Equal fingerprints, and no temporary file is left."""
    for seed in range(20):
        problem = random_problem(seed)
        problem.save(tmp_path / "problem.npz")
        assert SelectionProblem.load(tmp_path / "problem.npz").fingerprint == problem.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["problem.npz"]


def test_fingerprint_sees_every_part() -> None:
    """A changed limit, coefficient, value or order changes it."""
    problem = two_groups()
    others = [
        problem.with_limits({"macs": 51}),
        two_groups(capacities=(Capacity("macs", 50, (Product((0, 1), 6),)),)),
        two_groups(size=9),
    ]
    assert len({problem.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert problem.with_limits({}).fingerprint == problem.fingerprint


def test_arrays_are_copied_and_read_only() -> None:
    """A problem does not change when the caller's arrays do."""
    values = np.array([0.0, 1.0])
    group = Group("a", np.array([0, 1]), values, np.array([0]))
    values[0] = 9.0
    assert group.values[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        group.values[0] = 9.0


@pytest.mark.parametrize(
    ("levels", "values", "order", "message"),
    [
        ([0, 2, 1], [0.0, 1.0, 2.0], [0, 1], "increase strictly"),
        ([0, 0], [0.0, 1.0], [0], "increase strictly"),
        ([-1, 0], [0.0, 1.0], [0], "increase strictly"),
        ([], [], [], "at least one"),
        ([0, 1], [0.0, np.nan], [0], "finite values for group 'conv1'"),
        ([0, 1], [0.0, -np.inf], [0], "finite values for group 'conv1'"),
        ([0, 1], [0.0], [0], "one per level"),
        ([0, 3], [0.0, 1.0], [0, 1], "at least 3 structures"),
    ],
)
def test_bad_groups_are_refused_by_name(levels: list[int], values: list[float], order: list[int], message: str) -> None:
    """The message says what was expected and which group it is."""
    with pytest.raises(ValueError, match=message):
        Group("conv1", np.array(levels), np.array(values), np.array(order))


def test_levels_that_are_no_integers_are_refused() -> None:
    """NaN levels are floats."""
    with pytest.raises(TypeError, match="integer type"):
        Group("conv1", np.array([0.0, np.nan]), np.array([0.0, 1.0]), np.array([0]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Product((0,), -1), "at least 0"),
        (lambda: Table((0,), np.array([1, -1, 0])), "at least 0"),
        (lambda: Table((0, 0), np.zeros((3, 3), int)), "distinct groups"),
        (lambda: Table((0, 1), np.zeros(3, int)), "2 axes"),
        (lambda: two_groups(capacities=(Capacity("m", 1, (Table((0, 1), np.zeros((2, 3), int)),)),)), r"\(3, 2\)"),
        (lambda: two_groups(capacities=(Capacity("m", 1, (Product((2,), 1),)),)), "group indices"),
        (lambda: two_groups(capacities=(Capacity("m", 1, ()), Capacity("m", 2, ()))), "distinct resources"),
        (lambda: two_groups(groups=two_groups().groups[:1] * 2), "distinct group names"),
        (lambda: two_groups(size=6), "structure indices"),
        (lambda: two_groups().evaluate([0, 2]), "level index"),
        (lambda: two_groups().evaluate([0]), "shape"),
    ],
)
def test_bad_problems_are_refused(make: Any, message: str) -> None:
    """Every mistake is named where it enters."""
    with pytest.raises(ValueError, match=message):
        make()


def test_structures_in_two_groups_are_refused() -> None:
    """Otherwise a structure could be kept and removed."""
    shared = Group("b", np.array([1]), np.array([0.5]), np.array([0]))
    with pytest.raises(ValueError, match="twice"):
        two_groups(groups=(two_groups().groups[0], shared), capacities=())
