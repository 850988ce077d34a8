"""Max-marginals: the Lagrangian bound of every level of every group at once.

``D_{x_g = a}(p)``, the bound when group ``g`` is held at level ``a``, for all ``g`` and ``a`` by a second pass over the
tables of one elimination, from the last group to the first: what the elimination knew of a group's bucket is joined
with what the rest of the problem adds. A level whose marginal does not exceed a known value can be left out of the
search. With split buckets each copy of a group has marginals of its own; the least of them is a bound too.
"""

from __future__ import annotations

import math

import numpy as np

from solvers.bounds.factors import Priced, expand
from solvers.bounds.hull import upper_hull
from solvers.bounds.lagrangian import WHOLE_TABLE, Forward, Lagrangian, Summand
from solvers.bounds.plan import Part, Scope
from solvers.problem import FloatArray, IntArray

#: Largest bucket, in cells times levels of its group, that the second pass goes through. A larger one says nothing.
_MOST_CELLS = 100_000_000


def marginals(lagrangian: Lagrangian, prices: FloatArray, low: IntArray, high: IntArray) -> list[FloatArray]:
    """Bound on the value of choices within budget in a box, for each level of each group in the box.

    Parameters
    ----------
    lagrangian
        Of the problem.
    prices
        Value per unit of each resource, shape ``(m,)``, at least 0.
    low, high
        Level indices, shape ``(G,)``, both included.

    Returns
    -------
    list of FloatArray
        Per group the bounds of its levels ``low .. high``; none exceeds the bound of the box by more than rounding.
    """
    prices = lagrangian.checked_prices(prices)
    box = Priced(tuple(prices.tolist()), tuple(low.tolist()), tuple(high.tolist()))
    return _Backward(lagrangian, box).run(4.0 * lagrangian.rounding(prices))


class _Backward:
    """The second pass over one elimination."""

    def __init__(self, lagrangian: Lagrangian, box: Priced) -> None:
        self.lagrangian = lagrangian
        self.box = box
        self.forward: Forward = lagrangian.forward(box)
        self.outside: list[FloatArray | None] = [None] * len(self.forward.messages)

    def run(self, rounding: float) -> list[FloatArray]:
        run, box = self.forward, self.box
        sizes = [high - low + 1 for low, high in zip(box.low, box.high, strict=True)]
        if run.total == -np.inf:
            return [np.full(size, -np.inf) for size in sizes]
        found = [np.full(size, np.inf) for size in sizes]
        number = len(run.messages)
        for step, used in reversed(run.steps):
            shares = len(step.parts)
            for part, arrays in zip(reversed(step.parts), reversed(used), strict=True):
                number -= 1
                if not part.scope:
                    self.outside[number] = np.asarray(run.total - float(run.messages[number][1]))
                outside = self.outside[number]
                assert outside is not None
                bounds = self._part(step.group, part, arrays, shares, outside)
                np.minimum(found[step.group], bounds, out=found[step.group])
                self.outside[number] = None
        return [bounds + rounding for bounds in found]

    def _part(self, group: int, part: Part, arrays: list[Summand], shares: int, outside: FloatArray) -> FloatArray:
        """Marginals of the group in one table, and what the table adds to each message that went into it."""
        lagrangian, box = self.lagrangian, self.box
        levels = lagrangian.levels[group][box.window(group)]
        own = (lagrangian.own(group, box) - self.forward.slopes[group] * levels) / shares
        dense = [summand for summand in arrays if not summand.per_unit]
        priced = [summand for summand in arrays if summand.per_unit]
        cells = math.prod(outside.shape)
        if priced and not dense and cells * len(levels) > WHOLE_TABLE:
            price: FloatArray = np.zeros([1] * len(part.scope))
            for scope, array, _ in priced:
                price = price + expand(array, scope, part.scope)
            return own + _best_lines(levels, np.broadcast_to(price, outside.shape).ravel(), outside.ravel())
        if cells * len(levels) > _MOST_CELLS:
            for number in part.messages:
                self.outside[number] = self.forward.total - self.forward.messages[number][1]
            return np.full(len(levels), np.inf)
        views = [expand(array, scope, part.scope) for scope, array, _ in priced]
        tables = [expand(array, (group, *scope), (group, *part.scope)) for scope, array, _ in dense]
        into = [self.forward.messages[number] for number in part.messages]
        parts: list[FloatArray] = [np.empty([box.high[g] - box.low[g] + 1 for g in scope]) for scope, _ in into]
        bounds = np.empty(len(levels))
        for level in range(len(levels)):
            row = outside + own[level]
            for view in views:
                row = row - levels[level] * view
            for table in tables:
                row = row + table[level]
            bounds[level] = row.max()
            for (scope, _), target in zip(into, parts, strict=True):
                at = tuple(level if g == group else slice(None) for g in scope)
                target[at] = _maximum(row, part.scope, tuple(g for g in scope if g != group))
        for number, (_, message), target in zip(part.messages, into, parts, strict=True):
            blocked = np.isneginf(message)
            self.outside[number] = np.where(blocked, -np.inf, target - np.where(blocked, 0.0, message))
        return bounds


def _maximum(row: FloatArray, scope: Scope, kept: Scope) -> FloatArray:
    dropped = tuple(axis for axis, g in enumerate(scope) if g not in kept)
    largest: FloatArray = row.max(axis=dropped) if dropped else row
    return largest


def _best_lines(levels: FloatArray, price: FloatArray, height: FloatArray) -> FloatArray:
    """``max_c height_c - level price_c`` for each level, by the upper hull of the points ``(price, height)``."""
    order = np.lexsort((-height, price))
    x, y = price[order], height[order]
    first = np.r_[True, x[1:] > x[:-1]] & np.isfinite(y)
    x, y = x[first], y[first]
    if not len(x):
        return np.full(len(levels), -np.inf)
    hull = upper_hull(x, y)
    x, y = x[hull], y[hull]
    best = np.searchsorted(-np.diff(y) / np.diff(x), -levels)
    lines: FloatArray = y[best] - levels * x[best]
    return lines
