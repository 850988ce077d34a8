"""Smaller problems with the same answers: linked groups as one group, and levels left out.

Both are the same map: every group of the original belongs to a group of the reduced problem, and each level of that
one stands for one level of the original. What is found in the reduced problem is lifted back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from solvers.problem import Group, SelectionProblem
from solvers.terms import Capacity, IntArray, LocalLimit, Product, Table, Term, ValueTable

#: Largest cost that a table holds.
_LARGEST = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduced problem and the way back.

    Parameters
    ----------
    problem
        The reduced problem, ``H`` groups.
    owner
        Reduced group of each original group, length ``G``.
    index
        Per original group: its level index for each level of its owner.
    """

    problem: SelectionProblem
    owner: tuple[int, ...]
    index: tuple[IntArray, ...]

    def lift(self, choice: Sequence[int] | IntArray) -> IntArray:
        """The original choice, shape ``(G,)``, that a choice of the reduced problem, shape ``(H,)``, stands for."""
        lifted = [int(index[choice[h]]) for h, index in zip(self.owner, self.index, strict=True)]
        return np.array(lifted, dtype=np.int64)

    def lower(self, choice: Sequence[int] | IntArray) -> IntArray | None:
        """The reduced choice that stands for an original one; None when there is none."""
        lowered = np.full(len(self.problem.groups), -1, dtype=np.int64)
        for g, (h, index) in enumerate(zip(self.owner, self.index, strict=True)):
            at = int(np.searchsorted(index, choice[g]))
            if at == len(index) or index[at] != choice[g] or lowered[h] not in (-1, at):
                return None
            lowered[h] = at
        return lowered


def without_links(problem: SelectionProblem) -> Reduction | None:
    """Linked groups as one; the problem itself when there are no links.

    None when linked groups have no level in common that nothing forbids.

    Raises
    ------
    ValueError
        Costs of groups that are linked by index beyond 64 bits.
    """
    if not problem.links:
        return Reduction(problem, tuple(range(len(problem.groups))), _everything(problem))
    owner, members = _owners(problem)
    index: list[IntArray] = list(_everything(problem))
    for link in problem.links:
        if not link.by_index:
            common = reduce(np.intersect1d, [problem.groups[g].levels for g in link.groups])
            for g in link.groups:
                index[g] = np.searchsorted(problem.groups[g].levels, common)
    # A table whose groups all become one belongs to that group's values.
    for table in problem.value_tables:
        if len({owner[g] for g in table.groups}) == 1:
            allowed = np.isfinite(table.entries[tuple(index[g] for g in table.groups)])
            for g in members[owner[table.groups[0]]]:
                index[g] = index[g][allowed]
    if any(not positions.size for positions in index):
        return None
    return Reduction(_Reducer(problem, owner, members, tuple(index)).reduced(), tuple(owner), tuple(index))


def with_levels(problem: SelectionProblem, kept: Sequence[IntArray]) -> Reduction:
    """The problem with only some levels of each group: ``kept[g]`` are level indices, increasing, at least one."""
    index = tuple(np.asarray(positions, dtype=np.int64) for positions in kept)
    owner = list(range(len(problem.groups)))
    return Reduction(_Reducer(problem, owner, [[g] for g in owner], index).reduced(), tuple(owner), index)


def _everything(problem: SelectionProblem) -> tuple[IntArray, ...]:
    return tuple(np.arange(len(group), dtype=np.int64) for group in problem.groups)


def _owners(problem: SelectionProblem) -> tuple[list[int], list[list[int]]]:
    """Reduced group of each group, and the groups of each reduced group; a link stands where its first group does."""
    linked = {min(link.groups): sorted(link.groups) for link in problem.links}
    later = {g for groups in linked.values() for g in groups[1:]}
    members = [linked.get(g, [g]) for g in range(len(problem.groups)) if g not in later]
    owner = [0] * len(problem.groups)
    for h, groups in enumerate(members):
        for g in groups:
            owner[g] = h
    return owner, members


