"""Which entries of which linear maps a structure takes away: what is looked at when structures are added to nothing.

A channel owns columns of the maps that consume it, a kernel or block its own entries of one weight. Removing structures
is leaving these entries at zero; the rest of what they take with them (filters that make a channel, batch norm) then
serves nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from structprune.axes.linear_maps import LinearMap
from structprune.criteria.refit import Fitted
from structprune.structures import Axis, EntryAxis, Structures

__all__ = ["Owned", "as_matrix", "as_tensor", "owned_by"]


@dataclass(frozen=True, eq=False)
class Owned:
    """A map and the structure that each entry of its weight belongs to.

    Attributes
    ----------
    fitted
        The map with its place for an intercept.
    owner
        ``(outputs, inputs * taps)`` int64: number within the axis; -1 for entries of no structure, the axis' size for
        entries that are gone already.
    """

    fitted: Fitted
    owner: np.ndarray

    @property
    def map(self) -> LinearMap:
        """The map itself."""
        return self.fitted.map


def as_matrix(one: LinearMap, weight: Tensor) -> np.ndarray:
    """A map's weight, or anything of its shape, as ``(outputs, inputs * taps)``."""
    array = weight.detach().cpu().numpy()
    return array.T if one.transposed else array.reshape(len(array), -1)


def as_tensor(one: LinearMap, matrix: Tensor, like: Tensor) -> Tensor:
    """The opposite of :func:`as_matrix`, differentiable: a matrix in the shape and type of the weight."""
    return (matrix.T if one.transposed else matrix).reshape(like.shape).to(like)


def owned_by(
    structures: Structures,
    number: int,
    maps: list[Fitted],
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> list[Owned]:
    """The maps that axis ``number`` has entries in, in the order of execution.

    Grouped convolutions pass a channel on rather than consume it; they are left out.

    Parameters
    ----------
    structures
        With the traced network.
    maps
        What can be fitted, see :func:`structprune.criteria.refit.fitted_maps`.
    weights
        By name.
    masks
        By name, False where entries are gone because structures of other axes are.
    """
    axis = structures.axes[number]
    found = []
    for fitted in maps:
        one = fitted.map
        if one.kind == "conv" and int(one.node.args[8]) != 1:  # type: ignore[arg-type]
            continue
        owner = _owner(structures, number, axis, one, weights[one.weight])
        if owner is None:
            continue
        if one.weight in masks:
            owner = np.where(as_matrix(one, masks[one.weight]), owner, axis.size)
        found.append(Owned(fitted, np.ascontiguousarray(owner)))
    return found


def _owner(structures: Structures, number: int, axis: Axis, one: LinearMap, weight: Tensor) -> np.ndarray | None:
    """Number within the axis of every entry, -1 for none; None where the axis has no entry in the map."""
    if isinstance(axis, EntryAxis):
        return as_matrix(one, axis.index) if axis.tensor == one.weight else None
    assert structures.labelled is not None
    ids = structures.found[number].ids
    rows = structures.labelled.norm(one.input_label)
    where, columns = np.nonzero(np.isin(rows, ids)) if rows.shape[1] else (np.zeros(0, int), np.zeros(0, int))
    if not len(where):
        return None
    ascending = np.argsort(ids, kind="stable")
    of_input = np.full(len(rows), -1, dtype=np.int64)
    of_input[where] = ascending[np.searchsorted(ids[ascending], rows[where, columns])]
    outputs, inputs = as_matrix(one, weight).shape
    return np.tile(np.repeat(of_input, inputs // len(rows)), (outputs, 1))
