"""N:M masks: at most ``n`` of every ``m`` consecutive entries are kept, along one axis or along both at once.

Along one axis the best mask keeps the best ``n`` of each group. A *transposable* mask satisfies the pattern along the
rows and the columns of every ``m`` x ``m`` tile, so that the transposed matrix of the backward pass is sparse as well:

    maximise   sum_ij values_ij x_ij,   sum_j x_ij <= n,   sum_i x_ij <= n,   x in {0, 1}^(m x m)   for every tile,

a bipartite b-matching, whose linear relaxation has integral corners. `TransposableFlow` solves it tile by tile as a
minimum-cost flow. `Transposable` works on all tiles at once: entropic transport gives a fractional mask, rounding a
feasible one, exchanges along improving cycles the optimum, and the dual prices of rows and columns prove it.

References
----------
Mishra et al., "Accelerating sparse deep neural networks", arXiv 2104.08378 (2021): 2:4.
Hubara et al., "Accelerated sparse neural training: a provable and efficient method to find N:M transposable masks",
NeurIPS 2021: the flow.
Meng, Makni, Mazumder, "TSENOR: highly-efficient algorithm for finding transposable N:M sparse masks" (2025): entropic
transport with Dykstra's correction, then rounding.
Klein, "A primal method for minimal cost flows", Management Science 14 (1967): cycles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from solvers.bounds.tiles import tile_bounds
from solvers.cycles import improve_tiles, row_prices
from solvers.problem import BoolArray, FloatArray
from solvers.result import Limit
from solvers.structured import MaskResult, checked_values, finished, kept_value
from solvers.transport import maximum_transport

__all__ = ["NM", "Transposable", "TransposableFlow", "is_nm", "is_transposable"]

#: Entries worked on at once by the batched method; a tile of side m needs m times as many numbers beside them.
_CHUNK = 1 << 20


def _check_pattern(n: int, m: int) -> None:
    if not 0 <= n <= m or m < 1:
        raise ValueError(f"Expected n of m with 0 <= n <= m, m >= 1. Got {n} of {m}. Give n:m such as 2, 4.")


@dataclass(frozen=True)
class NM:
    """Keeps the best ``n`` of every ``m`` consecutive entries along an axis; exact.

    Parameters
    ----------
    n, m
        The pattern; 2, 4 is what sparse tensor cores take. A shorter last group keeps at most ``n`` as well.
    axis
        The axis along which entries are grouped.

    Raises
    ------
    ValueError
        Not ``0 <= n <= m``.
    """

    n: int
    m: int
    axis: int = -1

    def __post_init__(self) -> None:
        _check_pattern(self.n, self.m)

    def solve(self, values: ArrayLike) -> MaskResult:
        """Best mask of ``values``, of any shape; values below 0 are never kept, ties go to the first entry.

        Raises
        ------
        ValueError
            Values that are not finite, or no such axis.
        """
        started = time.perf_counter()
        array = checked_values(values, None)
        if not -array.ndim <= self.axis < array.ndim:
            raise ValueError(f"Expected an axis of values of shape {array.shape}. Got {self.axis}. Name one of theirs.")
        moved = np.moveaxis(array, self.axis, -1)
        length = moved.shape[-1]
        padded = np.full((*moved.shape[:-1], -(-length // self.m) * self.m), -np.inf)
        padded[..., :length] = moved
        groups = padded.reshape(-1, self.m)
        best = np.argsort(-groups, axis=1, kind="stable")[:, : self.n]
        kept = np.zeros(groups.shape, dtype=bool)
        np.put_along_axis(kept, best, np.take_along_axis(groups, best, axis=1) >= 0, axis=1)
        selection = np.ascontiguousarray(np.moveaxis(kept.reshape(padded.shape)[..., :length], -1, self.axis))
        # Groups do not interact and each is sorted: the value of the mask is its own bound.
        return finished(array, selection, kept_value(array, selection), time.perf_counter() - started)


@dataclass(frozen=True)
class TransposableFlow:
    """Best transposable mask by one minimum-cost flow per tile; exact, and the faster way from tiles of side 16 on.

    Parameters
    ----------
    n, m
        The pattern.
    time_limit
        Wall seconds; tiles not reached by then stay empty, and count with their dual bound.

    Raises
    ------
    ValueError
        Not ``0 <= n <= m``, or a time limit below 0.
    """

    n: int
    m: int
    time_limit: float | None = None

    def __post_init__(self) -> None:
        _check_pattern(self.n, self.m)
        _check_time(self.time_limit)

    def solve(self, values: ArrayLike) -> MaskResult:
        """Best mask of ``values``, shape ``(R, C)``. Raises ValueError for values that are not a finite table."""
        clock = _Clock(self.time_limit)
        array = checked_values(values, 2)
        tiles = _tiles(array, self.m)
        kept = np.zeros(tiles.shape, dtype=bool)
        bounds = tile_bounds(tiles, np.zeros(tiles.shape[:2]), self.n)
        none, most = np.zeros(self.m, dtype=np.int64), np.full(self.m, self.n)
        try:
            for number, tile in enumerate(tiles):
                if clock.expired():
                    break
                found = maximum_transport(tile, none, most, none, most)
                assert found is not None  # the empty mask is within all counts
                kept[number], bounds[number] = found.selection & (tile > 0), found.bound
        except KeyboardInterrupt:
            clock.limit = Limit.INTERRUPTED
        return _answer(array, kept, bounds, clock, 0, "Allow more time.")


@dataclass(frozen=True)
class Transposable:
    """Best transposable masks of many tiles at once, with a bound; optimal unless its rounds or time run out.

    The faster way for tiles of side 4 and 8, of which there are many.

    Parameters
    ----------
    n, m
        The pattern.
    rounds
        Most exchanges along a cycle in each tile after rounding; 0 gives the rounded mask and its gap.
    sweeps
        Iterations of entropic transport before rounding; 0 rounds the values themselves, which is soonest at the
        optimum. Without exchanges, 100 iterations come much closer to it than none.
    sharpness
        Inverse temperature of the transport, for values scaled to at most 1 in each tile.
    time_limit
        Wall seconds, checked between rounds; every tile has a feasible mask at any time.
    seed
        Recorded in the result; the method has no randomness.

    Raises
    ------
    ValueError
        Not ``0 <= n <= m``, or numbers below 0.
    """

    n: int
    m: int
    rounds: int = 1000
    sweeps: int = 0
    sharpness: float = 40.0
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_pattern(self.n, self.m)
        _check_time(self.time_limit)
        if self.rounds < 0 or self.sweeps < 0 or not 0 < self.sharpness < math.inf:
            raise ValueError(
                f"Expected rounds and sweeps of at least 0 and a sharpness above 0. Got {self.rounds}, {self.sweeps} "
                f"and {self.sharpness}. The defaults suit values of any scale."
            )

    def solve(self, values: ArrayLike) -> MaskResult:
        """Best mask of ``values``, shape ``(R, C)``. Raises ValueError for values that are not a finite table."""
        clock = _Clock(self.time_limit)
        array = checked_values(values, 2)
        tiles = _tiles(array, self.m)
        kept = np.zeros(tiles.shape, dtype=bool)
        bounds = tile_bounds(tiles, np.zeros(tiles.shape[:2]), self.n)
        size = max(1, _CHUNK // self.m**2)
        try:
            for first in range(0, len(tiles), size):
                part = slice(first, first + size)
                self._solve_part(tiles[part], kept[part], bounds[part], clock.expired)
        except KeyboardInterrupt:
            clock.limit = Limit.INTERRUPTED
        remedy = "Allow more rounds." if clock.limit is None else "Allow more time."
        return _answer(array, kept, bounds, clock, self.seed, remedy)

    def _solve_part(self, tiles: FloatArray, kept: BoolArray, bounds: FloatArray, expired: Callable[[], bool]) -> None:
        """Fill ``kept`` and lower ``bounds`` of some tiles, in place."""
        # Each tile on its own scale: temperatures and tolerances then mean the same in all.
        scale = np.maximum(np.abs(tiles).max(axis=(1, 2)), np.finfo(np.float64).tiny)
        scaled = tiles / scale[:, None, None]
        wanted = scaled if expired() else entropic_transport(scaled, self.n, self.sweeps, self.sharpness)
        kept[:] = rounded(scaled, wanted, self.n)
        improve_tiles(scaled, kept, self.n, self.rounds, expired)
        np.minimum(bounds, tile_bounds(tiles, row_prices(scaled, kept, self.n) * scale[:, None], self.n), out=bounds)


def entropic_transport(values: FloatArray, n: int, sweeps: int, sharpness: float) -> FloatArray:
    """Fractional masks in ``[0, 1]`` with rows and columns of about ``n`` at most, favouring large values.

    Minimises ``sum x (log x - 1) - sharpness * values x`` by Dykstra's projections in the Kullback-Leibler geometry:
    rows and columns are scaled down to their capacity, entries cut at 1; each projection onto an inequality first
    takes back its last correction. Logarithms throughout.

    Parameters
    ----------
    values
        ``(T, m, m)``, at most 1 in absolute value.
    """
    if n == 0:
        return np.zeros(values.shape)
    mask = sharpness * values
    of_rows, of_columns = np.zeros((len(values), values.shape[1], 1)), np.zeros((len(values), 1, values.shape[2]))
    of_entries = np.zeros(values.shape)
    for _ in range(sweeps):
        mask += of_rows
        of_rows = np.maximum(_log_sum(mask, 2) - math.log(n), 0.0)
        mask -= of_rows
        mask += of_columns
        of_columns = np.maximum(_log_sum(mask, 1) - math.log(n), 0.0)
        mask -= of_columns
        mask += of_entries
        of_entries = np.maximum(mask, 0.0)
        mask -= of_entries
    return np.exp(np.minimum(mask, 0.0)) if sweeps else values


def _log_sum(logarithms: FloatArray, axis: int) -> FloatArray:
    largest = logarithms.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(logarithms - largest).sum(axis=axis, keepdims=True))


def rounded(values: FloatArray, wanted: FloatArray, n: int) -> BoolArray:
    """Feasible masks ``(T, m, m)``: entries by falling ``wanted``, each taken while its row and column have room."""
    count, side, _ = values.shape
    order = np.argsort(-wanted.reshape(count, -1), axis=1, kind="stable")
    kept = np.zeros(values.shape, dtype=bool)
    of_rows, of_columns = np.full((count, side), n), np.full((count, side), n)
    tiles = np.arange(count)
    for row, column in zip(*np.divmod(order.T, side), strict=True):
        take = (of_rows[tiles, row] > 0) & (of_columns[tiles, column] > 0) & (values[tiles, row, column] > 0)
        kept[tiles, row, column] = take
        of_rows[tiles, row] -= take
        of_columns[tiles, column] -= take
    return kept


class _Clock:
    """Wall time since the start, and the limit that was hit."""

    def __init__(self, time_limit: float | None) -> None:
        self.started = time.perf_counter()
        self.time_limit = time_limit
        self.limit: Limit | None = None

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        if self.limit is None and self.time_limit is not None and self.seconds() >= self.time_limit:
            self.limit = Limit.TIME
        return self.limit is not None


def _check_time(time_limit: float | None) -> None:
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"Expected time_limit of at least 0. Got {time_limit}. Use None for no limit.")


def _tiles(values: FloatArray, m: int) -> FloatArray:
    """Tiles ``(T, m, m)`` of a table, padded with zeros, which no mask needs to keep."""
    rows, columns = (-(-size // m) for size in values.shape)
    padded = np.zeros((rows * m, columns * m))
    padded[: values.shape[0], : values.shape[1]] = values
    return np.ascontiguousarray(padded.reshape(rows, m, columns, m).swapaxes(1, 2)).reshape(-1, m, m)


def _answer(
    values: FloatArray, kept: BoolArray, bounds: FloatArray, clock: _Clock, seed: int, remedy: str
) -> MaskResult:
    side = kept.shape[1]
    rows, columns = (-(-size // side) for size in values.shape)
    table = kept.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    selection = np.ascontiguousarray(table[: values.shape[0], : values.shape[1]])
    bound = math.fsum(bounds.tolist())
    return finished(values, selection, bound, clock.seconds(), seed=seed, limit=clock.limit, remedy=remedy)


def is_nm(selection: ArrayLike, n: int, m: int, axis: int = -1) -> bool:
    """Whether every ``m`` consecutive entries along an axis, counted from its start, keep ``n`` at most."""
    moved = np.moveaxis(np.asarray(selection, dtype=bool), axis, -1)
    counts = np.add.reduceat(moved, np.arange(0, moved.shape[-1], m), axis=-1, dtype=np.int64)
    return bool(np.all(counts <= n))


def is_transposable(selection: ArrayLike, n: int, m: int) -> bool:
    """Whether a mask ``(R, C)`` keeps ``n`` of every ``m`` consecutive entries at most, along rows and columns."""
    return is_nm(selection, n, m, axis=0) and is_nm(selection, n, m, axis=1)
