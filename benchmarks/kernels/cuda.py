"""The same measurement on a CUDA device, with the kernels, checks and clock of :mod:`benchmarks.gpu_kernels`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import gpu_kernels
from benchmarks.gpu_kernels import Layer
from benchmarks.kernels.parts import BLOCKS, DENSITIES, SHAPES, TOKENS
from benchmarks.kernels.row import Row
from structprune.layers import CUDA_TRITON

__all__ = ["CudaGrid"]

MORE_TOKENS = 8192


class CudaGrid:
    """Cells of a CUDA device, and how one of them is measured; a tile is chosen once for each layer and block.

    Parameters
    ----------
    tune
        Time the candidate tiles and use the fastest.
    """

    def __init__(self, tune: bool) -> None:
        self.device = torch.device("cuda")
        self.tune = tune
        self.tiles: dict[tuple[Layer, int, int], gpu_kernels.Tile] = {}

    @staticmethod
    def missing() -> str:
        """Return why nothing can be measured here, '' if it can."""
        if not torch.cuda.is_available():
            return "torch sees no CUDA device. Run this where one is."
        return CUDA_TRITON.available()

    @staticmethod
    def cells(quick: bool) -> Iterator[gpu_kernels.Cell]:
        """Yield the grid of gpu_kernels, then those of the CPU's layers that it lacks, with more tokens too."""
        if quick:
            yield gpu_kernels.Cell(Layer("1024x1024", 1024, 1024, 1024), 64, 16, 0.25)
            return
        yield from gpu_kernels.cells()
        known = {(layer.outputs, layer.inputs, layer.tokens) for layer in gpu_kernels.LAYERS}
        for outputs, inputs in SHAPES:
            for tokens in (*TOKENS, MORE_TOKENS):
                if (outputs, inputs, tokens) in known:
                    continue
                for height, width in BLOCKS:
                    for density in DENSITIES:
                        yield gpu_kernels.Cell(
                            Layer(f"{outputs}x{inputs}", outputs, inputs, tokens), height, width, density
                        )

    @staticmethod
    def name(cell: gpu_kernels.Cell) -> str:
        """Return the name that finds the cell again in saved results."""
        layer = cell.layer
        return f"{layer.name}, {layer.tokens} tokens, bfloat16, {cell.height}x{cell.width}, d={cell.density:g}"

    def roofs(self) -> dict[str, float]:
        """Return the device's rates."""
        return gpu_kernels.roofs(self.device, gpu_kernels.cuda_times)

    def measured(self, cell: gpu_kernels.Cell) -> Row:
        """Check and time one cell."""
        layer, key = cell.layer, (cell.layer, cell.height, cell.width)
        if key not in self.tiles:
            self.tiles[key] = gpu_kernels.tile_of(cell, self.device, self.tune)
        found = gpu_kernels.measured(
            cell, self.device, gpu_kernels.cuda_times, self.tiles[key], np.random.default_rng(0)
        )
        times = {"cuBLAS": found.dense_us, "cuda-triton": found.sparse_us}
        if found.bsr_us is not None:
            times["torch BSR"] = found.bsr_us
        return Row(
            *(self.name(cell), f"{layer.name}, {layer.tokens} tokens", "bfloat16"),
            *(cell.height, cell.width, cell.density),
            kind="linear",
            shape=(layer.outputs, layer.inputs),
            tokens=layer.tokens,
            times_us=times,
            samples=dict.fromkeys(times, gpu_kernels.ROUNDS),
            facts={
                "gradient_us": found.gradient_us,
                "dense_gradient_us": found.dense_gradient_us,
                "error": found.error,
            },
        )
