"""What a solver hands back: the choice, the proof of how good it is, and why the solver stopped."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata
from typing import TypeAlias

from solvers.problem import BoolArray, FloatArray, IntArray, SelectionProblem

#: Boolean ``(n,)``, True = kept.
Selection: TypeAlias = BoolArray

#: Largest gap, as a fraction of the lost value, at which a solver may say OPTIMAL.
OPTIMAL_GAP = 1e-9

#: Differences of this fraction of the total value are rounding of float64 sums, not value.
ROUNDING = 1e-12


class TerminationReason(Enum):
    """Why a solver stopped: what is known about its answer."""

    OPTIMAL = "optimal"  # proven best: the gap is at most OPTIMAL_GAP
    FEASIBLE = "feasible"  # within budget, with a proven gap
    HEURISTIC = "heuristic"  # within budget, no bound
    INFEASIBLE = "infeasible"  # proven: no choice is within budget
    UNKNOWN = "unknown"  # stopped before any choice within budget was found


class Limit(Enum):
    """The limit that stopped a solver, when one did."""

    TIME = "time"
    NODES = "nodes"
    STOPPED = "stopped"  # the progress callback asked for it
    INTERRUPTED = "interrupted"  # Ctrl-C


@dataclass(frozen=True)
class Termination:
    """Reason, the limit that was hit (None when none was), and a sentence that says what to do next."""

    reason: TerminationReason
    limit: Limit | None
    text: str


@dataclass(frozen=True)
class Phase:
    """A part of a solve: its name, wall seconds, and the bound evaluations and nodes spent in it."""

    name: str
    seconds: float
    evaluations: int = 0
    nodes: int = 0


def versions() -> dict[str, str]:
    """Versions of what computes selections and bounds."""
    found = {"python": platform.python_version()}
    for name in ("structprune", "numpy", "scipy", "ortools", "cvxpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


@dataclass(frozen=True, eq=False)
class Leaf:
    """One box of a proof with the prices that bound the value inside it.

    Parameters
    ----------
    low, high
        Smallest and largest level index per group, shape ``(G,)``, both included.
    prices
        Value per unit of each resource, shape ``(m,)``, at least 0.
    inner
        Corners of a part of the box that the leaf says nothing about: every level outside of it has a max-marginal
        within the bound. None when the leaf bounds the whole box. Empty when some low exceeds its high.
    """

    low: IntArray
    high: IntArray
    prices: FloatArray
    inner: tuple[IntArray, IntArray] | None = None


@dataclass(frozen=True, eq=False)
class Fixing:
    """Levels left out of the search because no choice with one of them exceeds the bound.

    Parameters
    ----------
    prices
        Value per unit of each resource, shape ``(m,)``: the max-marginals at these prices prove it.
    kept
        Level indices that stay, per group, increasing.
    """

    prices: FloatArray
    kept: tuple[IntArray, ...]


def relative_gap(objective: float, bound: float, total: float) -> float:
    """``(bound - objective) / (total - objective)``: the part of the lost value that might still be avoidable.

    0 when nothing is lost, and when the difference is rounding (``ROUNDING`` of the total).
    """
    difference = bound - objective
    lost = total - objective
    if difference <= ROUNDING * max(abs(total), abs(objective)) or lost <= 0.0:
        return 0.0
    return difference / lost


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proof that no choice within budget keeps more than ``bound``.

    Parameters
    ----------
    objective
        Value of ``choice``.
    bound
        No choice within budget has a larger value.
    gap
        ``(bound - objective) / (total - objective)``, see `relative_gap`.
    used, allowed
        Exact amount and limit per resource.
    prices
        Value lost per unit less of each resource, at the root of the search.
    leaves
        Boxes that cover all choices, with prices that prove the bound in each. They count groups and levels of the
        problem with its links merged (`solvers.reduction.without_links`) and reduced by ``fixings``.
    choice
        Level index per group, shape ``(G,)``.
    check
        The proof's method: raises ValueError when the certificate is false for the problem.
    fixings
        Levels left out before the leaves were made, one step after the other.
    kind
        What the bound comes from, in words.
    """

    objective: float
    bound: float
    gap: float
    used: Mapping[str, int]
    allowed: Mapping[str, int]
    prices: Mapping[str, float]
    leaves: tuple[Leaf, ...]
    choice: IntArray
    check: Callable[[SelectionProblem, Certificate], None] = field(repr=False)
    fixings: tuple[Fixing, ...] = ()
    kind: str = "Lagrangian relaxation of the budgets"

    @property
    def slack(self) -> dict[str, int]:
        """Exact amount per resource that is allowed and not used."""
        return {resource: self.allowed[resource] - amount for resource, amount in self.used.items()}

    def verify(self, problem: SelectionProblem) -> None:
        """Recompute objective, used amounts and every leaf's bound. Raises ValueError when something is false."""
        self.check(problem, self)


@dataclass(frozen=True, eq=False)
class Result:
    """A solver's answer.

    Parameters
    ----------
    choice
        Level index per group, shape ``(G,)``; None when no choice within budget is known.
    selection
        Kept structures, shape ``(n,)``, True = kept; None with ``choice``.
    certificate
        The proof; None when no bound is known.
    termination
        Why the solver stopped.
    seed
        Equal seeds give equal results.
    seconds
        Wall time.
    phases
        Where the time went; empty for solvers that do not tell.
    versions
        Of the packages that computed it.
    """

    choice: IntArray | None
    selection: Selection | None
    certificate: Certificate | None
    termination: Termination
    seed: int
    seconds: float
    phases: tuple[Phase, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
