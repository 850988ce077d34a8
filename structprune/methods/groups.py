"""Runs of structures that compete with each other: layer by layer, or axis by axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from structprune.structures import Axis, EntryAxis, Structures

__all__ = ["Group", "by_axis", "by_layer"]


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring structures ranked against each other.

    Attributes
    ----------
    name
        Of the layer or axis.
    start, size
        Where they lie in the whole list.
    axes
        The axes that they make up: several where a weight has smaller blocks at its edges.
    """

    name: str
    start: int
    size: int
    axes: tuple[Axis, ...]

    @property
    def entries(self) -> slice:
        """Where its structures lie in the whole list."""
        return slice(self.start, self.start + self.size)

    def order(self, values: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Its living structures, best first; of equal ones the first. ``values`` and ``alive`` are ``(size,)``."""
        values = np.where(alive, values, -np.inf)
        axis = self.axes[0]
        if len(self.axes) > 1 or (isinstance(axis, EntryAxis) and axis.group is None):
            order = np.argsort(-values, kind="stable")
        else:
            order = axis.order(values)
        return order[alive[order]]


def by_axis(structures: Structures) -> tuple[Group, ...]:
    """One group per axis."""
    return tuple(Group(axis.name, axis.start, axis.size, (axis,)) for axis in structures.axes)


def by_layer(structures: Structures) -> tuple[Group, ...]:
    """One group per weight: its whole blocks and those at its edges together. Channel axes are groups by themselves."""
    runs: list[list[Axis]] = []
    for axis in structures.axes:
        before = runs[-1][0] if runs else None
        together = isinstance(axis, EntryAxis) and isinstance(before, EntryAxis) and axis.tensor == before.tensor
        runs[-1].append(axis) if together else runs.append([axis])
    return tuple(
        Group(_name(axes), axes[0].start, sum(axis.size for axis in axes), tuple(axes)) for axes in map(tuple, runs)
    )


def _name(axes: tuple[Axis, ...]) -> str:
    first = axes[0]
    return first.tensor.removesuffix(".weight") if isinstance(first, EntryAxis) else first.name
