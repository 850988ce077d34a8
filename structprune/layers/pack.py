"""The kept weights of a layer beside the lists that say which they are: what every kernel is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from structprune.layers.pattern import GroupedColumns, Transposed

__all__ = ["Packed", "pack", "pattern_of", "transposed_tensors", "unpack"]


@dataclass(frozen=True)
class Packed:
    """A weight of ``outputs x inputs`` in groups of ``G`` stored rows: see :class:`GroupedColumns`.

    ``Y[:, order[r*G : (r+1)*G]] = X[:, columns[s:e]] @ values[s:e] + bias`` with ``s, e = starts[r], starts[r+1]``.

    Attributes
    ----------
    values
        ``(C, G)`` float; rows of outputs beyond the last are zero.
    columns
        ``(C,)`` int32.
    starts
        ``(R + 1,)`` int32.
    order
        ``(outputs,)`` int32 or None.
    outputs, inputs
        Size of the weight.
    """

    values: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor | None
    outputs: int
    inputs: int

    @property
    def height(self) -> int:
        """Rows of a group ``G``."""
        return self.values.shape[1]

    @property
    def groups(self) -> int:
        """Number of groups ``R``."""
        return self.starts.shape[0] - 1

    def group_of_column(self) -> Tensor:
        """Return the group that owns each row of ``values``, ``(C,)`` int64."""
        lengths = self.starts.diff().long()
        groups = torch.arange(self.groups, device=lengths.device)
        return torch.repeat_interleave(groups, lengths, output_size=self.values.shape[0])


def pack(weight: Tensor, pattern: GroupedColumns) -> Packed:
    """Take the kept entries of a weight out of it.

    Parameters
    ----------
    weight
        ``(outputs, inputs)``; entries outside the pattern are left behind.
    pattern
        The entries to keep.

    Raises
    ------
    ValueError
        The weight has not the pattern's shape.
    """
    if weight.shape != (pattern.outputs, pattern.inputs):
        raise ValueError(
            f"Expected a weight of shape {(pattern.outputs, pattern.inputs)}. Got {tuple(weight.shape)}. "
            "Make the pattern from this weight's mask."
        )
    device = weight.device
    order = None if pattern.order is None else index_tensor(pattern.order, device)
    stored = weight if order is None else weight.index_select(0, order)
    padded = stored.new_zeros(pattern.groups * pattern.height, pattern.inputs)
    padded[: pattern.outputs] = stored
    groups = torch.from_numpy(pattern.group_of_column).to(device)
    columns = index_tensor(pattern.columns, device)
    by_group = padded.view(pattern.groups, pattern.height, pattern.inputs).transpose(1, 2)
    values = by_group[groups, columns.long()].contiguous()
    return Packed(values, columns, index_tensor(pattern.starts, device), order, pattern.outputs, pattern.inputs)


def unpack(packed: Packed) -> Tensor:
    """Return the ``(outputs, inputs)`` weight with zeros where nothing was kept; the inverse of :func:`pack`."""
    by_group = packed.values.new_zeros(packed.groups, packed.inputs, packed.height)
    by_group[packed.group_of_column(), packed.columns.long()] = packed.values
    stored = by_group.transpose(1, 2).reshape(-1, packed.inputs)[: packed.outputs]
    if packed.order is None:
        return stored.contiguous()
    return torch.empty_like(stored).index_copy_(0, packed.order.long(), stored)


def pattern_of(packed: Packed, width: int) -> GroupedColumns:
    """Return the pattern that the packed weight has, as pieces of ``width`` columns."""
    order = None if packed.order is None else packed.order.cpu().numpy()
    columns, starts = packed.columns.cpu().numpy(), packed.starts.cpu().numpy()
    return GroupedColumns(packed.outputs, packed.inputs, packed.height, width, columns, starts, order)


def transposed_tensors(transposed: Transposed, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``source (C', G')``, ``columns (C',)`` and ``starts (R' + 1,)``, all int32, of a transposed pattern."""
    pattern = transposed.pattern
    source = torch.from_numpy(transposed.source).to(device)
    return source, index_tensor(pattern.columns, device), index_tensor(pattern.starts, device)


def index_tensor(indices: np.ndarray, device: torch.device) -> Tensor:
    """Return a list of indices as a tensor of its own."""
    return torch.tensor(indices, dtype=torch.int32, device=device)
