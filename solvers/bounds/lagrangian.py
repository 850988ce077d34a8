"""Lagrangian bounds: price the budgets, maximise exactly over what is left.

For prices ``p_k >= 0`` (value per unit) and a box of level indices,

    D(p) = sum_k p_k limit_k + max_x { sum_g values_g(x_g) - sum_k p_k used_k(x) }

is at least the value of every choice in the box that is within budget. The inner maximum is found exactly by variable
elimination (Bertele and Brioschi 1972; Dechter 1999) in a min-weight order. Two refinements keep the tables small:

* A group whose level enters its products linearly has ``max_n v(n) - n p``, a convex conjugate in the single number
  ``p`` (the priced product of its neighbours): upper hull of ``v`` and a binary search instead of one more table axis.
* A bucket whose table would exceed ``max_cells`` is split (mini-buckets, Dechter and Rish 2003), and a product that
  is too large on its own is taken at the least levels of the dropped groups. Both only raise the maximum, so ``D``
  stays a bound.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from solvers.bounds.factors import Priced, collect, expand, least_costs
from solvers.bounds.hull import upper_hull
from solvers.bounds.plan import Factor, Part, Plan, Planner, Scope, Step
from solvers.problem import FloatArray, IntArray, SelectionProblem

#: Largest table of the elimination, in float64 cells (160 MB).
MAX_CELLS = 20_000_000

#: Tables up to this many cells are maximised in one call; larger ones level by level, in the cache's reach.
WHOLE_TABLE = 50_000
SHORT_ROW = 2_000

#: Once buckets are split, larger tables cost more time than they improve the bound; an exact plan for a small box may
#: be somewhat larger.
_SPLIT_TABLE = 20_000
_SMALL_TABLE = 200_000


@dataclass(frozen=True)
class Dual:
    """``bound`` on the value in a box, and a choice, shape ``(G,)``, that attains the priced maximum.

    ``exact`` is False when mini-buckets were needed: then the choice is only a good guess.
    """

    bound: float
    choice: IntArray
    exact: bool


class Summand(NamedTuple):
    """One array of a bucket over ``scope``: priced cost per unit of the group, or value with the group's axis first."""

    scope: Scope
    array: FloatArray
    per_unit: bool


class _Hull(NamedTuple):
    """Vertices of a value curve: positions, levels, values, and value lost per level from one vertex to the next."""

    position: IntArray
    widths: FloatArray
    heights: FloatArray
    steps: FloatArray


@dataclass(frozen=True, eq=False)
class Forward:
    """One elimination: the priced maximum, what each part of each step summed, and the messages in order."""

    total: float
    steps: list[tuple[Step, list[list[Summand]]]]
    messages: list[tuple[Scope, FloatArray]]
    slopes: list[float]
    exact: bool


