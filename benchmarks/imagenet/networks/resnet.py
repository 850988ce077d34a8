"""ResNet-18 and ResNet-50; parameters are named as torchvision's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNet", "resnet18", "resnet50"]


class Basic(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1 to narrow, 3 x 3 with the stride, 1 x 1 to widen, beside a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages of residual blocks; the stride of a bottleneck is in its 3 x 3 convolution ("v1.5").

    References
    ----------
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, table 1.
    """

    def __init__(self, kind: type[Basic] | type[Bottleneck], depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(kind, 64, 64, depths[0], 1)
        self.layer2 = stage(kind, 64 * kind.expansion, 128, depths[1], 2)
        self.layer3 = stage(kind, 128 * kind.expansion, 256, depths[2], 2)
        self.layer4 = stage(kind, 256 * kind.expansion, 512, depths[3], 2)
        self.fc = nn.Linear(512 * kind.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)  # every residual block begins as the identity
            elif isinstance(module, Basic):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def stage(kind: type[Basic] | type[Bottleneck], width_in: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Return a stage; its first block has the stride, and a convolution in its shortcut where shapes differ."""
    out = width * kind.expansion
    shortcut = None
    if stride != 1 or width_in != out:
        shortcut = nn.Sequential(nn.Conv2d(width_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = kind(width_in, width, stride, shortcut)
    return nn.Sequential(first, *(kind(out, width, 1, None) for _ in range(depth - 1)))


def resnet18(classes: int, side: int = 224) -> ResNet:
    """Return ResNet-18 for any image size."""
    return ResNet(Basic, (2, 2, 2, 2), classes)


def resnet50(classes: int, side: int = 224) -> ResNet:
    """Return ResNet-50 for any image size."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
