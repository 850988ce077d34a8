"""The choice of a solver: right for the problem, and told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from solvers.allocation import Allocation
from solvers.choose import Automatic, BestLevels, InTurn, Solver, choose, coupling, elimination_is_exact, is_slack
from solvers.cp_sat import CpSat
from solvers.external import WordCertificate
from solvers.highs import Highs
from solvers.knapsack import Knapsack
from solvers.problem import Capacity, Group, Link, LocalLimit, Product, SelectionProblem, Table, ValueTable
from solvers.result import OPTIMAL_GAP, Result, TerminationReason
from solvers.verify import check_choice
from tests.references import best_choice
from tests.solvers.instances import block_layers, clique, coupled_problem, permuted, resnet56


def separable(limit: int) -> SelectionProblem:
    """Three groups whose costs are their own."""
    groups = tuple(
        Group(f"g{i}", np.array([1, 2, 3]), np.array([0.0, 2.0, 3.0]) * (i + 1), np.arange(3 * i, 3 * i + 3))
        for i in range(3)
    )
    return SelectionProblem(groups, (Capacity("params", limit, tuple(Product((i,), 1) for i in range(3))),), 9)


@pytest.mark.parametrize(
    ("problem", "solver", "reason"),
    [
        (separable(9), BestLevels, "within every budget"),
        (separable(6), Knapsack, "no term couples groups"),
        (resnet56(), Allocation, "a product of 'macs' couples groups and elimination is exact"),
        (block_layers(2000), Knapsack, "no term couples groups"),
        (clique(12), InTurn, "elimination exceeds max_cells"),
        (replace(separable(6), links=(Link((0, 1)),)), Allocation, "groups are linked"),
        (replace(separable(6), local_limits=(LocalLimit(((0, 1),), 2),)), Allocation, "a local limit"),
        (replace(separable(6), value_tables=(ValueTable((0, 1), np.eye(3)),)), Allocation, "a table of values"),
    ],
)
def test_each_kind_has_its_solver(problem: SelectionProblem, solver: type[Solver], reason: str) -> None:
    """Slack, separable, coupled with small and with large tables, and each coupling by name."""
    choice = choose(problem, time_limit=7.0, seed=5)
    assert isinstance(choice.solver, solver)
    assert reason in choice.reason
    first = choice.solver.first if isinstance(choice.solver, InTurn) else choice.solver
    assert first.seed == 5  # type: ignore[attr-defined]


def test_side_constraints_go_to_cp_sat() -> None:
    """Whatever the problem."""
    result = Automatic(also=lambda model, variables: model.add(variables.level[0] == 1)).solve(separable(9))
    assert isinstance(choose(separable(9), also=lambda model, variables: None).solver, CpSat)
    assert result.choice is not None
    assert result.choice[0] == 0
    assert "further constraints" in result.termination.text


@pytest.mark.parametrize("batch", range(4))
def test_the_answer_is_the_enumerated_optimum(batch: int) -> None:
    """Whoever solves it, with a certificate that verifies; a fifth with tables too small for elimination."""
    for seed in range(700 + 30 * batch, 730 + 30 * batch):
        problem = coupled_problem(seed)
        best = best_choice(problem)
        result = Automatic(gap_tolerance=0.0, max_cells=4 if seed % 5 == 0 else 10**6).solve(problem)
        assert "Solved by" in result.termination.text
        if best is None:
            assert result.termination.reason is TerminationReason.INFEASIBLE
            continue
        assert result.certificate is not None
        assert result.termination.reason is TerminationReason.OPTIMAL
        assert result.certificate.objective == pytest.approx(best.value, abs=1e-9)
        assert result.certificate.bound >= best.value - 1e-12
        result.certificate.verify(problem)


def test_best_levels_are_proved_by_one_leaf() -> None:
    """A problem without binding budgets is optimal with a certificate; any other is refused."""
    problem = separable(9)
    result = BestLevels().solve(problem)
    assert result.certificate is not None
    assert len(result.certificate.leaves) == 1
    assert result.certificate.gap == 0.0
    result.certificate.verify(problem)
    assert is_slack(problem)
    assert not is_slack(separable(8))
    with pytest.raises(ValueError, match="Use Allocation"):
        BestLevels().solve(separable(8))


def test_two_solvers_in_turn_take_the_best_of_both() -> None:
    """Where split tables leave a gap, HiGHS proves the optimum, and the answer says whose word it is."""
    problem = clique(8)
    first = Allocation(gap_tolerance=1e-9, max_nodes=0, max_cells=10)
    alone = first.solve(problem).certificate
    both = InTurn(first, Highs(time_limit=None), 1e-9).solve(problem)
    assert alone is not None
    assert alone.gap > 1e-6
    assert isinstance(both.certificate, WordCertificate)
    assert both.certificate.gap <= OPTIMAL_GAP
    assert both.certificate.objective >= alone.objective
    assert "HiGHS" in both.termination.text
    both.certificate.verify(problem)


def test_a_second_solver_without_an_answer_changes_nothing() -> None:
    """HiGHS without time finds nothing: the first answer stays, with its proof."""
    problem = clique(8)
    first = Allocation(gap_tolerance=1e-9, max_nodes=0, max_cells=10)
    alone, both = first.solve(problem), InTurn(first, Highs(time_limit=0.0), 1e-9).solve(problem)
    assert alone.certificate is not None
    assert both.certificate is not None
    assert not isinstance(both.certificate, WordCertificate)
    assert both.certificate.objective >= alone.certificate.objective
    assert both.certificate.bound <= alone.certificate.bound
    both.certificate.verify(problem)


def test_a_better_choice_keeps_the_first_proof() -> None:
    """When the second only improves the choice, the first one's leaves still prove the bound."""
    problem = resnet56()
    best = Allocation().solve(problem)
    assert best.certificate is not None
    loose = replace(best.certificate, bound=problem.total_value, gap=1.0, check=check_choice)

    @dataclass(frozen=True)
    class Better:
        """Finds the best choice and proves nothing."""

        def solve(self, problem: SelectionProblem) -> Result:
            return replace(best, certificate=loose)

    first = Allocation(gap_tolerance=0.0, max_nodes=0)
    both = InTurn(first, Better(), 0.0).solve(problem)
    assert both.certificate is not None
    assert both.certificate.objective == max(best.certificate.objective, both.certificate.objective)
    assert not isinstance(both.certificate, WordCertificate)
    both.certificate.verify(problem)


