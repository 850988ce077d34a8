"""Batches in an order that a seed and an epoch decide, whatever loads them and however often it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Sampler

__all__ = ["Draw", "DrawnBatches", "EpochBatches", "EpochLoader", "order"]

WINDOW = 16  # storage groups whose members are mixed with one another


class Draw(NamedTuple):
    """An example of an epoch.

    Attributes
    ----------
    example
        Which one.
    epoch
        In which pass, which decides the augmentation; -1 for none.
    """

    example: int
    epoch: int


def order(groups: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Return a permutation of all examples.

    Storage groups are permuted, and examples within ``window`` groups one after another: sources that read a group at
    once keep few of them. Where every example is a group of its own this is a permutation of everything.

    Parameters
    ----------
    groups
        Ascending group of each example, ``(n,)``.
    seed, epoch
        What decides the permutation.
    window
        Groups that are mixed.
    """
    rng = np.random.default_rng((seed, epoch))
    count = int(groups[-1]) + 1 if groups.size else 0
    if count == len(groups):
        return rng.permutation(len(groups))
    starts = np.searchsorted(groups, np.arange(count + 1))
    shuffled = rng.permutation(count)
    mixed = []
    for begin in range(0, count, window):
        own = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in shuffled[begin : begin + window]])
        mixed.append(rng.permutation(own))
    return np.concatenate(mixed)


class EpochBatches(Sampler[list[int]]):
    """Batches of an epoch, as indices; the last one is left out where it is smaller.

    A pass is that of the epoch told last, and each telling is good for one pass: others are epoch 0, so that what
    looks at the data between two epochs sees the same whenever it looks.

    Parameters
    ----------
    groups
        Which examples lie together, see :func:`order`.
    batch_size
        Examples in a batch.
    seed
        Of the order.

    Raises
    ------
    ValueError
        If there is no whole batch.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= len(groups):
            raise ValueError(
                f"Expected a batch of 1 to {len(groups)} examples. Got {batch_size}. Pass another --batch-size."
            )
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.epoch = 0
        self.drop_last = True

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that epoch."""
        self.epoch = epoch

    def batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield indices and epoch of the batches of the next pass."""
        epoch, self.epoch = self.epoch, 0
        mixed = order(self.groups, self.seed, epoch)
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            yield mixed[begin : begin + self.batch_size], epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch, _ in self.batches():
            yield batch.tolist()

    def __len__(self) -> int:
        return len(self.groups) // self.batch_size


class DrawnBatches(Sampler[list[Draw]]):
    """The same batches, each example with its epoch: for augmentation that depends on it.

    Parameters
    ----------
    batches
        The batches.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.inner = batches
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that epoch."""
        self.inner.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch, epoch in self.inner.batches():
            yield [Draw(example, epoch) for example in batch.tolist()]

    def __len__(self) -> int:
        return len(self.inner)


class EpochLoader(DataLoader):
    """A loader whose order is that of its batches, and who can be told the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that epoch."""
        assert isinstance(self.batch_sampler, EpochBatches | DrawnBatches)
        self.batch_sampler.set_epoch(epoch)
