"""Several good selections instead of one, to be ranked by something dearer than the problem's value.

The best choice comes with its certificate. The others are made by holding one group at another level and improving the
rest (the branching of Lawler 1972, with moves instead of exact solves), best first. The certificate's bound holds for
all of them, so each comes with a proven gap; that no better choice lies between them is not proven.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solvers.allocation import Allocation
from solvers.ledger import Ledger
from solvers.moves import Mover
from solvers.problem import BoolArray, IntArray, SelectionProblem
from solvers.reduction import Reduction, without_links
from solvers.result import Result, relative_gap

__all__ = ["Entry", "Pool", "Pooled"]

#: Levels to each side at which a group is held.
_REACH = 2

#: Pairs of groups looked at when improving the rest.
_PAIRS = 40


@dataclass(frozen=True, eq=False)
class Entry:
    """A selection within budget: level indices ``(G,)``, kept structures ``(n,)``, value, and gap to the bound."""

    choice: IntArray
    selection: BoolArray
    value: float
    gap: float


@dataclass(frozen=True, eq=False)
class Pooled:
    """Distinct selections, best first, and the result that certifies them; no entries when there is none."""

    entries: tuple[Entry, ...]
    result: Result


@dataclass(frozen=True)
class Pool:
    """Finds ``size`` distinct good selections.

    Parameters
    ----------
    size
        Most selections.
    distance
        Least number of groups in which two of them differ; linked groups count once.
    most_gap
        Largest gap of an entry beyond the first, a fraction of the lost value; None for any.
    allocation
        Finds the best one and the bound.

    Raises
    ------
    ValueError
        A size or distance below 1.
    """

    size: int
    distance: int = 1
    most_gap: float | None = None
    allocation: Allocation = field(default_factory=Allocation)

    def __post_init__(self) -> None:
        for name in ("size", "distance"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1. Got {getattr(self, name)}. Use 1 for the least.")

    def solve(self, problem: SelectionProblem) -> Pooled:
        """Solve, then look around the best choice."""
        result = self.allocation.solve(problem)
        reduced = without_links(problem)
        if result.choice is None or result.certificate is None or reduced is None:
            return Pooled((), result)
        first = reduced.lower(result.choice)
        assert first is not None
        bound, total = result.certificate.bound, problem.total_value
        entries = []
        for _, choice in self._choices(reduced, first, bound, total):
            lifted = reduced.lift(choice)
            value = problem.value(lifted)
            entries.append(Entry(lifted, problem.selection(lifted), value, relative_gap(value, bound, total)))
        return Pooled(tuple(entries), result)

    def _choices(
        self, reduced: Reduction, first: IntArray, bound: float, total: float
    ) -> list[tuple[float, tuple[int, ...]]]:
        """Look around the best choices, one after the other, until enough good ones are known; best first."""
        problem = reduced.problem
        mover, ledger = Mover(problem), Ledger(problem, first)
        start = tuple(first.tolist())
        values = {start: problem.value(first)}
        around: set[tuple[int, ...]] = set()
        while True:
            ranked = sorted((-value, choice) for choice, value in values.items())
            taken: list[tuple[float, tuple[int, ...]]] = []
            for negative, choice in ranked:
                good = self.most_gap is None or relative_gap(-negative, bound, total) <= self.most_gap
                apart = all(sum(a != b for a, b in zip(choice, c, strict=True)) >= self.distance for _, c in taken)
                if len(taken) < self.size and (good or not taken) and apart:
                    taken.append((-negative, choice))
            left = [choice for _, choice in ranked if choice not in around]
            if len(taken) == self.size or not left or len(around) > 2 * self.size:
                return taken
            around.add(left[0])
            for other in self._neighbours(problem, mover, ledger, np.array(left[0], dtype=np.int64)):
                values[other] = problem.value(other)

    @staticmethod
    def _neighbours(problem: SelectionProblem, mover: Mover, ledger: Ledger, choice: IntArray) -> list[tuple[int, ...]]:
        found = []
        for g, group in enumerate(problem.groups):
            for level in range(max(0, choice[g] - _REACH), min(len(group), choice[g] + _REACH + 1)):
                if level == choice[g]:
                    continue
                ledger.reset(choice)
                ledger.move(g, level)
                mover.frozen = frozenset({g})
                if mover.reach(ledger, 4 * len(problem.groups)):
                    mover.fill(ledger)
                    mover.improve(ledger, _PAIRS)
                    mover.frozen = frozenset()
                    mover.fill(ledger)  # a group that costs nothing more rises all the same
                    found.append(tuple(ledger.choice))
        mover.frozen = frozenset()
        return found
