"""One measurement of a grid: a method at one block size, sparsity and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

__all__ = ["DENSE", "Cell", "cells_of", "kept_blocks"]

DENSE = "dense"  # the network as it is: neither block size nor sparsity matter


@dataclass(frozen=True, order=True)
class Cell:
    """What is measured.

    Attributes
    ----------
    network
        Name of the network or recipe.
    method
        Name of the method.
    block
        Side of the square blocks; 0 for dense networks and for channels.
    sparsity
        Fraction of the blocks of each eligible layer that goes; 0 for dense networks.
    seed
        Of initial weights and of the data's order.
    """

    network: str
    method: str
    block: int
    sparsity: float
    seed: int

    @property
    def key(self) -> str:
        """A name for files."""
        method = self.method.replace(": ", "-").replace(" ", "-")
        return f"{self.network}-{method}-b{self.block}-s{1e4 * self.sparsity:04.0f}-seed{self.seed}"

    @property
    def asked(self) -> str:
        """The cell in words."""
        if not self.sparsity:
            return f"{self.network}, {self.method}, seed {self.seed}"
        blocks = f"{self.block} x {self.block} blocks" if self.block else "channels"
        return f"{self.network}, {self.method}, {blocks}, {self.sparsity:.0%}, seed {self.seed}"


def cells_of(
    networks: Sequence[str],
    methods: Sequence[str],
    blocks: Sequence[int],
    sparsities: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """Return the grid, seed by seed, so that an interrupted night has whole tables of fewer seeds.

    The dense network comes first and once for each network and seed.
    """
    pruned = [method for method in methods if method != DENSE]
    cells = []
    for seed, network in product(seeds, networks):
        if DENSE in methods:
            cells.append(Cell(network, DENSE, 0, 0.0, seed))
        cells += [Cell(network, method, *at, seed) for at in product(blocks, sparsities) for method in pruned]
    return cells


def kept_blocks(count: int, sparsity: float) -> int:
    """Return ``k = round((1 - s) n)``, halves rounded up; the fraction is read as its decimals say, 0.98 as 98 %.

    Raises
    ------
    ValueError
        If the sparsity is no fraction below 1.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"Expected a sparsity in [0, 1). Got {sparsity}. Pass 0.9 to remove nine in ten.")
    density = 10**6 - round(sparsity * 10**6)
    return (2 * count * density + 10**6) // (2 * 10**6)
