"""Interleaved timing: every call is timed once in every round, so that drift of the machine hits all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from structprune.axes import as_example

__all__ = ["Progress", "Timing", "interleaved", "measure"]

Progress = Callable[[int, int], None]

LEAST_NS = 50_000  # a shorter sample would measure the clock
ALLOCATION = 31 << 20  # bytes, just below the largest threshold that glibc's allocator adapts to
WARM_UP = 2  # the first call chooses kernels and packs weights, the second finds the caches warm


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of one forward pass, in nanoseconds."""

    median_ns: int
    low_ns: int
    high_ns: int


@torch.no_grad()
def interleaved(
    calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int, progress: Progress | None = None
) -> np.ndarray:
    """Time every call ``rounds`` times, round by round.

    Short calls are repeated inside a sample until it lasts 50 microseconds. On CUDA devices events are recorded
    around the repetitions, elsewhere the clock is read.

    Returns
    -------
    Nanoseconds per call, ``(rounds, len(calls))`` float64.

    Raises
    ------
    ValueError
        If ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"Expected at least 1 round. Got {rounds}. Use 9 or more for a steady median.")
    sample = _cuda_sample if device.type == "cuda" else _clock_sample
    total = (rounds + 1) * len(calls)
    if device.type == "cpu":
        _settle_allocator()
    repetitions = []
    nanoseconds = np.zeros((rounds, len(calls)))
    with _no_collection():
        for index, call in enumerate(calls):
            sample(call, WARM_UP, device)
            shortest = min(sample(call, 1, device) for _ in range(WARM_UP + 1))
            repetitions.append(max(1, ceil(LEAST_NS / max(shortest, 1.0))))
            if progress is not None:
                progress(index + 1, total)
        for row in range(rounds):
            for index, call in enumerate(calls):
                nanoseconds[row, index] = sample(call, repetitions[index], device)
                if progress is not None:
                    progress((row + 1) * len(calls) + index + 1, total)
    return nanoseconds


def _clock_sample(call: Callable[[], Any], repetitions: int, device: torch.device) -> float:
    start = perf_counter_ns()
    for _ in range(repetitions):
        call()
    return (perf_counter_ns() - start) / repetitions


def _cuda_sample(call: Callable[[], Any], repetitions: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repetitions):
            call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) * 1e6 / repetitions


def _settle_allocator() -> None:
    """Bring the allocator to the state of a process that has run for long.

    glibc returns freed blocks to the system until it has seen a large one freed; up to then an operator pays for
    fresh pages or not (a factor of 3 for a small convolution) depending on what ran before it.
    """
    torch.empty(ALLOCATION, dtype=torch.uint8)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A garbage collection inside a sample would be charged to whatever runs then."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def measure(
    modules: Mapping[str, nn.Module], example: Any, *, rounds: int = 15, progress: Progress | None = None
) -> dict[str, Timing]:
    """Median latency of whole networks on the same example, interleaved, in evaluation mode without gradients.

    Parameters
    ----------
    modules
        Networks by name, all on one device, for instance before and after pruning. Their modes are put back.
    example
        A tensor, a tuple of positional or a dict of keyword arguments of one forward call; it is moved to the device.
    rounds
        How often each network is timed.
    progress
        Called with the numbers of samples done and in all.

    Raises
    ------
    ValueError
        If the networks lie on several devices.
    """
    example = as_example(example)
    devices = {tensor.device for module in modules.values() for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1:
        raise ValueError(
            f"Expected networks on one device. Got {sorted(map(str, devices))}. Move them with .to() before measuring."
        )
    device = devices.pop() if devices else torch.device("cpu")
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (example.args, dict(example.kwargs))
    )
    modes = {part: part.training for module in modules.values() for part in module.modules()}
    calls = [_forward(module, args, kwargs) for module in modules.values()]
    try:
        for module in modules.values():
            module.eval()
        samples = interleaved(calls, device, rounds, progress)
    finally:
        for part, mode in modes.items():
            part.training = mode
    low, median, high = np.percentile(samples, [25, 50, 75], axis=0) if modules else np.zeros((3, 0))
    return {
        name: Timing(round(median[index]), round(low[index]), round(high[index])) for index, name in enumerate(modules)
    }


def _forward(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: module(*args, **kwargs)
