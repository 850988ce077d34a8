"""Exact statements about boxes of choices: what the budgets rule out, and the least that a problem can use."""

from __future__ import annotations

import math

import numpy as np

from solvers.bounds.lagrangian import Lagrangian
from solvers.problem import Capacity, Group, IntArray, Powers, SelectionProblem, Table


class Boxes:
    """Shrinks boxes of level indices by integer arithmetic alone.

    With every other group at its least cost in the box, a level whose own cost exceeds a limit can be in no choice
    within budget. Products rise with every level, so their least is at the low corner; tables are searched.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        self.problem = problem
        self._any_tables = any(merged.tables for merged in problem.polynomials)
        groups = range(len(problem.groups))
        # Per capacity and group: (coefficient, power of the group, powers of the others).
        self._products: list[list[list[tuple[int, int, Powers]]]] = []
        self._tables: list[list[list[Table]]] = []
        for merged in problem.polynomials:
            own: list[list[tuple[int, int, Powers]]] = [[] for _ in groups]
            for coefficient, powers in merged.products:
                for g, power in powers:
                    own[g].append((coefficient, power, tuple(pair for pair in powers if pair[0] != g)))
            self._products.append(own)
            self._tables.append([[table for table in merged.tables if g in table.groups] for g in groups])

    def tighten(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray] | None:
        """Smaller box with the same choices within budget; None when there are none.

        A box of one choice that is returned is within budget.
        """
        while True:
            found = self._pass(low, high)
            # Without tables the low corner, and with it every least cost, never moves: one pass finds all.
            if found is None or not self._any_tables or np.array_equal(found, (low, high)):
                return found
            low, high = found

    def _pass(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray] | None:
        lows, highs = low.tolist(), high.tolist()
        widths = [int(group.levels[index]) for group, index in zip(self.problem.groups, lows, strict=True)]
        for k, (capacity, merged) in enumerate(zip(self.problem.capacities, self.problem.polynomials, strict=True)):
            least = merged.constant
            for coefficient, powers in merged.products:
                least += coefficient * math.prod(widths[g] ** power for g, power in powers)
            for table in merged.tables:
                least += int(table.entries[tuple(slice(lows[g], highs[g] + 1) for g in table.groups)].min())
            if least > capacity.limit:
                return None
            box = list(lows), list(highs)
            for g in range(len(lows)):
                if box[0][g] == box[1][g] or not (self._products[k][g] or self._tables[k][g]):
                    continue
                allowed = self._allowed(k, g, capacity.limit - least, widths, *box)
                if allowed is None:
                    return None
                lows[g], highs[g] = max(lows[g], allowed[0]), min(highs[g], allowed[1])
        if any(first > last for first, last in zip(lows, highs, strict=True)):
            return None
        return np.array(lows, dtype=np.int64), np.array(highs, dtype=np.int64)

    def _allowed(
        self, k: int, g: int, room: int, widths: list[int], low: list[int], high: list[int]
    ) -> tuple[int, int] | None:
        """First and last level of ``g`` that cost at most ``room`` more than the least of the box."""
        levels = self.problem.groups[g].levels
        powers: dict[int, int] = {}
        for coefficient, power, others in self._products[k][g]:
            powers[power] = powers.get(power, 0) + coefficient * math.prod(widths[h] ** p for h, p in others)

        def extra(index: int) -> int:
            width = int(levels[index])
            return sum(c * (width**power - widths[g] ** power) for power, c in powers.items())

        if not self._tables[k][g]:
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


def least_choice(problem: SelectionProblem, resource: str) -> IntArray:
    """Choice that uses least of one resource, level indices ``(G,)``.

    The minimum choice when every cost rises with the levels. Otherwise found by elimination in float64: exact up to
    amounts of 2^53 when the tables fit in memory, and within budget-independent rounding beyond.
    """
    index = [capacity.resource for capacity in problem.capacities].index(resource)
    if all(_rises(table) for table in problem.polynomials[index].tables):
        return problem.minimum_choice
    worthless = tuple(Group(group.name, group.levels, np.zeros(len(group)), group.order) for group in problem.groups)
    alone = SelectionProblem(worthless, (Capacity(resource, 0, problem.capacities[index].terms),), problem.size)
    top = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
    return Lagrangian(alone).evaluate(np.ones(1), problem.minimum_choice, top).choice


def least_reachable(problem: SelectionProblem) -> dict[str, int]:
    """Smallest amount of each resource that any choice uses, each resource on its own.

    With costs that rise with the levels one choice, the minimum, reaches all of them at once.
    """
    return {
        capacity.resource: problem.used(least_choice(problem, capacity.resource))[k]
        for k, capacity in enumerate(problem.capacities)
    }
