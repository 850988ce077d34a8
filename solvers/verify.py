"""Checks of answers that know no solver: within budget, nothing left to add, and the proof of the bound."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from solvers.bounds.boxes import Boxes
from solvers.bounds.lagrangian import Lagrangian
from solvers.problem import IntArray, SelectionProblem
from solvers.result import ROUNDING, Certificate, relative_gap


def is_feasible(problem: SelectionProblem, choice: ArrayLike) -> bool:
    """Whether every capacity holds, in exact integers."""
    return problem.evaluate(choice).feasible


def is_maximal(problem: SelectionProblem, choice: ArrayLike) -> bool:
    """Whether no group can rise to its next level without losing value or breaking a capacity."""
    indices = problem.checked(choice)
    for g, group in enumerate(problem.groups):
        if indices[g] + 1 < len(group) and group.values[indices[g] + 1] >= group.values[indices[g]]:
            raised = indices.copy()
            raised[g] += 1
            if is_feasible(problem, raised):
                return False
    return True


def check_cover(lows: IntArray, highs: IntArray, low: IntArray, high: IntArray) -> None:
    """Check that boxes cover a root box by cutting it along planes that no box straddles.

    Parameters
    ----------
    lows, highs
        Corners of the boxes, shape ``(L, G)``, both included.
    low, high
        Corners of the root, shape ``(G,)``.

    Raises
    ------
    ValueError
        A part of the root lies in no box, or the boxes do not come from cutting it.
    """
    stack = [(np.arange(len(lows)), low.copy(), high.copy())]
    while stack:
        members, first, last = stack.pop()
        if np.any(np.all((lows[members] <= first) & (highs[members] >= last), axis=1)):
            continue
        halves = _cut(lows[members], highs[members], first, last) if len(members) > 1 else None
        if halves is None:
            raise ValueError(
                f"Expected proof leaves that cover every choice. Got none that covers the box {first.tolist()} .. "
                f"{last.tolist()}. Keep every leaf of the search."
            )
        group, level, left = halves
        upper, lower = first.copy(), last.copy()
        lower[group], upper[group] = level, level + 1
        stack += [(members[left], first, lower), (members[~left], upper, last)]


def _cut(lows: IntArray, highs: IntArray, low: IntArray, high: IntArray) -> tuple[int, int, np.ndarray] | None:
    """A plane between the boxes: the group, the last level below it, and which boxes lie below."""
    for group in np.flatnonzero((lows.max(axis=0) > low) | (highs.min(axis=0) < high)):
        order = np.argsort(lows[:, group], kind="stable")
        reach = np.maximum.accumulate(highs[order, group])
        gaps = np.flatnonzero(reach[:-1] < lows[order[1:], group])
        if gaps.size:
            level = int(reach[gaps[len(gaps) // 2]])
            return int(group), level, highs[:, group] <= level
    return None


def check_lagrangian(problem: SelectionProblem, certificate: Certificate) -> None:
    """Recompute a certificate of Lagrangian leaves: choice, amounts, gap, cover, and one bound per leaf.

    Raises
    ------
    ValueError
        Something in the certificate is false for the problem.
    """
    _check_choice(problem, certificate)
    if not certificate.leaves:
        raise ValueError("Expected at least one proof leaf. Got none. A bound without a proof is no certificate.")
    lows = np.array([leaf.low for leaf in certificate.leaves], dtype=np.int64)
    highs = np.array([leaf.high for leaf in certificate.leaves], dtype=np.int64)
    top = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
    if lows.shape != (len(certificate.leaves), len(top)) or highs.shape != lows.shape:
        raise ValueError(f"Expected leaves over {len(top)} groups. Got {lows.shape}. Use its own certificate.")
    if np.any(lows < 0) or np.any(highs > top) or np.any(lows > highs):
        raise ValueError("Expected leaves inside the problem's levels. Got one outside. Use its own certificate.")
    check_cover(lows, highs, problem.minimum_choice, top)
    lagrangian, boxes = Lagrangian(problem), Boxes(problem)
    allowance = ROUNDING * max(abs(problem.total_value), abs(certificate.objective))
    for number, leaf in enumerate(certificate.leaves):
        box = boxes.tighten(leaf.low, leaf.high)
        if box is None:
            continue
        bound = lagrangian.evaluate(leaf.prices, *box).bound
        if not bound <= certificate.bound + allowance:
            raise ValueError(
                f"Expected leaf {number} to prove the bound {certificate.bound!r}. Got {bound!r} at its prices. "
                "The bound is not proven."
            )


def _check_choice(problem: SelectionProblem, certificate: Certificate) -> None:
    found = problem.evaluate(certificate.choice)
    allowed = {capacity.resource: capacity.limit for capacity in problem.capacities}
    scale = ROUNDING * max(abs(problem.total_value), abs(found.value))
    if not found.feasible:
        raise ValueError(f"Expected amounts within {allowed}. Got {dict(found.used)}. The choice is not feasible.")
    if not abs(found.value - certificate.objective) <= scale:
        raise ValueError(f"Expected the objective {found.value!r}. Got {certificate.objective!r}. It is not true.")
    if dict(certificate.used) != dict(found.used) or dict(certificate.allowed) != allowed:
        raise ValueError(
            f"Expected used {dict(found.used)} of {allowed}. Got {dict(certificate.used)} of "
            f"{dict(certificate.allowed)}. The amounts are not the problem's."
        )
    if not certificate.bound >= certificate.objective - scale:
        raise ValueError(
            f"Expected a bound of at least the objective {certificate.objective!r}. Got {certificate.bound!r}. "
            "The bound is false: the choice itself exceeds it."
        )
    gap = relative_gap(certificate.objective, certificate.bound, problem.total_value)
    if not abs(gap - certificate.gap) <= 1e-9 * max(1.0, gap):
        raise ValueError(f"Expected the gap {gap!r}. Got {certificate.gap!r}. It is not that of objective and bound.")
