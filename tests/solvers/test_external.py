"""CP-SAT and HiGHS: they solve the same problem as everybody else, and say what their bound is worth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ortools.sat.python import cp_model

from solvers.allocation import Allocation
from solvers.cp_sat import CpSat, CpVariables
from solvers.external import WordCertificate, interrupts_noted, quiet
from solvers.highs import Highs
from solvers.problem import Capacity, Group, Product, SelectionProblem, Table, ValueTable
from solvers.result import OPTIMAL_GAP, Limit, Result, TerminationReason, relative_gap
from solvers.verify import is_maximal
from tests.references import best_choice
from tests.solvers.instances import coupled_problem, random_problem, resnet56

ROOT = Path(__file__).resolve().parents[2]
SOLVERS: list[CpSat | Highs] = [CpSat(), Highs()]


def resnet18(seed: int = 0, macs: float = 0.5, step: int = 8) -> SelectionProblem:
    """ResNet-18 on 224 x 224 images: residual hubs of 64 to 512 channels, one inner group per block."""
    rng = np.random.default_rng(seed)
    groups: list[Group] = []
    size = 0

    def group(width: int) -> int:
        nonlocal size
        scores = np.sort(rng.lognormal(size=width))[::-1] * rng.lognormal()
        levels = np.arange(step, width + 1, step)
        groups.append(
            Group(f"group{len(groups)}", levels, np.cumsum(scores)[levels - 1], np.arange(size, size + width))
        )
        size += width
        return len(groups) - 1

    hub = group(64)
    terms = [Product((hub,), 147 * 112**2)]
    for stage, width in enumerate((64, 128, 256, 512)):
        side, entering = 56 >> stage, hub
        hub = hub if stage == 0 else group(width)
        for block in range(2):
            inner = group(width)
            terms += [Product((entering, inner), 9 * side**2), Product((inner, hub), 9 * side**2)]
            if block == 0 and stage > 0:
                terms.append(Product((entering, hub), side**2))
            entering = hub
    terms.append(Product((hub,), 1000))
    alone = SelectionProblem(tuple(groups), (Capacity("macs", 0, tuple(terms)),), size)
    dense = alone.used([len(g) - 1 for g in groups])[0]
    return alone.with_limits({"macs": int(dense * macs)})


def check(problem: SelectionProblem, result: Result) -> None:
    """Within budget, recomputed, the bound on its side and owned up to as a word."""
    certificate = result.certificate
    assert isinstance(certificate, WordCertificate)
    assert result.choice is not None
    assert problem.evaluate(result.choice).feasible
    assert certificate.objective == problem.evaluate(result.choice).value
    assert certificate.bound >= certificate.objective
    assert certificate.leaves == ()
    assert certificate.source in result.termination.text
    assert "word" in result.termination.text
    assert (result.termination.reason is TerminationReason.OPTIMAL) == (certificate.gap <= OPTIMAL_GAP)
    assert np.array_equal(result.selection, problem.selection(result.choice))  # type: ignore[arg-type]
    certificate.verify(problem)


def check_optimum(problem: SelectionProblem, result: Result) -> None:
    """As enumerated: the optimum and its proof, or infeasible."""
    best = best_choice(problem)
    if best is None:
        assert result.termination.reason is TerminationReason.INFEASIBLE
        assert result.choice is result.selection is result.certificate is None
        return
    check(problem, result)
    assert result.termination.reason is TerminationReason.OPTIMAL
    assert result.certificate is not None
    assert result.certificate.objective == pytest.approx(best.value, abs=1e-9)
    assert result.certificate.bound >= best.value - 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch", range(4))
def test_both_find_the_enumerated_optimum(solver: CpSat | Highs, batch: int) -> None:
    """Products of several groups, powers, tables, forbidden combinations, local limits, links: 200 problems."""
    for seed in range(50 * batch, 50 * batch + 50):
        problem = coupled_problem(seed)
        check_optimum(problem, solver.solve(problem))


def test_all_three_agree() -> None:
    """Allocation, CP-SAT and HiGHS, on problems of up to three budgets."""
    for seed in range(400, 430):
        problem = random_problem(seed)
        answers = [solver.solve(problem) for solver in (Allocation(gap_tolerance=0.0), *SOLVERS)]
        values = [None if a.certificate is None else a.certificate.objective for a in answers]
        if values[0] is None:
            assert values == [None] * 3
        else:
            assert values == pytest.approx([values[0]] * 3, abs=1e-9)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 2, 3))])
def test_resnet18_is_proved_alike(seed: int) -> None:
    """In multiples of 8, CP-SAT's and HiGHS's optimum is Allocation's, and all three say so."""
    problem = resnet18(seed)
    ours = Allocation(gap_tolerance=0.0).solve(problem).certificate
    assert ours is not None
    for solver in (CpSat(time_limit=300.0, deterministic=False), Highs(time_limit=300.0)):
        theirs = solver.solve(problem)
        check(problem, theirs)
        assert theirs.certificate is not None
        assert theirs.termination.reason is TerminationReason.OPTIMAL
        assert theirs.certificate.objective == pytest.approx(ours.objective, rel=1e-9)


