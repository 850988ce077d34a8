"""The comparison of `Allocation` with rules and general solvers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.solvers import comparison
from benchmarks.solvers.allocation_baselines import BASELINES
from benchmarks.solvers.comparison import EXACT, OURS, problems, rows, verdicts
from benchmarks.solvers.row import Row
from benchmarks.solvers.trace import points_of

Facts = Mapping[str, float | int | str | bool]
NAMES = [baseline.name for baseline in BASELINES]


def made(**objectives: float) -> list[Row]:
    """Rows of one instance whose total value is 10; the bound is 8.1."""
    found = []
    for method in (OURS, EXACT, "CP-SAT", *NAMES):
        objective = objectives.get(method.replace(" ", "_"), 8.0)
        proves = method not in NAMES
        gap = (8.1 - objective) / (10 - objective) if proves else None
        facts: Facts = {"total": 10.0}
        found.append(Row("comparison", "toy", method, objective, 1.0, 8.1 if proves else None, gap, facts=facts))
    return found


def test_never_worse() -> None:
    """One rule that keeps more value breaks T6, and is named."""
    assert verdicts(made())[0].holds
    found = verdicts(made(greedy_up=8.05))[0]
    assert not found.holds
    assert "1 of 7 comparisons (toy: greedy up)" in found.measured


def test_general_solvers() -> None:
    """A general solver that keeps more value, or proves a smaller gap, is ahead."""
    assert verdicts(made())[2].holds
    found = verdicts(made(**{"CP-SAT": 8.05}))[2]
    assert not found.holds
    assert "behind in 1 of 1" in found.measured


def test_sooner() -> None:
    """What counts is when the usual gap was proven, by the trace."""
    slow: Facts = {"total": 10.0, "trace": "0.1:0.5 9:0.0009"}
    fast: Facts = {"total": 10.0, "trace": "0.1:0.5 0.2:0.0009"}
    found = [replace(row, gap=9e-4, facts=fast if row.method == OURS else slow) for row in made()]
    verdict = verdicts(found)[1]
    assert verdict.holds
    assert "Allocation on 1 of 1 instances, median 0.2 s; CP-SAT on 1 of 1 instances, median 9 s" in verdict.measured
    found = [replace(row, facts=slow if row.method == OURS else fast) for row in found]
    assert not verdicts(found)[1].holds


def test_threshold_ratio() -> None:
    """What the rule loses over what the tightest bound loses: its mean over seeds is held against the target."""
    rows = [replace(row, instance="rules: ResNet-50, seed 0") for row in made(global_threshold=7.0)]
    rows += [replace(row, instance="rules: ResNet-50, seed 1") for row in made(global_threshold=7.7)]
    rows += [replace(row, instance="rules: MobileNetV2, seed 0") for row in made(global_threshold=7.0)]
    first, second = (one for one in verdicts(rows) if "threshold loses" in one.asked)
    assert first.holds
    assert first.measured == "means of 1.39 to 1.39 times in 1 settings; 2 instances from 1.21 to 1.58"
    assert not second.holds


@pytest.mark.slow
def test_quick_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method answers every quick instance within budget, and those that go on leave a trace."""
    monkeypatch.setattr(comparison, "QUICK_LIMIT", 1.0)
    found = rows(quick=True)
    assert {row.instance for row in found} == set(problems(quick=True))
    assert all(row.facts.get("feasible") for row in found)
    for row in found:
        if row.method in (OURS, EXACT):
            assert points_of(row.facts)
            assert row.gap is not None
    assert verdicts(found)[0].holds
