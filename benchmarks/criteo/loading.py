"""Batches of prepared rows, gathered from mapped memory a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.criteo.arrays import Rows
from benchmarks.grid.loading import EpochBatches, EpochLoader

__all__ = ["InOrderBatches", "training_loader"]

Batch = tuple[tuple[Tensor, Tensor], Tensor]


def batch_of(rows: Rows, which: np.ndarray | slice) -> Batch:
    """Return ((numbers, identities), labels) of some rows, as copies."""
    arrays = (np.array(array[which]) for array in (rows.numbers, rows.ids, rows.labels))
    numbers, ids, labels = (torch.from_numpy(array) for array in arrays)
    return (numbers, ids), labels.float()


class RowSet(Dataset):
    """Rows that are read a batch at a time."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return batch_of(self.rows, slice(index, index + 1))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Read a batch; rows lie in mapped memory, which sorted reads go through once."""
        which = np.asarray(indices)
        turn = np.argsort(which)
        back = np.empty_like(turn)
        back[turn] = np.arange(len(turn))
        (numbers, ids), labels = batch_of(self.rows, which[turn])
        return (numbers[back], ids[back]), labels[back]


def as_it_is(batch: Any) -> Any:
    """Return a batch that is one already."""
    return batch


def training_loader(rows: Rows, batch_size: int, seed: int, workers: int = 0) -> EpochLoader:
    """Return a loader that draws every row once in an epoch, up to a last smaller batch."""
    batches = EpochBatches(np.arange(len(rows)), batch_size, seed)
    return EpochLoader(RowSet(rows), batch_sampler=batches, collate_fn=as_it_is, num_workers=workers)


class InOrderBatches:
    """All rows in order, as often as they are asked for.

    Parameters
    ----------
    rows
        The rows.
    batch_size
        Of all batches but the last.
    """

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self.rows), self.batch_size):
            yield batch_of(self.rows, slice(begin, begin + self.batch_size))
