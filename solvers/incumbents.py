"""Choices within budget: where they come from, and the best so far.

Starts are the least choices with the marginal greedy upwards, the richest choice lowered by least value per cost, one
threshold on the scores of all groups, whatever the caller brings, and the choices of the dual. All are then improved by
the moves of `solvers.moves`, so the best is never worse than what it started from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from solvers.bounds.boxes import least_choice
from solvers.ledger import Ledger
from solvers.moves import Mover
from solvers.problem import FloatArray, IntArray, SelectionProblem

#: Pairs of groups looked at when improving a choice.
_PAIRS = 4000

#: Levels of all groups up to which the richest choice is lowered step by step.
_MOST_LEVELS = 30_000


class Incumbents:
    """Keeps the best choice of a problem without links.

    Parameters
    ----------
    problem
        The problem.
    stop
        Asked between moves; True ends what is going on.
    """

    def __init__(self, problem: SelectionProblem, stop: Callable[[], bool]) -> None:
        self.problem = problem
        self.stop = stop
        self.mover = Mover(problem, stop)
        self.ledger = Ledger(problem, problem.minimum_choice)
        self.best: IntArray | None = None
        self.objective = -np.inf

    def offer(self, pairs: int) -> bool:
        """Improve the ledger's choice, which is within budget, and keep it when it is the best so far."""
        ledger = self.ledger
        self.mover.improve(ledger, 0)
        self.mover.fill(ledger)
        if self.best is not None and ledger.value() <= self.objective:
            return False
        self.mover.improve(ledger, pairs)
        self.mover.fill(ledger)
        self.best, self.objective = np.array(ledger.choice, dtype=np.int64), ledger.value()
        return True

    def attempt(self, choice: Sequence[int] | IntArray, most: int = sys.maxsize, pairs: int = _PAIRS) -> bool:
        """Bring a choice within budget and offer it; whether it became the best."""
        self.ledger.reset(choice)
        return self.mover.reach(self.ledger, most) and self.offer(pairs)

    def least(self) -> IntArray | None:
        """A choice within budget from the least of each resource, offered as it is; None when none was found."""
        starts = [self.problem.minimum_choice]
        self.ledger.reset(starts[0])
        if not self.ledger.feasible:
            found = [least_choice(self.problem, capacity.resource) for capacity in self.problem.capacities]
            starts += [choice for choice in found if choice is not None]
        for start in starts:
            self.ledger.reset(start)
            if self.mover.reach(self.ledger):
                floor = np.array(self.ledger.choice, dtype=np.int64)
                if self.best is None:
                    # Whatever the time limit, a choice within budget that is maximal.
                    self.offer(0)
                return floor
        return None

    def starts(self, prices: FloatArray) -> None:
        """Greedy upwards under two weightings of the budgets, greedy downwards, and one threshold on all scores."""
        floor = self.least()
        units = tuple((1.0 / self.mover.units[: len(prices)]).tolist())
        for weights in dict.fromkeys((units, tuple(prices.tolist()))):
            if floor is not None and any(weights) and not self.stop():
                self.ledger.reset(floor)
                self.mover.greedy(self.ledger, np.array(weights))
                self.offer(_PAIRS)
        if not self.stop() and sum(map(len, self.problem.groups)) <= _MOST_LEVELS:
            richest = [int(np.argmax(group.values)) for group in self.problem.groups]
            self.attempt(richest)
            self.ledger.reset(richest)
            if not self.stop() and self.mover.reach(self.ledger, saving=True):
                self.mover.greedy(self.ledger, np.array(units))
                self.offer(_PAIRS)
        if not self.stop():
            self.threshold()

    def threshold(self) -> None:
        """Keep every structure whose score reaches one threshold, the lowest that the budgets allow.

        A level's score is the least value per structure of the steps up to it; this is the rule of global magnitude
        pruning.
        """
        scores = [self._scores(g) for g in range(len(self.problem.groups))]
        thresholds = np.unique(np.concatenate([[np.inf], *scores]))

        def kept(threshold: float) -> list[int]:
            return [int(np.searchsorted(-own, -threshold, side="right")) for own in scores]

        first, last = 0, len(thresholds) - 1
        while first < last:
            middle = (first + last) // 2
            self.ledger.reset(kept(float(thresholds[middle])))
            first, last = (first, middle) if self.ledger.feasible else (middle + 1, last)
        self.ledger.reset(kept(float(thresholds[first])))
        if self.ledger.feasible:
            self.offer(_PAIRS)

    def _scores(self, g: int) -> FloatArray:
        """Score of each level above the first, not rising, shape ``(K - 1,)``."""
        group = self.problem.groups[g]
        return np.minimum.accumulate(np.diff(group.values) / np.diff(group.levels))
