"""MobileNetV1 and V2 with batch norm; parameters of V2 are named as torchvision's."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MobileNetV1", "MobileNetV2", "mobilenet_v1", "mobilenet_v2"]

V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(width_in: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU6."""
    conv = nn.Conv2d(width_in, width, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class MobileNetV1(nn.Module):
    """A chain of depthwise and pointwise convolutions.

    References
    ----------
    Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications",
    arXiv 1704.04861 (2017), table 1.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers, width = [convolution(3, 32, 3, 2)], 32
        for out, stride in V1_BLOCKS:
            layers += [convolution(width, width, 3, stride, groups=width), convolution(width, out, 1)]
            width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class Inverted(nn.Module):
    """Widen, convolve each channel, narrow without activation; added to the input where shapes allow."""

    def __init__(self, width_in: int, width: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = width_in * factor
        widened = [convolution(width_in, inner, 1)] if factor > 1 else []
        narrowed = [nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.conv = nn.Sequential(*widened, convolution(inner, inner, 3, stride, groups=inner), *narrowed)
        self.adds = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residual blocks.

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, table 2.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2)]
        width = 32
        for factor, out, count, stride in V2_STAGES:
            for index in range(count):
                layers.append(Inverted(width, out, stride if index == 0 else 1, factor))
                width = out
        self.features = nn.Sequential(*layers, convolution(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def initialise(model: nn.Module) -> None:
    """Draw weights as usual for these networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def mobilenet_v1(classes: int, side: int = 224) -> MobileNetV1:
    """Return MobileNetV1 for any image size."""
    return MobileNetV1(classes)


def mobilenet_v2(classes: int, side: int = 224) -> MobileNetV2:
    """Return MobileNetV2 for any image size."""
    return MobileNetV2(classes)
