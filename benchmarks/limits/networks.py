"""The networks of the pruning-limit benchmark, written plainly: perceptrons, AlexNet, VGG16 and wide ResNets.

Shapes follow the experiments of Zhang et al. (2024) as their published configuration files and layer tables give them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FC5", "FC12", "AlexNet", "Perceptron", "ResNet", "VGG16", "initialise", "resnet18", "resnet50"]

FC5 = (3072, 1000, 600, 300, 100, 10)
FC12 = (3072, 1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100, 10)
ALEXNET_SCALE = 7  # 32 pixels become 224, by repeating each
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
RESNET_WIDTHS = (64, 128, 256, 512)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, on flattened inputs.

    Parameters
    ----------
    widths
        Inputs, hidden layers, classes.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width_in, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class AlexNet(nn.Module):
    """Five convolutions and three linear layers without normalisation, on images enlarged seven times.

    References
    ----------
    Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 11, stride=4, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(256 * 5 * 5, 4096), nn.ReLU()),
            *(nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(F.interpolate(x, scale_factor=ALEXNET_SCALE)).flatten(1))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with biases and batch norm, halved five times, and one linear layer.

    References
    ----------
    Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1, D.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for width, count in VGG16_STAGES:
            for _ in range(count):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                width_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Residual(nn.Module):
    """Convolutions with batch norm beside a shortcut, which is a 1x1 convolution wherever shapes change.

    Parameters
    ----------
    kernels
        Kernel sizes of the convolutions; the stride belongs to the first one of 3x3.
    widths
        Their output channels.
    """

    def __init__(self, width_in: int, kernels: Sequence[int], widths: Sequence[int], stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, left = width_in, stride
        for kernel, width in zip(kernels, widths, strict=True):
            step, left = (left, 1) if kernel > 1 else (1, left)
            convolution = nn.Conv2d(before, width, kernel, stride=step, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != before:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, before, 1, stride=stride, bias=False), nn.BatchNorm2d(before)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of four stages whose stem is one 3x3 convolution, for images of 32 or 64 pixels.

    Parameters
    ----------
    blocks
        Residual blocks per stage.
    bottleneck
        Three convolutions (1x1, 3x3, 1x1 with four times the channels) in each block rather than two.
    classes
        Number of outputs.

    References
    ----------
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, table 1.
    """

    def __init__(self, blocks: Sequence[int], bottleneck: bool, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        stages: list[nn.Module] = []
        before = 64
        for stage, (width, count) in enumerate(zip(RESNET_WIDTHS, blocks, strict=True)):
            kernels, widths = ((1, 3, 1), (width, width, 4 * width)) if bottleneck else ((3, 3), (width, width))
            for block in range(count):
                stages.append(Residual(before, kernels, widths, 2 if stage and not block else 1))
                before = widths[-1]
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))


def resnet18(classes: int) -> ResNet:
    """Return the ResNet of 18 layers."""
    return ResNet((2, 2, 2, 2), bottleneck=False, classes=classes)


def resnet50(classes: int) -> ResNet:
    """Return the ResNet of 50 layers."""
    return ResNet((3, 4, 6, 3), bottleneck=True, classes=classes)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Draw weights from kaiming_normal (fan in, gain sqrt 2), zero biases, normalisation the identity; in place.

    References
    ----------
    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = (2.0 / module.weight[0].numel()) ** 0.5
            module.weight.copy_(std * torch.randn(module.weight.shape, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model
