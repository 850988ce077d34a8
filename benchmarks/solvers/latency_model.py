"""A synthetic latency table: tiles, overhead and measurement noise, as measured tables have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.solvers.networks import Network, Operator
from solvers.problem import IntArray, Table

__all__ = ["LatencyModel"]


@dataclass(frozen=True)
class LatencyModel:
    """Time of an operator: ``overhead + work * tiles_in * tiles_out / rate``, times one plus noise.

    Channels that are read are rounded up to whole tiles of 32, written ones to 64, as matrix units do; that makes
    staircases. Noise makes the tables neither monotone nor separable. An operator without channels on either side is
    not there and takes no time.

    Attributes
    ----------
    tile_in, tile_out
        Channels per tile.
    overhead_ns
        Nanoseconds of an operator, however small.
    macs_per_ns
        Macs per nanosecond at full tiles.
    noise
        Standard deviation of the relative error of each entry.
    seed
        Of the noise.
    """

    tile_in: int = 32
    tile_out: int = 64
    overhead_ns: int = 5_000
    macs_per_ns: int = 2_000
    noise: float = 0.02
    seed: int = 0

    def tables(self, network: Network, levels: Sequence[IntArray]) -> list[Table]:
        """Return one table of whole nanoseconds per operator that works, over the widths it touches.

        Parameters
        ----------
        levels
            Allowed channels of each width of the network.
        """
        rng = np.random.default_rng(self.seed)
        return [self.table(one, levels, rng) for one in network.operators if one.work]

    def table(self, one: Operator, levels: Sequence[IntArray], rng: np.random.Generator) -> Table:
        """Return the table of one operator; latencies are rounded up, never down."""
        groups = (*one.entering, *(() if one.leaving is None else (one.leaving,)))
        shape = [len(levels[group]) for group in groups]
        channels = np.zeros(shape, dtype=np.int64)
        for axis in range(len(one.entering)):
            channels = channels + _along(levels[groups[axis]], axis, len(shape))
        if not one.entering:
            channels = np.ones(shape, dtype=np.int64)
        there = channels > 0
        # Fixed numbers of channels are part of `work`, so only chosen ones are rounded up to tiles.
        tiles = _whole(channels, self.tile_in) if one.entering else channels
        if one.leaving is not None:
            out = _along(levels[one.leaving], len(shape) - 1, len(shape))
            there = there & (out > 0)
            tiles = tiles * _whole(out, self.tile_out)
        exact = self.overhead_ns + one.work * tiles / self.macs_per_ns
        measured = np.ceil(exact * np.maximum(1 + self.noise * rng.standard_normal(shape), 0.5))
        return Table(groups, np.where(there, measured, 0).astype(np.int64))


def _along(levels: IntArray, axis: int, dimensions: int) -> IntArray:
    """Levels as an array that broadcasts along one axis."""
    return levels.reshape([-1 if other == axis else 1 for other in range(dimensions)])


def _whole(channels: IntArray, tile: int) -> IntArray:
    """Channels rounded up to whole tiles."""
    return -(-channels // tile) * tile
