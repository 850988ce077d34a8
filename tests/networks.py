"""Small networks of the families that users bring, in plain torch: convolutions first, then the rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, batch norm, ReLU."""
    padding = options.pop("padding", kernel // 2 * options.get("dilation", 1))
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    """Global average pooling and a linear classifier of five classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PlainCNN(nn.Module):
    """Plain, strided and dilated convolutions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 10, 3, padding=2, dilation=2)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return self.head(F.relu(self.conv3(F.relu(self.bn2(self.conv2(x))))))


class BasicBlock(nn.Module):
    """Residual block; ``shortcut`` is 'projection' or 'pad' (option A: strided slice, zero channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: str = "projection") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.extra, self.project = stride, outputs - inputs, None
        if self.extra and shortcut == "projection":
            self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.project is not None:
            return F.relu(y + self.project(x))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x)


class ResidualCNN(nn.Module):
    """Two stages of two residual blocks."""

    def __init__(self, shortcut: str = "projection") -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.block1, self.block2 = BasicBlock(8, 8), BasicBlock(8, 8)
        self.block3, self.block4 = BasicBlock(8, 16, 2, shortcut), BasicBlock(16, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block4(self.block3(self.block2(self.block1(self.stem(x))))))


class DenseCNN(nn.Module):
    """A dense block: every layer sees all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.transition = conv_bn(20, 10, 1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.avg_pool2d(self.transition(torch.cat(features, 1)), 2))


class SeparableCNN(nn.Module):
    """Inverted residual: expand, depthwise, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.expand, self.depthwise = conv_bn(8, 16, 1), conv_bn(16, 16, groups=16)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.project(self.depthwise(self.expand(x))))


class GroupedCNN(nn.Module):
    """ResNeXt bottleneck with four groups of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce, self.grouped = conv_bn(8, 12, 1), conv_bn(12, 12, groups=4)
        self.grow = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.grow(self.grouped(self.reduce(x)))))


class ShuffleCNN(nn.Module):
    """ShuffleNet V2 units: one half passes, the other is worked on, then the channels are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.units = nn.ModuleList(
            nn.Sequential(conv_bn(6, 6, 1), conv_bn(6, 6, groups=6), conv_bn(6, 6, 1)) for _ in range(2)
        )
        self.last = conv_bn(12, 10, 1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            passed, worked = x.chunk(2, dim=1)
            x = torch.cat((passed, unit(worked)), dim=1)
            batch, channels, height, width = x.shape
            x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.last(x))


class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv_bn(3, 8), conv_bn(8, 12)
        self.squeeze, self.excite = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate)


class SplitCNN(nn.Module):
    """C2f of the YOLO family: half of the channels goes through bottlenecks, everything is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_bn(3, 8), conv_bn(8, 12, 1)
        self.bottlenecks = nn.ModuleList(nn.Sequential(conv_bn(6, 6), conv_bn(6, 6)) for _ in range(2))
        self.last = conv_bn(24, 10, 1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(self.stem(x)).chunk(2, 1))
        for bottleneck in self.bottlenecks:
            parts.append(parts[-1] + bottleneck(parts[-1]))
        return self.head(self.last(torch.cat(parts, 1)))


class FlattenCNN(nn.Module):
    """LeNet: the last feature map is flattened by ``view`` into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(torch.tanh(self.fc1(x.view(x.size(0), -1))))


class UNet(nn.Module):
    """One level down and up with GroupNorm, a transposed convolution and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.deep, self.deep_norm = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.GroupNorm(3, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.merge, self.merge_norm = nn.Conv2d(16, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.down_norm(self.down(x)))
        deep = F.silu(self.deep_norm(self.deep(skip)))
        merged = torch.cat((self.up(deep), skip), 1)
        return self.out(F.silu(self.merge_norm(self.merge(merged))))


class PixelShuffle(nn.Module):
    """Super-resolution: the channels become 2 x 2 pixels and are convolved again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grow, self.last = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x))
        x = x + F.leaky_relu(self.body(x))
        return self.last(F.leaky_relu(F.pixel_shuffle(self.grow(x), 2)))


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(10, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.relu(self.fc1(x)))))


class LSTMClassifier(nn.Module):
    """Two layers of LSTM cells over a sequence; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 10, num_layers=2, batch_first=True)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(F.relu(self.project(x)))
        return self.fc(out[:, -1])


class GRUClassifier(nn.Module):
    """A bidirectional GRU; the last hidden states of both directions are classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 6, batch_first=True, bidirectional=True)
        self.hidden, self.fc = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        _, state = self.gru(self.embed(tokens))
        return self.fc(F.relu(self.hidden(torch.cat((state[0], state[1]), 1))))


class Recommender(nn.Module):
    """DLRM: embeddings and a bottom network meet in dot products, a top network ranks."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 8) for rows in (11, 7, 5))
        self.bottom = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 10), nn.ReLU(), nn.Linear(10, 1))
        self.register_buffer("pairs", torch.tril_indices(4, 4, -1), persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        vectors = torch.stack([bottom] + [table(sparse[:, i]) for i, table in enumerate(self.tables)], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat((bottom, dots), dim=1))


class CalledTwice(nn.Module):
    """One layer that is applied twice, so its inputs and outputs are the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(self.again(F.relu(self.again(x)))))


class RawParameters(nn.Module):
    """Functional layers on parameters that belong to no layer module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.weight = nn.Parameter(torch.randn(12, 8) * 0.3)
        self.bias = nn.Parameter(torch.randn(12) * 0.1)
        self.out = nn.Parameter(torch.randn(12, 5) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, padding=1)).mean((2, 3))
        return F.relu(F.linear(x, self.weight, self.bias)) @ self.out
