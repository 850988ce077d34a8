"""Images of the pruning-limit benchmark, as their publishers lay them out, in a folder that the user names.

Nothing is downloaded and nothing is made up: where a file is missing, the message says which one is expected where.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.cifar import MissingDataError, decoded, read

__all__ = ["Pixels", "Split", "cifar10", "cifar100", "digits", "fashion", "tiny_imagenet"]

TRAIN_SHARDS = 5
DIGITS_HELD_OUT = 500
# Per-channel mean and standard deviation of the training images, as the published experiments use them.
CIFAR10_SCALE = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
CIFAR100_SCALE = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))


@dataclass(frozen=True)
class Pixels:
    """Images in memory.

    Attributes
    ----------
    pixels
        uint8 ``(N, C, H, W)``, or float32 ``(N, F)`` features that are ready for the network.
    targets
        Class indices, int64 ``(N,)``.
    mean, std
        Per channel, of pixels scaled to [0, 1]; unused for features.
    """

    pixels: Tensor
    targets: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, count: int | None) -> Pixels:
        """Return the first `count` examples; all for None."""
        return self if count is None else Pixels(self.pixels[:count], self.targets[:count], self.mean, self.std)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return what the network takes: float32 of mean 0 and standard deviation 1 by channel."""
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = (torch.tensor(value, device=pixels.device).view(-1, 1, 1) for value in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def inputs(self) -> Tensor:
        """Return all examples as the network takes them."""
        return self.scaled(self.pixels)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the examples in order, `size` at a time, without augmentation."""
        return [
            (self.scaled(pixels), targets)
            for pixels, targets in zip(self.pixels.split(size), self.targets.split(size), strict=True)
        ]


@dataclass(frozen=True)
class Split:
    """What training sees, and what it does not."""

    train: Pixels
    held_out: Pixels


def digits() -> Split:
    """Scikit-learn's 8x8 digits in [0, 1], flat: 1,297 to train on and 500 held out, of one fixed shuffle."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    inputs = torch.tensor(found.data[order] / 16.0, dtype=torch.float32)
    targets = torch.tensor(found.target[order], dtype=torch.int64)
    cut = len(targets) - DIGITS_HELD_OUT
    return Split(Pixels(inputs[:cut], targets[:cut]), Pixels(inputs[cut:], targets[cut:]))


def fashion(folder: Path) -> Split:
    """10,000 training and all 10,000 test images of Fashion-MNIST, from ``fashion_mnist_20k.npz.xz``."""
    arrays = read(folder, "fashion_mnist_20k.npz.xz")

    def part(name: str) -> Pixels:
        pixels = torch.from_numpy(arrays[f"x_{name}"]).unsqueeze(1)
        return Pixels(pixels, torch.from_numpy(arrays[f"y_{name}"].astype(np.int64)))

    return Split(part("train"), part("test"))


def cifar10(folder: Path) -> Split:
    """CIFAR-10: the official batches in Python's format (``cifar-10-batches-py``), else ``cifar10_*.npz.xz``.

    Raises
    ------
    MissingDataError
        If neither is there.
    """
    official = folder if (folder / "data_batch_1").is_file() else folder / "cifar-10-batches-py"
    if official.is_dir():
        train = [_pickled(official / f"data_batch_{number}", b"labels") for number in range(1, TRAIN_SHARDS + 1)]
        return Split(
            _joined(train, CIFAR10_SCALE), _joined([_pickled(official / "test_batch", b"labels")], CIFAR10_SCALE)
        )
    if not (folder / "cifar10_train_0.npz.xz").is_file():
        raise MissingDataError(
            f"Expected cifar-10-batches-py/data_batch_1 or cifar10_train_0.npz.xz in {folder}. Got neither. "
            "Unpack cifar-10-python.tar.gz there, or name another folder with --data."
        )
    parts = [_npz(folder, f"train_{shard}") for shard in range(TRAIN_SHARDS)]
    return Split(_joined(parts, CIFAR10_SCALE), _joined([_npz(folder, "test")], CIFAR10_SCALE))


def cifar100(folder: Path) -> Split:
    """CIFAR-100 with its 100 fine classes: ``train`` and ``test`` of ``cifar-100-python``.

    Raises
    ------
    MissingDataError
        If they are not there.
    """
    official = folder if (folder / "train").is_file() else folder / "cifar-100-python"
    train, test = (_joined([_pickled(official / name, b"fine_labels")], CIFAR100_SCALE) for name in ("train", "test"))
    return Split(train, test)


def tiny_imagenet(folder: Path) -> Split:
    """TinyImageNet: 200 classes in the order of ``wnids.txt``, JPEG images of 64 pixels; ``val`` is held out.

    Layout: ``tiny-imagenet-200/{wnids.txt, train/<wnid>/images/*.JPEG, val/val_annotations.txt, val/images/*.JPEG}``.
    Channels are scaled by the statistics of the training images read.

    Raises
    ------
    MissingDataError
        If a part of that layout is missing.
    """
    root = folder if (folder / "wnids.txt").is_file() else folder / "tiny-imagenet-200"
    classes = {name: number for number, name in enumerate(_lines(root / "wnids.txt"))}
    train = [
        (path, number)
        for name, number in classes.items()
        for path in sorted((root / "train" / name / "images").glob("*.JPEG"))
    ]
    if not train:
        raise MissingDataError(
            f"Expected images in {root / 'train' / '<wnid>' / 'images' / '*.JPEG'}. Got none. Unpack the archive whole."
        )
    held_out = []
    for line in _lines(root / "val" / "val_annotations.txt"):
        file, name = line.split("\t")[:2]
        held_out.append((root / "val" / "images" / file, classes[name]))
    pixels = _jpegs([path for path, _ in train])
    mean, std = _statistics(pixels)
    labels = torch.tensor([number for _, number in train])
    others = torch.tensor([number for _, number in held_out])
    return Split(Pixels(pixels, labels, mean, std), Pixels(_jpegs([path for path, _ in held_out]), others, mean, std))


# ---------------------------------------------------------------- files

Arrays = tuple[np.ndarray, np.ndarray]  # pixels (N, 3, H, W) uint8, classes (N,)

#: What unpickling an official batch needs: dictionaries of NumPy arrays and nothing that could run.
_SAFE = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything but arrays: a pickle from elsewhere could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"Expected NumPy arrays. Got {module}.{name}. Use the official archive.")
        return super().find_class(module, name)


