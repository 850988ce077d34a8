"""What the kernels are meant to reach, and whether measured rows say that they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kernels.row import NUMBA, Row

__all__ = ["Verdict", "verdicts"]

MAIN_SHAPES = ((1024, 1024), (3072, 768))
MAIN_TOKENS = (16, 128, 1024)
MOST_BEHIND = 1.10  # of the best library, at one token
SEVERAL_TOKENS = 16


@dataclass(frozen=True)
class Target:
    """Times as shares of the best dense layer's, by density, for cells of some form."""

    name: str
    dtype: str
    blocks: tuple[tuple[int, int], ...]
    limits: Mapping[float, float]
    shapes: tuple[tuple[int, int], ...] = MAIN_SHAPES
    tokens: tuple[int, ...] = MAIN_TOKENS
    kind: str = "linear"

    def meant(self, row: Row) -> bool:
        """Whether the target is about this row; of convolutions all sizes are meant."""
        if (row.dtype, row.kind) != (self.dtype, self.kind) or (row.height, row.width) not in self.blocks:
            return False
        return self.kind == "conv" or (row.shape in self.shapes and row.tokens in self.tokens)


@dataclass(frozen=True)
class Verdict:
    """A target at one density: what was asked, the worst cell, and whether all cells hold; None if none was measured.

    ``worst`` is the largest ratio and ``where`` its cell; ``holding`` of ``measured`` cells keep the limit.
    """

    name: str
    asked: str
    worst: float | None
    where: str
    holding: int
    measured: int

    @property
    def holds(self) -> bool | None:
        """Whether every measured cell keeps the limit."""
        return None if not self.measured else self.holding == self.measured


TALL = ((64, 1), (64, 16))
TALLER = ((128, 1), (128, 16))
BF16 = "bfloat16"
SQUARE, MIDDLE, FEEDFORWARD = (4096, 4096), (1024, 1024), ((3072, 768), (768, 3072))
ON_CPU = (
    Target("float32, 64 tall", "float32", TALL, {0.5: 0.55, 0.25: 0.30, 0.1: 0.15}),
    Target("float32, 32x32", "float32", ((32, 32),), {0.5: 0.62, 0.25: 0.33, 0.1: 0.16}),
    Target("bfloat16, 64x16", BF16, ((64, 16),), {0.5: 0.56, 0.25: 0.31, 0.1: 0.16}),
    Target("3x3 convolution, float32, 64 tall", "float32", TALL, {0.5: 0.70, 0.25: 0.38, 0.1: 0.20}, kind="conv"),
    Target(
        *("training step, float32, 64x16, 64x64", "float32", ((64, 16), (64, 64)), {0.5: 0.58, 0.25: 0.34, 0.1: 0.20}),
        shapes=((1024, 1024),),
        tokens=(128, 1024),
        kind="training",
    ),
)
# Before any kernel was timed on a CUDA device: from a model of memory, cache and tensor cores of an H200.
ON_CUDA = (
    Target("4096x4096, 128 tall", BF16, TALLER, {0.5: 0.85, 0.25: 0.45, 0.1: 0.20, 0.05: 0.13}, (SQUARE,), (8192,)),
    Target("4096x4096, 64 tall", BF16, TALL, {0.25: 0.72, 0.1: 0.32, 0.05: 0.18}, (SQUARE,), (8192,)),
    Target("4096x4096, 32x32", BF16, ((32, 32),), {0.1: 0.60, 0.05: 0.32}, (SQUARE,), (8192,)),
    Target("4096x4096, 16x16", BF16, ((16, 16),), {0.1: 1.0, 0.05: 0.60}, (SQUARE,), (8192,)),
    Target("ViT-B, 128 tall", BF16, TALLER, {0.5: 0.88, 0.25: 0.50, 0.1: 0.40, 0.05: 0.36}, FEEDFORWARD, (12608,)),
    Target("1024x1024, 128 tall", BF16, TALLER, {0.5: 0.88, 0.25: 0.52, 0.1: 0.45, 0.05: 0.42}, (MIDDLE,), (16384,)),
    Target("decoding, 64 tall", BF16, TALL, {0.5: 0.70, 0.25: 0.50, 0.1: 0.40, 0.05: 0.35}, (SQUARE,), (1, 16)),
)
BSR_ON_CUDA = {64: 1 / 1.3, 32: 1 / 2, 16: 1 / 2}  # by side of the block, of the time of torch's kernel


def verdicts(rows: Sequence[Row], device: str) -> list[Verdict]:
    """Return a verdict for each target of a device ('cpu' or 'cuda') and density, then those against the libraries."""
    found = []
    for target in ON_CPU if device == "cpu" else ON_CUDA:
        for density, limit in target.limits.items():
            ratios = {row.name: row.ratio for row in rows if row.density == density and target.meant(row)}
            found.append(verdict(f"{target.name}, d={density:g}", f"<= {limit:g} of the best dense", ratios, limit))
    compared = against_libraries(rows)
    if device == "cuda":
        for side, limit in BSR_ON_CUDA.items():
            ratios = {row.name: value for row, value in compared if row.height == row.width == side}
            found.append(verdict(f"torch BSR, {side}x{side}", f"<= {limit:.2f} of its time", ratios, limit))
        return found
    looped = [(row, row.own_us / row.times_us[NUMBA]) for row in rows if NUMBA in row.times_us]
    below = math.nextafter(1, 0)  # a tie is not faster
    for who, pairs in {"torch BSR and CSR, scipy BSR": compared, "loop in numba": looped}.items():
        several = {row.name: value for row, value in pairs if row.tokens >= SEVERAL_TOKENS}
        single = {row.name: value for row, value in pairs if row.tokens == 1}
        found.append(verdict(f"{who}, 16 tokens and more", "faster than the best of them", several, below))
        found.append(verdict(f"{who}, 1 token", "at most 10 % behind the best of them", single, MOST_BEHIND))
    return found


def against_libraries(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return rows that a library takes too, with our time as a share of the fastest one's."""
    return [(row, ratio) for row in rows if (ratio := row.ratio_to_library) is not None]


def verdict(name: str, asked: str, ratios: Mapping[str, float], limit: float) -> Verdict:
    """Compare ratios by cell with their limit."""
    if not ratios:
        return Verdict(name, asked, None, "", 0, 0)
    where = max(ratios, key=ratios.__getitem__)
    return Verdict(name, asked, ratios[where], where, sum(ratio <= limit for ratio in ratios.values()), len(ratios))
