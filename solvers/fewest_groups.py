"""How many groups must stay, at least, for a quadratic loss within epsilon: a bound that is certified, not estimated.

    fewest   #{g : x_g != 0}    subject to    1/2 (x - w)' H (x - w) <= epsilon,    H positive semidefinite.

Three statements are added up, each recomputed here from products of arrays:

1. A group without which the loss exceeds epsilon, all others fitted anew, is necessary. It is counted, and free from
   then on; entries that are free are fitted, which leaves a problem of the same form over the others.
2. If those others cannot all go, one of them stays.
3. The perspective relaxation (Frangioni and Gentile 2006). With 2 epsilon = 1, H - diag(d) >= 0, d >= 0 and
   M_g >= |x_g| for all x that are feasible,

       min sum z   s.t.   |L'(x - w)|^2 + sum_g (S_g - 2 <d w, x>_g + <w, d w>_g) <= 1,   L L' = H - diag(d),
                          S_g z_g >= sum_{i in g} d_i x_i^2,   |x_g| <= M_g z_g,   0 <= z <= 1.

   Its solution x* is used only to choose v = x* - w. For every v and every alpha >= 0, (x - w)' L L' (x - w) >=
   h'(x - w) - v' L L' v with h = 2 L L' v, so no feasible x has fewer groups than

       alpha (-1 - v' L L' v - h'w) + sum_g min(alpha a_g, 1 + alpha b_g),
       a_g = <w, d w>_g,    b_g = min_{|x_g| <= M_g} sum_{i in g} d_i (x_i - w_i)^2 + h_i x_i :

   weak duality, for integer z at once. It is concave and piecewise linear in alpha, so the best alpha is a breakpoint.

Eigenvalues of H are lowered by more than float64 may have erred; a smaller loss only needs fewer groups.

References
----------
Frangioni and Gentile, "Perspective cuts for a class of convex 0-1 mixed integer programs", Mathematical Programming
106 (2006).
Hassibi and Stork, "Second order derivatives for network pruning" (1993): the loss after the survivors are fitted anew.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from solvers.bounds.diagonal import largest_diagonal

__all__ = ["GroupsBound", "fewest_groups"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

#: Eigenvalues are lowered by this fraction of the largest: far more than their rounding.
LOWERED = 1e-12

#: Losses this close to epsilon, and bounds this close above an integer, are not relied on.
TOLERANCE = 1e-6

#: More entries than this take the conic solver minutes.
LARGEST = 1000

#: Name of the solver in an answer that needed none.
NO_SOLVER = "none"


@dataclass(frozen=True, eq=False)
class GroupsBound:
    """At least so many groups must stay.

    Attributes
    ----------
    value
        The bound before rounding.
    at_least
        The bound, an integer: no weights within epsilon have fewer groups that are not zero.
    necessary
        Indices of groups that cannot be removed even alone; they are part of the count.
    dual_gap
        What the relaxation's value, as the solver gives it, exceeds the bound recomputed from its solution by: loss of
        strength, never of validity. 0 where no relaxation was needed.
    solver, status
        Who solved the relaxation and what it says of its answer.
    """

    value: float
    at_least: int
    necessary: tuple[int, ...]
    dual_gap: float
    solver: str
    status: str


def fewest_groups(quadratic: ArrayLike, weights: ArrayLike, groups: Sequence[ArrayLike], epsilon: float) -> GroupsBound:
    """A certified lower bound on the number of groups that stay, survivors fitted anew.

    Parameters
    ----------
    quadratic
        H, ``(n, n)``, positive semidefinite up to rounding.
    weights
        w, ``(n,)``: where the loss is least.
    groups
        Disjoint index arrays. Entries in no group are always free.
    epsilon
        Greatest loss, more than 0.

    Raises
    ------
    ValueError
        Shapes disagree, groups overlap or are empty, H is not positive semidefinite, or there are more entries than the
        conic program is meant for.
    """
    matrix, point, places = _checked(quadratic, weights, groups, epsilon)
    scale = float(np.abs(point).max(initial=0.0)) or 1.0
    factor, point = _lowered(matrix, scale / math.sqrt(2 * epsilon)), point / scale
    free = np.ones(len(point), dtype=bool)
    for place in places:
        free[place] = False
    open_groups = list(range(len(places)))
    necessary = tuple(g for g in open_groups if _loss_without(factor, point, places[g]) > 1 + TOLERANCE)
    for g in necessary:
        free[places[g]] = True
        open_groups.remove(g)
    counted = float(len(necessary))
    rest = np.flatnonzero(~free)
    if len(rest) == 0 or _loss_without(factor, point, rest) <= 1 + TOLERANCE:
        return GroupsBound(counted, len(necessary), necessary, 0.0, NO_SOLVER, cp.OPTIMAL)
    # One of the others has to stay. Groups that nothing bounds cost nothing in the relaxation: they are free there.
    found = _relaxed(factor, point, [places[g] for g in open_groups], free)
    value = counted + max(1.0, found.value)
    gap = max(0.0, counted + found.relaxed - value)
    return GroupsBound(value, math.ceil(value - TOLERANCE), necessary, gap, found.solver, found.status)


def _checked(
    quadratic: ArrayLike, weights: ArrayLike, groups: Sequence[ArrayLike], epsilon: float
) -> tuple[FloatArray, FloatArray, list[NDArray[np.int64]]]:
    matrix, point = np.asarray(quadratic, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    count = len(point) if point.ndim == 1 else -1
    if matrix.shape != (count, count) or not np.all(np.isfinite(matrix)) or not np.all(np.isfinite(point)):
        raise ValueError(
            f"Expected a finite matrix (n, n) and weights (n,). Got {matrix.shape} and {point.shape}. "
            "Give the curvature of all weights."
        )
    if count > LARGEST:
        raise ValueError(f"Expected at most {LARGEST} weights. Got {count}. Bound one layer at a time.")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"Expected a finite epsilon > 0. Got {epsilon}. Give a loss in the units of the quadratic.")
    if np.abs(matrix - matrix.T).max(initial=0.0) > 1e-8 * np.abs(matrix).max(initial=0.0):
        raise ValueError("Expected a symmetric matrix. Got another. Take (H + H') / 2.")
    places = [np.asarray(group, dtype=np.int64).ravel() for group in groups]
    named = np.concatenate([np.zeros(0, dtype=np.int64), *places])
    if any(len(place) == 0 for place in places) or np.any((named < 0) | (named >= count)):
        raise ValueError(f"Expected groups with indices from 0 to {count - 1}. Got an empty one or others. Correct it.")
    if len(np.unique(named)) != len(named):
        raise ValueError("Expected disjoint groups. Got an index twice. Put each weight in one group at most.")
    return (matrix + matrix.T) / 2, point, places


def _lowered(matrix: FloatArray, scale: float) -> FloatArray:
    """F of shape (n, rank) with ``F F' <= scale^2 matrix`` for certain, and barely less."""
    values, vectors = np.linalg.eigh(matrix)
    largest = float(np.abs(values).max(initial=0.0))
    if values.min(initial=0.0) < -1e-8 * largest:
        raise ValueError(
            f"Expected a positive semidefinite matrix. Got the eigenvalue {values[0]:g} beside {values[-1]:g}. "
            "Use a Gauss-Newton curvature, or clip the spectrum."
        )
    values = values - LOWERED * largest
    kept = values > 0
    return np.asarray(vectors[:, kept] * (np.sqrt(values[kept]) * scale))


