"""From encoded images to the network's inputs: the usual augmentation for training, a centre crop for validation."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

try:
    from PIL import Image
except ImportError:  # an extra; decoding says so
    Image = None  # type: ignore[assignment]
try:
    import torchvision.transforms as transforms
except ImportError:  # optional: PlainCrops does the same
    transforms = None
except RuntimeError as error:  # a build for another torch, whose operators do not load
    warnings.warn(f"torchvision does not fit this torch ({error}): Pillow cuts the images instead", stacklevel=2)
    transforms = None

__all__ = ["Crops", "PlainCrops", "Pixels", "TorchvisionCrops", "available_crops"]

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
ATTEMPTS = 10
CENTRE = 0.875  # of the shorter side


@dataclass(frozen=True)
class Pixels:
    """What a network takes values of 0 ... 255 to.

    Attributes
    ----------
    mean, std
        Per channel, in units of the pixels: the input is (pixel - mean) / std.
    """

    mean: tuple[float, float, float] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, float, float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return float32 ``(3, height, width)`` of uint8 ``(height, width, 3)``."""
        values = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
        return (values - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)


class Crops(Protocol):
    """Cuts images to one size."""

    @property
    def name(self) -> str:
        """Who does it, for rows."""
        ...

    def train(self, image: Image.Image, side: int, seed: tuple[int, ...]) -> np.ndarray:
        """Return a random part, mirrored or not, uint8 ``(side, side, 3)``; equal seeds give equal parts."""
        ...

    def centre(self, image: Image.Image, side: int) -> np.ndarray:
        """Return the middle, uint8 ``(side, side, 3)``."""
        ...


@dataclass(frozen=True)
class PlainCrops:
    """Random resized crops with Pillow alone.

    References
    ----------
    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6: 8 to 100 % of the area, sides 3/4 to 4/3.
    """

    name: str = "Pillow"

    def train(self, image: Image.Image, side: int, seed: tuple[int, ...]) -> np.ndarray:
        """Return a random part, mirrored half of the time."""
        rng = np.random.default_rng(seed)
        box = _box(*image.size, rng)
        cut = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        array = np.asarray(cut)
        return array[:, ::-1] if rng.random() < 0.5 else array

    def centre(self, image: Image.Image, side: int) -> np.ndarray:
        """Return the middle of the image, its shorter side scaled to side / 0.875."""
        width, height = image.size
        factor = round(side / CENTRE) / min(width, height)
        scaled = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BILINEAR)
        left, top = (scaled.size[0] - side) // 2, (scaled.size[1] - side) // 2
        return np.asarray(scaled.crop((left, top, left + side, top + side)))


def _box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a random part."""
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    # No part fits an extreme image: the largest one in the middle does.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


@dataclass(frozen=True)
class TorchvisionCrops:
    """The same by torchvision's transforms."""

    name: str = "torchvision"

    def train(self, image: Image.Image, side: int, seed: tuple[int, ...]) -> np.ndarray:
        """Return a random part, mirrored half of the time."""
        # The transforms draw from torch's global generator, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
            cut = transforms.RandomResizedCrop(side, SCALE, RATIO)(image)
            return np.asarray(transforms.RandomHorizontalFlip()(cut))

    def centre(self, image: Image.Image, side: int) -> np.ndarray:
        """Return the middle of the image, its shorter side scaled to side / 0.875."""
        return np.asarray(transforms.CenterCrop(side)(transforms.Resize(round(side / CENTRE))(image)))


def available_crops() -> Crops:
    """Return torchvision's where it is installed, else Pillow's; the name stands in every row."""
    return TorchvisionCrops() if transforms is not None else PlainCrops()
