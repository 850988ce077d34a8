"""The allocation family of the solver benchmark, on its quick instances."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.solvers.allocation import COUPLED, rows, verdicts
from benchmarks.solvers.allocation_baselines import BASELINES
from benchmarks.solvers.instances import problem
from benchmarks.solvers.networks import Network, mobilenet_v2, resnet18, vit_b
from benchmarks.solvers.row import Row
from solvers.allocation import Allocation


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


@pytest.mark.parametrize(("network", "step"), [(vit_b(), 64), (resnet18(), 16), (mobilenet_v2(), 16)])
def test_no_rule_is_better_than_the_laziest_allocation(network: Network, step: int) -> None:
    """T6 does not rest on the search: the starts alone are level with every rule."""
    lazy = Allocation(gap_tolerance=1e9, max_nodes=0)
    for budgets in ({"macs": 0.5}, {"macs": 0.5, "params": 0.6}):
        given = problem(network, budgets, step=step, by_degree=True)
        found = lazy.solve(given).certificate
        assert found is not None
        for rule in BASELINES:
            choice = rule.choose(given)
            assert choice is not None
            assert found.objective >= given.value(choice) - 1e-12
