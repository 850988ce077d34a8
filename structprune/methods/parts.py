"""How one number per structure reaches the weights: expand it over a structure's entries, sum entries per structure.

A weight is scaled by broadcasting wherever its structures form a regular grid of tiles; no gate of the weight's own
size is kept for the backward pass. Everything here is differentiable and, on one device, deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from structprune.structures import Axis, EntryAxis

__all__ = ["Entries", "Grid", "Part", "Rows", "entry_part"]


class Part(Protocol):
    """The entries of one tensor that a run of structures takes."""

    def scale(self, weight: Tensor, gates: Tensor) -> Tensor:
        """Return ``weight`` with every entry times the gate of its structure; ``gates`` is ``(n,)``."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Per structure, the sum of ``values``, which have the weight's shape; result ``(n,)``."""
        ...

    def to(self, device: torch.device) -> Part:
        """Return the same part with its indices on ``device``."""
        ...


@dataclass(frozen=True, eq=False)
class Grid:
    """Tiles of a weight (outputs, inputs, taps): ``height`` by ``width`` entries each, smaller ones at the far edges.

    Attributes
    ----------
    tiles
        Structure of each tile, ``(R, C, T)`` int64; T is the number of taps, or 1 where a tile covers all taps.
    height, width
        Entries of a whole tile along outputs and inputs.
    """

    tiles: Tensor
    height: int
    width: int

    def scale(self, weight: Tensor, gates: Tensor) -> Tensor:
        outputs, inputs = weight.shape[:2]
        rows, columns, taps = self.tiles.shape
        chosen = gates.index_select(0, self.tiles.reshape(-1)).view(rows, 1, columns, 1, taps)
        if outputs == rows * self.height and inputs == columns * self.width:
            tiled = weight.reshape(rows, self.height, columns, self.width, -1)
            return (tiled * chosen).reshape(weight.shape)
        spread = chosen.expand(rows, self.height, columns, self.width, taps)
        spread = spread.reshape(rows * self.height, columns * self.width, taps)[:outputs, :inputs]
        return (weight.reshape(outputs, inputs, -1) * spread).reshape(weight.shape)

    def sum(self, values: Tensor) -> Tensor:
        rows, columns, taps = self.tiles.shape
        flat = values.reshape(values.shape[0], values.shape[1], -1)
        below, beside = rows * self.height - flat.shape[0], columns * self.width - flat.shape[1]
        if below or beside:
            flat = F.pad(flat, (0, 0, 0, beside, 0, below))
        sums = flat.reshape(rows, self.height, columns, self.width, -1).sum(dim=(1, 3))
        sums = sums if taps > 1 or sums.shape[2] == 1 else sums.sum(dim=2, keepdim=True)
        return sums.new_zeros(self.tiles.numel()).index_copy(0, self.tiles.reshape(-1), sums.reshape(-1))

    def to(self, device: torch.device) -> Grid:
        return Grid(self.tiles.to(device), self.height, self.width)


@dataclass(frozen=True, eq=False)
class Entries:
    """Structures of any shape inside one weight; entries of index -1 belong to none and keep their value.

    Attributes
    ----------
    index
        Structure of each entry, of the weight's shape, int64.
    size
        Number of structures.
    """

    index: Tensor
    size: int

    def scale(self, weight: Tensor, gates: Tensor) -> Tensor:
        padded = torch.cat([gates, gates.new_ones(1)])
        return weight * padded[self.index]  # index -1 reads the one at the end

    def sum(self, values: Tensor) -> Tensor:
        places = torch.where(self.index < 0, self.size, self.index).reshape(-1)
        return values.new_zeros(self.size + 1).index_add(0, places, values.reshape(-1))[: self.size]

    def to(self, device: torch.device) -> Entries:
        return Entries(self.index.to(device), self.size)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a tensor along one dimension: structure ``i`` takes the rows ``positions[i]``.

    Attributes
    ----------
    dim
        The dimension.
    positions
        ``(n, rows of each)`` int64.
    """

    dim: int
    positions: Tensor

    def scale(self, weight: Tensor, gates: Tensor) -> Tensor:
        each = gates.repeat_interleave(self.positions.shape[1])
        rows = gates.new_ones(weight.shape[self.dim]).index_copy(0, self.positions.reshape(-1), each)
        return weight * rows.view([-1 if d == self.dim else 1 for d in range(weight.ndim)])

    def sum(self, values: Tensor) -> Tensor:
        others = [d for d in range(values.ndim) if d != self.dim]
        rows = values.sum(dim=others) if others else values
        return rows.index_select(0, self.positions.reshape(-1)).view(self.positions.shape).sum(dim=1)

    def to(self, device: torch.device) -> Rows:
        return Rows(self.dim, self.positions.to(device))


def entry_part(axes: tuple[Axis, ...]) -> Grid | Entries:
    """Return the part of the axes that lie inside one weight; structures count from the first axis' start.

    A weight whose tiles form a grid, all whole but for the far edges, gives a :class:`Grid`.
    """
    index: Tensor | None = None
    for axis in axes:
        assert isinstance(axis, EntryAxis)
        own = torch.where(axis.index >= 0, axis.index + (axis.start - axes[0].start), -1)
        index = own if index is None else torch.where(own >= 0, own, index)
    assert index is not None
    size = sum(axis.size for axis in axes)
    return _grid(index, size) or Entries(index, size)


def _grid(index: Tensor, size: int) -> Grid | None:
    if index.ndim < 2 or bool((index < 0).any()):
        return None
    flat = index.reshape(index.shape[0], index.shape[1], -1)
    taps = flat.shape[2]
    if taps > 1 and bool((flat == flat[:, :, :1]).all()):
        flat = flat[:, :, :1]
    height = _period((flat[1:] != flat[:-1]).any(dim=2).any(dim=1))
    width = _period((flat[:, 1:] != flat[:, :-1]).any(dim=2).any(dim=0))
    if height is None or width is None:
        return None
    tiles = flat[::height, ::width].contiguous()
    # Every structure must be one tile: otherwise the sum of a structure would miss entries.
    return Grid(tiles, height, width) if tiles.numel() == size else None


def _period(changes: Tensor) -> int | None:
    """Length of the runs between changes, all equal but perhaps a shorter last one; None if they are not."""
    length = len(changes) + 1
    places = (torch.nonzero(changes).flatten() + 1).tolist()
    if not places:
        return length
    period = places[0]
    return period if places == list(range(period, length, period)) else None
