"""CIFAR-10 and the small ResNets trained on it, read from a folder that the user names.

The folder holds ``cifar10_test.npz.xz``, ``cifar10_train_0.npz.xz`` ... ``_4`` (10,000 images each, every shard
balanced) and ``resnet20_cifar10.npz`` ... with trained weights. Nothing is downloaded and nothing is made up: where a
file is missing, the message says which.
"""

from __future__ import annotations

import io
import lzma
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Images", "MissingDataError", "ResNet", "data_folder", "images", "trained_resnet"]

VARIABLE = "STRUCTPRUNE_DATA"
BESIDE = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what the trained networks expect
TRAIN_SHARDS = 5


class MissingDataError(FileNotFoundError):
    """Real data or trained weights that are not there; there is no substitute for them."""


def data_folder(named: str | Path | None = None) -> Path:
    """Return the folder of data: the one named, else the one that STRUCTPRUNE_DATA names, else ``../shared/data``.

    Raises
    ------
    MissingDataError
        If it is no folder.
    """
    folder = Path(named or os.environ.get(VARIABLE) or BESIDE)
    if not folder.is_dir():
        raise MissingDataError(
            "Expected a folder with cifar10_test.npz.xz, cifar10_train_0.npz.xz and resnet20_cifar10.npz. "
            f"Got {folder}, which is no folder. Name yours with --data DIR or in the environment as {VARIABLE}."
        )
    return folder


def read(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, or of one inside ``.xz``."""
    path = folder / name
    if not path.is_file():
        raise MissingDataError(f"Expected {name} in {folder}. Got no such file. Put it there or name another folder.")
    source: Path | io.BytesIO = io.BytesIO(lzma.decompress(path.read_bytes())) if path.suffix == ".xz" else path
    with np.load(source, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@dataclass(frozen=True)
class Images:
    """Images as the networks take them, with their classes.

    Attributes
    ----------
    inputs
        Normalised RGB, float32 ``(N, 3, 32, 32)``.
    targets
        Class indices, int64 ``(N,)``.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, count: int) -> Images:
        """Return the first `count` images."""
        return Images(self.inputs[:count], self.targets[:count])

    def sample(self, count: int, seed: int) -> Images:
        """Return `count` different images, drawn at random."""
        if not 1 <= count <= len(self):
            raise ValueError(f"Expected 1 to {len(self)} images. Got {count}. Ask for fewer.")
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(self))[:count])
        return Images(self.inputs[chosen], self.targets[chosen])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the images in order, `size` at a time."""
        return list(zip(self.inputs.split(size), self.targets.split(size), strict=True))


def images(folder: Path, part: str) -> Images:
    """Read ``test`` or ``train_0`` ... ``train_4``.

    Raises
    ------
    ValueError
        If there is no such part.
    MissingDataError
        If its file is missing.
    """
    parts = ("test", *(f"train_{shard}" for shard in range(TRAIN_SHARDS)))
    if part not in parts:
        raise ValueError(f"Expected one of {', '.join(parts)}. Got {part!r}. Pass one of them.")
    arrays = read(folder, f"cifar10_{part}.npz.xz")
    pixels = torch.from_numpy(decoded(arrays["r"])).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return Images((pixels - mean) / std, torch.from_numpy(arrays["y"].astype(np.int64)))


def decoded(residuals: np.ndarray) -> np.ndarray:
    """Undo the lossless coding of the images, uint8 arithmetic modulo 256 throughout.

    Parameters
    ----------
    residuals
        ``(3, N, H, W)`` uint8: the planes G, R - G and B - G, of which each pixel has what its neighbours above (a),
        to the left (b) and above left (c) predict, a + b - c, taken away: second differences, which sums undo.

    Returns
    -------
    ndarray
        RGB, uint8 ``(N, 3, H, W)``.
    """
    planes = residuals
    for dim in (-1, -2):
        planes = np.cumsum(planes, axis=dim, dtype=np.uint8)
    green, red_less_green, blue_less_green = planes
    return np.stack([red_less_green + green, green, blue_less_green + green], axis=1)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights.

    Where the block halves the resolution, the shortcut takes every second pixel and puts as many zero channels before
    as after its own (option A).
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if width == width_in else 2
        self.extra = (width - width_in) // 2
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of 6n + 2 layers: three stages of n blocks, of 16, 32 and 64 channels.

    Parameters
    ----------
    depth
        6n + 2: 20, 32, 44, 56, 110 in the paper.
    classes
        Number of outputs.

    References
    ----------
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"Expected a depth of 6n + 2. Got {depth}. Use for instance 20 or 56.")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(blocks, 16, 16)
        self.layer2 = stage(blocks, 16, 32)
        self.layer3 = stage(blocks, 32, 64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def stage(blocks: int, width_in: int, width: int) -> nn.Sequential:
    """Return blocks of one width, the first of which comes from `width_in`."""
    return nn.Sequential(*(Block(width if index else width_in, width) for index in range(blocks)))


def trained_resnet(folder: Path, name: str) -> ResNet:
    """Return ``resnet20``, ``resnet32`` or ``resnet56`` with its trained weights, in evaluation mode.

    Raises
    ------
    ValueError
        If the name is no ``resnet`` with a depth.
    MissingDataError
        If the weights are missing.
    """
    depth = name.removeprefix("resnet")
    if depth == name or not depth.isdecimal():
        raise ValueError(f"Expected a name such as resnet20. Got {name!r}. Name a network whose weights are there.")
    model = ResNet(int(depth))
    weights = {key: torch.from_numpy(value) for key, value in read(folder, f"{name}_cifar10.npz").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # The count of batches seen in training steers no inference, and the files leave it out.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"Expected the weights of {name} in {name}_cifar10.npz. Missing: {missing[:3]}; unexpected: "
            f"{unexpected[:3]}. Use the file that belongs to this network."
        )
    return model.eval()
