"""The problem: exact amounts, clear refusals, files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solvers.problem import Capacity, Group, Link, LocalLimit, Product, SelectionProblem, Table, ValueTable
from tests.references import all_choices, amounts, value, within_budget
from tests.solvers.instances import coupled_problem, random_problem


def two_groups(**changes: Any) -> SelectionProblem:
    """Two groups with a product between them."""
    first = Group("a", np.array([0, 2, 4]), np.array([0.0, 1.0, 1.5]), np.array([3, 1, 0, 2]))
    second = Group("b", np.array([1, 3]), np.array([0.5, 2.0]), np.array([6, 5, 4]))
    terms = (Product((0, 1), 5), Product((0, 0), 2), Product((), 7))
    given: dict[str, Any] = {"groups": (first, second), "capacities": (Capacity("macs", 50, terms),), "size": 8}
    return SelectionProblem(**(given | changes))


def four_groups(*links: Link) -> SelectionProblem:
    """Four equal groups."""
    groups = tuple(Group(f"g{g}", np.arange(3), np.arange(3.0), np.arange(2) + 2 * g) for g in range(4))
    return SelectionProblem(groups, (), 8, links=links)


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
        two_groups(value_tables=(ValueTable((0, 1), np.zeros((3, 2))),)),
        two_groups(value_tables=(ValueTable((0, 1), np.ones((3, 2))),)),
        two_groups(local_limits=(LocalLimit(((0, 1),), 3),)),
        two_groups(local_limits=(LocalLimit(((0, 1),), 4),)),
    ]
    assert len({problem.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert problem.with_limits({}).fingerprint == problem.fingerprint


@pytest.mark.parametrize("seed", range(100))
def test_evaluate_says_what_is_broken(seed: int) -> None:
    """Value, feasibility and one sentence per broken part, against the definition, for coupled groups."""
    problem = coupled_problem(seed)
    for choice in itertools.islice(all_choices(problem), 200):
        found = problem.evaluate(choice)
        assert found.value == value(problem, choice)
        assert found.feasible == within_budget(problem, choice) == (not found.violations)
        assert found.value <= problem.total_value + 1e-9


def test_each_violation_is_named() -> None:
    """Budget, local limit, forbidden combination and link, with amounts and levels."""
    tie = ValueTable((0, 1), np.array([[0.0, -np.inf], [0.0, 0.0], [0.0, -np.inf]]), "tie")
    problem = two_groups(value_tables=(tie,), local_limits=(LocalLimit(((0, 2), (1, 1)), 9, "add"),))
    assert problem.violations([2, 1]) == (
        "macs: 99 used, limit 50",
        "local limit 'add': 11 used, limit 9",
        "forbidden combination 'tie': {'a': 4, 'b': 3}",
    )
    groups = (*two_groups().groups[:1], replace(two_groups().groups[1], levels=np.array([2, 3])))
    linked = two_groups(groups=groups, links=(Link((0, 1)),))
    assert linked.violations([1, 0]) == ()
    assert linked.violations([0, 1]) == ("link ['a', 'b']: levels [0, 3] differ",)


def test_total_value_counts_tables_with_their_groups() -> None:
    """Dense is best in each part: the total is the dense value, not the sum of all maxima."""
    table = ValueTable((0, 1), np.array([[-3.0, -2.0], [-2.0, -1.0], [-2.0, 0.0]]))
    problem = two_groups(value_tables=(table,))
    assert problem.total_value == problem.value([2, 1]) == 3.5


@pytest.mark.parametrize("name", ["problem.npz", "problem.json"])
def test_coupled_problems_survive_files(name: str, tmp_path: Path) -> None:
    """Equal fingerprints and evaluations; -inf too, in JSON as null."""
    for seed in range(30):
        problem = coupled_problem(seed)
        problem.save(tmp_path / name)
        loaded = SelectionProblem.load(tmp_path / name)
        assert loaded.fingerprint == problem.fingerprint
        assert loaded.evaluate(loaded.minimum_choice) == problem.evaluate(problem.minimum_choice)


def test_files_of_the_first_format_still_load(tmp_path: Path) -> None:
    """What was written before there were tables of values, and the fingerprint that it had."""
    problem = two_groups()
    header = {
        "format": 1,
        "size": 8,
        "groups": ["a", "b"],
        "capacities": [
            {
                "resource": "macs",
                "limit": 50,
                "terms": [
                    {"groups": [0, 1], "coefficient": 5},
                    {"groups": [0, 0], "coefficient": 2},
                    {"groups": [], "coefficient": 7},
                ],
            }
        ],
    }
    arrays: dict[str, np.ndarray] = {}
    for g, group in enumerate(problem.groups):
        arrays |= {f"levels_{g}": group.levels, f"values_{g}": group.values, f"order_{g}": group.order}
    np.savez_compressed(tmp_path / "old.npz", header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
    loaded = SelectionProblem.load(tmp_path / "old.npz")
    assert loaded.fingerprint == problem.fingerprint
    assert loaded.fingerprint == "6b389c9462e8ca91cf06fcf62ebe7894b637958f089c6a6b33f1255ddf36a427"


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    """The message says which formats are read."""
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    (tmp_path / "other.json").write_text('{"header": {"format": 99}}')
    for name in ("other.npz", "other.json"):
        with pytest.raises(ValueError, match="format 1 or 2"):
            SelectionProblem.load(tmp_path / name)


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
        (lambda: ValueTable((0,), np.zeros(3)), "at least two distinct"),
        (lambda: ValueTable((0, 0), np.zeros((3, 3))), "at least two distinct"),
        (lambda: ValueTable((0, 1), np.zeros(3)), "2 axes"),
        (lambda: ValueTable((0, 1), np.array([[0.0, np.nan]])), "1 that are"),
        (lambda: ValueTable((0, 1), np.array([[0.0, np.inf]])), "1 that are"),
        (lambda: two_groups(value_tables=(ValueTable((0, 1), np.zeros((2, 3)), "t"),)), r"\(3, 2\).*value table 't'"),
        (lambda: two_groups(value_tables=(ValueTable((0, 2), np.zeros((3, 3))),)), "group indices"),
        (lambda: LocalLimit((), 1, "conv"), "at least one, in local limit 'conv'"),
        (lambda: LocalLimit(((0, 1), (0, 2)), 1), "distinct groups"),
        (lambda: LocalLimit(((0, -1),), 1), "at least 0"),
        (lambda: two_groups(local_limits=(LocalLimit(((5, 1),), 1),)), "group indices"),
        (lambda: Link((0,)), "at least two"),
        (lambda: Link((0, 0)), "at least two"),
        (lambda: two_groups(links=(Link((0, 1)),)), "level that all of the groups"),
        (lambda: two_groups(links=(Link((0, 1), True),)), "as many levels"),
        (lambda: two_groups(links=(Link((0, 7)),)), "group indices"),
        (lambda: four_groups(Link((0, 1)), Link((1, 2))), "one link at most"),
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
