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


@dataclass(frozen=True, eq=False)
class Factor:
    """All cost terms over one set of at least two groups.

    ``products[k]`` are (coefficient, powers along ``scope``) of capacity ``k``; ``tables[k]`` have axes in scope order.
    """

    scope: Scope
    products: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]
    tables: tuple[tuple[NDArray[np.int64], ...], ...]

    def linear_in(self, group: int) -> bool:
        if any(self.tables):
            return False
        axis = self.scope.index(group)
        return all(powers[axis] == 1 for products in self.products for _, powers in products)


@dataclass(frozen=True)
class Part:
    """One table of a bucket: which factors and messages it sums, over ``scope`` (without the group eliminated)."""

    scope: Scope
    factors: tuple[tuple[int, Scope], ...]  # factor index, groups taken at their least cost
    messages: tuple[int, ...]
    conjugate: bool


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
                for index, _ in part.factors:
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

    def _linear(self, group: int, factors: set[int], messages: set[int]) -> bool:
        return not messages and all(self.factors[index].linear_in(group) for index in factors)

    def _weight(self, group: int) -> int:
        factors, messages = self.touching[group]
        scope = {g for index in factors for g in self.factors[index].scope}
        scope |= {g for number in messages for g in self.scopes[number]}
        cells = self._cells(scope - {group})
        return cells if self._linear(group, factors, messages) else cells * self.sizes[group]

    def _table_cells(self, group: int, scope: set[int], conjugate: bool) -> int:
        cells = self._cells(scope - {group})
        return cells if conjugate else cells * self.sizes[group]

    def _parts(self, group: int) -> tuple[tuple[Part, ...], bool]:
        """Pack the bucket into as few tables as ``max_cells`` allows, largest scope first."""
        factors, messages = self.touching[group]
        whole = True
        items: list[_Item] = []
        for index in sorted(factors):
            scope, frozen = set(self.factors[index].scope), []
            conjugate = self.factors[index].linear_in(group)
            while self._table_cells(group, scope, conjugate) > self.max_cells and len(scope) > 1:
                largest = max(scope - {group}, key=lambda g: (self.sizes[g], -g))
                scope.remove(largest)
                frozen.append(largest)
                whole = False
            items.append((scope, index, tuple(frozen), True))
        items += [(set(self.scopes[number]), number, (), False) for number in sorted(messages)]
        items.sort(key=lambda item: -self._cells(item[0]))
        packed: list[list[_Item]] = []
        for item in items:
            for part in packed:
                together = [*part, item]
                scope = set().union(*(other[0] for other in together))
                if self._table_cells(group, scope, self._conjugate(group, together)) <= self.max_cells:
                    part.append(item)
                    break
            else:
                packed.append([item])
        packed = packed or [[]]
        whole = whole and len(packed) == 1
        return tuple(self._part(group, part) for part in packed), whole

    def _conjugate(self, group: int, items: list[_Item]) -> bool:
        return all(is_factor and self.factors[index].linear_in(group) for _, index, _, is_factor in items)

    def _part(self, group: int, items: list[_Item]) -> Part:
        scope = tuple(sorted(set().union(*(item[0] for item in items)) - {group}))
        factors = tuple((index, frozen) for _, index, frozen, is_factor in items if is_factor)
        messages = tuple(index for _, index, _, is_factor in items if not is_factor)
        return Part(scope, factors, messages, self._conjugate(group, items))