class Lagrangian:
    """The Lagrangian bound of a problem; what does not depend on prices is computed once.

    Parameters
    ----------
    problem
        The problem to bound.
    max_cells
        Largest table, in cells; beyond it the bound is weaker, never wrong.
    """

    def __init__(self, problem: SelectionProblem, max_cells: int = MAX_CELLS) -> None:
        self.problem = problem
        self.max_cells = max_cells
        if problem.links:
            raise ValueError("Expected no links. Got some. Merge them with solvers.reduction.without_links.")
        self.levels = [group.levels.astype(np.float64) for group in problem.groups]
        self._factors, self._linear, self._curved = collect(problem)
        self._static: dict[tuple[int, int, int], FloatArray] = {}
        self._hulls: dict[tuple[int, int, int], _Hull] = {}
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._slack = self._slacks(problem)

    def at(self, problem: SelectionProblem) -> Lagrangian:
        """The bound of the same problem with other limits; all tables are shared.

        Raises
        ------
        ValueError
            A problem that differs in more than its limits.
        """
        same = {capacity.resource: capacity.limit for capacity in self.problem.capacities}
        if problem.with_limits(same).fingerprint != self.problem.fingerprint:
            raise ValueError("Expected the same problem with other limits. Got another one. Make a new Lagrangian.")
        other = copy.copy(self)
        other.__dict__.pop("_scales", None)
        other.problem = problem
        other._slack = self._slacks(problem)
        return other

    @staticmethod
    def _slacks(problem: SelectionProblem) -> list[float]:
        return [
            float(capacity.limit - merged.constant)
            for capacity, merged in zip(problem.capacities, problem.polynomials, strict=True)
        ]

    @cached_property
    def _scales(self) -> tuple[float, FloatArray, int]:
        """Largest sum of |values|, largest amount per capacity, number of terms: the sizes that rounding acts on."""
        problem = self.problem
        values = math.fsum(float(np.abs(group.values).max()) for group in problem.groups)
        finite = [factor.values[np.isfinite(factor.values)] for factor in self._factors if factor.values is not None]
        values += math.fsum(float(np.abs(entries).max(initial=0.0)) for entries in finite)
        amounts = np.zeros(len(problem.capacities))
        terms = len(problem.groups) + len(finite)
        for k, (capacity, merged) in enumerate(zip(problem.capacities, problem.polynomials, strict=True)):
            top = sum(
                c * math.prod(int(problem.groups[g].levels[-1]) ** power for g, power in powers)
                for c, powers in merged.products
            )
            top += sum(int(table.entries.max()) for table in merged.tables)
            amounts[k] = float(top) + abs(float(capacity.limit)) + float(merged.constant)
            terms += len(merged.products) + len(merged.tables)
        return values, amounts, terms

    def rounding(self, prices: FloatArray) -> float:
        """Upper bound on the float64 error of ``evaluate``: (terms + 256) 2^-52 sum |term|."""
        values, amounts, terms = self._scales
        return (terms + 256) * 2.0**-52 * (values + float(prices @ amounts))

    # --- planning: which group goes when, over which tables ------------------------------------------------------

    def _plan(self, box: Priced) -> Plan:
        if self._root.exact:
            return self._root
        # In a smaller box nothing may need splitting. A plan that still splits would not be better than the root's,
        # which in a smaller box gives a smaller bound for the same prices.
        sizes = tuple(high - low + 1 for low, high in zip(box.low, box.high, strict=True))
        if sizes not in self._plans:
            if len(self._plans) > 4096:
                self._plans.clear()
            self._plans[sizes] = Planner(self._factors, sizes, min(self.max_cells, _SMALL_TABLE)).plan()
        return self._plans[sizes] if self._plans[sizes].exact else self._root

    @cached_property
    def _root(self) -> Plan:
        sizes = tuple(len(group) for group in self.problem.groups)
        whole = Planner(self._factors, sizes, self.max_cells).plan()
        return whole if whole.exact else Planner(self._factors, sizes, min(self.max_cells, _SPLIT_TABLE)).plan()

    # --- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, prices: FloatArray, low: IntArray, high: IntArray) -> Dual:
        """Bound the value of choices within budget in the box ``low <= choice <= high``.

        Parameters
        ----------
        prices
            Value per unit of each resource, shape ``(m,)``, at least 0.
        low, high
            Level indices, shape ``(G,)``, both included.
        """
        prices = self.checked_prices(prices)
        box = Priced(tuple(prices.tolist()), tuple(low.tolist()), tuple(high.tolist()))
        run = self.forward(box)
        choice = np.zeros(len(box.low), dtype=np.int64)
        for step, used in reversed(run.steps):
            choice[step.group] = self._decode(step, used, run.slopes[step.group], box, choice)
        return Dual(run.total + self.rounding(prices), choice, run.exact)

    def checked_prices(self, prices: FloatArray) -> FloatArray:
        """Prices as float64 ``(m,)``. Raises ValueError when they do not give a bound."""
        prices = np.asarray(prices, dtype=np.float64)
        if prices.shape != (len(self.problem.capacities),) or not np.all(np.isfinite(prices)) or np.any(prices < 0):
            raise ValueError(
                f"Expected finite prices of at least 0, shape ({len(self.problem.capacities)},). Got {prices}. "
                "A negative price does not give a bound."
            )
        return prices

    def forward(self, box: Priced) -> Forward:
        """Eliminate every group in a box with prices."""
        plan = self._plan(box)
        slopes = (np.array(box.prices) @ self._linear).tolist() if box.prices else [0.0] * len(box.low)
        messages: list[tuple[Scope, FloatArray]] = []
        steps: list[tuple[Step, list[list[Summand]]]] = []
        total = math.fsum(p * slack for p, slack in zip(box.prices, self._slack, strict=True))
        for step in plan.steps:
            used: list[list[Summand]] = []
            for part in step.parts:
                arrays = self._arrays(step.group, part, box, messages)
                scope, message = part.scope, self._message(step, part, arrays, slopes[step.group], box)
                used.append(arrays)
                messages.append((scope, message))
                if not scope:
                    total += float(message)
            steps.append((step, used))
        return Forward(total, steps, messages, slopes, plan.exact)

    def _arrays(self, group: int, part: Part, box: Priced, messages: list[tuple[Scope, FloatArray]]) -> list[Summand]:
        """What a part sums: priced costs per unit of the group, and priced values with the group's axis first."""
        arrays: list[Summand] = []
        for index, frozen, per_unit in part.factors:
            rest = tuple(g for g in self._factors[index].scope if g != group and g not in frozen)
            if self._factors[index].values is not None:
                arrays.append(Summand(rest, self._combined_values(index, group, frozen, box), False))
                continue
            cost = self._priced_cost(index, group, frozen, per_unit, box)
            arrays.append(Summand(rest, cost if per_unit else -cost, per_unit))
        for number in part.messages:
            scope, message = messages[number]
            axis = scope.index(group)
            axes = (axis, *range(axis), *range(axis + 1, len(scope)))
            rest = scope[:axis] + scope[axis + 1 :]
            arrays.append(Summand(rest, message.transpose(axes) if axis else message, False))
        return arrays

    def _combined_values(self, index: int, group: int, frozen: Scope, box: Priced) -> FloatArray:
        """Values of a factor over the box, the group's axis first; groups in ``frozen`` are taken at their best."""
        factor = self._factors[index]
        assert factor.values is not None
        window = factor.values[tuple(box.window(g) for g in factor.scope)]
        if frozen:
            window = window.max(axis=tuple(axis for axis, g in enumerate(factor.scope) if g in frozen))
        kept = [g for g in factor.scope if g not in frozen]
        return np.moveaxis(window, kept.index(group), 0)

    def _priced_cost(self, index: int, group: int, frozen: Scope, per_unit: bool, box: Priced) -> FloatArray:
        """``sum_k price_k cost_k`` of one factor over the box; the group's axis first, or divided out (per unit)."""
        factor = self._factors[index]
        rest = tuple(g for g in factor.scope if g != group and g not in frozen)
        axes = rest if per_unit else (group, *rest)
        window = tuple(box.window(g) for g in axes)
        total: FloatArray | None = None
        for k, price in enumerate(box.prices):
            if not factor.products[k] and not factor.tables[k]:
                continue
            if frozen:
                array = self._frozen_cost(factor, k, group, rest, per_unit, box)
            else:
                array = self._full_cost(index, k, group if per_unit else ~group)[window]
            total = price * array if total is None else total + price * array
        return total if total is not None else np.zeros([high.stop - high.start for high in window])

    def _full_cost(self, index: int, k: int, key: int) -> FloatArray:
        """Cost of a factor over all levels: ``key = group`` divides the group out, ``~group`` puts its axis first."""
        if (index, k, key) not in self._static:
            factor = self._factors[index]
            group = key if key >= 0 else ~key
            levels = list(self.levels)
            if key >= 0:
                levels[group] = np.ones(1)
            everything = Priced((), (0,) * len(levels), tuple(len(array) - 1 for array in levels))
            array = least_costs(factor, levels, k, everything, factor.scope)
            axis = factor.scope.index(group)
            array = array.squeeze(axis) if key >= 0 else np.moveaxis(array, axis, 0)
            self._static[index, k, key] = np.ascontiguousarray(array)
        return self._static[index, k, key]

    def _frozen_cost(self, factor: Factor, k: int, group: int, rest: Scope, per_unit: bool, box: Priced) -> FloatArray:
        kept = tuple(sorted((*rest, group)))
        if not per_unit:
            return np.moveaxis(least_costs(factor, self.levels, k, box, kept), kept.index(group), 0)
        levels = list(self.levels)
        levels[group] = np.ones(1)
        low, high = list(box.low), list(box.high)
        low[group] = high[group] = 0
        unit = Priced(box.prices, tuple(low), tuple(high))
        return least_costs(factor, levels, k, unit, kept).squeeze(kept.index(group))

    def own(self, group: int, box: Priced) -> FloatArray:
        """Value of the group's levels in the box, less its own priced cost that is not proportional to the level."""
        own = self.problem.groups[group].values[box.window(group)]
        for k, cost in self._curved[group].items():
            own = own - box.prices[k] * cost[box.window(group)]
        return own

    def _hull(self, group: int, box: Priced) -> _Hull:
        """Hull of the group's own value over its levels in the box; kept while it does not depend on prices."""
        key = (group, box.low[group], box.high[group])
        if not self._curved[group] and key in self._hulls:
            return self._hulls[key]
        levels, own = self.levels[group][box.window(group)], self.own(group, box)
        index = upper_hull(levels, own)
        widths, heights = levels[index], own[index]
        hull = _Hull(index, widths, heights, -np.diff(heights) / np.diff(widths))
        if not self._curved[group]:
            if len(self._hulls) > 4096:
                self._hulls.clear()
            self._hulls[key] = hull
        return hull

    def _message(self, step: Step, part: Part, arrays: list[Summand], slope: float, box: Priced) -> FloatArray:
        """Maximum over the step's group of one part, shape: box over ``part.scope``.

        The group's own value and slope are shared equally among the parts of a split bucket.
        """
        group, shares = step.group, len(step.parts)
        dense = [summand for summand in arrays if not summand.per_unit]
        if not part.conjugate:
            own = (self.own(group, box) - slope * self.levels[group][box.window(group)]) / shares
            return self._table_maximum(group, own, dense, part.scope, box)
        columns = tuple(g for g in part.scope if g not in part.rows)
        price: FloatArray = np.asarray(slope / shares)
        for scope, array, _ in sorted((s for s in arrays if s.per_unit), key=lambda s: len(s.scope)):
            price = price + expand(array, scope, columns)
        if not dense:
            hull = self._hull(group, box)
            # Steps rise along the hull: stop where the next one loses more value than its price saves.
            best = np.searchsorted(hull.steps, -price * shares)
            conjugate: FloatArray = hull.heights[best] / shares - hull.widths[best] * price
            return conjugate
        own = self.own(group, box) / shares
        return self._row_conjugates(group, own, dense, price, part, box)

    def _row_conjugates(
        self, group: int, own: FloatArray, dense: list[Summand], price: FloatArray, part: Part, box: Priced
    ) -> FloatArray:
        """``max_n curve_r(n) - n price_c`` for every cell ``r`` of the part's rows and ``c`` of its other axes."""
        levels = self.levels[group][box.window(group)]
        rows = [box.high[g] - box.low[g] + 1 for g in part.rows]
        curves = expand(own, (group,), (group, *part.rows))
        for scope, array, _ in dense:
            curves = curves + expand(array, (group, *scope), (group, *part.rows))
        curves = np.ascontiguousarray(curves.reshape(len(levels), -1).T)
        flat = price.reshape(-1)
        table = np.empty((len(curves), flat.size))
        forbidden = bool(np.isneginf(curves).any())
        for row, curve in enumerate(curves):
            points = levels
            if forbidden:
                allowed = np.isfinite(curve)
                if not allowed.any():
                    table[row] = -np.inf
                    continue
                points, curve = levels[allowed], curve[allowed]
            hull = upper_hull(points, curve)
            widths, heights = points[hull], curve[hull]
            best = np.searchsorted(-np.diff(heights) / np.diff(widths), -flat)
            np.subtract(heights[best], widths[best] * flat, out=table[row])
        axes = [*part.rows, *(g for g in part.scope if g not in part.rows)]
        return table.reshape((*rows, *price.shape)).transpose([axes.index(g) for g in part.scope])

    def _table_maximum(
        self, group: int, own: FloatArray, dense: list[Summand], target: Scope, box: Priced
    ) -> FloatArray:
        """Maximum over the first axis of the sum of all summands, shape: box over ``target``."""
        by_scope: dict[Scope, FloatArray] = {(): own}
        for scope, array, _ in sorted(dense, key=lambda summand: len(summand.scope)):
            by_scope[scope] = by_scope[scope] + array if scope in by_scope else array
        views = [expand(array, (group, *scope), (group, *target)) for scope, array in by_scope.items()]
        sizes = [box.high[g] - box.low[g] + 1 for g in target]
        if math.prod(sizes) <= SHORT_ROW or len(own) * math.prod(sizes) <= WHOLE_TABLE:
            table = views[0]
            for view in views[1:]:
                table = table + view
            largest: FloatArray = table.max(axis=0)
            return largest
        message = np.full(sizes, -np.inf)
        for level in range(len(own)):
            row: FloatArray = views[0][level]
            for view in views[1:]:
                row = row + view[level]
            np.maximum(message, row, out=message)
        return message

    def _decode(self, step: Step, used: list[list[Summand]], slope: float, box: Priced, choice: IntArray) -> int:
        """Best level of the step's group, given the groups eliminated after it; ties go to the smaller level."""
        group = step.group
        if len(step.parts) == 1 and step.parts[0].conjugate and all(summand.per_unit for summand in used[0]):
            price = slope
            for scope, array, _ in used[0]:
                price += float(array[tuple(int(choice[g]) - box.low[g] for g in scope)])
            hull = self._hull(group, box)
            return box.low[group] + int(hull.position[np.searchsorted(hull.steps, -price)])
        levels = self.levels[group][box.window(group)]
        priced = self.own(group, box) - slope * levels
        for scope, array, per_unit in (summand for arrays in used for summand in arrays):
            at: list[slice | int] = [int(choice[g]) - box.low[g] for g in scope]
            if per_unit:
                priced = priced - levels * array[tuple(at)]
            else:
                priced = priced + array[(slice(None), *at)]
        return box.low[group] + int(np.argmax(priced))
