"""The allocation family of the solver benchmark, on its quick instances."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.solvers.allocation import COUPLED, rows, verdicts
from benchmarks.solvers.row import Row


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    """The quick rows."""
    return rows(quick=True)


def test_every_row_has_a_verified_bound(measured: list[Row]) -> None:
    """Objectives do not exceed bounds, and gaps are what was asked."""
    for row in measured:
        assert row.gap is not None
        assert row.gap <= 1e-3
        if row.objective is not None:
            assert row.bound is not None
            assert row.objective <= row.bound


def test_verdicts_follow_the_rows(measured: list[Row]) -> None:
    """All targets hold on the quick instances, and T5 fails when its instances miss their gap."""
    found = {verdict.target: verdict for verdict in verdicts(measured)}
    assert {"T5", "every width", "front"} <= set(found)
    assert found["T5"].holds
    missed = [replace(row, gap=6e-3) if row.method == COUPLED else row for row in measured]
    assert not {verdict.target: verdict for verdict in verdicts(missed)}["T5"].holds
