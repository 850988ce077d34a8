"""Tile sizes of the Triton kernels: what one program owns, and how the compiler overlaps its loads.

`forward_tile` and `gradient_tile` choose by rule; `forward_tiles` lists what is worth timing on a device, and `fastest`
times it. The rules come from what the compiler makes of the kernels for compute capability 9.0 and from the model of
their memory traffic, not from timings: time the candidates where speed matters.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch

HOPPER_SHARED_BYTES = 227 * 1024  # what one program may take on compute capability 9.0

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Tile:
    """What one program of a forward kernel owns.

    Attributes
    ----------
    rows
        Outputs of one group; divides the group's height.
    tokens
        Tokens.
    step
        Entries of the group's list that it gathers and multiplies at a time.
    warps, stages
        Triton's `num_warps` and `num_stages`.
    """

    rows: int
    tokens: int
    step: int
    warps: int
    stages: int

    def shared_bytes(self, itemsize: int) -> int:
        """Return an estimate of the shared memory of the pipelined loads, with `itemsize` bytes a number."""
        return buffers(self.stages) * (self.rows + self.tokens) * self.step * itemsize


@dataclass(frozen=True)
class GradientTile:
    """What one program of the weight gradient owns: `rows` outputs and `entries` list entries, `step` tokens a time."""

    rows: int
    entries: int
    step: int
    warps: int
    stages: int


def buffers(stages: int) -> int:
    """Return how many copies of a tile Triton keeps: a load through a list waits for two loads, so that half remain."""
    return max(2, (stages + 1) // 2)


def forward_tile(
    height: int,
    outputs: int,
    tokens: int,
    dtype: torch.dtype,
    shared_bytes: int = HOPPER_SHARED_BYTES,
) -> Tile:
    """Return the tile for groups of `height` outputs, `outputs` in all, and a number of tokens.

    Many tokens: the whole height, since every output of a group reuses the tokens gathered for it, times as many tokens
    as the registers hold. Few tokens: the layer is bound by reading its weights, so the heights are cut until the
    programs are enough to keep all multiprocessors reading.
    """
    rows, itemsize = height, dtype.itemsize
    if tokens <= 64:
        while rows > 16 and outputs < 256 * rows:
            rows //= 2
    most = (32768 if itemsize == 2 else 16384) // rows
    width = min(max(16, power_of_two_above(tokens)), max(64, min(256, most)))
    step = 128 // itemsize
    warps = 8 if rows * width >= 128 * 128 else 4
    for stages in (6, 5, 4, 3):
        tile = Tile(rows, width, step, warps, stages)
        if tile.shared_bytes(itemsize) <= shared_bytes:
            return tile
    return Tile(rows, min(width, 64), step, warps, 2)


def forward_tiles(
    height: int,
    outputs: int,
    tokens: int,
    dtype: torch.dtype,
    shared_bytes: int = HOPPER_SHARED_BYTES,
) -> tuple[Tile, ...]:
    """Return the tiles worth timing, that of `forward_tile` first."""
    first = forward_tile(height, outputs, tokens, dtype, shared_bytes)
    widths = [width for width in (16, 64, 128, 256) if width <= max(16, power_of_two_above(tokens))]
    found = [first]
    for rows, width, warps, stages in product({first.rows, min(height, 128)}, widths, (4, 8), (3, 4, 5, 6, 7)):
        tile = Tile(rows, width, first.step, warps, stages)
        held = rows * width // (32 * warps)  # accumulator registers of a thread; 255 is the most a thread has
        if held <= 128 and tile.shared_bytes(dtype.itemsize) <= shared_bytes and tile not in found:
            found.append(tile)
    return tuple(found)


def gradient_tile(height: int, dtype: torch.dtype) -> GradientTile:
    """Return the tile of the weight gradient for groups of `height` outputs."""
    rows = min(height, 128)
    return GradientTile(rows, 128, 128 // dtype.itemsize, 8 if rows == 128 else 4, 3)


def power_of_two_above(number: int) -> int:
    """Return the least power of two that is no smaller."""
    return 1 << max(0, number - 1).bit_length()


def fastest(
    run: Callable[[Choice], object],
    choices: Iterable[Choice],
    device: torch.device,
    refused: tuple[type[Exception], ...] = (),
    rounds: int = 9,
) -> Choice:
    """Return the choice with which `run` takes the least time on a CUDA device.

    The choices are timed in turn, round by round, so that a change of the clock touches all of them alike; the median
    of the rounds decides.

    Raises
    ------
    ValueError
        `run` raised one of the exceptions `refused` for every choice: none fits the device.
    """
    times: dict[Choice, list[float]] = {}
    for choice in choices:
        try:
            run(choice)
        except refused:
            continue
        times[choice] = []
    if not times:
        raise ValueError("Expected a tile that fits the device. Got none. Give smaller ones.")
    for _ in range(rounds):
        for choice, taken in times.items():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record(torch.cuda.current_stream(device))
            run(choice)
            after.record(torch.cuda.current_stream(device))
            torch.cuda.synchronize(device)
            taken.append(before.elapsed_time(after))
    return min(times, key=lambda choice: statistics.median(times[choice]))
