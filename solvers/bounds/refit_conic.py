"""The perspective bound with the best diagonal, as one semidefinite program: for small problems.

With the notation of `solvers.bounds.refit`, and p the price of the capacity,

    max_{D, L, p >= 0}  1/2 [ tr(W H W') - tr((G - L)'(H - D)^-1 (G - L)) - p limit - sum_i max(0, v_i - p c_i) ],

v_i = sum over the structure's inputs of |L_i|^2 / d_i, is concave in (D, L, p) jointly (Dong, Chen and Linderoth 2015
treat the best diagonal). The solver's D and L are only where the bound is evaluated: D is drawn back until a Cholesky
factorisation says that it is allowed, and the bound is recomputed from products.
"""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp
import numpy as np

from solvers.bounds.refit import Capacity, dominates, dual_value, whitened
from solvers.quadratic import FloatArray, ReducedMap

__all__ = ["conic_bound"]

#: More inputs than this take the conic solver minutes.
LARGEST = 64


def conic_bound(maps: Sequence[ReducedMap], capacity: Capacity) -> float | None:
    """The perspective bound at the best diagonal; None if the conic solver fails.

    Raises
    ------
    ValueError
        If there are more inputs than the program is meant for.
    """
    inputs = sum(len(one.moment) for one in maps)
    if inputs > LARGEST:
        raise ValueError(f"Expected at most {LARGEST} inputs. Got {inputs}. Use perspective_bound.")
    white = [whitened(one) for one in maps]
    price = cp.Variable(nonneg=True)
    diagonals = [cp.Variable(len(one.moment), nonneg=True) for one in white]
    parts = [cp.Variable(one.cross.shape) for one in white]
    worth: list[cp.Expression | float] = [0.0] * len(capacity.costs)
    lost: cp.Expression = price * capacity.limit
    for one, diagonal, part in zip(white, diagonals, parts, strict=True):
        lost = lost + cp.matrix_frac(one.cross - part, one.moment - cp.diag(diagonal))
        for i in range(len(one.moment)):
            worth[i // one.each] = worth[i // one.each] + cp.quad_over_lin(part[i], diagonal[i])
    for value, cost in zip(worth, capacity.costs, strict=True):
        lost = lost + cp.pos(value - price * cost)
    try:
        cp.Problem(cp.Minimize(lost)).solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return None
    if any(variable.value is None for variable in [*diagonals, *parts]):
        return None
    chosen, weights = [], []
    for one, diagonal, part in zip(white, diagonals, parts, strict=True):
        allowed = _allowed(one.moment, np.asarray(diagonal.value, dtype=np.float64))
        rest = one.cross - np.asarray(part.value, dtype=np.float64)
        chosen.append(allowed)
        weights.append(np.asarray(np.linalg.lstsq(one.moment - np.diag(allowed), rest, rcond=None)[0]))
    return max(0.0, dual_value(white, chosen, weights, capacity))


def _allowed(moment: FloatArray, diagonal: FloatArray) -> FloatArray:
    """The diagonal drawn back until the moment dominates it for certain."""
    back = 1e-9
    diagonal = np.maximum(diagonal, 1e-9)
    while not dominates(moment, diagonal * (1 - back)) and back < 1:
        back *= 4
    return diagonal * max(1 - back, 1e-12)
