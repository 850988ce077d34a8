"""Exact amounts of the neighbours of a choice: one group moved to each of its levels, or two groups at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.problem import IntArray, Powers, SelectionProblem, Table

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
        self.problem = problem
        self.limits = [capacity.limit for capacity in problem.capacities]
        self._index_terms()
        largest = sum(abs(limit) + self._largest(k) for k, limit in enumerate(self.limits))
        self._dtype: type = np.int64 if largest < 2**61 else object
        self._levels = [group.levels.astype(self._dtype) for group in problem.groups]
        self._limits: Amounts = np.array(self.limits, dtype=self._dtype)[:, None]
        self.reset(choice)

    def _index_terms(self) -> None:
        m, groups = len(self.limits), range(len(self.problem.groups))
        self._products: list[list[list[tuple[int, int, Powers]]]] = [[[] for _ in range(m)] for _ in groups]
        self._tables: list[list[list[Table]]] = [[[] for _ in range(m)] for _ in groups]
        # Both groups of a pair: (capacity, coefficient, power, power, the other groups), and tables.
        self._joint: dict[tuple[int, int], list[tuple[int, int, int, int, Powers]]] = {}
        self._joint_tables: dict[tuple[int, int], list[tuple[int, Table]]] = {}
        for k, merged in enumerate(self.problem.polynomials):
            for coefficient, powers in merged.products:
                for g, power in powers:
                    rest = tuple(pair for pair in powers if pair[0] != g)
                    self._products[g][k].append((coefficient, power, rest))
                    for h, other in rest:
                        if g < h:
                            third = tuple(pair for pair in rest if pair[0] != h)
                            self._joint.setdefault((g, h), []).append((k, coefficient, power, other, third))
            for table in merged.tables:
                for g in table.groups:
                    self._tables[g][k].append(table)
                    for h in table.groups:
                        if g < h:
                            self._joint_tables.setdefault((g, h), []).append((k, table))

    def _largest(self, k: int) -> int:
        merged = self.problem.polynomials[k]
        widths = [max(1, int(group.levels[-1])) for group in self.problem.groups]
        products = sum(c * math.prod(widths[g] ** power for g, power in powers) for c, powers in merged.products)
        return merged.constant + products + sum(int(table.entries.max()) for table in merged.tables)

    def reset(self, choice: Sequence[int] | IntArray) -> None:
        """Make ``choice`` the current one."""
        self.choice = [int(index) for index in choice]
        self.widths = [int(group.levels[i]) for group, i in zip(self.problem.groups, self.choice, strict=True)]
        self.used = list(self.problem.used(self.choice))

    @property
    def feasible(self) -> bool:
        """Whether the current choice is within every budget."""
        return all(amount <= limit for amount, limit in zip(self.used, self.limits, strict=True))

    def value(self) -> float:
        """Kept value of the current choice."""
        return self.problem.value(self.choice)

    def move(self, group: int, index: int) -> None:
        """Move one group of the current choice to another level."""
        amounts = self.moved(group, np.array([index]))
        self.used = [int(amount) for amount in amounts[:, 0]]
        self.choice[group] = int(index)
        self.widths[group] = int(self.problem.groups[group].levels[index])

    def fits(self, amounts: Amounts) -> NDArray[np.bool_]:
        """Which columns of amounts ``(m, ...)`` are within every limit."""
        limits = self._limits.reshape(-1, *[1] * (amounts.ndim - 1))
        return np.asarray(np.all(amounts <= limits, axis=0), dtype=bool)

    def change(self, group: int, indices: IntArray) -> Amounts:
        """Exact change of each amount when one group moves to each of ``indices``, shape ``(m, len(indices))``."""
        levels, width = self._levels[group][indices], self.widths[group]
        change: Amounts = np.zeros((len(self.limits), len(indices)), dtype=self._dtype)
        for k in range(len(self.limits)):
            powers: dict[int, int] = {}
            for coefficient, power, others in self._products[group][k]:
                for h, p in others:
                    coefficient *= self.widths[h] if p == 1 else self.widths[h] ** p
                powers[power] = powers.get(power, 0) + coefficient
            for power, coefficient in powers.items():
                change[k] += ((levels if power == 1 else levels**power) - width**power) * coefficient
            for table in self._tables[group][k]:
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
        return np.asarray(change + np.array(self.used, dtype=self._dtype)[:, None])

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
