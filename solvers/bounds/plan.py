"""Order and tables of variable elimination, chosen from the sizes of the groups alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Scope: TypeAlias = tuple[int, ...]

#: Scope, index, groups taken at their least cost, and whether it is a factor (else a message).
_Item: TypeAlias = tuple[set[int], int, Scope, bool]

#: Work of one hull, and of one of its points or look-ups, in cells of a plain table.
_ROW_WORK = 50_000
_POINT_WORK = 30


@dataclass(frozen=True, eq=False)
class Factor:
    """All cost terms over one set of at least two groups, or all values of their combinations.

    ``products[k]`` are (coefficient, powers along ``scope``) of capacity ``k``; ``tables[k]`` have axes in scope order.
    ``values``, with the same axes, is None in a factor of costs.
    """

    scope: Scope
    products: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]
    tables: tuple[tuple[NDArray[np.int64], ...], ...]
    values: NDArray[np.float64] | None = None

    def linear_in(self, group: int) -> bool:
        if any(self.tables) or self.values is not None:
            return False
        axis = self.scope.index(group)
        return all(powers[axis] == 1 for products in self.products for _, powers in products)


@dataclass(frozen=True)
class Part:
    """One table of a bucket: which factors and messages it sums, over ``scope`` (without the group eliminated).

    Factors that are linear in the group and share nothing else with the other summands enter by their price per unit:
    the maximum over the group is then a convex conjugate, one for each cell of ``rows``.
    """

    scope: Scope
    factors: tuple[tuple[int, Scope, bool], ...]  # factor index, groups taken at their least cost, by price per unit
    messages: tuple[int, ...]
    rows: Scope  # of the summands that do not enter by price
    conjugate: bool  # False: one table with an axis for the group


@dataclass(frozen=True)
class Step:
    """Eliminates one group over one table, or several when the bucket is split."""

    group: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order; ``exact`` when no bucket was split and no product reduced."""

    steps: tuple[Step, ...]
    exact: bool


class Planner:
    """Chooses the elimination order: next comes the group whose bucket is cheapest, ties by index."""

    def __init__(self, factors: tuple[Factor, ...], sizes: tuple[int, ...], max_cells: int) -> None:
        self.factors = factors
        self.sizes = sizes
        self.max_cells = max_cells
        self.scopes: list[Scope] = []  # of messages
        self.touching: list[tuple[set[int], set[int]]] = [(set(), set()) for _ in sizes]  # factors, messages
        for index, factor in enumerate(factors):
            for g in factor.scope:
                self.touching[g][0].add(index)

    def plan(self) -> Plan:
        left = set(range(len(self.sizes)))
        weights = {g: self._weight(g) for g in left}
        steps: list[Step] = []
        exact = True
        while left:
            group = min(left, key=lambda g: (weights[g], g))
            left.remove(group)
            parts, whole = self._parts(group)
            exact = exact and whole
            neighbours = {g for part in parts for g in part.scope}
            steps.append(Step(group, parts))
            for part in parts:
                for index, *_ in part.factors:
                    for g in self.factors[index].scope:
                        self.touching[g][0].discard(index)
                for number in part.messages:
                    for g in self.scopes[number]:
                        self.touching[g][1].discard(number)
                self.scopes.append(part.scope)
                for g in part.scope:
                    self.touching[g][1].add(len(self.scopes) - 1)
            weights.update({g: self._weight(g) for g in neighbours})
        return Plan(tuple(steps), exact)

    def _cells(self, scope: Scope | set[int]) -> int:
        return math.prod(self.sizes[g] for g in scope)

    def _weight(self, group: int) -> int:
        return self._work(group, self._bucket(group))

    def _bucket(self, group: int) -> list[_Item]:
        factors, messages = self.touching[group]
        items: list[_Item] = [(set(self.factors[index].scope), index, (), True) for index in sorted(factors)]
        return items + [(set(self.scopes[number]), number, (), False) for number in sorted(messages)]

    def _by_price(self, group: int, items: list[_Item]) -> tuple[set[int], set[int], bool]:
        """Factors that enter by price per unit, groups of the other summands, and whether that pays off."""
        priced = {i for _, i, _, is_factor in items if is_factor and self.factors[i].linear_in(group)}
        while True:
            rows: set[int] = set()
            for scope, index, _, is_factor in items:
                if not (is_factor and index in priced):
                    rows |= scope - {group}
            apart = {i for scope, i, _, is_factor in items if is_factor and i in priced and not scope & rows}
            if apart == priced:
                break
            priced = apart
        if not rows:
            return priced, rows, True
        cells = self._cells(self._scope(items) - {group})
        by_rows = self._cells(rows) * (_ROW_WORK + _POINT_WORK * self.sizes[group]) + _POINT_WORK * cells
        return priced, rows, bool(priced) and by_rows < cells * self.sizes[group]

    def _work(self, group: int, items: list[_Item]) -> int:
        """Cells that are filled to eliminate a group over these summands."""
        _, rows, conjugate = self._by_price(group, items)
        cells = self._cells(self._scope(items) - {group})
        if not conjugate:
            return cells * self.sizes[group]
        return cells + (self._cells(rows) * self.sizes[group] if rows else 0)

    @staticmethod
    def _scope(items: list[_Item]) -> set[int]:
        return set().union(*(item[0] for item in items))

    def _parts(self, group: int) -> tuple[tuple[Part, ...], bool]:
        """Pack the bucket into as few tables as ``max_cells`` allows, largest scope first."""
        whole = True
        items: list[_Item] = []
        for scope, index, _, is_factor in self._bucket(group):
            frozen: list[int] = []
            while self._work(group, [(scope, index, (), is_factor)]) > self.max_cells and is_factor and len(scope) > 1:
                largest = max(scope - {group}, key=lambda g: (self.sizes[g], -g))
                scope.remove(largest)
                frozen.append(largest)
                whole = False
            items.append((scope, index, tuple(frozen), is_factor))
        items.sort(key=lambda item: -self._cells(item[0]))
        packed: list[list[_Item]] = []
        for item in items:
            for part in packed:
                if self._work(group, [*part, item]) <= self.max_cells:
                    part.append(item)
                    break
            else:
                packed.append([item])
        packed = packed or [[]]
        whole = whole and len(packed) == 1
        return tuple(self._part(group, part) for part in packed), whole

    def _part(self, group: int, items: list[_Item]) -> Part:
        priced, rows, conjugate = self._by_price(group, items)
        scope = tuple(sorted(self._scope(items) - {group}))
        return Part(
            scope,
            tuple((i, frozen, conjugate and i in priced) for _, i, frozen, is_factor in items if is_factor),
            tuple(i for _, i, _, is_factor in items if not is_factor),
            tuple(sorted(rows)),
            conjugate,
        )
