"""What couples the groups of a selection problem: costs within budgets, values, local limits and links."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

#: Group indices with their powers, sorted by group: ``x_0^2 x_3`` is ``((0, 2), (3, 1))``.
Powers: TypeAlias = tuple[tuple[int, int], ...]


def frozen_integers(values: ArrayLike, what: str) -> IntArray:
    """Read-only int64 copy; raises TypeError for anything but integers."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"Expected {what} of an integer type. Got {array.dtype}. Convert them with astype(np.int64).")
    frozen = array.astype(np.int64, copy=True)
    frozen.setflags(write=False)
    return frozen


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
        entries = frozen_integers(self.entries, f"entries of the table over groups {groups}")
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


@dataclass(frozen=True, eq=False)
class ValueTable:
    """Value that a combination of levels has beyond the values of its groups; ``-inf`` forbids the combination.

    Parameters
    ----------
    groups
        Distinct group indices, at least two.
    entries
        Finite or ``-inf``, shape ``(len(g_0), len(g_1), ...)``: one axis per group, one entry per level.
    label
        What the table stands for, for messages.
    """

    groups: tuple[int, ...]
    entries: FloatArray
    label: str = ""

    def __post_init__(self) -> None:
        groups = tuple(operator.index(g) for g in self.groups)
        entries = np.array(self.entries, dtype=np.float64)
        if len(groups) < 2 or len(set(groups)) != len(groups):
            raise ValueError(
                f"Expected a value table over at least two distinct groups. Got {groups}. "
                "Add the value of a single group to its curve, and drop its forbidden levels."
            )
        if entries.ndim != len(groups):
            raise ValueError(
                f"Expected a value table with {len(groups)} axes for groups {groups}. Got shape {entries.shape}. "
                "Give one axis per group."
            )
        bad = int(np.sum(np.isnan(entries) | (entries == np.inf)))
        if bad:
            raise ValueError(
                f"Expected values that are finite, or -inf for forbidden, over groups {groups}. Got {bad} that are "
                "NaN or +inf. Check the scores."
            )
        entries.setflags(write=False)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "entries", entries)

    @cached_property
    def forbids(self) -> bool:
        """Whether some combination is forbidden."""
        return bool(np.isneginf(self.entries).any())


@dataclass(frozen=True)
class LocalLimit:
    """``sum of coefficient * level`` over a few groups is at most ``limit``, as peak memory at one operator asks.

    Parameters
    ----------
    terms
        ``(group, coefficient)``, distinct groups, coefficients of at least 0.
    limit
        Largest allowed sum.
    label
        Where it applies, for messages: for instance the operator's name.
    """

    terms: tuple[tuple[int, int], ...]
    limit: int
    label: str = ""

    def __post_init__(self) -> None:
        terms = tuple((operator.index(g), operator.index(c)) for g, c in self.terms)
        groups = [g for g, _ in terms]
        if not terms or len(set(groups)) != len(groups):
            raise ValueError(
                f"Expected distinct groups, at least one, in local limit {self.label!r}. Got {groups}. "
                "Add the coefficients of repeated groups."
            )
        if any(c < 0 for _, c in terms):
            raise ValueError(
                f"Expected coefficients of at least 0 in local limit {self.label!r}. Got {terms}. "
                "What lives at an operator only adds up."
            )
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "limit", operator.index(self.limit))

    @property
    def products(self) -> tuple[Product, ...]:
        """The sum as terms of a capacity."""
        return tuple(Product((g,), c) for g, c in self.terms)


@dataclass(frozen=True)
class Link:
    """Groups that keep the same level or, ``by_index``, levels of the same index; a group is in one link at most."""

    groups: tuple[int, ...]
    by_index: bool = False

    def __post_init__(self) -> None:
        groups = tuple(operator.index(g) for g in self.groups)
        if len(groups) < 2 or len(set(groups)) != len(groups):
            raise ValueError(f"Expected a link of at least two distinct groups. Got {groups}. Name each group once.")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "by_index", bool(self.by_index))


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
