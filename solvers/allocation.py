"""Certified allocation: how many structures each group keeps within budgets that are products of widths or tables.

Dual: the budgets are priced (`solvers.dual`) and the rest is maximised exactly by variable elimination
(`solvers.bounds`). Primal: greedy and Lagrangian choices are moved within the budget and improved
(`solvers.incumbents`). What gap remains is closed by branch and bound (`solvers.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from solvers.bounds.lagrangian import MAX_CELLS, Lagrangian
from solvers.infeasibility import explain
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.reduction import Reduction, without_links
from solvers.result import (
    OPTIMAL_GAP,
    Certificate,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)
from solvers.search import Limits, Progress, Search
from solvers.verify import check_lagrangian

__all__ = ["Allocation", "Progress", "Start"]

#: An earlier result, a choice of level indices, or prices per unit of each resource.
Start: TypeAlias = Result | Sequence[int] | IntArray | Mapping[str, float]


@dataclass(frozen=True)
class Allocation:
    """Chooses the levels of a `SelectionProblem`, with a certificate.

    Parameters
    ----------
    gap_tolerance
        Stop when the gap, a fraction of the lost value, is at most this; 0 asks for a proof of optimality.
    time_limit
        Wall seconds, checked between evaluations of the bound; None for no limit. With a time limit, what is found
        depends on the machine's speed.
    max_nodes
        Most boxes that are split. This limit is deterministic.
    seed
        Recorded in the result. The search has no randomness: equal problems give equal results for every seed.
    max_cells
        Largest table of the elimination, in float64 cells. Above it the bound is weaker, never wrong.
    deterministic
        Leave the time limit aside, so that no decision depends on the clock: two runs give the same bytes.

    Raises
    ------
    ValueError
        A tolerance, limit or size below 0.
    """

    gap_tolerance: float = 1e-3
    time_limit: float | None = 60.0
    max_nodes: int = 2000
    seed: int = 0
    max_cells: int = MAX_CELLS
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("gap_tolerance", "time_limit", "max_nodes", "max_cells"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for the strictest setting.")

    def solve(
        self,
        problem: SelectionProblem,
        progress: Callable[[Progress], bool | None] | None = None,
        start: Start | None = None,
    ) -> Result:
        """Solve a problem.

        Parameters
        ----------
        problem
            Groups, values, capacities, and what else couples the groups.
        progress
            Called with a `Progress` now and then and at every better choice; True ends the search. Ctrl-C ends it
            too, with what is known by then.
        start
            Where to begin: an earlier result (its choice and prices), a choice, or prices. A choice that is not within
            budget is repaired, which the termination's text says.

        Returns
        -------
        Result
            With a certificate whenever a choice within budget was found. An infeasible problem is an outcome, with
            the binding resource in the termination's text.

        Raises
        ------
        ValueError
            A start that is not of this problem.
        """
        return Run(self, problem, progress, start).result()


class Run:
    """One solve: merges links, repairs the start, searches, and says what was reached."""

    def __init__(
        self,
        settings: Allocation,
        problem: SelectionProblem,
        progress: Callable[[Progress], bool | None] | None,
        start: Start | None,
        shared: Lagrangian | None = None,
        lines: Sequence[IntArray] = (),
    ) -> None:
        self.settings = settings
        self.lines = lines
        self.problem = problem
        self.choice, self.prices = _read(problem, start)
        self.notes: list[str] = []
        self.reduced = without_links(problem)
        time_limit = None if settings.deterministic else settings.time_limit
        limits = Limits(settings.gap_tolerance, time_limit, settings.max_nodes, settings.max_cells)
        bare = replace(problem, links=()) if self.reduced is None else self.reduced.problem
        self.search = Search(bare, limits, progress, None if shared is None else shared.at(bare))

    def result(self) -> Result:
        search, reduced = self.search, self.reduced
        if reduced is None:
            return self.infeasible()
        try:
            self.begin(reduced)
            search.run(self.prices, self.lines)
        except KeyboardInterrupt:
            search.limit = Limit.INTERRUPTED
            search.settle()
        search.enter_phase(None)
        bound, leaves = search.proof()
        best = search.incumbents.best
        if best is None:
            return self.infeasible() if search.empty() else self.unknown()
        bound = max(bound, search.objective)
        choice = reduced.lift(best)
        evaluation = self.problem.evaluate(choice)
        resources = [capacity.resource for capacity in self.problem.capacities]
        gap = relative_gap(evaluation.value, max(bound, evaluation.value), self.problem.total_value)
        certificate = Certificate(
            objective=evaluation.value,
            bound=max(bound, evaluation.value),
            gap=gap,
            used=evaluation.used,
            allowed={capacity.resource: capacity.limit for capacity in self.problem.capacities},
            prices=dict(zip(resources, search.root_prices.tolist(), strict=True)),
            leaves=tuple(leaves),
            choice=choice,
            check=check_lagrangian,
            fixings=tuple(search.fixings),
        )
        return self.answer(self.termination(gap), certificate)

    def begin(self, reduced: Reduction) -> None:
        """Make the caller's choice the first incumbent, repaired when it is not within budget."""
        if self.choice is None:
            return
        broken = self.problem.violations(self.choice)
        lowered = reduced.lower(self.choice)
        if lowered is None:
            lowered = _nearest(reduced, self.choice)
        self.search.incumbents.attempt(lowered)
        if broken:
            repaired = "repaired" if self.search.incumbents.best is not None else "not to be repaired by moves"
            self.notes.append(f"The start was not within budget ({'; '.join(broken)}) and {repaired}.")

    def infeasible(self) -> Result:
        return self.answer(Termination(TerminationReason.INFEASIBLE, None, explain(self.problem).text), None)

    def unknown(self) -> Result:
        limits = ", ".join(f"{c.resource} at most {c.limit}" for c in self.problem.capacities)
        text = f"Stopped before finding a choice with {limits}. Raise a limit, or allow more time or nodes."
        return self.answer(Termination(TerminationReason.UNKNOWN, self.search.limit, text), None)

    def termination(self, gap: float) -> Termination:
        if gap <= OPTIMAL_GAP:
            return Termination(TerminationReason.OPTIMAL, None, "No choice within budget keeps more value.")
        share, limit = f"At most {100 * gap:.3g} % of the lost value is avoidable.", self.search.limit
        if limit is None:
            text = f"{share} That is within gap_tolerance {self.settings.gap_tolerance:g}; lower it for a closer proof."
        elif limit is Limit.NODES:
            text = f"{share} Stopped after {self.search.nodes} nodes; raise max_nodes for a smaller gap."
        elif limit is Limit.TIME:
            text = f"{share} Stopped after {self.search.seconds():.1f} s; raise time_limit for a smaller gap."
        elif limit is Limit.INTERRUPTED:
            text = f"{share} Interrupted; pass this result as start= to go on from its choice and prices."
        else:
            text = f"{share} Stopped by the progress callback."
        return Termination(TerminationReason.FEASIBLE, limit, text)

    def answer(self, termination: Termination, certificate: Certificate | None) -> Result:
        if self.notes:
            termination = Termination(termination.reason, termination.limit, " ".join([termination.text, *self.notes]))
        choice = None if certificate is None else certificate.choice
        selection = None if choice is None else self.problem.selection(choice)
        seconds, phases = self.search.seconds(), tuple(self.search.phases)
        return Result(choice, selection, certificate, termination, self.settings.seed, seconds, phases)


