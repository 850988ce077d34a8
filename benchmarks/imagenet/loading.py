"""Decoded and augmented images in batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.grid.loading import Draw, DrawnBatches, EpochBatches, EpochLoader
from benchmarks.imagenet.augment import Crops, Pixels
from benchmarks.imagenet.sources.source import Source, decoded

__all__ = ["Images", "evaluation_loader", "training_loader"]


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


def training_loader(images: Images, batch_size: int, workers: int, seed: int) -> EpochLoader:
    """Return a loader that draws every image once in an epoch, augmented."""
    batches = DrawnBatches(EpochBatches(images.source.groups, batch_size, seed))
    return EpochLoader(images, batch_sampler=batches, num_workers=workers, **_memory(workers))


def evaluation_loader(images: Images, batch_size: int, workers: int) -> DataLoader:
    """Return a loader of all images in order, not augmented."""
    return DataLoader(images, batch_size=batch_size, num_workers=workers, **_memory(workers))


def _memory(workers: int) -> dict[str, Any]:
    return {"pin_memory": torch.cuda.is_available(), "persistent_workers": workers > 0}
