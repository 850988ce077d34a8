"""Prices that make the Lagrangian bound of a box small.

``D(prices)`` is a maximum of lines, one per choice: ``value + prices . (limit - used)``. Known choices give a lower
model of it; its minimum is where to look next (cutting planes, Kelley 1960). With one price this is the secant
method on the last line that falls and the last that rises; with several a linear programme with in-out damping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.bounds.lagrangian import Lagrangian
from solvers.envelope import lowest_point
from solvers.problem import FloatArray, IntArray

#: Pull of the best prices so far on the next ones, with several prices.
_DAMPING = 0.4

#: Largest price of a whole limit, in units of the spread of values.
_CEILING = 1e5

#: Lines kept per box.
_MOST_CUTS = 64


@dataclass(frozen=True, eq=False)
class Cut:
    """A choice as a line: ``value + prices . slack``; slack and prices in units of the limits, shape ``(m,)``."""

    choice: IntArray
    value: float
    slack: FloatArray
    feasible: bool


@dataclass(frozen=True, eq=False)
class Minimum:
    """Best bound found in a box and what proves it.

    ``active`` are the cuts that meet at the model's minimum with the weights of the convex combination that they form:
    the fractional solution that branching must cut off.
    """

    bound: float
    prices: FloatArray
    cuts: tuple[Cut, ...]
    active: tuple[tuple[Cut, float], ...]


class Dual:
    """Minimises the Lagrangian bound over prices, box by box."""

    def __init__(self, lagrangian: Lagrangian, stop: Callable[[], bool]) -> None:
        self.lagrangian = lagrangian
        self.problem = lagrangian.problem
        self.stop = stop
        self.units = np.array([max(1.0, float(capacity.limit)) for capacity in self.problem.capacities])
        self.evaluations = 0

    def cut(self, choice: IntArray) -> Cut:
        """The line of a choice."""
        used = self.problem.used(choice)
        rooms = [capacity.limit - amount for capacity, amount in zip(self.problem.capacities, used, strict=True)]
        slack = np.array([float(room) for room in rooms]) / self.units
        return Cut(choice, self.problem.value(choice), slack, not self.problem.violations(choice, used))

    def minimise(
        self, low: IntArray, high: IntArray, cuts: tuple[Cut, ...], start: FloatArray, enough: float, evaluations: int
    ) -> Minimum:
        """Lower the bound of a box until it is ``enough``, cannot fall further, or the evaluations are spent.

        Parameters
        ----------
        low, high
            The box, level indices, shape ``(G,)``.
        cuts
            Known choices; those outside the box are ignored.
        start
            Prices per unit of each resource to try first, shape ``(m,)``.
        enough
            Bound at which to stop.
        evaluations
            Most evaluations of the bound.
        """
        richest = self._richest(low, high)
        top = self.cut(richest)
        if top.feasible:
            free = np.zeros(len(self.units))
            return Minimum(self.lagrangian.evaluate(free, low, high).bound, free, (top,), ((top, 1.0),))
        known = [cut for cut in cuts if np.all(cut.choice >= low) and np.all(cut.choice <= high)]
        known += [cut for cut in (top, self.cut(low.copy())) if cut.value > -np.inf]
        best, best_prices, query = np.inf, start * self.units, start * self.units
        active: tuple[tuple[Cut, float], ...] = ((known[0], 1.0),) if known else ()
        for count in range(evaluations):
            found = self.lagrangian.evaluate(query / self.units, low, high)
            self.evaluations += 1
            if found.bound < best:
                best, best_prices = found.bound, query
            new = self.cut(found.choice)
            if new.value > -np.inf:
                known.append(new)
            # Split buckets may hand back a forbidden choice, which is no line; the empty box has none at all.
            elif found.bound == -np.inf or not known or count:
                break
            floor, lowest, active = self._model(known)
            tolerance = 1e-11 * max(1.0, abs(best)) + 4.0 * self.lagrangian.rounding(lowest / self.units)
            if best <= enough or best - floor <= tolerance or self.stop():
                break
            damped = len(self.units) > 1 and count % 3 != 2
            query = _DAMPING * best_prices + (1 - _DAMPING) * lowest if damped else lowest
        return Minimum(best, best_prices / self.units, tuple(known[-_MOST_CUTS:]), active)

    def _richest(self, low: IntArray, high: IntArray) -> IntArray:
        """The choice of largest value in a box; with value tables too large to eliminate only a good one."""
        if self.problem.value_tables or self.problem.local_limits:
            return self.lagrangian.evaluate(np.zeros(len(self.units)), low, high).choice
        groups = zip(self.problem.groups, low, high, strict=True)
        return np.array([a + int(np.argmax(group.values[a : b + 1])) for group, a, b in groups], dtype=np.int64)

    def _model(self, cuts: list[Cut]) -> tuple[float, FloatArray, tuple[tuple[Cut, float], ...]]:
        """Minimum of the largest line over prices of at least 0: its value, the prices, and the lines that meet."""
        values = np.array([cut.value for cut in cuts])
        slacks = np.array([cut.slack for cut in cuts])
        if slacks.shape[1] == 1:
            return self._model_of_one(cuts, values, slacks[:, 0])
        # Prices far beyond the useful keep the programme bounded; any price gives a bound.
        spread = float(values.max() - values.min()) + 1e-12 * max(1.0, float(np.abs(values).max()))
        found = lowest_point(values, slacks, _CEILING * spread)
        weights = zip(cuts, found.weights.tolist(), strict=True)
        active = tuple((cut, weight) for cut, weight in weights if weight > 1e-9)
        return found.height, found.prices, active or ((cuts[-1], 1.0),)

    @staticmethod
    def _model_of_one(
        cuts: list[Cut], values: FloatArray, slopes: FloatArray
    ) -> tuple[float, FloatArray, tuple[tuple[Cut, float], ...]]:
        """Walk along the upper envelope from price 0 until it rises."""
        here = max(range(len(cuts)), key=lambda i: (values[i], slopes[i]))
        price = 0.0
        while slopes[here] < 0:
            steeper = np.flatnonzero(slopes > slopes[here])
            if not steeper.size:
                # Nothing known is within budget: the model falls without end, so look far ahead.
                spread = float(values.max() - values.min())
                ahead = max(4.0 * price, spread / -float(slopes[here]), 1e-3 * abs(float(values.max())), 1e-30)
                return -np.inf, np.array([ahead]), ((cuts[here], 1.0),)
            crossings = (values[here] - values[steeper]) / (slopes[steeper] - slopes[here])
            price = max(price, float(crossings.min()))
            near = steeper[crossings <= crossings.min() * (1 + 1e-14)]
            there = int(near[np.argmax(slopes[near])])
            if slopes[there] >= 0:
                weight = float(slopes[there] / (slopes[there] - slopes[here]))
                pair = ((cuts[here], weight), (cuts[there], 1.0 - weight))
                return float(values[there] + slopes[there] * price), np.array([price]), pair
            here = there
        return float(values[here] + slopes[here] * price), np.array([price]), ((cuts[here], 1.0),)