class _Reducer:
    """Carries each part of a problem over to the reduced groups."""

    def __init__(
        self, problem: SelectionProblem, owner: list[int], members: list[list[int]], index: tuple[IntArray, ...]
    ) -> None:
        self.problem = problem
        self.owner = owner
        self.members = members
        self.index = index
        levels = [group.levels[positions] for group, positions in zip(problem.groups, index, strict=True)]
        self.levels = [levels[groups[0]] for groups in members]
        self.alike = [np.array_equal(levels[g], self.levels[h]) for g, h in enumerate(owner)]
        self.own = levels

    def reduced(self) -> SelectionProblem:
        problem = self.problem
        tables: list[ValueTable] = []
        limits: list[LocalLimit] = []
        own: list[np.ndarray] = [np.zeros(len(levels)) for levels in self.levels]
        for table in problem.value_tables:
            groups, entries = self.projected(table.groups, table.entries)
            if len(groups) == 1:
                own[groups[0]] = own[groups[0]] + entries
            else:
                tables.append(ValueTable(groups, entries, table.label))
        for limit in problem.local_limits:
            if all(self.alike[g] for g, _ in limit.terms):
                merged: dict[int, int] = {}
                for g, c in limit.terms:
                    merged[self.owner[g]] = merged.get(self.owner[g], 0) + c
                limits.append(LocalLimit(tuple(merged.items()), limit.limit, limit.label))
            else:
                groups, mask = self.masked(limit)
                if len(groups) == 1:
                    # A curve cannot say -inf: a limit on an exact stand-in for the level does.
                    limits.append(LocalLimit(((groups[0], 1),), self.last_level(groups[0], mask), limit.label))
                else:
                    tables.append(ValueTable(groups, mask, limit.label))
        groups_out = tuple(self.group(h, own[h]) for h in range(len(self.members)))
        capacities = tuple(Capacity(c.resource, c.limit, tuple(map(self.term, c.terms))) for c in problem.capacities)
        return SelectionProblem(groups_out, capacities, problem.size, tuple(tables), tuple(limits))

    def group(self, h: int, own: np.ndarray) -> Group:
        groups = [self.problem.groups[g] for g in self.members[h]]
        values = sum((group.values[self.index[g]] for group, g in zip(groups, self.members[h], strict=True)), own)
        name = " = ".join(group.name for group in groups)
        return Group(name, self.levels[h], np.asarray(values), groups[0].order)

    def axes(self, groups: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Reduced groups of ``groups`` in order of appearance, and a shape per group that lies along its own."""
        owners = tuple(dict.fromkeys(self.owner[g] for g in groups))
        return owners, [tuple(-1 if h == self.owner[g] else 1 for h in owners) for g in groups]

    def projected(self, groups: tuple[int, ...], entries: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        owners, shapes = self.axes(groups)
        at = tuple(self.index[g].reshape(shape) for g, shape in zip(groups, shapes, strict=True))
        return owners, entries[at]

    def term(self, term: Term) -> Term:
        if isinstance(term, Table):
            return Table(*self.projected(term.groups, term.entries))
        if all(self.alike[g] for g in term.groups):
            return Product(tuple(self.owner[g] for g in term.groups), term.coefficient)
        owners, shapes = self.axes(term.groups)
        entries = np.array(term.coefficient, dtype=object)
        for g, shape in zip(term.groups, shapes, strict=True):
            entries = entries * self.own[g].astype(object).reshape(shape)
        if entries.max() > _LARGEST:
            names = [self.problem.groups[g].name for g in term.groups]
            raise ValueError(
                f"Expected costs of linked groups below 2^63. Got {entries.max()} for the product of {names}. "
                "Count in a larger unit, or link the groups by level."
            )
        return Table(owners, entries.astype(np.int64))

    def masked(self, limit: LocalLimit) -> tuple[tuple[int, ...], np.ndarray]:
        """0 where the limit holds, -inf elsewhere."""
        groups = tuple(g for g, _ in limit.terms)
        owners, shapes = self.axes(groups)
        total = np.array(0, dtype=object)
        for (g, c), shape in zip(limit.terms, shapes, strict=True):
            total = total + c * self.own[g].astype(object).reshape(shape)
        return owners, np.where(total <= limit.limit, 0.0, -np.inf)

    def last_level(self, h: int, mask: np.ndarray) -> int:
        """Largest level that a rising sum allows; -1 when it allows none."""
        allowed = np.flatnonzero(np.isfinite(mask))
        return int(self.levels[h][allowed[-1]]) if allowed.size else -1