def _beyond(factor: FloatArray, fitted: NDArray[np.int64] | BoolArray, rows: NDArray[np.int64]) -> FloatArray:
    """Rows of the factor without what the fitted entries can undo, ``(len(rows), rank)``."""
    basis, sizes, _ = np.linalg.svd(factor[fitted].T, full_matrices=False)
    basis = basis[:, sizes > 1e-13 * sizes.max(initial=0.0)]
    part = factor[rows]
    part = part - (part @ basis) @ basis.T
    return np.asarray(part - (part @ basis) @ basis.T)  # twice: what is left may be small


def _loss_without(factor: FloatArray, point: FloatArray, removed: NDArray[np.int64]) -> float:
    """The loss, in units of epsilon, with these entries zero and all others fitted anew."""
    others = np.ones(len(point), dtype=bool)
    others[removed] = False
    left = point[removed] @ _beyond(factor, others, removed)
    return float(left @ left)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The relaxation's data over the entries that matter, 2 epsilon = 1.

    Attributes
    ----------
    matrix
        H - diag(d), ``(n, n)``, positive semidefinite.
    root
        L', ``(n, n)``.
    diagonal
        d, ``(n,)``.
    point
        w, ``(n,)``.
    groups
        Positions of each group, ``(G,)`` arrays.
    reaches
        M_g, ``(G,)``.
    """

    matrix: FloatArray
    root: FloatArray
    diagonal: FloatArray
    point: FloatArray
    groups: list[NDArray[np.int64]]
    reaches: FloatArray


@dataclass(frozen=True)
class _Relaxed:
    """The recomputed bound, the relaxation's value by the solver, and who found it."""

    value: float
    relaxed: float
    solver: str
    status: str


