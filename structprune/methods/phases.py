"""When to train dense, when to remove, when to train sparse: a pure function of the step.

A :class:`Plan` divides a run into phases by whole-number shares; :meth:`Plan.over` turns the shares into step
boundaries that sum exactly to the run's steps. Nothing here holds state, so that a run can be taken up at any step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import accumulate

__all__ = ["Cubic", "Curve", "Exponential", "Kind", "Linear", "Phase", "Plan", "Segment", "Timeline", "alternating"]


class Kind(Enum):
    """What a phase does to the mask."""

    DENSE = "dense"  # everything is trained
    SPARSIFY = "sparsify"  # structures go one after another while the rest is trained
    SWAP = "swap"  # structures are exchanged, at exactly the kept number
    SPARSE = "sparse"  # the mask stands, at exactly the kept number


Curve = Callable[[float], float]
"""From the fraction of a phase that has passed to the fraction of the removals that are done; 0 -> 0, 1 -> 1."""


@dataclass(frozen=True)
class Exponential:
    """``(1 - e^(-c u)) / (1 - e^(-c))``: most removals early, the difficult ones slowly.

    Yasuda, Axiotis, Fu, Bateni and Mirrokni (2024), SequentialAttention++, section 3.1, with ``c = 4``.
    """

    exponent: float = 4.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise ValueError(f"Expected an exponent > 0. Got {self.exponent}. Use 4, or Linear() for the limit at 0.")

    def __call__(self, u: float) -> float:
        """Fraction of the removals done at ``u``."""
        return math.expm1(-self.exponent * u) / math.expm1(-self.exponent)


@dataclass(frozen=True)
class Cubic:
    """``1 - (1 - u)^3``: gradual magnitude pruning of Zhu and Gupta (2017), equation 1."""

    def __call__(self, u: float) -> float:
        """Fraction of the removals done at ``u``."""
        return 1 - (1 - u) ** 3


@dataclass(frozen=True)
class Linear:
    """Equally many removals at every step."""

    def __call__(self, u: float) -> float:
        """Fraction of the removals done at ``u``."""
        return u


@dataclass(frozen=True)
class Segment:
    """One phase of a plan.

    Attributes
    ----------
    kind
        What it does.
    share
        Its length in whole units of the plan: a segment of share 10 is twice as long as one of 5.
    curve
        Of a sparsifying segment, how the removals are spread over it.
    """

    kind: Kind
    share: int
    curve: Curve = field(default_factory=Exponential)


@dataclass(frozen=True)
class Phase:
    """Where a step stands.

    Attributes
    ----------
    index
        Which phase of the run, from 0.
    kind
        What it does.
    cycle
        How many dense phases that follow others have begun; the first dense phase belongs to cycle 0.
    first
        Whether this is the phase's first step.
    u
        Fraction of the phase that is done when this step is, in (0, 1]; of a sparsifying phase in steps of one update.
    done
        Fraction of the removals that the step trains without: 0 when dense, 1 when sparse or swapping.
    """

    index: int
    kind: Kind
    cycle: int
    first: bool
    u: float
    done: float

    def sparsity(self, target: float) -> float:
        """Fraction of the structures removed, where ``target`` of them are to go."""
        return target * self.done


@dataclass(frozen=True)
class Plan:
    """Phases by their shares of a run.

    Attributes
    ----------
    segments
        The phases, in order.
    updates
        Most mask updates within one sparsifying phase.

    Raises
    ------
    ValueError
        If there is no segment, a share is below 1, or there is no update.
    """

    segments: tuple[Segment, ...]
    updates: int = 50

    def __post_init__(self) -> None:
        if not self.segments or min(segment.share for segment in self.segments) < 1 or self.updates < 1:
            shares = [segment.share for segment in self.segments]
            raise ValueError(
                f"Expected segments with shares of at least 1, and at least 1 update. Got shares {shares} and "
                f"{self.updates} updates. Leave out segments that take no time."
            )

    @property
    def ends_sparse(self) -> bool:
        """Whether the run ends with the mask standing."""
        return self.segments[-1].kind is Kind.SPARSE

    def over(self, steps: int, min_phase_steps: int = 1) -> Timeline:
        """Lay the plan over a run of ``steps``.

        Raises
        ------
        ValueError
            If a phase would be shorter than ``min_phase_steps``: phases of a few steps choose by noise.
        """
        total = sum(segment.share for segment in self.segments)
        ends = [round_half_up(part * steps, total) for part in accumulate(s.share for s in self.segments)]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        shortest = min(lengths)
        if shortest < min_phase_steps:
            number = lengths.index(shortest)
            needed = math.ceil(min_phase_steps * total / self.segments[number].share)
            raise ValueError(
                f"Expected phases of at least {min_phase_steps} steps. Got {shortest} in phase {number} "
                f"({self.segments[number].kind.value}) of {len(lengths)} over {steps} steps. Train for about {needed} "
                "steps (more epochs, smaller batches), use fewer cycles, or lower min_phase_steps."
            )
        return Timeline(self, tuple(ends))


@dataclass(frozen=True)
class Timeline:
    """A plan with its step boundaries.

    Attributes
    ----------
    plan
        The phases.
    ends
        First step after each phase; the last is the number of steps of the run.
    """

    plan: Plan
    ends: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.ends[-1]

    @property
    def shortest(self) -> int:
        """Steps of the shortest phase."""
        return min(end - begin for begin, end in zip((0, *self.ends), self.ends, strict=False))

    @cached_property
    def _cycles(self) -> tuple[int, ...]:
        starts = [number > 0 and segment.kind is Kind.DENSE for number, segment in enumerate(self.plan.segments)]
        return tuple(accumulate(int(start) for start in starts))

    def at(self, step: int) -> Phase:
        """Return the phase of a step.

        Raises
        ------
        ValueError
            If the run has no such step.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"Expected a step of 0 ... {self.steps - 1}. Got {step}. Plan for as many steps as run.")
        index = bisect_right(self.ends, step)
        begin = self.ends[index - 1] if index else 0
        length, passed = self.ends[index] - begin, step - begin + 1
        segment = self.plan.segments[index]
        if segment.kind is not Kind.SPARSIFY:
            u, done = passed / length, float(segment.kind is not Kind.DENSE)
        else:
            # The mask moves at most `updates` times; the last of them falls on the phase's last step at the latest.
            updates = min(self.plan.updates, length)
            u = (passed * updates // length) / updates
            done = segment.curve(u)
        return Phase(index, segment.kind, self._cycles[index], passed == 1, u, done)


def alternating(
    *, dense: int, cycles: int, cycle: int, last: int, sparse: int, sparsify: bool, curve: Curve | None = None
) -> Plan:
    """Dense and sparse phases in turn: ACDC, and SequentialAttention++ with its sparsifying phases.

    Without ``sparsify``: dense, then ``cycles`` times (sparse, dense), the last dense phase longer by ``last``, then
    sparse. With it each cycle is (sparsify, sparse, dense), and the last cycle with its extension becomes one
    sparsifying phase. ACDC is Peste, Iofinova, Vladu and Alistarh (2021); the shares are those of Kuznedelev et al.
    (2023), which SequentialAttention++ (2024, section 3.1) takes over.

    Parameters
    ----------
    dense, cycle, last, sparse
        Lengths of the first dense phase, of one cycle, of the extension, and of the last sparse phase, in one unit.
    cycles
        How many cycles, the last included.
    sparsify
        Whether structures go gradually.
    curve
        How removals are spread over a sparsifying phase; by default :class:`Exponential`.

    Raises
    ------
    ValueError
        If there is no cycle.
    """
    if cycles < 1:
        raise ValueError(f"Expected at least 1 cycle. Got {cycles}. Use a plan without cycles instead.")
    curve = curve or Exponential()
    # Six units to one of the caller's: a cycle can be cut into halves and thirds.
    segments = [Segment(Kind.DENSE, 6 * dense)]
    for number in range(cycles):
        final = number == cycles - 1
        if sparsify and final:
            segments.append(Segment(Kind.SPARSIFY, 6 * (cycle + last), curve))
        elif sparsify:
            segments.append(Segment(Kind.SPARSIFY, 2 * cycle, curve))
            segments += [Segment(Kind.SPARSE, 2 * cycle), Segment(Kind.DENSE, 2 * cycle)]
        else:
            segments += [Segment(Kind.SPARSE, 3 * cycle), Segment(Kind.DENSE, 3 * cycle + 6 * last * final)]
    segments.append(Segment(Kind.SPARSE, 6 * sparse))
    return Plan(tuple(segments))


def round_half_up(numerator: int, denominator: int) -> int:
    """Return ``numerator / denominator`` as the nearest integer, exactly."""
    return (2 * numerator + denominator) // (2 * denominator)
