"""Block-sparse layers to try, each beside the dense layer with zeros that it must equal."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.layers import (
    CPU_JIT,
    DENSE,
    DENSE_ONEDNN,
    ROWLOOP,
    Activation,
    Backend,
    BlockSparseConv2d,
    BlockSparseLinear,
)

BACKENDS = [
    pytest.param(
        backend,
        id=backend.name,
        marks=pytest.mark.skipif(bool(backend.available()), reason=f"{backend.name}: {backend.available()}"),
    )
    for backend in (ROWLOOP, DENSE, DENSE_ONEDNN, CPU_JIT)
]
ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "gelu")


@dataclass(frozen=True)
class LinearCase:
    """Sizes of a linear layer, its blocks, and how much of it is kept."""

    outputs: int
    inputs: int
    height: int
    width: int
    ordered: bool = False
    kept: float = 0.1

    def pair(self, backend: Backend = ROWLOOP, activation: Activation = "none", transposed: bool = False) -> LinearPair:
        """Return the layer and its dense equal, of random weights."""
        dense = nn.Linear(self.inputs, self.outputs)
        mask = torch.rand(self.outputs, self.inputs) < self.kept
        mask[: self.outputs // 3] = False  # some groups keep nothing
        order = torch.randperm(self.outputs) if self.ordered else None
        sparse = BlockSparseLinear.from_dense(
            dense, mask, self.height, self.width, order, activation=activation, backend=backend, transposed=transposed
        )
        with torch.no_grad():
            dense.weight[~mask] = 0
        return LinearPair(sparse, dense)


@dataclass(frozen=True)
class LinearPair:
    """A block-sparse linear layer and the masked dense one."""

    sparse: BlockSparseLinear
    dense: nn.Linear


@dataclass(frozen=True)
class ConvCase:
    """A convolution of 8 channels, its blocks, and the size of its images."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    height: int
    width: int
    image: tuple[int, int]
    ordered: bool = False

    def pair(self, backend: Backend = ROWLOOP, activation: Activation = "none") -> ConvPair:
        """Return the layer and its dense equal, of random weights."""
        dense = nn.Conv2d(8, 40, self.kernel, self.stride, self.padding)
        mask = torch.rand_like(dense.weight) < 0.1
        order = torch.randperm(40) if self.ordered else None
        sparse = BlockSparseConv2d.from_dense(
            dense, mask, self.height, self.width, order, activation=activation, backend=backend
        )
        with torch.no_grad():
            dense.weight[~mask] = 0
        return ConvPair(sparse, dense)


@dataclass(frozen=True)
class ConvPair:
    """A block-sparse convolution and the masked dense one."""

    sparse: BlockSparseConv2d
    dense: nn.Conv2d


def activated(y: Tensor, activation: Activation) -> Tensor:
    """Return the activation by torch."""
    return {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](y)


def close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two float32 results differ by rounding alone."""
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


LINEAR = [
    LinearCase(48, 37, 16, 4),
    LinearCase(100, 64, 32, 16, ordered=True),
    LinearCase(130, 9, 64, 1, ordered=True),
    LinearCase(5, 3, 128, 1, kept=1.0),
    LinearCase(40, 16, 16, 1, kept=0.0),
]
CONV = [
    ConvCase((3, 3), (1, 1), (1, 1), 16, 4, (7, 9), ordered=True),
    ConvCase((3, 3), (2, 2), (1, 1), 32, 1, (8, 7)),
    ConvCase((5, 5), (3, 3), (2, 2), 16, 2, (11, 7), ordered=True),
    ConvCase((1, 3), (1, 2), (0, 1), 16, 8, (5, 6)),
    ConvCase((1, 1), (2, 2), (0, 0), 16, 8, (6, 5), ordered=True),
    ConvCase((1, 1), (1, 1), (1, 1), 64, 4, (3, 3)),
    ConvCase((3, 3), (1, 1), (0, 0), 16, 1, (3, 3)),
]
