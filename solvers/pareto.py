"""The certified front of one budget: the best value and its bound at every limit of a resource, from one sweep.

The tables of the elimination do not depend on the limits, so they are made once. From one limit to the next the prices,
the lines of known choices and the best choice carry over: each choice within a limit is within every larger one, so
values rise with the limit; each proof at a limit proves the same bound at every smaller one, so bounds do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from solvers.allocation import Allocation, Run
from solvers.bounds.boxes import least_reachable
from solvers.bounds.lagrangian import Lagrangian
from solvers.problem import SelectionProblem
from solvers.reduction import without_links
from solvers.result import OPTIMAL_GAP, Certificate, Result, Termination, TerminationReason, relative_gap

__all__ = ["Front", "ParetoFront", "Point"]


@dataclass(frozen=True, eq=False)
class Point:
    """The answer at one limit; ``result.certificate`` is None where no choice is within it."""

    limit: int
    result: Result


@dataclass(frozen=True, eq=False)
class Front:
    """Points by rising limit of ``resource``: values and bounds rise with it."""

    resource: str
    points: tuple[Point, ...]

    def problem(self, problem: SelectionProblem, point: Point) -> SelectionProblem:
        """The problem that a point answers, for instance to verify its certificate."""
        return problem.with_limits({self.resource: point.limit})


@dataclass(frozen=True)
class ParetoFront:
    """Sweeps the limit of one resource.

    Parameters
    ----------
    resource
        Its name.
    limits
        The limits to solve for; by default ``count`` of them, evenly from the least reachable amount to that of the
        largest levels.
    count
        Number of limits when none are given.
    allocation
        How each limit is solved: tolerance and limits hold per point.
    """

    resource: str
    limits: Sequence[int] | None = None
    count: int = 16
    allocation: Allocation = field(default_factory=Allocation)

    def __post_init__(self) -> None:
        if self.count < 1 or (self.limits is not None and not len(self.limits)):
            raise ValueError(f"Expected at least one limit. Got {self.count} and {self.limits}. Name some limits.")

    def solve(self, problem: SelectionProblem) -> Front:
        """Solve for every limit; the problem's own limit of the resource is left aside.

        Raises
        ------
        ValueError
            A resource that the problem does not have.
        """
        names = [capacity.resource for capacity in problem.capacities]
        if self.resource not in names:
            raise ValueError(f"Expected one of the resources {names}. Got {self.resource!r}. Name one of them.")
        reduced = without_links(problem)
        bare = replace(problem, links=()) if reduced is None else reduced.problem
        shared = Lagrangian(bare, max(1, self.allocation.max_cells))
        results: list[Result] = []
        limits = self._limits(problem)
        lines: Sequence[np.ndarray] = ()
        before: Result | None = None
        for limit in limits:
            run = Run(
                self.allocation, problem.with_limits({self.resource: limit}), None, before, shared=shared, lines=lines
            )
            result = run.result()
            if result.certificate is not None:
                before, lines = result, run.search.root_lines
            results.append(result)
        return Front(self.resource, tuple(map(Point, limits, _falling(problem, results))))

    def _limits(self, problem: SelectionProblem) -> list[int]:
        if self.limits is not None:
            return sorted({int(limit) for limit in self.limits})
        index = [capacity.resource for capacity in problem.capacities].index(self.resource)
        least = least_reachable(problem)[self.resource]
        most = max(least, problem.used([len(group) - 1 for group in problem.groups])[index])
        return sorted({least + (most - least) * i // max(1, self.count - 1) for i in range(self.count)})


def _falling(problem: SelectionProblem, results: list[Result]) -> list[Result]:
    """The results with bounds that do not rise towards smaller limits: a later proof stands in for a weaker one."""
    found: list[Result] = []
    later: Certificate | None = None
    for result in reversed(results):
        own = result.certificate
        if own is not None and later is not None and later.bound < own.bound:
            bound = max(later.bound, own.objective)
            gap = relative_gap(own.objective, bound, problem.total_value)
            own = replace(own, bound=bound, gap=gap, leaves=later.leaves, fixings=later.fixings)
            termination = result.termination
            if gap <= OPTIMAL_GAP and termination.reason is not TerminationReason.OPTIMAL:
                text = "No choice within budget keeps more value, by the proof of a larger limit."
                termination = Termination(TerminationReason.OPTIMAL, None, text)
            result = replace(result, certificate=own, termination=termination)
        later = own if own is not None else later
        found.append(result)
    return found[::-1]