def _relaxed(factor: FloatArray, point: FloatArray, groups: list[NDArray[np.int64]], free: BoolArray) -> _Relaxed:
    """The bound by the perspective relaxation over the open groups."""
    problem = _problem(factor, point, groups, free)
    if problem is None:
        return _Relaxed(0.0, 0.0, NO_SOLVER, cp.OPTIMAL)
    best = _Relaxed(0.0, 0.0, NO_SOLVER, cp.SOLVER_ERROR)
    for solver, settings in ((cp.CLARABEL, {}), (cp.SCS, {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 20_000})):
        x, relaxed, status = _solved(problem, solver, settings)
        if x is None:
            continue
        value = _weak_dual(problem, x - problem.point)
        if best.solver == NO_SOLVER or value > best.value:
            best = _Relaxed(value, relaxed, solver, status)
        if status == cp.OPTIMAL and relaxed - value <= 1e-3:
            break
    return best


def _problem(
    factor: FloatArray, point: FloatArray, groups: list[NDArray[np.int64]], free: BoolArray
) -> _Problem | None:
    """The reduced relaxation; None if no open group is bounded."""
    entries = np.concatenate(groups)
    part = _beyond(factor, free, entries)
    vectors, sizes, _ = np.linalg.svd(part, full_matrices=True)
    rank = int(np.sum(sizes > 1e-7 * sizes.max(initial=0.0)))
    start = np.cumsum([0, *(len(group) for group in groups)])
    bounded = [g for g in range(len(groups)) if np.abs(vectors[start[g] : start[g + 1], rank:]).max(initial=0.0) < 1e-9]
    if not bounded:
        return None
    kept = np.concatenate([np.arange(start[g], start[g + 1]) for g in bounded])
    rows = vectors[kept, :rank] / sizes[:rank]  # rows R with R R' = (H^-1) there
    ends = np.cumsum([0, *(len(groups[g]) for g in bounded)])
    places = [np.arange(ends[i], ends[i + 1]) for i in range(len(bounded))]
    chosen = entries[kept]
    reaches = [
        float(np.linalg.norm(point[chosen[place]])) + float(np.linalg.norm(rows[place], 2)) * (1 + TOLERANCE)
        for place in places
    ]
    others = np.ones(len(point), dtype=bool)
    others[chosen] = False
    part = _beyond(factor, others, chosen)
    matrix = part @ part.T
    diagonal = largest_diagonal(matrix, np.maximum(point[chosen] ** 2, 1e-6))
    rest, root = _split(matrix, diagonal)
    if root is None:
        diagonal = np.zeros(len(matrix))
        rest, root = matrix, part.T
    return _Problem(rest, root, diagonal, point[chosen], places, np.array(reaches))


def _split(matrix: FloatArray, diagonal: FloatArray) -> tuple[FloatArray, FloatArray | None]:
    """The matrix without the diagonal and a root of it; None for the root if it is not positive semidefinite."""
    rest = matrix - np.diag(diagonal)
    values, vectors = np.linalg.eigh(rest)
    if values.min(initial=0.0) < 0 or not np.any(diagonal > 0):
        return rest, None
    return rest, np.asarray((vectors * np.sqrt(values)).T)


