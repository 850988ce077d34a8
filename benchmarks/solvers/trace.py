"""How the gap of a solver falls while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

__all__ = ["Trace", "points_of"]

FACT = "trace"  # the name of a trace among a row's facts


@dataclass
class Trace:
    """Collects ``(seconds, gap)`` from the moment it is made; only improvements count."""

    started: float = field(default_factory=perf_counter)
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, gap: float | None, seconds: float | None = None) -> None:
        """Note the gap, now or at the given time after the start; None for no choice or no bound yet."""
        if gap is None or not math.isfinite(gap) or (self.points and gap >= self.points[-1][1]):
            return
        self.points.append((perf_counter() - self.started if seconds is None else seconds, gap))

    @property
    def fact(self) -> dict[str, str]:
        """The trace as a fact of a row: pairs such as ``0.12:0.0034``."""
        return {FACT: " ".join(f"{seconds:.4g}:{gap:.4g}" for seconds, gap in self.points)}


def points_of(facts: object) -> Sequence[tuple[float, float]]:
    """Return the trace among the facts of a row; empty if there is none."""
    text = facts.get(FACT, "") if isinstance(facts, dict) else ""
    pairs = (pair.split(":") for pair in str(text).split())
    return [(float(seconds), float(gap)) for seconds, gap in pairs]
