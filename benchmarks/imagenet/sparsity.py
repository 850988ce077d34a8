"""What a block size and a nominal sparsity remove, from the shapes of the weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from benchmarks.grid.cell import kept_blocks

__all__ = ["FEWEST", "Removal", "left_dense", "removal", "weight_shapes"]

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
    """Return the shapes of all convolution and linear weights by module name; those of grouped convolutions too."""
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def grouped(model: nn.Module) -> frozenset[str]:
    """Return the names of convolutions in groups, depthwise ones among them, which stay as they are."""
    return frozenset(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1)


def blocks_of(shape: tuple[int, ...], block: int) -> int:
    """Return how many blocks a weight has.

    A convolution (outputs, inputs, height, width) is the matrix of (height x width x inputs) rows and (outputs)
    columns, cut into squares from its first row and column; those at the far edges may be smaller.
    """
    outputs, inputs, *taps = shape
    return -(-inputs * prod(taps) // block) * -(-outputs // block)


def left_dense(model: nn.Module, block: int, fewest: int = FEWEST) -> tuple[str, ...]:
    """Return the names of layers that are not pruned: those of few blocks, and grouped convolutions."""
    apart = grouped(model)
    return tuple(
        name for name, shape in weight_shapes(model).items() if name in apart or blocks_of(shape, block) < fewest
    )


def removal(model: nn.Module, block: int, sparsity: float, fewest: int = FEWEST) -> Removal:
    """Count the blocks of every layer as the paper does, and the weights that go with them.

    A layer of n blocks keeps round((1 - s) n), and one of fewer than ``fewest`` keeps all. A block at the edge counts
    like a whole one: weights go in proportion to blocks.

    Parameters
    ----------
    model
        The network; its shapes alone matter, so that it may be one on the device ``meta``.
    block
        Side of a square block.
    sparsity
        Nominal: fraction of the blocks of a pruned layer that go.
    fewest
        Fewest blocks of a layer that is pruned.
    """
    shapes, dense = weight_shapes(model), left_dense(model, block, fewest)
    removed, blocks, stay = 0.0, 0, 0
    for name, shape in shapes.items():
        if name in dense:
            continue
        count = blocks_of(shape, block)
        kept = kept_blocks(count, sparsity)
        blocks, stay = blocks + count, stay + kept
        removed += (1 - kept / count) * prod(shape)
    weights = sum(prod(shape) for shape in shapes.values())
    return Removal(removed / weights, len(dense), len(shapes), weights, blocks, stay)
