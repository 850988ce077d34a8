"""Which solver for which selection problem, and why.

1. The best level of every group is within every budget: there is nothing to decide.
2. Logical side constraints that no table can say: CP-SAT.
3. No term, value or link couples groups: a multiple-choice knapsack.
4. A few groups couple all others: their levels are fixed in every way, and the rest is a knapsack.
5. Groups are coupled, and variable elimination at given prices stays exact: allocation by branch and bound.
6. Elimination would need larger tables than allowed: allocation with its weaker bound first, then HiGHS if the program
   is small; above that allocation alone.

Allocation and knapsack prove their bounds; HiGHS and CP-SAT are asked where those cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from ortools.sat.python import cp_model

from solvers.allocation import Allocation
from solvers.bounds import MAX_CELLS, Lagrangian
from solvers.conditioning import Conditioning, cutset
from solvers.cp_sat import CpSat, CpVariables
from solvers.external import Answer, WordCertificate, to_result
from solvers.highs import Highs, program_size
from solvers.knapsack import Knapsack
from solvers.problem import SelectionProblem
from solvers.reduction import without_links
from solvers.result import (
    Certificate,
    Leaf,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)
from solvers.verify import check_lagrangian

__all__ = ["Automatic", "BestLevels", "Choice", "InTurn", "Solver", "choose"]

#: Variables of HiGHS's program up to which it is worth asking when elimination is not exact.
HIGHS_SIZE = 5_000

#: Share of the time for allocation before HiGHS is asked.
_FIRST_SHARE = 0.3

#: Integers up to which a knapsack counts.
_KNAPSACK_AMOUNT = 2**62


class Solver(Protocol):
    """Anything that solves a selection problem."""

    def solve(self, problem: SelectionProblem) -> Result:
        """Return a choice and what is known about it."""
        ...


@dataclass(frozen=True)
class Choice:
    """A solver for a problem, and a sentence that says why."""

    solver: Solver
    reason: str


@dataclass(frozen=True)
class BestLevels:
    """The best level of each group, when that is within budget.

    Parameters
    ----------
    seed
        Recorded in the result.
    """

    seed: int = 0

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem of `is_slack`. Raises ValueError for any other."""
        started = time.perf_counter()
        if not is_slack(problem):
            raise ValueError(
                "Expected a problem whose best levels are within every budget, with no tables of values and no links. "
                "Got another. Use Allocation."
            )
        choice = _best_levels(problem)
        found = problem.evaluate(choice)
        top = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
        free = np.zeros(len(problem.capacities))
        # One evaluation without prices proves the sum of the best values, and a little for its rounding.
        bound = max(found.value, Lagrangian(problem).evaluate(free, np.zeros_like(top), top).bound)
        certificate = Certificate(
            objective=found.value,
            bound=bound,
            gap=relative_gap(found.value, bound, problem.total_value),
            used=found.used,
            allowed={capacity.resource: capacity.limit for capacity in problem.capacities},
            prices={capacity.resource: 0.0 for capacity in problem.capacities},
            leaves=(Leaf(np.zeros_like(top), top, free),),
            choice=choice,
            check=check_lagrangian,
        )
        text = "No choice keeps more value, whatever the budgets."
        termination = Termination(TerminationReason.OPTIMAL, None, text)
        seconds = time.perf_counter() - started
        return Result(choice, problem.selection(choice), certificate, termination, self.seed, seconds)


def is_slack(problem: SelectionProblem) -> bool:
    """Whether every group can have its best level at once."""
    if problem.value_tables or problem.links:
        return False
    return problem.evaluate(_best_levels(problem)).feasible


def _best_levels(problem: SelectionProblem) -> np.ndarray:
    return np.array([int(np.argmax(group.values)) for group in problem.groups], dtype=np.int64)