def _pickled(path: Path, labels: bytes) -> Arrays:
    """Read one official CIFAR file: rows of 3,072 bytes, the planes red, green, blue of 32x32 pixels."""
    if not path.is_file():
        raise MissingDataError(
            f"Expected {path.name} in {path.parent}. Got no such file. "
            "Unpack the official Python archive there, or name another folder with --data."
        )
    with path.open("rb") as file:
        content = _ArraysOnly(file, encoding="bytes").load()
    pixels = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(content[labels], dtype=np.int64)


def _npz(folder: Path, part: str) -> Arrays:
    arrays = read(folder, f"cifar10_{part}.npz.xz")
    return decoded(arrays["r"]), arrays["y"].astype(np.int64)


def _joined(parts: list[Arrays], scale: tuple[tuple[float, ...], tuple[float, ...]]) -> Pixels:
    pixels, targets = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    return Pixels(torch.from_numpy(pixels), torch.from_numpy(targets), *scale)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingDataError(
            f"Expected {path.name} in {path.parent}. Got no such file. "
            "Unpack tiny-imagenet-200.zip there, or name another folder with --data."
        )
    return path.read_text(encoding="utf-8").splitlines()


def _jpegs(paths: list[Path]) -> Tensor:
    """Decode JPEG files of one size to uint8 ``(N, 3, H, W)``; grey ones become three equal channels."""
    from PIL import Image  # of the extra `bench`

    pixels: Tensor | None = None
    for index, path in enumerate(paths):
        if not path.is_file():
            raise MissingDataError(
                f"Expected {path.name} in {path.parent}. Got no such file. Unpack the archive whole."
            )
        image = np.array(Image.open(path).convert("RGB")).transpose(2, 0, 1)
        if pixels is None:
            pixels = torch.zeros((len(paths), *image.shape), dtype=torch.uint8)
        pixels[index] = torch.from_numpy(image)
    assert pixels is not None
    return pixels


def _statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels scaled to [0, 1]; in parts, as float copies would not fit."""
    count = pixels.numel() / pixels.shape[1]
    total = sum(part.double().sum(dim=(0, 2, 3)) for part in pixels.split(1000))
    squares = sum(part.double().square().sum(dim=(0, 2, 3)) for part in pixels.split(1000))
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(squares) / count - mean**2).clamp(min=1e-12).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