def _read(problem: SelectionProblem, start: Start | None) -> tuple[IntArray | None, FloatArray | None]:
    """The choice and the prices of a start."""
    if start is None:
        return None, None
    if isinstance(start, Result):
        choice = None if start.choice is None else problem.checked(start.choice)
        return choice, None if start.certificate is None else _prices(problem, start.certificate.prices)
    if isinstance(start, Mapping):
        return None, _prices(problem, start)
    return problem.checked(start), None


def _prices(problem: SelectionProblem, prices: Mapping[str, float]) -> FloatArray:
    resources = [capacity.resource for capacity in problem.capacities]
    found = np.array([float(prices.get(resource, np.nan)) for resource in resources], dtype=np.float64)
    if set(prices) != set(resources) or not np.all(np.isfinite(found)) or np.any(found < 0):
        raise ValueError(
            f"Expected finite prices of at least 0 for {resources}. Got {dict(prices)}. "
            "Start from a result of a problem with the same resources."
        )
    return found


def _nearest(reduced: Reduction, choice: IntArray) -> IntArray:
    """For each group of the reduced problem the level nearest below the least that its members had."""
    lowered = np.array([len(group) - 1 for group in reduced.problem.groups], dtype=np.int64)
    for g, (h, index) in enumerate(zip(reduced.owner, reduced.index, strict=True)):
        lowered[h] = min(lowered[h], max(0, int(np.searchsorted(index, choice[g], side="right")) - 1))
    return lowered