def test_amounts_beyond_64_bits_need_allocation() -> None:
    """The knapsack counts in 64 bits."""
    groups = (Group("g", np.array([1, 2]), np.array([0.0, 1.0]), np.array([0, 1])),)
    problem = SelectionProblem(groups, (Capacity("bytes", 2**62, (Product((0,), 2**62),)),), 2)
    assert coupling(problem) == "amounts of 'bytes' exceed 2^62"
    result = Automatic().solve(problem)
    assert result.choice is not None
    assert result.choice.tolist() == [0]
    tables = SelectionProblem(groups, (Capacity("ns", 1, (Table((0,), np.array([1, 2])),)),), 2)
    assert coupling(tables) is None


def test_the_order_of_groups_does_not_matter() -> None:
    """Neither for the solver nor for the value."""
    for seed in range(20):
        problem = coupled_problem(seed)
        other = permuted(problem, np.random.default_rng(seed).permutation(len(problem.groups)))
        first, second = (Automatic(gap_tolerance=0.0).solve(p) for p in (problem, other))
        assert type(choose(problem).solver) is type(choose(other).solver)
        assert (first.certificate is None) == (second.certificate is None)
        if first.certificate is not None and second.certificate is not None:
            assert first.certificate.objective == pytest.approx(second.certificate.objective, abs=1e-9)


def test_exact_elimination_is_recognised() -> None:
    """A residual network has small tables, a clique of twelve has not."""
    assert elimination_is_exact(resnet56())
    assert not elimination_is_exact(clique(12))
    assert not elimination_is_exact(resnet56(), max_cells=2)