def test_a_start_is_kept() -> None:
    """With no time at all the answer is the start, with a bound that holds; hints reach the products."""
    problem = resnet56()
    start = Allocation().solve(problem).choice
    assert start is not None
    result = CpSat(time_limit=0.0).solve(problem, start)
    check(problem, result)
    assert result.certificate is not None
    assert result.certificate.objective >= problem.value(start)
    assert result.termination.limit is Limit.TIME
    short = CpSat(time_limit=0.5).solve(problem, start)
    assert short.certificate is not None
    assert short.certificate.objective >= problem.value(start)


def test_a_start_that_breaks_a_budget_is_only_a_hint() -> None:
    """The dense network is no answer."""
    problem = random_problem(3)
    dense = [len(group) - 1 for group in problem.groups]
    check_optimum(problem, CpSat().solve(problem, dense))


def test_side_constraints_hold() -> None:
    """Either of two groups keeps its most, and a third keeps no more than the first: no table, still optimal."""
    values = np.array([0.0, 3.0, 4.0])
    groups = tuple(Group(f"g{i}", np.array([1, 2, 3]), values * (i + 1), np.arange(3 * i, 3 * i + 3)) for i in range(3))
    capacity = Capacity("macs", 10, tuple(Product((i, j), 1) for i in range(3) for j in range(i)))
    problem = SelectionProblem(groups, (capacity,), 9)

    def also(model: cp_model.CpModel, variables: CpVariables) -> None:
        model.add_bool_or([variables.chosen[0][2], variables.chosen[1][2]])
        model.add(variables.level[2] <= variables.level[0])

    allowed = [
        (a, b, c)
        for a in range(3)
        for b in range(3)
        for c in range(3)
        if problem.evaluate([a, b, c]).feasible and (a == 2 or b == 2) and c <= a
    ]
    result = CpSat(also=also).solve(problem)
    check(problem, result)
    assert result.certificate is not None
    assert result.certificate.objective == max(problem.value(choice) for choice in allowed)
    assert "with further constraints" in result.termination.text
    assert CpSat().solve(problem).certificate.objective > result.certificate.objective  # type: ignore[union-attr]


def test_a_side_constraint_without_solution_is_infeasible() -> None:
    """An outcome, not an exception."""
    result = CpSat(also=lambda model, variables: model.add(variables.level[0] < 0)).solve(random_problem(0))
    assert result.termination.reason is TerminationReason.INFEASIBLE


def test_large_costs_are_compared_exactly() -> None:
    """One unit beyond a limit of 10^15 is too much, for both."""
    large = 10**15
    groups = tuple(Group(f"g{i}", np.array([1, 2]), np.array([0.0, 1.0]), np.array([2 * i, 2 * i + 1])) for i in (0, 1))
    for limit, most in ((2 * large + 1, 1.0), (2 * large, 1.0), (2 * large - 1, 0.0), (4 * large, 2.0)):
        problem = SelectionProblem(groups, (Capacity("bytes", limit, (Product((0, 1), large),)),), 4)
        for solver in SOLVERS:
            result = solver.solve(problem)
            assert result.certificate is not None
            assert result.certificate.objective == most
            assert result.termination.reason is TerminationReason.OPTIMAL


def test_amounts_beyond_64_bits_are_refused() -> None:
    """CP-SAT would overflow; the message says what to do."""
    groups = (Group("g", np.array([1, 2]), np.array([0.0, 1.0]), np.array([0, 1])),)
    terms = (Product((0, 0), 2**61), Table((0,), np.array([0, 1])))
    with pytest.raises(ValueError, match="Count the resource in larger units"):
        CpSat().solve(SelectionProblem(groups, (Capacity("bytes", 2**62, terms),), 2))


def test_large_tables_are_refused_by_highs() -> None:
    """One variable per combination has its limits."""
    problem = coupled_problem(1)
    table = ValueTable((0, 1), np.zeros((len(problem.groups[0]), len(problem.groups[1]))))
    with pytest.raises(ValueError, match="raise max_size"):
        Highs(max_size=1).solve(replace(problem, value_tables=(table,)))


def test_a_time_limit_is_named() -> None:
    """Without time HiGHS has nothing; CP-SAT neither, and neither says optimal."""
    problem = resnet56()
    for solver in (CpSat(time_limit=0.0), Highs(time_limit=0.0)):
        result = solver.solve(problem)
        assert result.termination.reason in (TerminationReason.UNKNOWN, TerminationReason.FEASIBLE)
        assert result.termination.limit is Limit.TIME


