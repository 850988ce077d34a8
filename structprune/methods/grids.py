"""A layer's structures as a table: rows read inputs, columns write outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from structprune.methods.groups import Group
from structprune.methods.parts import Grid, entry_part
from structprune.structures import EntryAxis

__all__ = ["Table", "table"]


@dataclass(frozen=True, eq=False)
class Table:
    """Where each structure of a layer stands.

    Attributes
    ----------
    rows, columns
        Of each structure, ``(n,)`` int64. A row is one run of inputs at one tap, a column one run of outputs: the
        matrix that a convolution multiplies patches with has (taps x inputs) rows and (outputs) columns.
    shape
        Numbers of rows and columns.
    """

    rows: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]


@lru_cache(maxsize=512)  # asked for at every update of a mask; groups are equal only to themselves
def table(group: Group) -> Table:
    """Return the table of a layer of blocks or kernels.

    Raises
    ------
    ValueError
        If its structures are no tiles of one weight: channels have no rows and columns.
    """
    part = entry_part(group.axes) if all(isinstance(axis, EntryAxis) for axis in group.axes) else None
    if not isinstance(part, Grid):
        raise ValueError(
            f"Expected blocks or kernels, which form a table, in {group.name}. Got structures that do not. "
            "Leave caps away."
        )
    outputs, inputs, taps = part.tiles.shape
    column, row, tap = torch.meshgrid(torch.arange(outputs), torch.arange(inputs), torch.arange(taps), indexing="ij")
    rows, columns = np.zeros(group.size, dtype=np.int64), np.zeros(group.size, dtype=np.int64)
    tiles = part.tiles.flatten().numpy()
    rows[tiles] = (tap * inputs + row).flatten().numpy()
    columns[tiles] = column.flatten().numpy()
    return Table(rows, columns, (taps * inputs, outputs))
