"""What one measurement of a solver is, and what a target says about several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Family", "Row", "Verdict"]


@dataclass(frozen=True)
class Row:
    """One method on one instance.

    Attributes
    ----------
    family, instance, method
        Names; equal (family, instance) may be compared with each other.
    objective
        What the method reached, in the family's own measure; None when it found nothing.
    bound
        Proven bound on the objective; None when the method knows none.
    gap
        Certified relative gap of the lost value, None without a bound.
    seconds
        Wall time, median of ``repeats``.
    peak_mib
        Most memory allocated by the method itself, MiB (tracemalloc); None when not measured.
    repeats
        Interleaved repetitions behind ``seconds``.
    facts
        Whatever else the family's targets look at.
    """

    family: str
    instance: str
    method: str
    objective: float | None
    seconds: float
    bound: float | None = None
    gap: float | None = None
    peak_mib: float | None = None
    repeats: int = 1
    facts: Mapping[str, float | int | str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured.

    Attributes
    ----------
    target
        Its short name, for instance 'T4'.
    asked, measured
        In words, with units.
    holds
        Whether the measurement meets the target.
    """

    target: str
    asked: str
    measured: str
    holds: bool


class Family(Protocol):
    """A module of this package: measures its methods, then judges its targets by the rows alone."""

    def rows(self, quick: bool) -> list[Row]:
        """Run every method on every instance; ``quick`` takes small instances, for tests."""
        ...

    def verdicts(self, rows: list[Row]) -> list[Verdict]:
        """Hold the rows against the targets."""
        ...