def test_a_node_limit_is_named() -> None:
    """HiGHS stopped after a node has a choice with a gap, and the same one each time."""
    problem = resnet18(1)
    first, second = (Highs(max_nodes=1).solve(problem) for _ in range(2))
    assert first.termination.limit is Limit.NODES
    if first.certificate is not None and second.certificate is not None:
        check(problem, first)
        assert np.array_equal(first.certificate.choice, second.certificate.choice)
        assert first.certificate.bound == second.certificate.bound


def test_equal_seeds_give_equal_answers() -> None:
    """CP-SAT on one thread without a clock."""
    problem = resnet18(step=32)
    first, second = (CpSat(time_limit=0.5, seed=3).solve(problem) for _ in range(2))
    assert first.certificate is not None
    assert second.certificate is not None
    assert np.array_equal(first.certificate.choice, second.certificate.choice)
    assert first.certificate.bound == second.certificate.bound


def test_a_false_word_certificate_fails() -> None:
    """Objective, amounts, gap and choice are checked; a bound below the objective too."""
    problem = coupled_problem(0)
    certificate = CpSat().solve(problem).certificate
    assert certificate is not None
    certificate.verify(problem)
    lower = certificate.objective - 1.0
    gap = relative_gap(certificate.objective, lower, problem.total_value)
    changes = (
        {"objective": certificate.objective + 1.0},
        {"used": {name: amount + 1 for name, amount in certificate.used.items()}},
        {"bound": lower, "gap": gap},
        {"gap": certificate.gap + 0.5},
    )
    for change in changes:
        with pytest.raises(ValueError, match="Expected"):
            replace(certificate, **change).verify(problem)  # type: ignore[arg-type]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """What compiled code writes to standard output does not reach the user's."""
    problem = coupled_problem(0)
    for solver in SOLVERS:
        solver.solve(problem)
    with quiet():
        os.write(1, b"lost")
    assert capfd.readouterr().out == ""


INTERRUPTED = """
import os, signal, sys, threading, time
from solvers.cp_sat import CpSat
from solvers.highs import Highs
from tests.solvers.instances import resnet50
solver = {"cp_sat": CpSat(60.0, deterministic=False), "highs": Highs(4.0)}[sys.argv[1]]
problem = resnet50()
start = [problem.minimum_choice] if sys.argv[1] == "cp_sat" else []
threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGINT)).start()
result = solver.solve(problem, *start)
print(result.termination.limit, result.termination.reason)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5.0)
except KeyboardInterrupt:
    print("raised")
"""


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["cp_sat", "highs"])
def test_ctrl_c_returns_what_is_known_and_still_works_afterwards(solver: str) -> None:
    """An interrupt ends the solve with an answer; the next one raises KeyboardInterrupt again."""
    program = [sys.executable, "-c", INTERRUPTED, solver]
    answer = subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    first, second = answer.stdout.split("\n")[:2]
    assert first.startswith("Limit.INTERRUPTED")
    assert "OPTIMAL" not in first
    assert second == "raised"


def test_interrupts_are_noted_and_handlers_put_back() -> None:
    """Within, Ctrl-C is written down; after, it raises as before."""
    before = signal.getsignal(signal.SIGINT)
    with interrupts_noted() as noted:
        signal.raise_signal(signal.SIGINT)
    assert noted == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
    CpSat().solve(coupled_problem(0))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_problem_without_decisions() -> None:
    """No groups, with a budget that holds and one that does not."""
    for limit, reason in ((1, TerminationReason.OPTIMAL), (-1, TerminationReason.INFEASIBLE)):
        problem = SelectionProblem((), (Capacity("params", limit, (Product((), 1),)),), 2)
        for solver in SOLVERS:
            assert solver.solve(problem).termination.reason is reason


def test_mistakes_are_named() -> None:
    """Settings and starts."""
    with pytest.raises(ValueError, match="deterministic=False"):
        CpSat(workers=2)
    with pytest.raises(ValueError, match="Expected time_limit"):
        CpSat(time_limit=-1.0)
    with pytest.raises(ValueError, match="Expected max_nodes"):
        Highs(max_nodes=-1)
    with pytest.raises(ValueError, match="Expected a choice of shape"):
        CpSat().solve(random_problem(0), [0])


@pytest.mark.parametrize("seed", range(40))
def test_no_room_is_left(seed: int) -> None:
    """Whatever they stop at, no level can rise without loss within the budgets."""
    problem = random_problem(seed)
    for solver in (CpSat(), Highs()):
        result = solver.solve(problem)
        if result.choice is not None:
            assert is_maximal(problem, result.choice)
