"""What a mask of k blocks can reach at most, whatever chose it: fields seen and hidden units alive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.grid.cell import kept_blocks

__all__ = ["Reach", "fields_reached", "reach"]


@dataclass(frozen=True)
class Reach:
    """Bounds for one block size and sparsity of the first layer.

    Attributes
    ----------
    blocks, kept
        Of the layer, and of them what stays.
    fields
        Most fields that any kept blocks can read.
    units
        Most hidden units that they can write.
    weights_removed
        Fraction of the layer's weights that goes at least; edge blocks are smaller.
    """

    blocks: int
    kept: int
    fields: int
    units: int
    weights_removed: float


def reach(block: int, sparsity: float, *, fields: int = 39, width: int = 10, units: int = 400) -> Reach:
    """Return the bounds for square blocks of the layer that reads ``fields`` embeddings of ``width``.

    Raises
    ------
    ValueError
        If a size is not positive.
    """
    if min(block, fields, width, units) < 1:
        raise ValueError(f"Expected positive sizes. Got {block}, {fields}, {width}, {units}. Use 10, 39, 10, 400.")
    inputs = fields * width
    rows, columns = -(-inputs // block), -(-units // block)
    kept = kept_blocks(rows * columns, sparsity)
    seen = fields_reached(min(kept, rows), block, fields, width)
    whole = (inputs // block) * (units // block)
    largest = min(kept, whole) * block**2
    if kept > whole:  # the ragged ones too: then all that is left is what the smallest missing ones hold
        largest = inputs * units
    return Reach(rows * columns, kept, seen, min(min(kept, columns) * block, units), 1 - largest / (inputs * units))


def fields_reached(rows: int, block: int, fields: int, width: int) -> int:
    """Return the most fields that ``rows`` rows of blocks can touch.

    Rows of blocks are runs of inputs one after another; what a further row adds is what lies beyond the last field of
    the row before it. The best of all choices is found by dynamic programming over the last row chosen.
    """
    starts = np.arange(0, fields * width, block)
    first = starts // width
    last = (np.minimum(starts + block, fields * width) - 1) // width
    best = (last - first + 1).astype(np.int64)  # with this row alone
    for _ in range(rows - 1):
        longer = np.full(len(starts), -1, dtype=np.int64)
        for row in range(1, len(starts)):
            added = last[row] - np.maximum(first[row], last[:row] + 1) + 1
            longer[row] = int((best[:row] + np.maximum(added, 0)).max())
        if longer.max() <= best.max():
            break
        best = longer
    return int(best.max()) if rows else 0
