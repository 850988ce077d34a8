"""Exact statements about boxes of choices: what the budgets rule out, and the least that a problem can use."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import numpy as np

from solvers.bounds.lagrangian import Lagrangian
from solvers.problem import Group, IntArray, SelectionProblem
from solvers.reduction import without_links
from solvers.terms import Capacity, Powers, Table, ValueTable, polynomial


class Boxes:
    """Shrinks boxes of level indices by integer arithmetic alone.

    With every other group at its least cost in the box, a level whose own cost exceeds a limit can be in no choice
    within budget. Products rise with every level, so their least is at the low corner; tables are searched. Local
    limits count as capacities here. A level all of whose combinations are forbidden goes too.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        if problem.links:
            raise ValueError("Expected no links. Got some. Merge them with solvers.reduction.without_links.")
        self.problem = problem
        local = [(limit.limit, polynomial(limit.products)) for limit in problem.local_limits]
        limits = [capacity.limit for capacity in problem.capacities]
        self._rows = [*zip(limits, problem.polynomials, strict=True), *local]
        self._forbidding = [table for table in problem.value_tables if table.forbids]
        self._repeats = bool(self._forbidding) or any(merged.tables for _, merged in self._rows)
        # Per row and group: (coefficient, power of the group, powers of the others).
        self._products: list[dict[int, list[tuple[int, int, Powers]]]] = []
        self._tables: list[dict[int, list[Table]]] = []
        for _, merged in self._rows:
            own: dict[int, list[tuple[int, int, Powers]]] = {}
            tables: dict[int, list[Table]] = {}
            for coefficient, powers in merged.products:
                for g, power in powers:
                    rest = tuple(pair for pair in powers if pair[0] != g)
                    own.setdefault(g, []).append((coefficient, power, rest))
            for table in merged.tables:
                for g in table.groups:
                    tables.setdefault(g, []).append(table)
            self._products.append(own)
            self._tables.append(tables)
        self._touched = [sorted(own.keys() | tables) for own, tables in zip(self._products, self._tables, strict=True)]

    def tighten(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray] | None:
        """Smaller box with the same allowed choices; None when there are none.

        A box of one choice that is returned is within budget, and nothing forbids it.
        """
        while True:
            found = self._pass(low, high)
            # Without tables the low corner, and with it every least cost, never moves: one pass finds all.
            if found is None or not self._repeats or np.array_equal(found, (low, high)):
                return found
            low, high = found

    def _pass(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray] | None:
        lows, highs = low.tolist(), high.tolist()
        widths = [int(group.levels[index]) for group, index in zip(self.problem.groups, lows, strict=True)]
        for k, (limit, merged) in enumerate(self._rows):
            least = merged.constant
            for coefficient, powers in merged.products:
                for g, power in powers:
                    coefficient *= widths[g] if power == 1 else widths[g] ** power
                least += coefficient
            for table in merged.tables:
                least += int(table.entries[tuple(slice(low[g], high[g] + 1) for g in table.groups)].min())
            if least > limit:
                return None
            box = low.tolist(), high.tolist()
            for g in self._touched[k]:
                if box[0][g] == box[1][g]:
                    continue
                allowed = self._allowed(k, g, limit - least, widths, *box)
                if allowed is None:
                    return None
                lows[g], highs[g] = max(lows[g], allowed[0]), min(highs[g], allowed[1])
        if any(first > last for first, last in zip(lows, highs, strict=True)):
            return None
        return self._supported(np.array(lows, dtype=np.int64), np.array(highs, dtype=np.int64))

    def _supported(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray] | None:
        """Drop outer levels that every combination in the box forbids."""
        for table in self._forbidding:
            allowed = np.isfinite(table.entries[tuple(slice(low[g], high[g] + 1) for g in table.groups)])
            for axis, g in enumerate(table.groups):
                kept = np.flatnonzero(allowed.any(axis=tuple(a for a in range(allowed.ndim) if a != axis)))
                if not kept.size:
                    return None
                low[g], high[g] = low[g] + kept[0], low[g] + kept[-1]
                allowed = allowed[tuple([slice(None)] * axis + [slice(kept[0], kept[-1] + 1)])]
        return low, high

    def _allowed(
        self, k: int, g: int, room: int, widths: list[int], low: list[int], high: list[int]
    ) -> tuple[int, int] | None:
        """First and last level of ``g`` that cost at most ``room`` more than the least of the box."""
        levels = self.problem.groups[g].levels
        powers: dict[int, int] = {}
        for coefficient, power, others in self._products[k].get(g, []):
            powers[power] = powers.get(power, 0) + coefficient * math.prod(widths[h] ** p for h, p in others)

        def extra(index: int) -> int:
            width = int(levels[index])
            return sum(c * (width**power - widths[g] ** power) for power, c in powers.items())

        if g not in self._tables[k]:
            if extra(high[g]) <= room:
                return low[g], high[g]
            first, last = low[g], high[g] - 1
            while first < last:
                middle = (first + last + 1) // 2
                first, last = (middle, last) if extra(middle) <= room else (first, middle - 1)
            return low[g], first
        floor = np.zeros(high[g] - low[g] + 1, dtype=object)
        for table in self._tables[k][g]:
            entries = table.entries[tuple(slice(low[h], high[h] + 1) for h in table.groups)]
            axis = table.groups.index(g)
            least = entries.min(axis=tuple(a for a in range(entries.ndim) if a != axis))
            floor = floor + (least - least.min()).astype(object)
        fitting = [index for index in range(low[g], high[g] + 1) if extra(index) + floor[index - low[g]] <= room]
        return (fitting[0], fitting[-1]) if fitting else None


