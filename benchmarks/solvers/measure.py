"""Times of several methods on one instance, interleaved, and the memory of each in a run of its own."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Generic, TypeVar

__all__ = ["Measured", "interleaved"]

Answer = TypeVar("Answer")
MIB = 2**20


@dataclass(frozen=True)
class Measured(Generic[Answer]):
    """What a method answered, and what that took.

    Attributes
    ----------
    answer
        Of the last run.
    seconds, cpu_seconds
        Medians over the runs: wall time, and time of this process on all its cores. On a machine that others use
        too, the second tells more.
    peak_mib
        Most memory that Python and numpy allocated during one more run; None if that was not asked for. What
        compiled libraries allocate by themselves is not in it.
    repeats
        Number of timed runs.
    """

    answer: Answer
    seconds: float
    cpu_seconds: float
    peak_mib: float | None
    repeats: int


def interleaved(
    methods: Mapping[str, Callable[[], Answer]], repeats: int = 3, memory: bool = True
) -> dict[str, Measured[Answer]]:
    """Run every method ``repeats`` times, one after the other in turn, so that a busy spell hits all of them.

    Parameters
    ----------
    methods
        Calls without arguments, by name; each must do all its work anew.
    memory
        Whether to measure memory first, in a run that is not timed, because counting slows it down; the run also
        warms up caches.

    Raises
    ------
    ValueError
        Fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"Expected at least 1 repeat. Got {repeats}. Use an odd number, so that the median is a run.")
    peaks = {name: _peak(method) if memory else None for name, method in methods.items()}
    walls: dict[str, list[float]] = {name: [] for name in methods}
    cpus: dict[str, list[float]] = {name: [] for name in methods}
    answers: dict[str, Answer] = {}
    for turn in range(repeats):
        # Every second turn goes backwards: no method always runs after the same one.
        for name in list(methods)[:: 1 if turn % 2 == 0 else -1]:
            gc.collect()
            wall, cpu = perf_counter(), process_time()
            answers[name] = methods[name]()
            walls[name].append(perf_counter() - wall)
            cpus[name].append(process_time() - cpu)
    return {
        name: Measured(
            answers[name], statistics.median(walls[name]), statistics.median(cpus[name]), peaks[name], repeats
        )
        for name in methods
    }


def _peak(method: Callable[[], object]) -> float:
    """Most MiB allocated at once during a call, beyond what there was."""
    gc.collect()
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        method()
        return (tracemalloc.get_traced_memory()[1] - before) / MIB
    finally:
        if not running:
            tracemalloc.stop()
