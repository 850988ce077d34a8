"""Allocation from a start, interrupted, and without a clock."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from solvers.allocation import Allocation, Start
from solvers.bounds import Lagrangian
from solvers.bounds.factors import Priced
from solvers.bounds.lagrangian import Forward
from solvers.result import Limit, Result, TerminationReason
from tests.references import best_choice
from tests.solvers.instances import (
    coupled_problem,
    resnet50,
    resnet56,
)
from tests.solvers.laws import check_laws


@pytest.mark.parametrize("seed", range(100))
def test_any_start_gives_the_optimum_and_no_law_breaks(seed: int) -> None:
    """A choice within budget or not, prices, or an earlier result: the exact answer is the same."""
    problem, rng = coupled_problem(seed), np.random.default_rng(seed)
    settings = Allocation(gap_tolerance=0.0, time_limit=None)
    first = settings.solve(problem)
    if first.certificate is None:
        return
    choice = np.array([rng.integers(len(group)) for group in problem.groups])
    prices = {capacity.resource: float(rng.exponential()) for capacity in problem.capacities}
    for start in (choice, prices, first):
        result = settings.solve(problem, start=start)
        check_laws(problem, result)
        assert result.certificate is not None
        assert result.certificate.objective == pytest.approx(first.certificate.objective, abs=1e-9)
    broken = problem.violations(choice)
    text = settings.solve(problem, start=choice).termination.text
    assert ("The start was not within budget" in text) == bool(broken)
    assert all(sentence in text for sentence in broken)


def test_a_result_as_start_saves_work_and_is_never_made_worse() -> None:
    """From its own result a problem needs few evaluations, and a stricter budget keeps what still fits."""
    problem = resnet50()
    first = Allocation(gap_tolerance=1e-6).solve(problem)
    assert first.certificate is not None
    again = Allocation(gap_tolerance=1e-3, max_nodes=0).solve(problem, start=first)
    assert again.certificate is not None
    assert again.certificate.objective >= first.certificate.objective
    smaller = problem.with_limits({"macs": problem.capacities[0].limit * 99 // 100})
    repaired = Allocation().solve(smaller, start=first)
    check_laws(smaller, repaired)
    assert "repaired" in repaired.termination.text


@pytest.mark.parametrize(
    ("start", "message"),
    [({"macs": -1.0}, "prices"), ({"joules": 1.0}, "prices"), ([0, 0], "shape"), (np.full(30, 99), "level index")],
)
def test_starts_of_another_problem_are_refused(start: Start, message: str) -> None:
    """Unknown resources, negative prices, choices of another shape."""
    with pytest.raises(ValueError, match=message):
        Allocation().solve(resnet56(), start=start)


def bytes_of(result: Result) -> bytes:
    """Everything in a result but the seconds."""
    certificate = result.certificate
    assert certificate is not None
    leaves = [(leaf.low, leaf.high, leaf.prices, leaf.inner) for leaf in certificate.leaves]
    fixings = [(fixing.prices, fixing.kept) for fixing in certificate.fixings]
    numbers = (certificate.objective, certificate.bound, certificate.gap, dict(certificate.prices))
    return pickle.dumps((result.choice, result.termination, numbers, leaves, fixings))


def test_two_deterministic_runs_give_the_same_bytes() -> None:
    """The clock decides nothing: with a time limit of zero the whole search is made all the same."""
    settings = Allocation(gap_tolerance=1e-5, time_limit=0.0, max_nodes=30, deterministic=True)
    for problem in (resnet56(), resnet50(1), coupled_problem(3)):
        first, second = settings.solve(problem), settings.solve(problem)
        assert bytes_of(first) == bytes_of(second)
        assert first.termination.limit is not Limit.TIME


@pytest.mark.parametrize("calls", [1, 3, 30, 60, 100, 150, 300, 600])
def test_an_interrupt_returns_the_incumbent_with_its_certificate(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at any evaluation: a choice within budget, a bound that verifies, and how to go on."""
    problem = resnet56()
    forward, count = Lagrangian.forward, itertools.count(1)

    def interrupted(self: Lagrangian, box: Priced) -> Forward:
        if next(count) == calls:
            raise KeyboardInterrupt
        return forward(self, box)

    with monkeypatch.context() as patched:
        patched.setattr(Lagrangian, "forward", interrupted)
        result = Allocation(gap_tolerance=0.0).solve(problem)
    check_laws(problem, result)
    if next(count) > calls + 1:
        assert result.termination.limit is Limit.INTERRUPTED or result.termination.reason is TerminationReason.OPTIMAL
    if result.termination.reason is TerminationReason.FEASIBLE:
        assert "start=" in result.termination.text


@pytest.mark.parametrize("calls", [1, 2, 4, 7, 11])
def test_small_coupled_problems_can_be_interrupted_too(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No interrupt breaks a law or proves what is not true."""
    forward = Lagrangian.forward
    for seed in range(60):
        problem, count = coupled_problem(seed), itertools.count(1)

        def interrupted(self: Lagrangian, box: Priced, count: Iterator[int] = count) -> Forward:
            if next(count) == calls:
                raise KeyboardInterrupt
            return forward(self, box)

        with monkeypatch.context() as patched:
            patched.setattr(Lagrangian, "forward", interrupted)
            try:
                result = Allocation(gap_tolerance=0.0).solve(problem)
            except KeyboardInterrupt:
                continue  # while an infeasible problem was being explained
        best = best_choice(problem)
        if result.termination.reason is TerminationReason.INFEASIBLE:
            assert best is None
        elif result.certificate is not None:
            check_laws(problem, result)
            assert best is not None
            assert result.certificate.bound >= best.value