def _rises(table: Table) -> bool:
    return all(bool(np.all(np.diff(table.entries, axis=axis) >= 0)) for axis in range(table.entries.ndim))


@dataclass(frozen=True, eq=False)
class Least:
    """The least that a problem can use of one resource, all other budgets aside.

    Parameters
    ----------
    amount
        No allowed choice uses less; None when no choice is allowed at all.
    choice
        A choice that is as low as was found, shape ``(G,)``; None when none is known that nothing forbids.
    exact
        Whether ``choice`` uses exactly ``amount``.
    """

    amount: int | None
    choice: IntArray | None
    exact: bool


def least(problem: SelectionProblem, resource: str) -> Least:
    """Least use of one resource under forbidden combinations, local limits and links.

    The minimum choice when every cost rises with the levels and nothing forbids it. Otherwise variable elimination in
    float64 without any other budget: its bound, rounded, is a proven least, and its choice says whether it is reached.
    """
    index = [capacity.resource for capacity in problem.capacities].index(resource)
    lowest = problem.minimum_choice
    rising = all(_rises(table) for table in problem.polynomials[index].tables)
    alone = replace(problem, capacities=(Capacity(resource, sys.maxsize, problem.capacities[index].terms),))
    if rising and problem.evaluate(lowest).value > -np.inf and not _structural(problem, lowest):
        return Least(problem.used(lowest)[index], lowest, True)
    merged = without_links(alone)
    if merged is None:
        return Least(None, None, True)
    top = np.array([len(group) - 1 for group in merged.problem.groups], dtype=np.int64)
    box = Boxes(replace(merged.problem, capacities=())).tighten(merged.problem.minimum_choice, top)
    if box is None:
        return Least(None, None, True)
    worthless = tuple(Group(g.name, g.levels, np.zeros(len(g)), g.order) for g in merged.problem.groups)
    barred = tuple(
        ValueTable(table.groups, np.where(np.isneginf(table.entries), -np.inf, 0.0), table.label)
        for table in merged.problem.value_tables
        if table.forbids
    )
    costs = (Capacity(resource, 0, merged.problem.capacities[0].terms),)
    priced = replace(merged.problem, groups=worthless, value_tables=barred, capacities=costs)
    found = Lagrangian(priced).evaluate(np.ones(1), *box)
    if found.bound == -np.inf:
        return Least(None, None, True)
    proven = max(0, math.ceil(-found.bound))
    if priced.evaluate(found.choice).value == -np.inf or _structural(priced, found.choice):
        return Least(proven, None, False)
    reached = priced.used(found.choice)[0]
    # Exact elimination of integers that float64 holds: the bound differs from the amount by its allowance alone.
    exact = reached == proven or (found.exact and reached < 2**53)
    return Least(reached if exact else proven, merged.lift(found.choice), exact)


def _structural(problem: SelectionProblem, choice: IntArray) -> bool:
    """Whether a choice breaks something other than a budget."""
    return bool(replace(problem, capacities=()).violations(choice))


def least_choice(problem: SelectionProblem, resource: str) -> IntArray | None:
    """Choice that uses least of one resource, level indices ``(G,)``, see `least`; None when none is known."""
    return least(problem, resource).choice


def least_reachable(problem: SelectionProblem) -> dict[str, int]:
    """Proven least amount of each resource, each on its own; with tables too large to eliminate, a lower bound of it.

    With costs that rise with the levels and nothing forbidden one choice, the minimum, reaches all of them at once.
    A problem without any allowed choice has no least: all amounts are then those of the minimum choice.
    """
    found = {capacity.resource: least(problem, capacity.resource).amount for capacity in problem.capacities}
    lowest = problem.evaluate(problem.minimum_choice).used
    return {resource: lowest[resource] if amount is None else amount for resource, amount in found.items()}
