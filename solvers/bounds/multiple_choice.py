"""The multiple-choice knapsack as flat arrays, and its Lagrangian bound.

    maximise   sum_g value of one option per class
    subject to sum_g cost_k of that option <= room_k      for k = 1 .. m.

A `SelectionProblem` whose terms each concern one group has this form: classes are groups, options are levels. For
prices ``p >= 0`` the bound

    D(p) = p . room + sum_g max_j (value_gj - p . cost_gj)

takes one pass over the options. Its minimum over ``p`` is the value of the linear relaxation (Sinha and Zoltners
1979), whose solutions split at most ``m`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from solvers.envelope import lowest_point
from solvers.problem import FloatArray, IntArray, SelectionProblem

#: Sums of amounts stay below this, so that int64 is exact with one bit to spare.
_MOST_AMOUNT = 2**62

#: Share of the best prices so far in the next ones, with several budgets (in-out damping).
_DAMPING = 0.4

#: Largest price of a whole budget, in units of the spread of values; any price gives a bound.
_CEILING = 1e5

_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class MultipleChoice:
    """Classes of options in flat arrays.

    Parameters
    ----------
    values
        Value of each option, class after class, shape ``(N,)``.
    costs
        Amount of each budget that an option uses, shape ``(m, N)``, int64, at least 0.
    starts
        First option of each class and the end of the last, shape ``(G + 1,)``.
    room
        What may be used of each budget, shape ``(m,)``, int64; negative when constants alone exceed it.
    """

    values: FloatArray
    costs: IntArray
    starts: IntArray
    room: IntArray

    @classmethod
    def of(cls, problem: SelectionProblem) -> MultipleChoice:
        """Lay a separable problem out as classes.

        Raises
        ------
        ValueError
            A term concerns several groups, groups are tied to each other, or amounts exceed 2^62.
        """
        for what in ("value_tables", "local_limits", "links"):
            if getattr(problem, what):
                raise ValueError(
                    f"Expected groups that do not interact. Got {len(getattr(problem, what))} {what}. "
                    "Use solvers.allocation.Allocation, which handles them."
                )
        sizes = [len(group) for group in problem.groups]
        starts = np.r_[0, np.cumsum(sizes, dtype=np.int64)].astype(np.int64)
        costs = np.zeros((len(problem.capacities), int(starts[-1])), dtype=np.int64)
        room = np.zeros(len(problem.capacities), dtype=np.int64)
        for k, (capacity, merged) in enumerate(zip(problem.capacities, problem.polynomials, strict=True)):
            most = 0
            scopes = [tuple(g for g, _ in powers) for _, powers in merged.products]
            scopes += [table.groups for table in merged.tables]
            for scope in scopes:
                if len(scope) > 1:
                    names = [problem.groups[g].name for g in scope]
                    raise ValueError(
                        f"Expected terms of one group each. Got a term of {capacity.resource!r} over {names}. "
                        "Use solvers.allocation.Allocation, which handles products and tables of several groups."
                    )
            for coefficient, powers in merged.products:
                ((g, power),) = powers
                most += coefficient * int(problem.groups[g].levels[-1]) ** power
                if most < _MOST_AMOUNT:
                    costs[k, starts[g] : starts[g + 1]] += coefficient * problem.groups[g].levels ** power
            for table in merged.tables:
                most += int(table.entries.max())
                if most < _MOST_AMOUNT:
                    costs[k, starts[table.groups[0]] : starts[table.groups[0] + 1]] += table.entries
            free = capacity.limit - merged.constant
            if most >= _MOST_AMOUNT:
                raise ValueError(
                    f"Expected amounts of {capacity.resource!r} below 2^62. Got up to {most}. Measure them in a "
                    "larger unit, or use solvers.allocation.Allocation, which counts in integers of any size."
                )
            room[k] = max(min(free, _MOST_AMOUNT), -_MOST_AMOUNT)
        values = np.concatenate([group.values for group in problem.groups]) if sizes else np.zeros(0)
        return cls(values, costs, starts, room)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def owner(self) -> IntArray:
        """Class of each option, shape ``(N,)``."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.starts))

    @cached_property
    def least(self) -> IntArray:
        """Least amount per budget and class, shape ``(m, G)``."""
        return self.smallest(self.costs)

    @cached_property
    def units(self) -> FloatArray:
        """Scale of each budget, shape ``(m,)``, at least 1."""
        return np.maximum(1.0, np.abs(self.room.astype(np.float64)))

    @cached_property
    def spread(self) -> float:
        """Largest minus smallest value of all choices."""
        if not len(self):
            return 0.0
        return float((self.largest(self.values) + self.largest(-self.values)).sum())

    @cached_property
    def _scale(self) -> tuple[float, FloatArray]:
        if not len(self):
            return 0.0, np.zeros(len(self.room))
        most = np.maximum.reduceat(self.costs.astype(np.float64), self.starts[:-1], axis=1).sum(axis=1)
        return float(self.largest(np.abs(self.values)).sum()), most + self.units

    def rounding(self, prices: FloatArray) -> float:
        """How far float64 may be off in ``D(prices)``: terms are summed pairwise or in chains of one per budget."""
        value, amounts = self._scale
        depth = 4.0 + len(prices) + np.log2(1.0 + len(self))
        return float(_EPSILON * depth * (value + prices @ amounts))

    @cached_property
    def value_rounding(self) -> float:
        """How far float64 may be off in the value of a whole choice, summed in any order."""
        return float(0.5 * _EPSILON * (4.0 + len(self)) * self._scale[0])

    def largest(self, scores: FloatArray) -> FloatArray:
        """Largest entry per class along the last axis; classes are never empty."""
        found: FloatArray = np.maximum.reduceat(scores, self.starts[:-1], axis=-1)
        return found

    def smallest(self, scores: IntArray) -> IntArray:
        """Smallest entry per class along the last axis."""
        if not len(self):
            return np.zeros((*scores.shape[:-1], 0), dtype=scores.dtype)
        found: IntArray = np.minimum.reduceat(scores, self.starts[:-1], axis=-1)
        return found

    def scores(self, prices: FloatArray) -> FloatArray:
        """Value minus priced cost of each option, shape ``(N,)``."""
        scores = self.values.copy()
        for price, cost in zip(prices, self.costs, strict=True):
            if price:
                scores -= price * cost
        return scores

    def evaluate(self, prices: FloatArray) -> tuple[float, IntArray]:
        """``D(prices)`` with its rounding error added, and the first best option of each class, shape ``(G,)``."""
        if not len(self):
            return float(prices @ self.room) + self.rounding(prices), np.zeros(0, dtype=np.int64)
        scores = self.scores(prices)
        best = self.largest(scores)
        hits = np.flatnonzero(scores == np.repeat(best, np.diff(self.starts)))
        owners = self.owner[hits]
        first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
        bound = float(prices @ self.room.astype(np.float64) + best.sum())
        return bound + self.rounding(prices), hits[first]

    def used(self, options: IntArray) -> IntArray:
        """Amounts of a choice of options, shape ``(m,)``, exact."""
        amounts: IntArray = self.costs[:, options].sum(axis=1)
        return amounts

    def reduced_costs(self, prices: FloatArray) -> FloatArray:
        """How far ``D(prices)`` falls when an option is forced, shape ``(N,)``, at least 0."""
        scores = self.scores(prices)
        return np.repeat(self.largest(scores), np.diff(self.starts)) - scores


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Minimum of the Lagrangian bound over prices, as far as it was found.

    Parameters
    ----------
    bound
        ``D(prices)`` with its rounding error: no choice within budget is worth more.
    prices
        Value per unit of each budget, shape ``(m,)``.
    tried
        All prices that were evaluated, shape ``(q, m)``.
    choices
        Choices that were known before and the best ones at ``tried``, as options, shape ``(q', G)``.
    """

    bound: float
    prices: FloatArray
    tried: FloatArray
    choices: IntArray


class Line(NamedTuple):
    """One evaluation of a Lagrangian bound: the best choice there is a line ``value + slack . prices``.

    ``bound`` includes rounding; ``slack`` is what the choice leaves of each budget, shape ``(m,)``, negative when it
    uses too much.
    """

    bound: float
    value: float
    slack: FloatArray
    choice: IntArray


def relax(
    classes: MultipleChoice,
    enough: float = -np.inf,
    evaluations: int = 60,
    start: FloatArray | None = None,
    known: IntArray | None = None,
) -> Relaxation:
    """Minimise the Lagrangian bound.

    Parameters
    ----------
    classes
        The problem.
    enough
        Bound at which to stop.
    evaluations
        Most evaluations of the bound.
    start
        First prices, shape ``(m,)``; 0 when not given, which shows at once whether the budgets bind.
    known
        Choices to start from, as options, shape ``(q, G)``.
    """

    def line(options: IntArray, bound: float) -> Line:
        slack = classes.room - classes.used(options)
        return Line(bound, float(classes.values[options].sum()), slack.astype(np.float64), options)

    def evaluate(prices: FloatArray) -> Line:
        bound, options = classes.evaluate(prices)
        return line(options, bound)

    lines = [] if known is None else [line(options, np.inf) for options in known]
    return descend(evaluate, classes.units, classes.spread, classes.rounding, enough, evaluations, start, lines)


def descend(
    evaluate: Callable[[FloatArray], Line],
    units: FloatArray,
    spread: float,
    rounding: Callable[[FloatArray], float],
    enough: float = -np.inf,
    evaluations: int = 60,
    start: FloatArray | None = None,
    known: Sequence[Line] = (),
) -> Relaxation:
    """Minimise a Lagrangian bound: secants for one budget, damped cutting planes (Kelley 1960) for several.

    Parameters
    ----------
    evaluate
        The bound at prices.
    units
        Scale of each budget, shape ``(m,)``.
    spread
        Largest minus smallest value of all choices.
    rounding
        Rounding error of the bound at prices.
    enough, evaluations, start
        See `relax`.
    known
        Lines to start from.
    """
    size = len(units)
    query = np.zeros(size) if start is None else start * units
    best, best_query = np.inf, query
    lines = list(known)
    tried: list[FloatArray] = []
    for count in range(max(1, evaluations)):
        found = evaluate(query / units)
        tried.append(query / units)
        lines.append(found)
        if found.bound < best:
            best, best_query = found.bound, query
        if size == 0 or best <= enough or (not query.any() and np.all(found.slack >= 0)):
            break
        values, slacks = np.array([line.value for line in lines]), np.array([line.slack / units for line in lines])
        floor, lowest = _model(values, slacks, spread)
        if best - floor <= 1e-12 * spread + 2.0 * rounding(lowest / units):
            break
        damped = size > 1 and count % 3 != 2
        query = _DAMPING * best_query + (1.0 - _DAMPING) * lowest if damped else lowest
    return Relaxation(best, best_query / units, np.array(tried), np.array([line.choice for line in lines]))


def _model(values: FloatArray, slacks: FloatArray, spread: float) -> tuple[float, FloatArray]:
    """Minimum over prices of at least 0 of the largest line ``value + slack . price``, and where it is."""
    ceiling = _CEILING * max(spread, 1e-300)
    if slacks.shape[1] == 1:
        return _model_of_one(values, slacks[:, 0], ceiling)
    # A line below all others that rises in every price: one line alone may have no lowest point.
    values = np.r_[values, float(values.min()) - 0.5 * ceiling]
    found = lowest_point(values, np.vstack([slacks, np.ones(slacks.shape[1])]), ceiling)
    if not np.isfinite(found.height):
        return -np.inf, np.full(slacks.shape[1], ceiling / slacks.shape[1])
    return found.height, np.clip(found.prices, 0.0, ceiling)


def _model_of_one(values: FloatArray, slacks: FloatArray, ceiling: float) -> tuple[float, FloatArray]:
    """Walk down the upper envelope of lines from price 0 until it rises."""
    here, price = int(np.argmax(values)), 0.0
    while slacks[here] < 0:
        steeper = np.flatnonzero(slacks > slacks[here])
        if not steeper.size:
            price = ceiling
            break
        crossings = (values[here] - values[steeper]) / (slacks[steeper] - slacks[here])
        first = float(crossings.min())
        price = min(max(price, first), ceiling)
        near = steeper[crossings <= first * (1 + 1e-14)]
        here = int(near[np.argmax(slacks[near])])
    return float((values + slacks * price).max()), np.array([price])
