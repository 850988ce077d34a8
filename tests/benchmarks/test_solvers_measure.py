"""Interleaved measurements."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest

from benchmarks.solvers.measure import interleaved


def test_order() -> None:
    """Methods run in turn, every second turn backwards, after one run each for the memory."""
    ran: list[str] = []
    interleaved({name: partial(ran.append, name) for name in "abc"}, repeats=3)
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc"


def test_times() -> None:
    """Sleep is wall time and no processor time; the answer comes along."""

    def sleep() -> int:
        time.sleep(0.02)
        return 7

    found = interleaved({"sleep": sleep}, repeats=1, memory=False)["sleep"]
    assert found.answer == 7
    assert found.seconds >= 0.02 > found.cpu_seconds
    assert found.peak_mib is None


def test_memory() -> None:
    """The peak is what the method held at once, however little it returns."""
    found = interleaved({"large": lambda: float(np.ones(2**20).sum()), "small": lambda: 1.0})
    large, small = found["large"].peak_mib, found["small"].peak_mib
    assert large is not None
    assert small is not None
    assert large == pytest.approx(8, rel=0.01)
    assert small < 0.01


def test_no_repeats() -> None:
    """A median of nothing is refused."""
    with pytest.raises(ValueError, match="Expected at least 1 repeat"):
        interleaved({"none": lambda: None}, repeats=0)
