"""What a block size and a nominal sparsity remove, from the shapes of the weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import nn

from benchmarks.grid.cell import kept_blocks

__all__ = ["FEWEST", "Removal", "removal", "weight_shapes"]

FEWEST = 100
"""Layers with fewer blocks stay dense (Yasuda et al. 2024, section 4.1)."""


@dataclass(frozen=True)
class Removal:
    """What goes.

    Attributes
    ----------
    real
        Removed weights as a fraction of all convolution and linear weights.
    dense_layers, layers
        Layers that stay as they are, of all.
    weights
        Of all layers.
    blocks, kept
        Of the pruned layers.
    """

    real: float
    dense_layers: int
    layers: int
    weights: int
    blocks: int
    kept: int


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all convolution and linear weights by module name."""
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def removal(shapes: Mapping[str, tuple[int, ...]], block: int, sparsity: float, fewest: int = FEWEST) -> Removal:
    """Count the blocks of every layer as the paper does, and the weights that go with them.

    A convolution (outputs, inputs, height, width) is the matrix of (height x width x inputs) rows and (outputs)
    columns, cut into squares from its first row and column; those at the far edges may be smaller. A layer of n such
    blocks keeps round((1 - s) n), and a layer of fewer than ``fewest`` keeps all. A block at the edge counts like a
    whole one: weights go in proportion to blocks.

    Parameters
    ----------
    shapes
        Of the weights, by name.
    block
        Side of a square block.
    sparsity
        Nominal: fraction of the blocks of a pruned layer that go.
    fewest
        Fewest blocks of a layer that is pruned.
    """
    removed, dense, blocks, stay = 0.0, 0, 0, 0
    for outputs, inputs, *taps in shapes.values():
        rows, columns = -(-inputs * prod(taps) // block), -(-outputs // block)
        count = rows * columns
        if count < fewest:
            dense += 1
            continue
        kept = kept_blocks(count, sparsity)
        blocks, stay = blocks + count, stay + kept
        removed += (1 - kept / count) * outputs * inputs * prod(taps)
    weights = sum(prod(shape) for shape in shapes.values())
    return Removal(removed / weights, dense, len(shapes), weights, blocks, stay)
