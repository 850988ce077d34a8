"""Cones without a formula, ready for `solvers.conic.monte_carlo`: each function returns the constraints' maker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike

from solvers.conic.projection import Cone

__all__ = ["group_norm_descent", "inequalities", "intersection", "monotone", "nm_tangent"]

#: Entries of a vertex that are this close to a constraint of its polytope are on it.
TOUCH = 1e-9


def inequalities(matrix: ArrayLike) -> Cone:
    """``{x : matrix @ x <= 0}``, matrix of shape ``(rows, dimension)``."""
    rows = np.asarray(matrix, dtype=np.float64)
    if rows.ndim != 2 or not np.all(np.isfinite(rows)):
        raise ValueError(
            f"Expected a finite matrix (rows, dimension). Got shape {rows.shape}. Give one row per inequality."
        )
    return lambda x: [rows @ x <= 0]


def monotone(order: Sequence[int] | None = None) -> Cone:
    """``{x : x[order[0]] >= x[order[1]] >= ...}``, the order of all entries if not given."""
    if order is None:
        return lambda x: [x[1:] <= x[:-1]] if x.size > 1 else []
    places = np.asarray(order, dtype=np.int64)
    if places.ndim != 1 or len(np.unique(places)) != len(places):
        raise ValueError(f"Expected an order of distinct entries. Got {list(order)}. Name each entry once at most.")
    return lambda x: [x[places[1:]] <= x[places[:-1]]] if len(places) > 1 else []


def group_norm_descent(point: ArrayLike, groups: Iterable[ArrayLike], weights: Sequence[float] | None = None) -> Cone:
    """Directions in which ``f(x) = sum_g v_g |x_g|_2`` does not grow from ``point``; groups may overlap.

    The directional derivative is ``sum_active v_g <u_g, d_g> + sum_inactive v_g |d_g|``, ``u_g = x_g / |x_g|``. It is
    negative towards the origin, so the cone of d where it is at most 0 is the closed descent cone.

    Raises
    ------
    ValueError
        f is 0 at the point, or there is not one positive weight per group.
    """
    x0 = np.asarray(point, dtype=np.float64)
    places = [np.asarray(group, dtype=np.int64) for group in groups]
    factors = [1.0] * len(places) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(places) or not all(factor > 0 for factor in factors):
        raise ValueError(f"Expected {len(places)} positive weights. Got {len(factors)}. Give one for each group.")
    lengths = [float(np.linalg.norm(x0[place])) for place in places]
    if not any(length > 0 for length in lengths):
        raise ValueError("Expected a point where the norm is not 0. Got one where it is. Nothing descends from there.")
    slope = np.zeros(len(x0))
    for place, factor, length in zip(places, factors, lengths, strict=True):
        if length > 0:
            slope[place] += factor * x0[place] / length
    idle = [(p, f) for p, f, length in zip(places, factors, lengths, strict=True) if length == 0]

    def cone(x: cp.Variable) -> list[cp.Constraint]:
        growth = sum((factor * cp.norm(x[place]) for place, factor in idle), start=cp.Constant(0.0))
        return [growth <= -slope @ x]

    return cone


def nm_tangent(point: ArrayLike, n: int, m: int) -> Cone:
    """Tangent cone, at a point, of the convex hull of N:M sparse vectors with entries in [-1, 1].

    The hull is ``{|x_i| <= 1, sum of |x_i| over each m consecutive entries <= n}``; the cone is the intersection of
    what the inequalities that the point meets with equality allow: no growth where ``|x_i| = 1``, and none of the sum
    of a full group. A last group may be shorter.

    Raises
    ------
    ValueError
        The pattern is impossible, or the point is outside the polytope.
    """
    x0 = np.asarray(point, dtype=np.float64)
    if not 1 <= n <= m:
        raise ValueError(f"Expected n of m with 1 <= n <= m. Got {n} of {m}. Give n:m such as 2, 4.")
    groups = [np.arange(start, min(start + m, len(x0))) for start in range(0, len(x0), m)]
    sums = [float(np.abs(x0[group]).sum()) for group in groups]
    if np.any(np.abs(x0) > 1 + TOUCH) or any(total > n + TOUCH for total in sums):
        raise ValueError(
            f"Expected entries within [-1, 1] and sums of at most {n} per {m}. Got others. Scale the point."
        )
    extreme = np.flatnonzero(np.abs(x0) >= 1 - TOUCH)
    signs = np.where(np.abs(x0) > TOUCH, np.sign(x0), 0.0)

    def cone(x: cp.Variable) -> list[cp.Constraint]:
        found = [cp.multiply(signs[extreme], x[extreme]) <= 0] if len(extreme) else []
        for group, total in zip(groups, sums, strict=True):
            if total >= n - TOUCH:
                zero = group[signs[group] == 0]
                growth = cp.norm1(x[zero]) if len(zero) else 0.0
                found.append(growth <= -(signs[group] @ x[group]))
        return found

    return cone


def intersection(*cones: Cone) -> Cone:
    """What lies in all of the cones."""
    return lambda x: [constraint for cone in cones for constraint in cone(x)]
