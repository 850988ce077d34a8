"""Walking over the groups of a packed weight, with one piece of memory for what each of them gathers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from structprune.layers.pack import Packed

__all__ = ["Gatherer", "group_slices"]


def group_slices(packed: Packed) -> Iterator[tuple[slice, slice]]:
    """Yield for each group that keeps anything its rows of ``values`` and its stored outputs."""
    bounds = packed.starts.tolist()
    for group, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start < end:
            first = group * packed.height
            yield slice(start, end), slice(first, min(first + packed.height, packed.outputs))


class Gatherer:
    """Rows or columns of a matrix by their indices, each call's result in the place of the last one's.

    Large blocks of memory go back to the system when they are freed, and touching new ones costs more than the copy
    itself: reusing one halved the time of whole layers.

    Parameters
    ----------
    table
        The matrix.
    dim
        0 to gather rows, 1 to gather columns.
    """

    def __init__(self, table: Tensor, dim: int) -> None:
        self._table, self._dim = table, dim
        self._memory = table.new_empty(0)

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the contiguous rows or columns, valid until the next call."""
        rows, columns = self._table.shape
        shape = (indices.shape[0], columns) if self._dim == 0 else (rows, indices.shape[0])
        size = shape[0] * shape[1]
        if self._memory.numel() < size:
            self._memory = self._table.new_empty(size)
        return torch.index_select(self._table, self._dim, indices, out=self._memory[:size].view(shape))
