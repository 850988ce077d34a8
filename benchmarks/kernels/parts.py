"""What is measured: layers, the tokens they are given, and the patterns of blocks they keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BLOCKS", "DENSITIES", "Cell", "Convolution", "Linear", "Training", "cells"]

BLOCKS = ((64, 1), (64, 16), (32, 32), (16, 16))  # outputs x inputs
DENSITIES = (0.5, 0.25, 0.1, 0.05)
DTYPES = ("float32", "bfloat16")
SHAPES = ((1024, 1024), (3072, 768), (768, 3072), (4096, 4096))  # outputs, inputs; the targets' first
TOKENS = (1, 16, 128, 1024)
QUICK_TOKENS = (1, 16)
QUICK_BLOCKS = ((64, 16), (32, 32))
QUICK_DENSITIES = (0.25,)


@dataclass(frozen=True)
class Linear:
    """A linear layer and the number of tokens it is given."""

    outputs: int
    inputs: int
    tokens: int

    def __str__(self) -> str:
        """Return its name in tables."""
        return f"linear {self.outputs}x{self.inputs}, {self.tokens} tokens"


@dataclass(frozen=True)
class Training:
    """A training step of a linear layer and the number of tokens it is given."""

    outputs: int
    inputs: int
    tokens: int

    def __str__(self) -> str:
        """Return its name in tables."""
        return f"training step {self.outputs}x{self.inputs}, {self.tokens} tokens"


@dataclass(frozen=True)
class Convolution:
    """A 3 x 3 convolution of as many channels as it returns, padding 1, and the images it is given."""

    channels: int
    size: int
    images: int

    @property
    def tokens(self) -> int:
        """Number of output positions, a linear layer's tokens."""
        return self.images * self.size**2

    def __str__(self) -> str:
        """Return its name in tables."""
        return f"conv 3x3, {self.channels} channels, {self.size}x{self.size}, {self.images} images"


STEPS = (Training(1024, 1024, 128), Training(1024, 1024, 1024))
STEP_BLOCKS = ((64, 1), (64, 16), (64, 64), (32, 32))
STEP_DENSITIES = (0.5, 0.25, 0.1)
CONVOLUTIONS = (Convolution(128, 28, 1), Convolution(256, 14, 1), Convolution(256, 14, 8), Convolution(512, 7, 8))


@dataclass(frozen=True)
class Cell:
    """A layer in one type, with one pattern of blocks."""

    layer: Linear | Convolution | Training
    dtype: str
    height: int
    width: int
    density: float

    def __str__(self) -> str:
        """Return its name, which finds it again in saved results."""
        return f"{self.layer}, {self.dtype}, {self.height}x{self.width}, d={self.density:g}"


def cells(quick: bool) -> Iterator[Cell]:
    """Yield the grid for CPUs, a few cells of it if ``quick``."""
    tokens = QUICK_TOKENS if quick else TOKENS
    blocks, densities = (QUICK_BLOCKS, QUICK_DENSITIES) if quick else (BLOCKS, DENSITIES)
    small: list[Linear | Convolution] = [Linear(*shape, count) for shape in SHAPES[:2] for count in tokens]
    large: list[Linear | Convolution] = [Linear(*shape, count) for shape in SHAPES[2:] for count in tokens]
    layers = [*small[: len(tokens)], CONVOLUTIONS[0]] if quick else [*small, *CONVOLUTIONS, *large]
    for layer in layers:
        for dtype in DTYPES:
            for height, width in blocks:
                for density in densities:
                    yield Cell(layer, dtype, height, width, density)
    for step in STEPS[:1] if quick else STEPS:
        for height, width in blocks if quick else STEP_BLOCKS:
            for density in densities if quick else STEP_DENSITIES:
                yield Cell(step, "float32", height, width, density)
