"""What solvers of structured masks hand back, and what they ask of the values they are given.

N:M masks, coverage, balance and permuted blocks choose entries of an array of values directly; there are no levels and
no budgets of several resources. Their answer is the mask with its objective, a bound where one is known, and why the
solver stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem import BoolArray, FloatArray
from solvers.result import OPTIMAL_GAP, ROUNDING, Limit, Termination, TerminationReason, relative_gap

__all__ = ["MaskResult", "checked_values", "finished", "infeasible", "kept_value", "total_value"]


@dataclass(frozen=True, eq=False)
class MaskResult:
    """A mask and how good it is.

    Attributes
    ----------
    selection
        Kept entries, in the shape of the values, True = kept; None when no mask satisfies the constraints.
    objective
        Sum of the kept values; None with ``selection``.
    bound
        No mask that satisfies the constraints keeps more; None when no bound is known.
    gap
        ``(bound - objective) / (total - objective)``, where ``total`` keeps every value above 0; see
        `solvers.result.relative_gap`. None without a bound.
    termination
        Why the solver stopped.
    seed
        Equal seeds give equal results.
    seconds
        Wall time.
    """

    selection: BoolArray | None
    objective: float | None
    bound: float | None
    gap: float | None
    termination: Termination
    seed: int
    seconds: float


def checked_values(values: ArrayLike, axes: int | None, *, forbidden: bool = False) -> FloatArray:
    """``values`` as float64.

    Parameters
    ----------
    values
        The worth of each entry, higher = keep.
    axes
        Number of axes that the caller needs; None for any number of at least one.
    forbidden
        Whether ``-inf`` is allowed; it then marks entries that must not be kept.

    Raises
    ------
    ValueError
        Another number of axes, no entries, NaN or infinite values.
    """
    array = np.array(values, dtype=np.float64)
    if array.size == 0 or (array.ndim == 0 if axes is None else array.ndim != axes):
        wanted = "at least one axis" if axes is None else f"{axes} axes"
        raise ValueError(f"Expected values with {wanted}, none empty. Got shape {array.shape}. Reshape them.")
    wrong = ~np.isfinite(array)
    if forbidden:
        wrong &= ~np.isneginf(array)
    if wrong.any():
        allowed = "finite values, or -inf for entries that must go" if forbidden else "finite values"
        raise ValueError(f"Expected {allowed}. Got {int(wrong.sum())} that are NaN or infinite. Check the scores.")
    return array


def kept_value(values: FloatArray, selection: BoolArray) -> float:
    """Sum of the kept values, correctly rounded."""
    return math.fsum(values[selection].tolist())


def total_value(values: FloatArray) -> float:
    """What the best mask without constraints keeps: the sum of all values above 0."""
    return math.fsum(values[values > 0].tolist())


def finished(
    values: FloatArray,
    selection: BoolArray,
    bound: float | None,
    seconds: float,
    *,
    seed: int = 0,
    limit: Limit | None = None,
    remedy: str = "",
) -> MaskResult:
    """The answer for a mask that satisfies its constraints.

    ``bound`` is raised to the objective where it lies below by rounding. ``remedy`` says, in a sentence, what makes a
    remaining gap smaller.
    """
    objective = kept_value(values, selection)
    if bound is None:
        text = f"No bound is known for this answer. {remedy}".strip()
        termination = Termination(TerminationReason.HEURISTIC, limit, text)
        return MaskResult(selection, objective, None, None, termination, seed, seconds)
    total = total_value(values)
    slack = 64 * ROUNDING * max(abs(objective), total)
    if bound < objective - slack:
        raise AssertionError(f"Expected a bound of at least {objective!r}. Got {bound!r}. The bound's proof is wrong.")
    bound = max(bound, objective)
    gap = relative_gap(objective, bound, total)
    if gap <= OPTIMAL_GAP:
        termination = Termination(TerminationReason.OPTIMAL, None, "No mask within the constraints keeps more value.")
    else:
        text = f"At most {100 * gap:.3g} % of the lost value is avoidable. {remedy}".strip()
        termination = Termination(TerminationReason.FEASIBLE, limit, text)
    return MaskResult(selection, objective, bound, gap, termination, seed, seconds)


def infeasible(text: str, seconds: float, seed: int = 0) -> MaskResult:
    """The answer when no mask satisfies the constraints; ``text`` says which and what would help."""
    termination = Termination(TerminationReason.INFEASIBLE, None, text)
    return MaskResult(None, None, None, None, termination, seed, seconds)
