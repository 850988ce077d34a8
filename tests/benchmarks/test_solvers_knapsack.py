"""What the knapsack benchmark compares with: plain methods that are right, and bounds that bound."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.solvers import knapsack
from benchmarks.solvers.knapsack_baselines import (
    bucket_bound,
    buckets,
    golden_section,
    highs,
    hull_greedy,
    raw_threshold,
)
from benchmarks.solvers.knapsack_instances import blocks, layers
from benchmarks.solvers.row import Row
from solvers.block_knapsack import BlockKnapsack
from solvers.knapsack import Knapsack

EXACT = Knapsack(gap_tolerance=0.0, time_limit=None)


@pytest.mark.parametrize("stairs", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_plain_methods_bracket_the_optimum(seed: int, stairs: bool) -> None:
    """Choices within budget are at most the optimum, bounds at least; finer buckets come closer."""
    problem = layers(seed, 12, 10, 1, stairs)
    certificate = EXACT.solve(problem).certificate
    assert certificate is not None
    best = certificate.objective
    hull = hull_greedy(problem)
    assert hull.choice is not None
    assert hull.bound is not None
    assert problem.evaluate(hull.choice).feasible
    assert problem.value(hull.choice) <= best * (1 + 1e-12) <= hull.bound * (1 + 2e-12)
    losses = []
    for count in (100, 10_000):
        up, down = buckets(problem, count, "up"), bucket_bound(problem, count)
        assert up.choice is not None
        assert down.bound is not None
        assert problem.evaluate(up.choice).feasible
        assert problem.value(up.choice) <= best * (1 + 1e-12) <= down.bound * (1 + 2e-12)
        losses.append(best - problem.value(up.choice))
    assert losses[1] <= losses[0] + 1e-12 * best


def test_the_integer_programme_finds_the_optimum() -> None:
    """HiGHS, with one and with three budgets."""
    for budgets in (1, 3):
        problem = layers(1, 8, 8, budgets, True)
        certificate, answer = EXACT.solve(problem).certificate, highs(problem, 20.0)
        assert certificate is not None
        assert answer.choice is not None
        assert problem.value(answer.choice) == pytest.approx(certificate.objective, rel=1e-9)


def test_nearest_buckets_can_break_a_budget_and_another_rounding_is_refused() -> None:
    """Which is why the choices are evaluated by the problem."""
    broken = 0
    for seed in range(10):
        problem = layers(seed, 12, 10, 1, True)
        choice = buckets(problem, 100, "nearest").choice
        assert choice is not None
        broken += not problem.evaluate(choice).feasible
    assert broken > 0
    with pytest.raises(ValueError, match="'nearest' or 'up'"):
        buckets(layers(0, 3, 3, 1, True), 10, "down")


def test_golden_section_and_threshold_stay_within_limits() -> None:
    """Their values are at most our bound, and the golden section's bound is close to ours."""
    given = blocks(0, 3_000, (0.12, 0.13), 20, counted=True)
    prepared = BlockKnapsack().prepare(given)
    ours = prepared.solve()
    assert ours.bound is not None
    for answer in (golden_section(given), raw_threshold(given)):
        assert answer.choice is not None
        assert np.all(answer.choice @ np.asarray(given.costs) <= given.limits)
        value = sum(layer.top(int(k)) for layer, k in zip(prepared.sorted.layers, answer.choice, strict=True))
        assert value <= ours.bound
        if answer.bound is not None:
            assert ours.objective is not None
            assert ours.objective <= answer.bound <= ours.bound * (1 + 1e-5)


def row(instance: str, method: str, value_gap: float, seconds: float, objective: float = 1.0) -> Row:
    """A row with the facts that verdicts look at."""
    facts: dict[str, float | int | str | bool] = {
        "value_gap": value_gap,
        "cpu_seconds": seconds,
        "total": 2.0,
        "reason": "feasible",
        "beyond_budget": 0.01,
    }
    return Row("knapsack", instance, method, objective, seconds, facts=facts)


def test_verdicts_follow_the_rows() -> None:
    """Slow or loose rows fail their target, and a better rival is named."""
    rows = [
        row("T1 50 x 64 linear, seed 0", knapsack.OURS, 1e-7, 0.1),
        row("T1 50 x 64 linear, seed 0", "1000 buckets, nearest", 1.0, 0.1, 0.9),
        row("T1 500 x 2000 linear, seed 0", knapsack.OURS, 1e-7, 2.0),
        row("T2 50 x 64 stairs, 2 budgets, seed 0", knapsack.SOON, 1e-3, 0.4),
        row("T2 50 x 64 stairs, 2 budgets, seed 0", knapsack.LONG, 1e-6, 9.0),
        row("T2 50 x 64 stairs, 2 budgets, seed 0", "HiGHS", 1e-6, 9.0, 1.1),
        row("T3 1000 blocks, 1 limit", knapsack.BLOCKS, 1.0, 9.0),
        row("T3 9000 blocks, 1 limit", knapsack.BLOCKS, 1e-9, 0.9),
        row("T3 9000 blocks, 1 limit", knapsack.NEXT, 1e-9, 0.5),
    ]
    holds = [verdict.holds for verdict in knapsack.verdicts(rows)]
    assert holds == [True, False, False, True, True, False, True, False]
    assert "HiGHS" in knapsack.verdicts(rows)[-1].measured
