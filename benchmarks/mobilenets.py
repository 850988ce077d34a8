"""MobileNetV1 and V2 trained on ImageNet, with 8-bit weights and folded batch norm, read from the folder of data.

Conventions are TensorFlow's: zero padding that keeps ceil(size / stride) pixels, 1,001 outputs of which the first is
'background', pixels from -1 to 1.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar import Images, read

__all__ = ["MobileNetV1", "MobileNetV2", "imagenet_sample", "trained_mobilenet"]

CLASSES = 1001
SIDE = 224
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class SameConv(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) pixels; an odd pixel of padding goes to the far side."""

    def forward(self, x: Tensor) -> Tensor:
        vertical, horizontal = (
            self._padding_of(size, kernel, stride)
            for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        return F.conv2d(F.pad(x, (*horizontal, *vertical)), self.weight, self.bias, self.stride, groups=self.groups)

    @staticmethod
    def _padding_of(size: int, kernel: int, stride: int) -> tuple[int, int]:
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return missing // 2, missing - missing // 2


class Separable(nn.Module):
    """A depthwise convolution, then one of 1 x 1."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.dw = SameConv(width_in, width_in, 3, stride, groups=width_in)
        self.pw = SameConv(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.pw(F.relu6(self.dw(x))))


class MobileNetV1(nn.Module):
    """A chain of separable convolutions.

    References
    ----------
    Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications",
    arXiv 1704.04861 (2017), table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        width, blocks = 32, []
        for out, stride in V1_BLOCKS:
            blocks.append(Separable(width, out, stride))
            width = out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu6(self.stem(x))).mean(dim=(2, 3)))


class Inverted(nn.Module):
    """Widen, convolve each channel, narrow without activation; added to the input where shapes allow."""

    def __init__(self, width_in: int, width: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = width_in * factor
        self.expand = SameConv(width_in, inner, 1) if factor > 1 else None
        self.dw = SameConv(inner, inner, 3, stride, groups=inner)
        self.project = SameConv(inner, width, 1)
        self.adds = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.dw(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Inverted residual blocks.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, table 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        width, blocks = 32, []
        for factor, out, count, stride in V2_STAGES:
            for index in range(count):
                blocks.append(Inverted(width, out, stride if index == 0 else 1, factor))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(width, 1280, 1)
        self.fc = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu6(self.head(self.blocks(F.relu6(self.stem(x))))).mean(dim=(2, 3)))


def trained_mobilenet(folder: Path, version: int) -> MobileNetV1 | MobileNetV2:
    """Return version 1 or 2 with its trained weights, in evaluation mode.

    Weights are ``(q - zero) * scale`` of 8-bit q, with a zero and a scale per output channel.
    """
    if version not in (1, 2):
        raise ValueError(f"Expected version 1 or 2. Got {version}. These are the networks whose weights are there.")
    model = MobileNetV1() if version == 1 else MobileNetV2()
    stored = read(folder, f"mobilenet_v{version}_1.0_224_imagenet.npz")
    weights = {}
    for key in stored:
        if not key.endswith(".weight_q"):
            continue
        name, whole = key.removesuffix(".weight_q"), stored[key].astype(np.float32)
        each = (-1,) + (1,) * (whole.ndim - 1)
        zero, scale = (stored[f"{name}.weight_{part}"].astype(np.float32).reshape(each) for part in ("zero", "scale"))
        weights[f"{name}.weight"] = torch.from_numpy((whole - zero) * scale)
        weights[f"{name}.bias"] = torch.from_numpy(stored[f"{name}.bias"])
    model.load_state_dict(weights)
    return model.eval()


def imagenet_sample(folder: Path, count: int, seed: int) -> Images:
    """Return some of 1,000 training images of ImageNet, one per class, drawn at random; needs Pillow."""
    from PIL import Image  # of the extra `bench`

    stored = read(folder, "imagenet_sample1000_224.npz")
    chosen = np.random.default_rng(seed).permutation(len(stored["label"]))[:count]
    pixels = []
    for index in chosen:
        data = stored["blob"][stored["offset"][index] : stored["offset"][index + 1]].tobytes()
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE))
        pixels.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1))
    inputs = torch.from_numpy(np.stack(pixels)) / 127.5 - 1
    return Images(inputs, torch.from_numpy(stored["label"][chosen].astype(np.int64)) + 1)
