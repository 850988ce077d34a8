"""Checks of answers that know no solver: within budget, nothing left to add, and the proof of the bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from solvers.bounds.boxes import Boxes
from solvers.bounds.lagrangian import Lagrangian
from solvers.bounds.marginals import marginals
from solvers.ledger import Ledger
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.reduction import with_levels, without_links
from solvers.result import ROUNDING, Certificate, Fixing, Leaf, relative_gap


def is_feasible(problem: SelectionProblem, choice: ArrayLike) -> bool:
    """Whether every capacity, local limit and link holds, in exact integers, and no combination is forbidden."""
    return problem.evaluate(choice).feasible


def is_maximal(problem: SelectionProblem, choice: ArrayLike) -> bool:
    """Whether no group can rise a level without losing value or breaking anything; linked groups rise as one."""
    reduced = without_links(problem)
    indices = None if reduced is None else reduced.lower(problem.checked(choice))
    if reduced is None or indices is None:
        return True  # what breaks a link has no neighbours
    ledger = Ledger(reduced.problem, indices)
    for g, group in enumerate(reduced.problem.groups):
        if indices[g] + 1 < len(group) and ledger.exact_gain(g, int(indices[g]) + 1) >= 0:
            raised = indices.copy()
            raised[g] += 1
            if is_feasible(reduced.problem, raised):
                return False
    return True


def check_cover(
    lows: IntArray,
    highs: IntArray,
    low: IntArray,
    high: IntArray,
    inners: Sequence[tuple[IntArray, IntArray] | None] | None = None,
) -> None:
    """Check that boxes cover a root box by cutting it along planes that no box straddles.

    Parameters
    ----------
    lows, highs
        Corners of the boxes, shape ``(L, G)``, both included.
    low, high
        Corners of the root, shape ``(G,)``.
    inners
        Parts that the boxes leave to others, None for boxes that leave nothing.

    Raises
    ------
    ValueError
        A part of the root lies in no box, or the boxes do not come from cutting it.
    """
    whole = np.array([inner is None for inner in inners or [None] * len(lows)], dtype=bool)
    stack = [(np.arange(len(lows)), low.copy(), high.copy())]
    while stack:
        members, first, last = stack.pop()
        if np.any(first > last):
            continue
        covers = np.all((lows[members] <= first) & (highs[members] >= last), axis=1)
        if np.any(covers & whole[members]):
            continue
        if covers.any() and inners is not None:
            for member in members[covers]:
                inner = inners[member]
                assert inner is not None
                first, last = np.maximum(first, inner[0]), np.minimum(last, inner[1])
            stack.append((members[~covers], first, last))
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
    check_choice(problem, certificate)
    if not certificate.leaves and not certificate.fixings:
        raise ValueError("Expected at least one proof leaf. Got none. A bound without a proof is no certificate.")
    reduced = without_links(problem)
    if reduced is None:
        raise ValueError("Expected linked groups with a common level. Got none. The certificate is another problem's.")
    allowance = ROUNDING * max(abs(problem.total_value), abs(certificate.objective))
    work = reduced.problem
    for number, fixing in enumerate(certificate.fixings):
        work = _fixed(work, fixing, certificate.bound + allowance, f"fixing {number}")
    _check_leaves(work, certificate.leaves, certificate.bound + allowance)


def _fixed(problem: SelectionProblem, fixing: Fixing, bound: float, what: str) -> SelectionProblem:
    """The problem without the levels that a fixing leaves out, once their max-marginals are within the bound."""
    top = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
    kept = fixing.kept
    if len(kept) != len(top) or any(
        not len(k) or k[0] < 0 or k[-1] > t or np.any(np.diff(k) <= 0) for k, t in zip(kept, top, strict=True)
    ):
        raise ValueError(f"Expected levels of {len(top)} groups in {what}. Got others. Use its own certificate.")
    box = Boxes(problem).tighten(problem.minimum_choice, top)
    if box is not None:
        for g, found in enumerate(marginals(Lagrangian(problem), fixing.prices, *box)):
            out = np.setdiff1d(np.arange(box[0][g], box[1][g] + 1), kept[g]) - box[0][g]
            _check_marginals(found[out], bound, what)
    return with_levels(problem, kept).problem


def _check_marginals(found: FloatArray, bound: float, what: str) -> None:
    if found.size and not found.max() <= bound:
        raise ValueError(
            f"Expected {what} to leave out levels of at most {bound!r}. Got one of {float(found.max())!r} at its "
            "prices. The bound is not proven."
        )


def _check_leaves(problem: SelectionProblem, leaves: tuple[Leaf, ...], bound: float) -> None:
    lows = np.array([leaf.low for leaf in leaves], dtype=np.int64)
    highs = np.array([leaf.high for leaf in leaves], dtype=np.int64)
    top = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
    if lows.shape != (len(leaves), len(top)) or highs.shape != lows.shape:
        raise ValueError(f"Expected leaves over {len(top)} groups. Got {lows.shape}. Use its own certificate.")
    if np.any(lows < 0) or np.any(highs > top) or np.any(lows > highs):
        raise ValueError("Expected leaves inside the problem's levels. Got one outside. Use its own certificate.")
    check_cover(lows, highs, problem.minimum_choice, top, [leaf.inner for leaf in leaves])
    lagrangian, boxes = Lagrangian(problem), Boxes(problem)
    for number, leaf in enumerate(leaves):
        box = boxes.tighten(leaf.low, leaf.high)
        if box is None:
            continue
        if leaf.inner is not None:
            for g, found in enumerate(marginals(lagrangian, leaf.prices, *box)):
                levels = np.arange(box[0][g], box[1][g] + 1)
                outside = (levels < leaf.inner[0][g]) | (levels > leaf.inner[1][g])
                _check_marginals(found[outside], bound, f"leaf {number}")
            continue
        proven = lagrangian.evaluate(leaf.prices, *box).bound
        if not proven <= bound:
            raise ValueError(
                f"Expected leaf {number} to prove the bound {bound!r}. Got {proven!r} at its prices. "
                "The bound is not proven."
            )


def check_choice(problem: SelectionProblem, certificate: Certificate) -> None:
    """Recompute what a certificate says about its choice; its bound is only compared with that.

    Raises
    ------
    ValueError
        The choice is not within budget, or objective, amounts or gap are not its own, or the objective exceeds the
        bound.
    """
    found = problem.evaluate(certificate.choice)
    allowed = {capacity.resource: capacity.limit for capacity in problem.capacities}
    scale = ROUNDING * max(abs(problem.total_value), abs(found.value))
    if not found.feasible:
        raise ValueError(f"Expected a choice within {allowed}. Got {found.violations}. The choice is not feasible.")
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
