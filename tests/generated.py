"""Small networks drawn at random by hypothesis: every layer that prunes in its own way, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from structprune.structures import Structures
from tests.cases import unsettle

Draw = Callable[[st.SearchStrategy[Any]], Any]
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.Softplus)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Concat(nn.Module):
    """The outputs of several branches, and what came in, side by side."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(branch(x) for branch in self.branches)], dim=1)


class Halves(nn.Module):
    """One half of the channels is worked on; the halves are swapped, multiplied or interleaved."""

    def __init__(self, body: nn.Module, join: str, by: str) -> None:
        super().__init__()
        self.body, self.join, self.by = body, join, by

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        first, second = x.chunk(2, 1) if self.by == "chunk" else (x[:, :half], x[:, half:])
        second = self.body(second)
        if self.join == "gate":
            return first * second.sigmoid()
        if self.join == "swap":
            return torch.cat((second, first), 1)
        return torch.stack((first, second), 2).flatten(1, 2)


class Shuffle(nn.Module):
    """Channel shuffle with a fixed number of groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Attention(nn.Module):
    """Attention over the pixels: projections fused or not, scores by hand or by the fused operator."""

    def __init__(self, width: int, heads: int, per_head: int, fused: bool, by_hand: bool, norm: bool) -> None:
        super().__init__()
        inner = heads * per_head
        self.heads, self.per_head, self.by_hand = heads, per_head, by_hand
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.qkv = nn.Linear(width, 3 * inner) if fused else None
        self.separate = None if fused else nn.ModuleList(nn.Linear(width, inner) for _ in range(3))
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        split = (batch, height * width, self.heads, self.per_head)
        if self.qkv is not None:
            q, k, v = (part.reshape(split).transpose(1, 2) for part in self.qkv(normed).chunk(3, dim=-1))
        else:
            assert self.separate is not None
            q, k, v = (layer(normed).view(split).transpose(1, 2) for layer in self.separate)
        if self.by_hand:
            mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(batch, height * width, -1))
        return tokens.transpose(1, 2).reshape(batch, -1, height, width)


@st.composite
def networks(draw: Draw) -> nn.Module:
    """A network that takes :func:`images`."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    layers, channels = _features(draw, 3, draw(st.integers(2, 5)), depth=0)
    pixels: int = draw(st.sampled_from([1, 2]))
    layers.append(nn.AdaptiveAvgPool2d(pixels))
    layers.append(nn.Flatten())
    width = channels * pixels**2
    for _ in range(draw(st.integers(0, 2))):
        hidden = draw(st.integers(2, 9))
        layers += [nn.Linear(width, hidden, bias=draw(st.booleans())), draw(st.sampled_from(ACTIVATIONS))()]
        width = hidden
    layers.append(nn.Linear(width, 3))
    return unsettle(nn.Sequential(*layers)).eval()


def images() -> Tensor:
    """Two images that every generated network takes."""
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def _features(draw: Draw, channels: int, count: int, depth: int) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for _ in range(count):
        more, channels = _step(draw, channels, depth)
        layers += more
    return layers, channels


def _step(draw: Draw, channels: int, depth: int) -> tuple[list[nn.Module], int]:
    """Some layers that keep images as images, and the number of channels after them."""
    kinds = ["conv", "conv", "up", "gate", "group_norm", "shuffle", "attention", "pixel_shuffle", "pool"]
    kind = draw(st.sampled_from(kinds + ["residual", "concat", "halves"] * (depth < 2)))
    if kind == "gate":
        return [Gate(channels, draw(st.integers(2, 4)))], channels
    if kind == "group_norm":
        return [nn.GroupNorm(draw(st.sampled_from(_divisors(channels))), channels)], channels
    if kind == "shuffle":
        return [Shuffle(draw(st.sampled_from(_divisors(channels))))], channels
    if kind == "pool":
        return [draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(3, stride=1, padding=1)], channels
    if kind == "pixel_shuffle" and channels % 4 == 0 and channels > 4:
        return [nn.PixelShuffle(2), nn.AvgPool2d(2)], channels // 4
    if kind == "attention":
        heads, per_head = draw(st.integers(1, 3)), draw(st.integers(2, 4))
        return [Attention(channels, heads, per_head, *(draw(st.booleans()) for _ in range(3)))], channels
    if kind == "residual":
        body, inner = _features(draw, channels, draw(st.integers(1, 2)), depth + 1)
        return [Residual(nn.Sequential(*body, nn.Conv2d(inner, channels, 1)))], channels
    if kind == "concat":
        branches = [_features(draw, channels, 1, depth + 1) for _ in range(draw(st.integers(1, 2)))]
        return [Concat([nn.Sequential(*body) for body, _ in branches])], channels + sum(width for _, width in branches)
    if kind == "halves" and channels % 2 == 0:
        half = channels // 2
        join, by = draw(st.sampled_from(["gate", "swap", "weave"])), draw(st.sampled_from(["chunk", "slice"]))
        body, inner = _features(draw, half, 1, depth + 1)
        return [Halves(nn.Sequential(*body, nn.Conv2d(inner, half, 1)), join, by)], half * (1 if join == "gate" else 2)
    return _convolution(draw, channels, "up" if kind == "up" else "conv")


def _convolution(draw: Draw, channels: int, kind: str) -> tuple[list[nn.Module], int]:
    groups = draw(st.sampled_from([1, 1, *_divisors(channels)]))
    out = groups * draw(st.integers(1 if groups > 1 else 2, max(2, 8 // groups)))
    bias, norm = draw(st.booleans()), draw(st.booleans())
    layer: nn.Module
    if kind == "up":
        layer = nn.ConvTranspose2d(channels, out, 3, stride=1, padding=1, groups=groups, bias=bias)
    else:
        dilation, kernel = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
        pad = dilation * (kernel // 2)
        layer = nn.Conv2d(channels, out, kernel, 1, pad, dilation, groups=groups, bias=bias)
        if draw(st.booleans()) and draw(st.booleans()):  # strided, then back to the size that residuals need
            layer = nn.Sequential(
                nn.Conv2d(channels, out, kernel, 2, pad, dilation, groups=groups, bias=bias), nn.Upsample((6, 6))
            )
    layers = [layer, nn.BatchNorm2d(out)] if norm else [layer]
    return [*layers, draw(st.sampled_from(ACTIVATIONS))()], out


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def random_selection(structures: Structures, keep: float, seed: int, least: int = 1) -> np.ndarray:
    """Each structure kept with probability ``keep``, at least ``least`` of every axis."""
    rng = np.random.default_rng(seed)
    selection = rng.random(structures.n) < keep
    for axis in structures.axes:
        selection[axis.start + rng.permutation(axis.size)[:least]] = True
    return selection
