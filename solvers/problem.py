"""The allocation problem: how many structures does each group keep, within several integer budgets?

    maximise   sum_g values_g[choice_g] + sum of value tables
    subject to sum of terms(levels[choice]) <= limit      for every capacity,
               local limits, links, and no forbidden combination (a value of -inf),

where a term is a product of levels (multiply-accumulates of a convolution are *width in* times *width out*) or a table
of measured costs. Every amount is an integer and is compared as one. Nothing here knows a solver.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import ArrayLike

from solvers.packing import Packed, pack, read, write
from solvers.terms import (
    BoolArray,
    Capacity,
    FloatArray,
    IntArray,
    Link,
    LocalLimit,
    Polynomial,
    Powers,
    Product,
    Table,
    Term,
    ValueTable,
    frozen_integers,
    polynomial,
)

__all__ = [
    "BoolArray",
    "Capacity",
    "Evaluation",
    "FloatArray",
    "Group",
    "IntArray",
    "Link",
    "LocalLimit",
    "Polynomial",
    "Powers",
    "Product",
    "SelectionProblem",
    "Table",
    "Term",
    "ValueTable",
    "polynomial",
]


@dataclass(frozen=True, eq=False)
class Group:
    """Structures that are kept in a fixed order of preference; the only decision is how many.

    Parameters
    ----------
    name
        What the user calls it, for example the layer's name.
    levels
        Allowed numbers of kept structures, shape ``(K,)``, strictly increasing, at least 0.
    values
        Value kept at each level, shape ``(K,)``, finite, of any shape (concave or not).
    order
        Indices of the group's structures, best first, shape ``(N,)``: a level ``x`` keeps ``order[:x]``.

    Raises
    ------
    ValueError
        Levels that do not increase, values that are not finite, arrays that do not match.
    """

    name: str
    levels: IntArray
    values: FloatArray
    order: IntArray

    def __post_init__(self) -> None:
        levels = frozen_integers(self.levels, f"levels of group {self.name!r}")
        values = np.array(self.values, dtype=np.float64)
        order = frozen_integers(self.order, f"order of group {self.name!r}")
        if levels.ndim != 1 or levels.size == 0:
            raise ValueError(
                f"Expected levels of group {self.name!r} of shape (K,), K >= 1. Got {levels.shape}. "
                "Give at least one allowed number of kept structures."
            )
        if levels[0] < 0 or np.any(levels[1:] <= levels[:-1]):
            raise ValueError(
                f"Expected levels of group {self.name!r} to increase strictly from 0 or more. "
                f"Got {np.array2string(levels, threshold=8)}. Sort them and drop repetitions."
            )
        if values.shape != levels.shape:
            raise ValueError(
                f"Expected values of group {self.name!r} of shape {levels.shape}, one per level. "
                f"Got {values.shape}. Evaluate the value curve at the levels."
            )
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"Expected finite values for group {self.name!r}. Got {int(np.sum(~np.isfinite(values)))} that are "
                "NaN or infinite. Drop the level when it is not allowed, and check the scores when it is."
            )
        if order.ndim != 1 or order.size < levels[-1]:
            raise ValueError(
                f"Expected order of group {self.name!r} to name at least {levels[-1]} structures. "
                f"Got shape {order.shape}. Name every structure of the group, best first."
            )
        values.setflags(write=False)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "order", order)

    def __len__(self) -> int:
        return int(self.levels.size)


@dataclass(frozen=True)
class Evaluation:
    """Kept value, used amount per resource, whether everything holds, and a sentence for each thing that does not."""

    value: float
    used: Mapping[str, int]
    feasible: bool
    violations: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SelectionProblem:
    """Choose one level per group so that the kept value is largest and every capacity holds.

    Parameters
    ----------
    groups
        The decisions. Their orders name disjoint structures of ``0 .. size - 1``.
    capacities
        The budgets, one per resource.
    size
        Number of structures ``n``. Structures that no group names are always kept.
    value_tables
        Values of combinations of levels of several groups; ``-inf`` forbids one.
    local_limits
        Sums over a few groups that stay below a limit each, for instance peak memory at one operator.
    links
        Groups that keep the same level.

    Raises
    ------
    ValueError
        Terms over groups that do not exist, tables of the wrong shape, structures in two groups, repeated names,
        links between groups without a common level.
    """

    groups: tuple[Group, ...]
    capacities: tuple[Capacity, ...]
    size: int
    value_tables: tuple[ValueTable, ...] = ()
    local_limits: tuple[LocalLimit, ...] = ()
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "capacities", tuple(self.capacities))
        object.__setattr__(self, "size", operator.index(self.size))
        for name in ("value_tables", "local_limits", "links"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_names()
        self._check_orders()
        for capacity in self.capacities:
            for term in capacity.terms:
                self._check_term(f"terms of {capacity.resource!r}", term)
        for table in self.value_tables:
            self._check_term(f"value table {table.label!r}", table)
        for limit in self.local_limits:
            self._check_term(f"local limit {limit.label!r}", *limit.products)
        self._check_links()

    def _check_names(self) -> None:
        for what, names in (
            ("group names", [group.name for group in self.groups]),
            ("resources", [capacity.resource for capacity in self.capacities]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            if repeated:
                raise ValueError(f"Expected distinct {what}. Got {repeated} more than once. Rename or merge them.")

    def _check_orders(self) -> None:
        seen = np.zeros(max(self.size, 0), dtype=bool)
        for group in self.groups:
            if group.order.size and (group.order.min() < 0 or group.order.max() >= self.size):
                raise ValueError(
                    f"Expected structure indices of group {group.name!r} in 0 .. {self.size - 1}. "
                    f"Got {int(group.order.min())} .. {int(group.order.max())}. Check order and size."
                )
            if np.unique(group.order).size < group.order.size or np.any(seen[group.order]):
                raise ValueError(
                    f"Expected every structure in one group. Got a structure of group {group.name!r} twice. "
                    "Make the orders disjoint."
                )
            seen[group.order] = True

    def _check_term(self, where: str, *terms: Term | ValueTable) -> None:
        for term in terms:
            if any(g < 0 or g >= len(self.groups) for g in term.groups):
                raise ValueError(
                    f"Expected group indices in 0 .. {len(self.groups) - 1} in the {where}. Got {term.groups}. "
                    "Refer to groups by their position."
                )
            if not isinstance(term, Product):
                shape = tuple(len(self.groups[g]) for g in term.groups)
                if term.entries.shape != shape:
                    raise ValueError(
                        f"Expected a table of shape {shape} for groups {term.groups} in the {where}, one entry per "
                        f"level. Got {term.entries.shape}. Measure the table at the groups' levels."
                    )

    def _check_links(self) -> None:
        linked: set[int] = set()
        for link in self.links:
            if any(g < 0 or g >= len(self.groups) for g in link.groups):
                raise ValueError(
                    f"Expected group indices in 0 .. {len(self.groups) - 1} in a link. Got {link.groups}. "
                    "Refer to groups by their position."
                )
            names = [self.groups[g].name for g in link.groups]
            if linked & set(link.groups):
                raise ValueError(
                    f"Expected every group in one link at most. Got {names} beside another link of one of them. "
                    "Merge the two links."
                )
            linked |= set(link.groups)
            counts = {len(self.groups[g]) for g in link.groups}
            if link.by_index and len(counts) > 1:
                raise ValueError(
                    f"Expected as many levels in each of the groups {names}, which are linked by index. "
                    f"Got {sorted(counts)}. Give them matching levels, or link them by level."
                )
            if not link.by_index and not reduce(np.intersect1d, [self.groups[g].levels for g in link.groups]).size:
                raise ValueError(
                    f"Expected a level that all of the groups {names} have, since they are linked. Got none. "
                    "Give them a common level, or link them by index."
                )

    @cached_property
    def polynomials(self) -> tuple[Polynomial, ...]:
        """The terms of each capacity, merged."""
        return tuple(polynomial(capacity.terms) for capacity in self.capacities)

    @cached_property
    def total_value(self) -> float:
        """Value that nothing exceeds, whatever the capacities: what "lost" is measured from.

        The sum of each group's largest value. With value tables the groups' values are shared equally among the tables
        that they are in, and each table contributes its largest sum: that is the value of the dense network whenever
        each of its parts is worth most when kept.
        """
        shares = [sum(g in table.groups for table in self.value_tables) for g in range(len(self.groups))]
        parts = [float(group.values.max()) for group, share in zip(self.groups, shares, strict=True) if not share]
        for table in self.value_tables:
            total = table.entries
            for axis, g in enumerate(table.groups):
                shape = [-1 if a == axis else 1 for a in range(len(table.groups))]
                total = total + (self.groups[g].values / shares[g]).reshape(shape)
            parts.append(float(total.max()))
        return math.fsum(parts)

    @property
    def minimum_choice(self) -> IntArray:
        """Level index 0 everywhere, shape ``(G,)``.

        With products alone, and where nothing forbids it, it uses least of every resource.
        """
        return np.zeros(len(self.groups), dtype=np.int64)

    @cached_property
    def _levels(self) -> tuple[list[int] | IntArray, ...]:
        # Python lists index faster than arrays and give Python integers, which cannot overflow.
        return tuple(group.levels.tolist() if len(group) <= 4096 else group.levels for group in self.groups)

    def checked(self, choice: ArrayLike) -> IntArray:
        """``choice`` as int64 ``(G,)``. Raises ValueError when a level index does not exist."""
        array = np.asarray(choice)
        if array.shape != (len(self.groups),) or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                f"Expected a choice of shape ({len(self.groups)},) of integers. Got {array.shape} of {array.dtype}. "
                "Give one level index per group."
            )
        for g, group in enumerate(self.groups):
            if not 0 <= array[g] < len(group):
                raise ValueError(
                    f"Expected a level index in 0 .. {len(group) - 1} for group {group.name!r}. Got {array[g]}. "
                    "Indices count levels, not structures."
                )
        return array.astype(np.int64)

    def value(self, choice: Sequence[int] | IntArray) -> float:
        """Kept value of a choice of level indices, correctly rounded; ``-inf`` for a forbidden combination."""
        parts = [float(group.values[choice[g]]) for g, group in enumerate(self.groups)]
        parts += [float(table.entries[tuple(choice[g] for g in table.groups)]) for table in self.value_tables]
        return math.fsum(parts)

    def used(self, choice: Sequence[int] | IntArray) -> tuple[int, ...]:
        """Exact used amount per capacity, in the order of ``capacities``."""
        indices = [int(c) for c in choice]
        widths = [int(levels[c]) for levels, c in zip(self._levels, indices, strict=True)]
        amounts = []
        for merged in self.polynomials:
            amount = merged.constant
            for coefficient, powers in merged.products:
                for g, power in powers:
                    coefficient *= widths[g] if power == 1 else widths[g] ** power
                amount += coefficient
            for table in merged.tables:
                amount += int(table.entries[tuple(indices[g] for g in table.groups)])
            amounts.append(amount)
        return tuple(amounts)

    def violations(self, choice: Sequence[int] | IntArray, used: Sequence[int] | None = None) -> tuple[str, ...]:
        """A sentence for every capacity, local limit, link and forbidden combination that a choice breaks."""
        found = []
        for amount, capacity in zip(self.used(choice) if used is None else used, self.capacities, strict=True):
            if amount > capacity.limit:
                found.append(f"{capacity.resource}: {amount} used, limit {capacity.limit}")
        for limit in self.local_limits:
            amount = sum(c * int(self._levels[g][choice[g]]) for g, c in limit.terms)
            if amount > limit.limit:
                found.append(f"local limit {limit.label!r}: {amount} used, limit {limit.limit}")
        for table in self.value_tables:
            if table.forbids and np.isneginf(table.entries[tuple(choice[g] for g in table.groups)]):
                widths = {self.groups[g].name: int(self._levels[g][choice[g]]) for g in table.groups}
                found.append(f"forbidden combination {table.label!r}: {widths}")
        for link in self.links:
            kept = [int(choice[g]) if link.by_index else int(self._levels[g][choice[g]]) for g in link.groups]
            if len(set(kept)) > 1:
                names = [self.groups[g].name for g in link.groups]
                found.append(f"link {names}: {'level indices' if link.by_index else 'levels'} {kept} differ")
        return tuple(found)

    def evaluate(self, choice: ArrayLike) -> Evaluation:
        """Value, used amounts, feasibility and violations of a choice of level indices, shape ``(G,)``."""
        indices = self.checked(choice)
        used = self.used(indices)
        broken = self.violations(indices, used)
        names = [capacity.resource for capacity in self.capacities]
        return Evaluation(self.value(indices), dict(zip(names, used, strict=True)), not broken, broken)

    def selection(self, choice: ArrayLike) -> BoolArray:
        """Kept structures of a choice, shape ``(n,)``, True = kept."""
        indices = self.checked(choice)
        kept = np.ones(self.size, dtype=bool)
        for group, index in zip(self.groups, indices, strict=True):
            kept[group.order[int(group.levels[index]) :]] = False
        return kept

    def with_limits(self, limits: Mapping[str, int]) -> SelectionProblem:
        """The same problem with other limits for the named resources. Raises KeyError for an unknown resource."""
        unknown = set(limits) - {capacity.resource for capacity in self.capacities}
        if unknown:
            raise KeyError(f"Expected resources of this problem. Got {sorted(unknown)}. Use the capacities' names.")
        capacities = tuple(Capacity(c.resource, limits.get(c.resource, c.limit), c.terms) for c in self.capacities)
        return replace(self, capacities=capacities)

    def _packed(self) -> Packed:
        return pack(
            [(group.name, group.levels, group.values, group.order) for group in self.groups],
            *(self.capacities, self.size, self.value_tables, self.local_limits, self.links),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that defines the problem, as 64 hexadecimal digits."""
        return self._packed().digest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, whole or not at all, no pickles: JSON when its name ends so, else ``.npz``."""
        write(self._packed(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SelectionProblem:
        """Read what ``save`` wrote. Raises ValueError for a file of another kind."""
        groups, capacities, size, tables, limits, links = read(path)
        return cls(tuple(Group(*group) for group in groups), capacities, size, tables, limits, links)
