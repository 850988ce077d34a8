"""The benchmarks of permuted blocks and of N:M masks, on their small instances."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.solvers import nm, permutation
from benchmarks.solvers.row import Row


@pytest.fixture(scope="module")
def planted() -> list[Row]:
    """Rows of the quick instances of permuted blocks."""
    return permutation.rows(quick=True)


def test_planted_blocks_meet_their_targets(planted: list[Row]) -> None:
    """Both targets hold, T10 waits for the digits, and every method has its row on every instance."""
    verdicts = permutation.verdicts(planted)
    assert [verdict.target for verdict in verdicts] == ["TETRIS", "TETRIS turn"]
    assert all(verdict.holds for verdict in verdicts)
    methods = {row.method for row in planted if row.instance.startswith("planted")}
    for name in {row.instance for row in planted if row.instance.startswith("planted")}:
        assert {row.method for row in planted if row.instance == name} == methods


def test_a_poor_row_fails_its_target(planted: list[Row]) -> None:
    """Verdicts look at the rows alone: one bad recovery is enough."""
    (index, *_) = [i for i, row in enumerate(planted) if row.method == "assignments, 20 restarts"]
    worse = replace(planted[index], facts={**planted[index].facts, "efficacy": 0.5})
    verdicts = permutation.verdicts([*planted[:index], worse, *planted[index + 1 :]])
    assert [verdict.holds for verdict in verdicts] == [False, True]


def test_masks_are_proven() -> None:
    """Exchanges reach the flow's optimum at every pattern; nothing exceeds it."""
    rows = nm.rows(quick=True)
    assert nm.verdicts(rows)[0].holds
    assert all(float(row.facts["error"]) >= -1e-9 for row in rows)
    assert nm.verdicts([]) == []
