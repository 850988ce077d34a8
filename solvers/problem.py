"""The allocation problem: how many structures does each group keep, within several integer budgets?

    maximise   sum_g values_g[choice_g]
    subject to sum of terms(levels[choice]) <= limit      for every capacity,

where a term is a product of levels (multiply-accumulates of a convolution are *width in* times *width out*) or a table
of measured costs. Every amount is an integer and is compared as one. Nothing here knows a solver.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

#: Group indices with their powers, sorted by group: ``x_0^2 x_3`` is ``((0, 2), (3, 1))``.
Powers: TypeAlias = tuple[tuple[int, int], ...]

FILE_FORMAT = 1


def _frozen_integers(values: ArrayLike, what: str) -> IntArray:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"Expected {what} of an integer type. Got {array.dtype}. Convert them with astype(np.int64).")
    frozen = array.astype(np.int64, copy=True)
    frozen.setflags(write=False)
    return frozen


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
        levels = _frozen_integers(self.levels, f"levels of group {self.name!r}")
        values = np.array(self.values, dtype=np.float64)
        order = _frozen_integers(self.order, f"order of group {self.name!r}")
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
class Product:
    """``coefficient * prod(level of g for g in groups)``; a repeated group is a power, no group a constant."""

    groups: tuple[int, ...]
    coefficient: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(operator.index(g) for g in self.groups))
        object.__setattr__(self, "coefficient", operator.index(self.coefficient))
        if self.coefficient < 0:
            raise ValueError(
                f"Expected a coefficient of at least 0. Got {self.coefficient} for groups {self.groups}. "
                "Costs cannot be negative; put a saving on the other side as a larger limit."
            )


@dataclass(frozen=True, eq=False)
class Table:
    """A measured cost per combination of levels.

    Parameters
    ----------
    groups
        Distinct group indices ``(g_0, g_1, ...)``.
    entries
        Integers of at least 0, shape ``(len(g_0), len(g_1), ...)``: one axis per group, one entry per level.
    """

    groups: tuple[int, ...]
    entries: IntArray

    def __post_init__(self) -> None:
        groups = tuple(operator.index(g) for g in self.groups)
        entries = _frozen_integers(self.entries, f"entries of the table over groups {groups}")
        if not groups or len(set(groups)) != len(groups):
            raise ValueError(f"Expected distinct groups, at least one. Got {groups}. Merge repeated axes of the table.")
        if entries.ndim != len(groups):
            raise ValueError(
                f"Expected a table with {len(groups)} axes for groups {groups}. Got shape {entries.shape}. "
                "Give one axis per group."
            )
        if entries.size and entries.min() < 0:
            raise ValueError(
                f"Expected costs of at least 0 in the table over groups {groups}. Got {int(entries.min())}. "
                "Add a constant to the table and to the limit."
            )
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "entries", entries)


Term: TypeAlias = Product | Table


@dataclass(frozen=True)
class Capacity:
    """At most ``limit`` units of ``resource``; the used amount is the sum of ``terms``."""

    resource: str
    limit: int
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", operator.index(self.limit))
        object.__setattr__(self, "terms", tuple(self.terms))


@dataclass(frozen=True)
class Evaluation:
    """Kept value, used amount per resource, and whether every capacity holds."""

    value: float
    used: Mapping[str, int]
    feasible: bool


@dataclass(frozen=True)
class Polynomial:
    """Terms of one capacity with equal products merged: ``constant + sum coefficient * powers + tables``."""

    constant: int
    products: tuple[tuple[int, Powers], ...]
    tables: tuple[Table, ...]


def polynomial(terms: Iterable[Term]) -> Polynomial:
    """Merge products of the same levels; the order of first appearance is kept."""
    merged: dict[Powers, int] = {}
    tables: list[Table] = []
    for term in terms:
        if isinstance(term, Table):
            tables.append(term)
            continue
        powers = tuple((g, term.groups.count(g)) for g in sorted(set(term.groups)))
        merged[powers] = merged.get(powers, 0) + term.coefficient
    constant = merged.pop((), 0)
    products = tuple((coefficient, powers) for powers, coefficient in merged.items() if coefficient)
    return Polynomial(constant, products, tuple(tables))


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

    Raises
    ------
    ValueError
        Terms over groups that do not exist, tables of the wrong shape, structures in two groups, repeated names.
    """

    groups: tuple[Group, ...]
    capacities: tuple[Capacity, ...]
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "capacities", tuple(self.capacities))
        object.__setattr__(self, "size", operator.index(self.size))
        self._check_names()
        self._check_orders()
        for capacity in self.capacities:
            for term in capacity.terms:
                self._check_term(capacity.resource, term)

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

    def _check_term(self, resource: str, term: Term) -> None:
        if any(g < 0 or g >= len(self.groups) for g in term.groups):
            raise ValueError(
                f"Expected group indices in 0 .. {len(self.groups) - 1} in the terms of {resource!r}. "
                f"Got {term.groups}. Refer to groups by their position."
            )
        if isinstance(term, Table):
            shape = tuple(len(self.groups[g]) for g in term.groups)
            if term.entries.shape != shape:
                raise ValueError(
                    f"Expected a table of shape {shape} for groups {term.groups} of {resource!r}, one entry per "
                    f"level. Got {term.entries.shape}. Measure the table at the groups' levels."
                )

    @cached_property
    def polynomials(self) -> tuple[Polynomial, ...]:
        """The terms of each capacity, merged."""
        return tuple(polynomial(capacity.terms) for capacity in self.capacities)

    @cached_property
    def total_value(self) -> float:
        """Value when no capacity binds: the sum of each group's largest value."""
        return math.fsum(float(group.values.max()) for group in self.groups)

    @property
    def minimum_choice(self) -> IntArray:
        """Level index 0 everywhere, shape ``(G,)``; with products alone it uses least of every resource."""
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
        """Kept value of a choice of level indices, correctly rounded."""
        return math.fsum(float(group.values[choice[g]]) for g, group in enumerate(self.groups))

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

    def evaluate(self, choice: ArrayLike) -> Evaluation:
        """Value, used amounts and feasibility of a choice of level indices, shape ``(G,)``."""
        indices = self.checked(choice)
        used = self.used(indices)
        feasible = all(amount <= capacity.limit for amount, capacity in zip(used, self.capacities, strict=True))
        names = [capacity.resource for capacity in self.capacities]
        return Evaluation(self.value(indices), dict(zip(names, used, strict=True)), feasible)

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
        return SelectionProblem(self.groups, capacities, self.size)

    def _pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """A JSON header and the arrays that it refers to by name."""
        arrays: dict[str, NDArray[Any]] = {}
        for g, group in enumerate(self.groups):
            arrays |= {f"levels_{g}": group.levels, f"values_{g}": group.values, f"order_{g}": group.order}
        capacities = []
        for k, capacity in enumerate(self.capacities):
            terms: list[dict[str, Any]] = []
            for t, term in enumerate(capacity.terms):
                if isinstance(term, Table):
                    arrays[f"table_{k}_{t}"] = term.entries
                    terms.append({"groups": term.groups})
                else:
                    terms.append({"groups": term.groups, "coefficient": term.coefficient})
            capacities.append({"resource": capacity.resource, "limit": capacity.limit, "terms": terms})
        names = [group.name for group in self.groups]
        return {"format": FILE_FORMAT, "size": self.size, "groups": names, "capacities": capacities}, arrays

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that defines the problem, as 64 hexadecimal digits."""
        header, arrays = self._pack()
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(f"{name}{arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file, whole or not at all: arrays and a JSON header, no pickles."""
        header, arrays = self._pack()
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SelectionProblem:
        """Read what ``save`` wrote. Raises ValueError for a file of another kind."""
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"])) if "header" in stored else {}
            if header.get("format") != FILE_FORMAT:
                raise ValueError(
                    f"Expected a selection problem of format {FILE_FORMAT} in {os.fspath(path)!r}. "
                    f"Got {header.get('format')!r}. Save it again with this version."
                )
            groups = tuple(
                Group(name, stored[f"levels_{g}"], stored[f"values_{g}"], stored[f"order_{g}"])
                for g, name in enumerate(header["groups"])
            )
            capacities = []
            for k, packed in enumerate(header["capacities"]):
                terms: list[Term] = []
                for t, term in enumerate(packed["terms"]):
                    scope = tuple(term["groups"])
                    if "coefficient" in term:
                        terms.append(Product(scope, term["coefficient"]))
                    else:
                        terms.append(Table(scope, stored[f"table_{k}_{t}"]))
                capacities.append(Capacity(packed["resource"], packed["limit"], tuple(terms)))
        return cls(groups, tuple(capacities), header["size"])