@dataclass(frozen=True)
class InTurn:
    """One solver, and another when the gap is still above the tolerance.

    The better of the two choices is the answer, with the smaller of the two bounds. A bound of the second is its word.

    Parameters
    ----------
    first, second
        A solver that proves its bound, and a general one, each with limits of its own.
    gap_tolerance
        Gap at which the second is not asked.
    """

    first: Solver
    second: Solver
    gap_tolerance: float = 1e-3

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem."""
        started = time.perf_counter()
        first = self.first.solve(problem)
        done = first.certificate is not None and first.certificate.gap <= self.gap_tolerance
        if done or first.termination.reason is TerminationReason.INFEASIBLE:
            return first
        if first.termination.limit is Limit.INTERRUPTED:
            return first
        second = self.second.solve(problem)
        return replace(_better(problem, first, second), seconds=time.perf_counter() - started)


def _better(problem: SelectionProblem, first: Result, second: Result) -> Result:
    """The better choice of a proven and a believed answer, under the smaller bound."""
    if second.certificate is None:
        # The second may say that nothing is feasible; a choice in hand says more.
        return second if first.choice is None else first
    if first.certificate is None:
        return second
    best = max((first.certificate, second.certificate), key=lambda certificate: certificate.objective)
    if second.certificate.bound < first.certificate.bound:
        answer = Answer(best.choice, second.certificate.bound, False, second.termination.limit)
        source = second.certificate.source if isinstance(second.certificate, WordCertificate) else "the second solver"
        return to_result(problem, answer, source, first.seed, second.seconds)
    if best is first.certificate:
        return first
    bound = max(first.certificate.bound, best.objective)
    gap = relative_gap(best.objective, bound, problem.total_value)
    proven = replace(
        first.certificate, objective=best.objective, bound=bound, gap=gap, used=best.used, choice=best.choice
    )
    share = f"At most {100 * gap:.3g} % of the lost value is avoidable."
    text = f"{share} The second solver improved the choice, not the bound."
    return replace(
        first,
        choice=best.choice,
        selection=problem.selection(best.choice),
        certificate=proven,
        termination=Termination(TerminationReason.FEASIBLE, first.termination.limit, text),
    )


def choose(
    problem: SelectionProblem,
    *,
    gap_tolerance: float = 1e-3,
    time_limit: float | None = 60.0,
    seed: int = 0,
    max_cells: int = MAX_CELLS,
    also: Callable[[cp_model.CpModel, CpVariables], object] | None = None,
) -> Choice:
    """The solver for a problem, set to a tolerance, a time limit in seconds and a seed.

    Parameters
    ----------
    max_cells
        Largest table of an elimination, see `solvers.allocation.Allocation`.
    also
        Logical side constraints, see `solvers.cp_sat.CpSat`.
    """
    if also is not None:
        return Choice(
            CpSat(time_limit, seed=seed, deterministic=False, also=also),
            "CP-SAT, because further constraints are given as a model",
        )
    if is_slack(problem):
        return Choice(BestLevels(seed), "the best level of every group, because together they are within every budget")
    obstacle = coupling(problem)
    if obstacle is None:
        return Choice(
            Knapsack(gap_tolerance, time_limit, seed=seed), "multiple-choice knapsack, because no term couples groups"
        )
    hubs = cutset(problem)
    if hubs is not None:
        names = ", ".join(repr(problem.groups[g].name) for g in hubs)
        return Choice(
            Conditioning(gap_tolerance, time_limit, seed),
            f"allocation, and if that does not close the gap a knapsack for each level of {names}, which alone couple "
            "the other groups",
        )
    allocation = Allocation(gap_tolerance, time_limit, seed=seed, max_cells=max_cells)
    if elimination_is_exact(problem, max_cells):
        return Choice(allocation, f"allocation, because {obstacle} and elimination is exact within max_cells")
    size = program_size(problem)
    if size <= HIGHS_SIZE:
        shares = [None if time_limit is None else share * time_limit for share in (_FIRST_SHARE, 1.0 - _FIRST_SHARE)]
        return Choice(
            InTurn(replace(allocation, time_limit=shares[0]), Highs(shares[1], seed=seed), gap_tolerance),
            f"allocation and then HiGHS, because {obstacle}, elimination exceeds max_cells, and a linear program "
            f"has {size} variables only",
        )
    return Choice(
        allocation, f"allocation with split tables, because {obstacle} and elimination exceeds max_cells; raise it"
    )


def coupling(problem: SelectionProblem) -> str | None:
    """What couples groups, in words; None when nothing does and a knapsack can count the amounts."""
    for present, what in (
        (problem.value_tables, "a table of values couples groups"),
        (problem.local_limits, "a local limit restricts levels"),
        (problem.links, "groups are linked"),
    ):
        if present:
            return what
    for capacity, merged in zip(problem.capacities, problem.polynomials, strict=True):
        if any(len(powers) > 1 for _, powers in merged.products):
            return f"a product of {capacity.resource!r} couples groups"
        if any(len(table.groups) > 1 for table in merged.tables):
            return f"a table of {capacity.resource!r} couples groups"
        top = [(coefficient, powers[0]) for coefficient, powers in merged.products]
        most = sum(c * int(problem.groups[g].levels[-1]) ** power for c, (g, power) in top)
        if most + sum(int(table.entries.max()) for table in merged.tables) >= _KNAPSACK_AMOUNT:
            return f"amounts of {capacity.resource!r} exceed 2^62"
    return None


def elimination_is_exact(problem: SelectionProblem, max_cells: int = MAX_CELLS) -> bool:
    """Whether the inner maximum of the Lagrangian bound is found without splitting tables; tries it once."""
    reduced = without_links(problem)
    if reduced is None:
        return True
    top = np.array([len(group) - 1 for group in reduced.problem.groups], dtype=np.int64)
    free = np.zeros(len(problem.capacities))
    return bool(Lagrangian(reduced.problem, max(1, max_cells)).evaluate(free, np.zeros_like(top), top).exact)


@dataclass(frozen=True)
class Automatic:
    """Chooses a solver for each problem; the termination's text says which and why.

    Parameters
    ----------
    gap_tolerance, time_limit, seed, max_cells, also
        See `choose`.
    """

    gap_tolerance: float = 1e-3
    time_limit: float | None = 60.0
    seed: int = 0
    max_cells: int = MAX_CELLS
    also: Callable[[cp_model.CpModel, CpVariables], object] | None = None

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem by the solver that `choose` names."""
        started = time.perf_counter()
        choice = choose(
            problem,
            gap_tolerance=self.gap_tolerance,
            time_limit=self.time_limit,
            seed=self.seed,
            max_cells=self.max_cells,
            also=self.also,
        )
        result = choice.solver.solve(problem)
        text = f"{result.termination.text} Solved by {choice.reason}."
        termination = replace(result.termination, text=text)
        return replace(result, termination=termination, seconds=time.perf_counter() - started)
