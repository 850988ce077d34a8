"""Medians of thread CPU time, taken in turns, so that neither other processes nor a changing clock favour anyone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Call", "Median", "medians"]

Call = Callable[[], object]

SAMPLE_NS = 3_000_000  # short calls are repeated inside a sample
ALONE_NS = 20_000_000  # a longer call reads its own weights so often that nothing is left to warm


@dataclass(frozen=True)
class Median:
    """The median of so many samples, in microseconds of one call."""

    us: float
    samples: int


def medians(
    calls: Mapping[str, Call], rounds: int, patience_ns: Mapping[str, int], clock: Callable[[], int] | None = None
) -> dict[str, Median]:
    """Time every call in turns, in a random order that is the same in every run.

    Parameters
    ----------
    calls
        What to time, by name.
    rounds
        Samples of each.
    patience_ns
        For some names the time that all samples together may take: a slow call is sampled less often, once at least.
    clock
        Nanoseconds, by default of this thread's processor time.
    """
    clock = clock or time.thread_time_ns
    once: dict[str, int] = {}
    for name, call in calls.items():
        call()
        begun = clock()
        call()
        once[name] = max(1, clock() - begun)
    repeats = {name: max(1, SAMPLE_NS // taken) for name, taken in once.items()}
    samples = dict.fromkeys(calls, rounds)
    for name, patience in patience_ns.items():
        samples[name] = max(1, min(rounds, patience // (repeats[name] * once[name])))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    for turn in range(rounds):
        rng.shuffle(order)
        for name in order:
            if turn >= samples[name]:
                continue
            if once[name] < ALONE_NS:
                calls[name]()  # brings this contender's weights near again
            begun = clock()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((clock() - begun) / repeats[name] / 1e3)
    return {name: Median(float(np.median(taken)), len(taken)) for name, taken in times.items()}