def _solved(problem: _Problem, solver: str, settings: dict[str, float]) -> tuple[FloatArray | None, float, str]:
    """A solver's x, its relaxation's value and what it says of it; None if it has no x."""
    count, size = len(problem.groups), len(problem.point)
    x, z = cp.Variable(size), cp.Variable(count)
    widest = max(len(place) for place in problem.groups)
    pad = np.zeros((count * widest, size))  # the groups as columns of equal length
    for g, place in enumerate(problem.groups):
        pad[g * widest + np.arange(len(place)), place] = 1.0
    columns = cp.reshape(pad @ x, (widest, count), order="F")
    lost = cp.sum_squares(problem.root @ (x - problem.point))
    constraints = [z >= 0, z <= 1, cp.SOC(cp.multiply(problem.reaches, z), columns, axis=0)]
    if np.any(problem.diagonal > 0):
        spent = cp.Variable(count)
        weighted = cp.reshape(pad @ cp.multiply(np.sqrt(problem.diagonal), x), (widest, count), order="F")
        ends = cp.reshape(spent - z, (1, count), order="F")
        constraints.append(cp.SOC(spent + z, cp.vstack([2 * weighted, ends]), axis=0))
        pull = problem.diagonal * problem.point
        lost = lost + cp.sum(spent) - 2 * (pull @ x) + float(pull @ problem.point)
    relaxation = cp.Problem(cp.Minimize(cp.sum(z)), [*constraints, lost <= 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bound is recomputed, however inaccurate the answer
            relaxation.solve(solver=solver, **settings)
    except cp.SolverError:
        return None, 0.0, cp.SOLVER_ERROR
    if x.value is None or not np.all(np.isfinite(x.value)):
        return None, 0.0, str(relaxation.status)
    return np.asarray(x.value, dtype=np.float64), float(relaxation.value), str(relaxation.status)


def _weak_dual(problem: _Problem, v: FloatArray) -> float:
    """The best bound over alpha >= 0 with this v; valid for any v."""
    pull = problem.matrix @ v
    constant = -1.0 - float(v @ pull) - 2 * float(pull @ problem.point)
    removed, kept = [], []
    for place, reach in zip(problem.groups, problem.reaches, strict=True):
        d, w = problem.diagonal[place], problem.point[place]
        removed.append(float(d @ w**2))
        kept.append(min(removed[-1], _least_kept(d, w, 2 * pull[place], float(reach))))
    a, b = np.array(removed), np.array(kept)
    breaks = 1 / np.maximum(a - b, 1e-300)
    best = 0.0
    for alpha in np.unique(breaks[breaks < 1e12]):
        terms = np.minimum(alpha * a, 1 + alpha * b)
        # Rounding may have moved the sum by some ulps of its largest term.
        slack = 1e-12 * (abs(alpha * constant) + float(np.abs(terms).max()))
        best = max(best, math.fsum([alpha * constant, *terms]) - slack)
    return best


def _least_kept(d: FloatArray, w: FloatArray, h: FloatArray, reach: float) -> float:
    """At most ``min_{|x| <= reach} sum d (x - w)^2 + h x``: the Lagrangian at a good multiplier of the ball."""
    slope = 2 * d * w - h

    def nearest(nu: float) -> FloatArray:
        return np.asarray(np.divide(slope, 2 * (d + nu), out=np.zeros_like(slope), where=d + nu > 0))

    free = not np.any((d == 0) & (slope != 0))
    nu = 0.0
    if not free or float(np.linalg.norm(nearest(0.0))) > reach:
        high = float(np.linalg.norm(slope)) / (2 * reach)  # there |x| <= reach
        low = 0.0 if free else 1e-12 * high
        if float(np.linalg.norm(nearest(low))) > reach:
            nu = float(brentq(lambda one: float(np.linalg.norm(nearest(one))) - reach, low, high * (1 + 1e-12)))
        else:
            nu = low
    return float(d @ w**2 - 0.5 * (slope @ nearest(nu))) - nu * reach**2
