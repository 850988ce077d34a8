"""Batches of images in an order that a seed and an epoch decide, whatever loads them and however often it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.imagenet.augment import Crops, Pixels
from benchmarks.imagenet.sources.source import Source, decoded

__all__ = ["Draw", "EpochBatches", "Images", "evaluation_loader", "order", "training_loader"]

WINDOW = 16  # storage groups whose images are mixed with one another


class Draw(NamedTuple):
    """An image of an epoch.

    Attributes
    ----------
    image
        Which image.
    epoch
        In which pass, which decides the augmentation; -1 for none.
    """

    image: int
    epoch: int


class Images(Dataset):
    """Decoded, cut and scaled images with their labels.

    Parameters
    ----------
    source
        Encoded images.
    side
        Of the network's inputs.
    crops
        Who cuts.
    pixels
        How values are scaled.
    seed
        Of the augmentation.
    """

    def __init__(self, source: Source, side: int, crops: Crops, pixels: Pixels, seed: int) -> None:
        self.source, self.side, self.crops, self.pixels, self.seed = source, side, crops, pixels, seed

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int]:
        index, epoch = draw if isinstance(draw, tuple) else (draw, -1)
        image = decoded(self.source, index)
        if epoch < 0:
            array = self.crops.centre(image, self.side)
        else:
            array = self.crops.train(image, self.side, (self.seed, epoch, index))
        return self.pixels(array), int(self.source.labels[index])


def order(groups: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Return a permutation of all images.

    Storage groups are permuted, and images within ``window`` groups one after another: sources that read a group at
    once keep few of them. Where every image is a group of its own this is a permutation of everything.
    """
    rng = np.random.default_rng((seed, epoch))
    count = int(groups.max()) + 1 if groups.size else 0
    if count == len(groups):
        return rng.permutation(len(groups))
    starts = np.searchsorted(groups, np.arange(count + 1))
    shuffled = rng.permutation(count)
    mixed = []
    for begin in range(0, count, window):
        own = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in shuffled[begin : begin + window]])
        mixed.append(rng.permutation(own))
    return np.concatenate(mixed)


class EpochBatches(Sampler[list[Draw]]):
    """Batches of an epoch; the last one is left out where it is smaller.

    Each pass is the next epoch, unless :meth:`set_epoch` says otherwise.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= len(groups):
            raise ValueError(
                f"Expected a batch of 1 to {len(groups)} images. Got {batch_size}. Pass another --batch-size."
            )
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.epoch = 0
        self.drop_last = True

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        mixed = order(self.groups, self.seed, epoch)
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            yield [Draw(int(image), epoch) for image in mixed[begin : begin + self.batch_size]]

    def __len__(self) -> int:
        return len(self.groups) // self.batch_size


def training_loader(images: Images, batch_size: int, workers: int, seed: int) -> DataLoader:
    """Return a loader that draws every image once in an epoch, augmented."""
    batches = EpochBatches(images.source.groups, batch_size, seed)
    return DataLoader(images, batch_sampler=batches, num_workers=workers, **_memory(workers))


def evaluation_loader(images: Images, batch_size: int, workers: int) -> DataLoader:
    """Return a loader of all images in order, not augmented."""
    return DataLoader(images, batch_size=batch_size, num_workers=workers, **_memory(workers))


def _memory(workers: int) -> dict[str, Any]:
    return {"pin_memory": torch.cuda.is_available(), "persistent_workers": workers > 0}
