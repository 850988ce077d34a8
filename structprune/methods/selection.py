"""Which structures to keep for given values: exact counts per layer, and where those counts come from.

A rule says how many structures of each group stay at the end of a removal and picks that many; on the way there the
counts fall from all to that number. Within a group the choice is by value, ties to the earlier structure, and only
among the living, so that the masks of one removal are nested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from solvers.coverage import Coverage, is_covering
from solvers.result import Result
from structprune.criteria.scores import Curve, Scores
from structprune.methods.grids import Table, table
from structprune.methods.groups import Group, by_axis, by_layer
from structprune.structures import Structures

__all__ = ["Allocate", "ByValue", "Caps", "Evenly", "Keep", "Uniform", "counts_on_the_way", "select"]

LEAST = 1e-3  # fraction below which losses rise slowly, so that differences above it are not lost in rounding

Allocate = Callable[[Scores], Result]
"""The solver under the caller's budget."""


class Keep(Protocol):
    """How many structures of each group stay, and which."""

    def groups(self, structures: Structures) -> tuple[Group, ...]:
        """The runs of structures that counts are given for."""
        ...

    def eligible(self, structures: Structures) -> tuple[bool, ...]:
        """Per layer (`by_layer`), whether any of it may go."""
        ...

    def counts(self, structures: Structures, values: np.ndarray, allocate: Allocate | None) -> np.ndarray:
        """How many of each group stay in the end, ``(groups,)`` int64."""
        ...

    def pick(self, group: Group, values: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
        """The ``count`` structures of a group that stay, boolean ``(size,)``, all of them alive."""
        ...

    def notes(self, groups: tuple[Group, ...], kept: np.ndarray) -> tuple[str, ...]:
        """Sentences for a report on the final mask ``(n,)``."""
        ...


def counts_on_the_way(groups: tuple[Group, ...], final: np.ndarray, done: float) -> np.ndarray:
    """Numbers kept when a fraction ``done`` of the removals has happened; at 0 all, at 1 exactly ``final``."""
    sizes = np.array([group.size for group in groups], dtype=np.int64)
    return sizes - np.floor((sizes - final) * done + 1e-9).astype(np.int64)


def select(
    keep: Keep, groups: tuple[Group, ...], values: np.ndarray, alive: np.ndarray, final: np.ndarray, done: float
) -> np.ndarray:
    """Return the mask at a point of a removal, ``(n,)`` boolean, a part of ``alive``.

    Parameters
    ----------
    keep
        The rule.
    groups
        Its groups.
    values
        What the structures are worth, ``(n,)``, higher = keep.
    alive
        Those still there, ``(n,)`` boolean.
    final
        Number of each group that stays in the end.
    done
        Fraction of the removals that has happened.

    Raises
    ------
    ValueError
        If a rule picks another number than it said, or something that is gone.
    """
    chosen = np.zeros(len(alive), dtype=bool)
    for group, count in zip(groups, counts_on_the_way(groups, final, done).tolist(), strict=True):
        own = alive[group.entries]
        # Where a budget allows more than is alive, all that is alive stays.
        count = min(count, int(own.sum()))
        picked = keep.pick(group, values[group.entries], own, count)
        if int(picked.sum()) != count or bool((picked & ~own).any()):
            raise ValueError(
                f"Expected {type(keep).__name__}.pick to keep {count} living structures of {group.name}. "
                f"Got {int(picked.sum())}. Mend its rule."
            )
        chosen[group.entries] = picked
    return chosen


@dataclass(frozen=True)
class Caps:
    """Most blocks that one row or column of blocks may keep, so that no few inputs take everything.

    A row is what reads one run of inputs (in a convolution, at one tap), a column what writes one run of outputs. With
    a factor of 2 a row keeps at most twice the average, rounded up; None sets no limit.
    """

    rows: float | None = 2.0
    columns: float | None = None

    def __post_init__(self) -> None:
        for factor in (self.rows, self.columns):
            if factor is not None and not factor >= 1:
                raise ValueError(
                    f"Expected caps of at least 1, the average, or None. Got {factor}. Use for instance 2."
                )

    def coverage(self, count: int, rows: int, columns: int) -> Coverage:
        """The limits for ``count`` kept blocks."""
        return Coverage(count, 0, _most(self.rows, count, rows), 0, _most(self.columns, count, columns))


def _most(factor: float | None, count: int, lines: int) -> int | None:
    return None if factor is None else math.ceil(factor * -(-count // lines))


def _top(group: Group, values: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    picked = np.zeros(group.size, dtype=bool)
    picked[group.order(values, alive)[:count]] = True
    return picked


@dataclass(frozen=True)
class Uniform:
    """The same fraction of every layer, ``k = round((1 - sparsity) n)`` blocks of ``n``, as the paper has it.

    Attributes
    ----------
    sparsity
        Fraction of the structures of each eligible layer that go, in [0, 1).
    min_structures
        Layers with fewer structures stay dense; 100 in the paper (section 4.1), 1 leaves none out.
    caps
        Most blocks per row and column of blocks; where the living blocks cannot meet them, the best go without.

    Raises
    ------
    ValueError
        If the sparsity is no fraction.
    """

    sparsity: float
    min_structures: int = 100
    caps: Caps | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"Expected a sparsity in [0, 1). Got {self.sparsity}. Pass 0.9 to remove nine in ten.")

    def groups(self, structures: Structures) -> tuple[Group, ...]:
        """The layers."""
        return by_layer(structures)

    def eligible(self, structures: Structures) -> tuple[bool, ...]:
        """Layers with enough structures."""
        return tuple(group.size >= self.min_structures for group in by_layer(structures))

    def counts(self, structures: Structures, values: np.ndarray, allocate: Allocate | None) -> np.ndarray:
        """``round((1 - s) n)`` of every eligible layer, and at least one."""
        del values, allocate
        groups, eligible = by_layer(structures), self.eligible(structures)
        kept = [
            max(1, math.floor((1 - self.sparsity) * group.size + 0.5)) if may else group.size
            for group, may in zip(groups, eligible, strict=True)
        ]
        return np.array(kept, dtype=np.int64)

    def pick(self, group: Group, values: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
        """The best by value, within the caps where there are any."""
        if self.caps is None or count == int(alive.sum()):
            return _top(group, values, alive, count)
        places = table(group)
        found = self.caps.coverage(count, *places.shape).solve(_spread(places, values, alive))
        if found.selection is None:
            return _top(group, values, alive, count)
        return found.selection[places.rows, places.columns]

    def notes(self, groups: tuple[Group, ...], kept: np.ndarray) -> tuple[str, ...]:
        """Layers whose mask is not within the caps."""
        beyond = [group.name for group in groups if self.caps is not None and not self._within(group, kept)]
        if not beyond:
            return ()
        return (f"caps could not be met by what was left in {', '.join(beyond)}: the best by value stayed there",)

    def _within(self, group: Group, kept: np.ndarray) -> bool:
        own = kept[group.entries]
        if self.caps is None or own.all():
            return True
        places = table(group)
        spread = np.zeros(places.shape, dtype=bool)
        spread[places.rows, places.columns] = own
        return is_covering(spread, self.caps.coverage(int(own.sum()), *places.shape))


def _spread(places: Table, values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    spread = np.full(places.shape, -np.inf)
    spread[places.rows, places.columns] = np.where(alive, values, -np.inf)
    return spread


@dataclass(frozen=True)
class Evenly:
    """The same fraction of every axis, as large as the caller's budget allows; the solver finds it.

    Minimising ``sum_a c_a n_a (x_a / n_a)^(-3)`` under one budget on weights, with ``c_a`` weights per structure, makes
    all fractions ``x_a / n_a`` equal, whatever the values are. Where costs are products of widths the fractions are
    equal to a few percent: the power is what keeps one axis from paying for another. An axis keeps at least one
    structure where it can.
    """

    def groups(self, structures: Structures) -> tuple[Group, ...]:
        """The axes."""
        return by_axis(structures)

    def eligible(self, structures: Structures) -> tuple[bool, ...]:
        """All layers."""
        return (True,) * len(by_layer(structures))

    def counts(self, structures: Structures, values: np.ndarray, allocate: Allocate | None) -> np.ndarray:
        """What the solver gives each axis."""
        curves = {}
        for number, axis in enumerate(structures.axes):
            # Keeping none costs more than keeping one, by as much as one does against two.
            share = np.maximum(np.arange(axis.size + 1), 0.5) / axis.size
            weight = axis.size * float(structures.count[axis.entries].mean())
            loss = weight * (np.maximum(share, LEAST) ** -3 - LEAST * np.log(share) - 1)
            curves[number] = Curve(axis.order(values[axis.entries]), loss)
        scores = Scores(values, curves)
        return _widths(structures, _asked(allocate, type(self).__name__)(scores))

    def pick(self, group: Group, values: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
        """The best by value."""
        return _top(group, values, alive, count)

    def notes(self, groups: tuple[Group, ...], kept: np.ndarray) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class ByValue:
    """As many of each axis as pays best across the network, under the caller's budget, with a floor for each axis.

    Attributes
    ----------
    floor
        Fraction of every axis that stays whatever its values, in [0, 1): without one a whole layer can go, and the
        network with it.

    Raises
    ------
    ValueError
        If the floor is no fraction.
    """

    floor: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"Expected a floor in [0, 1). Got {self.floor}. Use for instance 0.02.")

    def groups(self, structures: Structures) -> tuple[Group, ...]:
        """The axes."""
        return by_axis(structures)

    def eligible(self, structures: Structures) -> tuple[bool, ...]:
        """All layers."""
        return (True,) * len(by_layer(structures))

    def counts(self, structures: Structures, values: np.ndarray, allocate: Allocate | None) -> np.ndarray:
        """What the solver gives each axis when the best of it, up to the floor, are worth more than all others."""
        lifted = np.maximum(values, 0.0)
        bonus = 1.0 + lifted.sum()
        for axis in structures.axes:
            best = axis.start + axis.order(lifted[axis.entries])[: math.ceil(self.floor * axis.size)]
            lifted[best] += bonus
        return _widths(structures, _asked(allocate, type(self).__name__)(Scores(lifted)))

    def pick(self, group: Group, values: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
        """The best by value."""
        return _top(group, values, alive, count)

    def notes(self, groups: tuple[Group, ...], kept: np.ndarray) -> tuple[str, ...]:
        """None."""
        return ()


def _asked(allocate: Allocate | None, who: str) -> Allocate:
    if allocate is None:
        raise ValueError(
            f"Expected a budget for {who}(). Got none. Call solve(model, budget, method=...), or pass "
            "keep=Uniform(sparsity)."
        )
    return allocate


def _widths(structures: Structures, result: Result) -> np.ndarray:
    assert result.selection is not None  # the caller's solver raises where nothing fits
    return np.array(structures.widths(result.selection), dtype=np.int64)
