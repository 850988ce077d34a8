"""What the kernels are meant to reach, and whether measured rows say that they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kernels.row import Row

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
    kind: str = "linear"

    def meant(self, row: Row) -> bool:
        """Whether the target is about this row."""
        if (row.dtype, row.kind) != (self.dtype, self.kind) or (row.height, row.width) not in self.blocks:
            return False
        return self.kind == "conv" or (row.shape in MAIN_SHAPES and row.tokens in MAIN_TOKENS)


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
TARGETS = (
    Target("float32, 64 tall", "float32", TALL, {0.5: 0.55, 0.25: 0.30, 0.1: 0.15}),
    Target("float32, 32x32", "float32", ((32, 32),), {0.5: 0.62, 0.25: 0.33, 0.1: 0.16}),
    Target("bfloat16, 64x16", "bfloat16", ((64, 16),), {0.5: 0.56, 0.25: 0.31, 0.1: 0.16}),
    Target("3x3 convolution, float32, 64 tall", "float32", TALL, {0.5: 0.70, 0.25: 0.38, 0.1: 0.20}, "conv"),
)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return a verdict for each target and density, then those against the libraries."""
    found = []
    for target in TARGETS:
        for density, limit in target.limits.items():
            ratios = {row.name: row.ratio for row in rows if row.density == density and target.meant(row)}
            found.append(verdict(f"{target.name}, d={density:g}", f"<= {limit:g} of the best dense", ratios, limit))
    several = {row.name: value for row, value in against_libraries(rows) if row.tokens >= SEVERAL_TOKENS}
    single = {row.name: value for row, value in against_libraries(rows) if row.tokens == 1}
    # The next number below 1: a tie is not faster.
    found.append(verdict("libraries, 16 tokens and more", "faster than the best of them", several, 1 - 1e-9))
    found.append(verdict("libraries, 1 token", "at most 10 % behind the best of them", single, MOST_BEHIND))
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
