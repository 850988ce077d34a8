"""Amounts and values of the neighbours of a choice: one group moved to each of its levels, or two groups at once.

Amounts are exact integers, of the capacities first and then of the local limits. A forbidden combination has the gain
``-inf``; one that the current choice already has counts as worth nothing, and as one of its `breaks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.problem import SelectionProblem
from solvers.terms import FloatArray, IntArray, Powers, Table, ValueTable, polynomial

#: int64, or Python integers in an object array when int64 could overflow.
Amounts = NDArray[np.int64] | NDArray[np.object_]


class Ledger:
    """A current choice with its exact used amounts, and the amounts of its neighbours.

    Parameters
    ----------
    problem
        The problem.
    choice
        Level index per group, shape ``(G,)``.
    """

    def __init__(self, problem: SelectionProblem, choice: Sequence[int] | IntArray) -> None:
        if problem.links:
            raise ValueError("Expected no links. Got some. Merge them with solvers.reduction.without_links.")
        self.problem = problem
        self.limits = [capacity.limit for capacity in problem.capacities]
        self.limits += [limit.limit for limit in problem.local_limits]
        self._polynomials = [*problem.polynomials, *(polynomial(limit.products) for limit in problem.local_limits)]
        self._index_terms()
        self._index_values()
        largest = sum(abs(limit) + self._largest(k) for k, limit in enumerate(self.limits))
        self._dtype: type = np.int64 if largest < 2**61 else object
        self._levels = [group.levels.astype(self._dtype) for group in problem.groups]
        self._limits: Amounts = np.array(self.limits, dtype=self._dtype)[:, None]
        self.reset(choice)

    def _index_terms(self) -> None:
        groups = range(len(self.problem.groups))
        # Per group: the amounts that it moves, with (coefficient, power, the other groups), and its tables.
        self._products: list[dict[int, list[tuple[int, int, Powers]]]] = [{} for _ in groups]
        self._tables: list[dict[int, list[Table]]] = [{} for _ in groups]
        # Both groups of a pair: (amount, coefficient, power, power, the other groups), and tables.
        self._joint: dict[tuple[int, int], list[tuple[int, int, int, int, Powers]]] = {}
        self._joint_tables: dict[tuple[int, int], list[tuple[int, Table]]] = {}
        for k, merged in enumerate(self._polynomials):
            for coefficient, powers in merged.products:
                for g, power in powers:
                    rest = tuple(pair for pair in powers if pair[0] != g)
                    self._products[g].setdefault(k, []).append((coefficient, power, rest))
                    for h, other in rest:
                        if g < h:
                            third = tuple(pair for pair in rest if pair[0] != h)
                            self._joint.setdefault((g, h), []).append((k, coefficient, power, other, third))
            for table in merged.tables:
                for g in table.groups:
                    self._tables[g].setdefault(k, []).append(table)
                    for h in table.groups:
                        if g < h:
                            self._joint_tables.setdefault((g, h), []).append((k, table))

    def _index_values(self) -> None:
        self.value_tables: list[list[ValueTable]] = [[] for _ in self.problem.groups]
        self._joint_values: dict[tuple[int, int], list[ValueTable]] = {}
        for table in self.problem.value_tables:
            for g in table.groups:
                self.value_tables[g].append(table)
                for h in table.groups:
                    if g != h:
                        self._joint_values.setdefault((g, h), []).append(table)
        # Groups that share a table with forbidden combinations.
        self.tied = [
            sorted({h for table in tables if table.forbids for h in table.groups} - {g})
            for g, tables in enumerate(self.value_tables)
        ]

    def _largest(self, k: int) -> int:
        merged = self._polynomials[k]
        widths = [max(1, int(group.levels[-1])) for group in self.problem.groups]
        products = sum(c * math.prod(widths[g] ** power for g, power in powers) for c, powers in merged.products)
        return merged.constant + products + sum(int(table.entries.max()) for table in merged.tables)

    def reset(self, choice: Sequence[int] | IntArray) -> None:
        """Make ``choice`` the current one."""
        self.choice = [int(index) for index in choice]
        self.widths = [int(group.levels[i]) for group, i in zip(self.problem.groups, self.choice, strict=True)]
        self.used = list(self.problem.used(self.choice))
        self.used += [sum(c * self.widths[g] for g, c in limit.terms) for limit in self.problem.local_limits]

    @property
    def broken(self) -> int:
        """Number of value tables in which the current combination is forbidden."""
        return sum(
            bool(np.isneginf(table.entries[tuple(self.choice[g] for g in table.groups)]))
            for table in self.problem.value_tables
            if table.forbids
        )

    @property
    def feasible(self) -> bool:
        """Whether the current choice is allowed and within every budget."""
        fits = all(amount <= limit for amount, limit in zip(self.used, self.limits, strict=True))
        return fits and not self.broken

    def value(self) -> float:
        """Kept value of the current choice."""
        return self.problem.value(self.choice)

    def _entries(self, table: ValueTable, group: int, indices: IntArray | None = None) -> FloatArray:
        """Entries of a table when ``group`` moves to each of ``indices``, the other groups as they are."""
        at: list[int | IntArray | slice] = [self.choice[h] for h in table.groups]
        at[table.groups.index(group)] = slice(None) if indices is None else indices
        entries: FloatArray = table.entries[tuple(at)]
        return entries

    def _here(self, table: ValueTable) -> float:
        entry = float(table.entries[tuple(self.choice[g] for g in table.groups)])
        return entry if entry > -math.inf else 0.0

    def gain(self, group: int, indices: IntArray, without: int | None = None) -> FloatArray:
        """Change of the value when one group moves to each of ``indices``; value tables ``without`` a group only."""
        values = self.problem.groups[group].values
        gains: FloatArray = values[indices] - values[self.choice[group]]
        for table in self.value_tables[group]:
            if without is None or without not in table.groups:
                gains = gains + (self._entries(table, group, indices) - self._here(table))
        return gains

    def exact_gain(self, group: int, index: int) -> float:
        """Change of the value when one group moves, correctly rounded."""
        values = self.problem.groups[group].values
        parts = [float(values[index]), -float(values[self.choice[group]])]
        for table in self.value_tables[group]:
            parts += [float(self._entries(table, group)[index]), -self._here(table)]
        return math.fsum(parts)

    def breaks(self, group: int, indices: IntArray) -> IntArray:
        """How many value tables of the group forbid each of ``indices``, less those that forbid the current level."""
        change = np.zeros(len(indices), dtype=np.int64)
        for table in self.value_tables[group]:
            if table.forbids:
                entries = self._entries(table, group)
                change += np.isneginf(entries[indices]).astype(np.int64) - int(np.isneginf(entries[self.choice[group]]))
        return change

    def joint_gain(self, first: int, indices: IntArray, second: int, others: IntArray) -> FloatArray:
        """Change of the value when two groups move, shape ``(len(indices), len(others))``."""
        gains = self.gain(first, indices, second)[:, None] + self.gain(second, others, first)[None, :]
        for table in self._joint_values.get((first, second), []):
            at: list[int | IntArray] = [self.choice[h] for h in table.groups]
            at[table.groups.index(first)] = indices[:, None]
            at[table.groups.index(second)] = others[None, :]
            gains = gains + (table.entries[tuple(at)] - self._here(table))
        return gains

    def move(self, group: int, index: int) -> None:
        """Move one group of the current choice to another level."""
        amounts = self.moved(group, np.array([index]))
        self.used = [int(amount) for amount in amounts[:, 0]]
        self.choice[group] = int(index)
        self.widths[group] = int(self.problem.groups[group].levels[index])

    @property
    def now(self) -> Amounts:
        """The current amounts, shape ``(M, 1)``."""
        return np.asarray(np.array(self.used, dtype=self._dtype)[:, None])

    def over(self, amounts: Amounts) -> Amounts:
        """Amounts ``(M, ...)`` less the limits."""
        return np.asarray(amounts - self._limits.reshape(-1, *[1] * (amounts.ndim - 1)))

    def fits(self, amounts: Amounts) -> NDArray[np.bool_]:
        """Which columns of amounts ``(M, ...)`` are within every limit."""
        return np.asarray(np.all(self.over(amounts) <= 0, axis=0), dtype=bool)

    def change(self, group: int, indices: IntArray) -> Amounts:
        """Exact change of each amount when one group moves to each of ``indices``, shape ``(M, len(indices))``.

        Rows are the capacities and then the local limits.
        """
        levels, width = self._levels[group][indices], self.widths[group]
        change: Amounts = np.zeros((len(self.limits), len(indices)), dtype=self._dtype)
        for k, products in self._products[group].items():
            powers: dict[int, int] = {}
            for coefficient, power, others in products:
                for h, p in others:
                    coefficient *= self.widths[h] if p == 1 else self.widths[h] ** p
                powers[power] = powers.get(power, 0) + coefficient
            for power, coefficient in powers.items():
                change[k] += ((levels if power == 1 else levels**power) - width**power) * coefficient
        for k, tables in self._tables[group].items():
            for table in tables:
                at: list[int | IntArray] = [self.choice[h] for h in table.groups]
                before = int(table.entries[tuple(at)])
                at[table.groups.index(group)] = indices
                change[k] += table.entries[tuple(at)].astype(self._dtype) - before
        return change

    def moved(self, group: int, indices: IntArray) -> Amounts:
        """Exact amounts when one group moves to each of ``indices``, shape ``(m, len(indices))``."""
        return self.shifted(self.change(group, indices))

    def shifted(self, change: Amounts) -> Amounts:
        """Amounts after changes ``(m, I)`` of the current ones."""
        return np.asarray(change + self.now)

    def together(self, first: int, indices: IntArray, second: int, others: IntArray) -> Amounts | None:
        """What the changes of two groups add when both move, shape ``(m, len(indices), len(others))``.

        The change of the pair is ``change(first) + change(second) + together``. None when no term has both.
        """
        if first > second:
            flipped = self.together(second, others, first, indices)
            return None if flipped is None else flipped.transpose(0, 2, 1)
        products = self._joint.get((first, second), [])
        tables = self._joint_tables.get((first, second), [])
        if not products and not tables:
            return None
        extra: Amounts = np.zeros((len(self.limits), len(indices), len(others)), dtype=self._dtype)
        for k, coefficient, p, q, third in products:
            coefficient *= math.prod(self.widths[h] ** power for h, power in third)
            rows = self._levels[first][indices] ** p - self.widths[first] ** p
            columns = self._levels[second][others] ** q - self.widths[second] ** q
            extra[k] += coefficient * rows[:, None] * columns
        for k, table in tables:
            at: list[int | IntArray] = [self.choice[h] for h in table.groups]
            a, b = table.groups.index(first), table.groups.index(second)
            here = int(table.entries[tuple(at)])
            at[a] = indices
            rows = table.entries[tuple(at)].astype(self._dtype)
            at[b] = others[None, :]
            at[a] = indices[:, None]
            both = table.entries[tuple(at)].astype(self._dtype)
            at[a], at[b] = self.choice[first], others
            columns = table.entries[tuple(at)].astype(self._dtype)
            extra[k] += both - rows[:, None] - columns + here
        return extra
