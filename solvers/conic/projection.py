"""The projection on a cone that is given as cvxpy constraints, with a check that does not trust the solver.

``min 1/2 |x|^2 - g'x, x in C`` becomes ``A_x x + A_u u + s = b, s in K``, K a product of zeros, orthants,
second-order and semidefinite cones. If b = 0 the constraints describe a cone for certain; others are
refused. From what the solver returns, x and multipliers z (drawn into the dual of K by us), two bounds on |P_C(g)|^2
are recomputed:

    <g, x>_+^2 / |x|^2  <=  |P_C(g)|^2  <=  |g - A_x' z|^2,

the left for any x in C, the right for any z in the dual of K with A_u' z = 0, since ``A_x' z`` is then in the polar of
C. What they differ by, and what the residuals of x and z may move them by, must be small.

Reference: Moreau's decomposition; Boyd and Vandenberghe, "Convex optimization" (2004), chapter 5, for conic duality.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

__all__ = ["CLARABEL", "SCS", "Cone", "ConicProjector", "ConicSolver", "Projection", "ProjectionFailedError"]

FloatArray = NDArray[np.float64]

#: A convex cone: the constraints that put a variable of shape ``(dimension,)`` in it.
Cone = Callable[[cp.Variable], Sequence[cp.Constraint]]


class ProjectionFailedError(RuntimeError):
    """No solver's answer passed the check."""


@dataclass(frozen=True)
class ConicSolver:
    """A solver of cvxpy whose multipliers can be checked: Clarabel or SCS.

    Attributes
    ----------
    name
        cvxpy's name of it.
    settings
        Passed to the solver.
    lower_triangle
        Whether it stores semidefinite matrices as lower triangles by columns (SCS) or upper ones (Clarabel).
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lower_triangle: bool = False


CLARABEL = ConicSolver(cp.CLARABEL)
SCS = ConicSolver(cp.SCS, {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 50_000}, lower_triangle=True)


@dataclass(frozen=True, eq=False)
class Projection:
    """A point's projection on a cone.

    Attributes
    ----------
    point
        The projection, ``(dimension,)``.
    squared_norm
        Its squared norm.
    error
        How far the squared norm may be off, from recomputed bounds and residuals.
    solver
        The name of the solver whose answer passed.
    """

    point: FloatArray
    squared_norm: float
    error: float
    solver: str


class ConicProjector:
    """Projects many points on one cone; the problem is compiled once per solver.

    Parameters
    ----------
    cone
        Takes a cvxpy variable of shape ``(dimension,)``, returns constraints: convex, and of a cone.
    dimension
        Of the space.
    tolerance
        Greatest error of a squared norm, as a fraction of the point's.
    solvers
        Tried in this order until an answer passes.

    Raises
    ------
    ValueError
        The constraints are not convex, hold integers or parameters without a value, or are not those of a cone.
    """

    def __init__(
        self,
        cone: Cone,
        dimension: int,
        tolerance: float = 1e-6,
        solvers: Sequence[ConicSolver] = (CLARABEL, SCS),
    ) -> None:
        if dimension < 1:
            raise ValueError(f"Expected a dimension of at least 1. Got {dimension}. Give that of the cone's space.")
        if not 0 < tolerance < 1:
            raise ValueError(f"Expected a tolerance between 0 and 1. Got {tolerance}. Use for instance 1e-6.")
        if not solvers:
            raise ValueError("Expected at least one solver. Got none. Give CLARABEL or SCS.")
        self.cone, self.dimension, self.tolerance = cone, dimension, tolerance
        self._solvers = tuple(solvers)
        self._compiled: dict[int, _Compiled] = {0: _Compiled(cone, dimension, solvers[0])}

    def __call__(self, point: FloatArray) -> Projection:
        """The projection of a point of shape ``(dimension,)``.

        Raises
        ------
        ProjectionFailedError
            No solver found it with the wanted accuracy.
        """
        g = np.asarray(point, dtype=np.float64)
        if g.shape != (self.dimension,) or not np.all(np.isfinite(g)):
            raise ValueError(
                f"Expected a finite point of shape ({self.dimension},). Got {g.shape}. Check the dimension."
            )
        allowed = self.tolerance * float(g @ g)
        complaints = []
        for place, solver in enumerate(self._solvers):
            if place not in self._compiled:
                self._compiled[place] = _Compiled(self.cone, self.dimension, solver)
            try:
                found = self._compiled[place].project(g)
            except cp.SolverError as error:
                complaints.append(f"{solver.name}: {error}")
                continue
            if found.error <= allowed:
                return found
            complaints.append(f"{solver.name}: error {found.error:.2g}")
        raise ProjectionFailedError(
            f"Expected an error of at most {allowed:.2g}. Got {'; '.join(complaints)}. "
            "Scale the constraints to coefficients near 1, or raise the tolerance."
        )


class _Compiled:
    """The projection's conic form for one solver."""

    def __init__(self, cone: Cone, dimension: int, solver: ConicSolver) -> None:
        self.solver = solver
        self.given, self.x = cp.Parameter(dimension), cp.Variable(dimension)
        constraints = cone(self.x)
        if not isinstance(constraints, Sequence) or not all(isinstance(one, cp.Constraint) for one in constraints):
            raise ValueError(
                f"Expected a list of cvxpy constraints. Got {type(constraints).__name__}. "
                "Return for instance [matrix @ x <= 0]."
            )
        self.problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(self.x) - self.given @ self.x), list(constraints))
        if not self.problem.is_dcp() or not self.problem.is_dpp() or self.problem.is_mixed_integer():
            raise ValueError(
                "Expected convex constraints in cvxpy's disciplined form without integers. Got others. "
                "Write each as convex <= concave or affine == affine."
            )
        if any(parameter.value is None for parameter in self.problem.parameters() if parameter is not self.given):
            raise ValueError("Expected values for all parameters of the cone. Got one without. Set its value first.")
        self._check(self.data(np.zeros(dimension))[0])

    def data(self, g: FloatArray) -> tuple[dict[str, Any], Any]:
        """The conic form for one point, and cvxpy's way to the solver."""
        self.given.value = g
        data, chain, _ = self.problem.get_problem_data(self.solver.name)
        return data, chain

    def _check(self, data: Mapping[str, Any]) -> None:
        dims = data["dims"]
        if dims.exp or dims.p3d or getattr(dims, "pnd", None):
            raise ValueError(
                "Expected linear, second-order or semidefinite constraints. Got exponential or power cones, whose "
                "multipliers are not checked here. Use norms 1, 2 and infinity."
            )
        bounded = any(data.get(key) is not None for key in ("lower_bounds", "upper_bounds"))
        if bounded or np.any(data["b"] != 0):
            raise ValueError(
                "Expected a cone: constraints that hold at 0 and, with x, at 2 x. Got constraints with constants. "
                "Write each as convex and positively homogeneous <= 0, such as norm(x[1:]) <= x[0]."
            )

    def project(self, g: FloatArray) -> Projection:
        """The solver's answer, its error recomputed.

        Raises
        ------
        cvxpy.SolverError
            The solver returned nothing to check.
        """
        data, chain = self.data(g)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate answer is judged below
            raw = chain.solve_via_data(self.problem, data, False, False, dict(self.solver.settings))
        answer = (raw["x"], raw["y"]) if isinstance(raw, Mapping) else (raw.x, raw.z)
        v, z = (np.asarray(one, dtype=np.float64) for one in answer)
        if not np.all(np.isfinite(v)) or not np.all(np.isfinite(z)):
            raise cp.SolverError("the answer is not finite")
        matrix, dims = data["A"], data["dims"]
        start = data["param_prob"].var_id_to_col[self.x.id]
        place = slice(start, start + self.dimension)
        x = v[place]
        others = np.ones(len(v), dtype=bool)
        others[place] = False
        slack = -np.asarray(matrix @ v)
        primal_residual = float(np.linalg.norm(slack - drawn_in(slack, dims, self.solver.lower_triangle, dual=False)))
        z = drawn_in(z, dims, self.solver.lower_triangle, dual=True)
        pull = np.asarray(matrix.T @ z)
        rest = g - pull[place]
        upper = float(rest @ rest)
        along, length = float(g @ x), float(np.linalg.norm(x))
        scale = max(0.0, along) / length**2 if length > 0 else 0.0
        lower = scale * max(0.0, along)
        # By how much multipliers that are not quite allowed, and an x that is not quite in C, may move the bounds.
        moved = float(np.linalg.norm(pull[others])) * float(np.linalg.norm(v[others]))
        moved += float(np.linalg.norm(z)) * primal_residual
        error = abs(upper - lower) + 2 * moved + primal_residual**2 + float(np.linalg.norm(g)) * primal_residual
        return Projection(scale * x, lower, error, self.solver.name)

    @property
    def dimension(self) -> int:
        """Of the space."""
        return int(self.x.size)


def drawn_in(values: FloatArray, dims: Any, lower_triangle: bool, dual: bool) -> FloatArray:
    """The nearest values in the product of cones, or in its dual: free where the cone is zero.

    ``values``, shape ``(rows,)``, hold zeros, orthant, second-order cones and triangles of semidefinite matrices whose
    off-diagonal entries are multiplied by sqrt(2), which keeps inner products.
    """
    found = values.copy()
    if not dual:
        found[: dims.zero] = 0.0
    start = dims.zero
    found[start : start + dims.nonneg] = np.maximum(found[start : start + dims.nonneg], 0.0)
    start += dims.nonneg
    for size in dims.soc:
        found[start : start + size] = _second_order(found[start : start + size])
        start += size
    for side in dims.psd:
        size = side * (side + 1) // 2
        found[start : start + size] = _semidefinite(found[start : start + size], side, lower_triangle)
        start += size
    return found


def _second_order(part: FloatArray) -> FloatArray:
    first, length = float(part[0]), float(np.linalg.norm(part[1:]))
    if length <= first:
        return part
    if length <= -first:
        return np.zeros_like(part)
    mean = (first + length) / 2
    return np.concatenate([[mean], part[1:] * (mean / length)])


def _semidefinite(part: FloatArray, side: int, lower_triangle: bool) -> FloatArray:
    # A lower triangle by columns is an upper one by rows, and the other way round.
    places = np.triu_indices(side) if lower_triangle else np.tril_indices(side)
    scale = np.where(places[0] == places[1], 1.0, math.sqrt(2))
    matrix = np.zeros((side, side))
    matrix[places] = part / scale
    matrix = matrix + matrix.T - np.diag(np.diag(matrix))
    values, vectors = np.linalg.eigh(matrix)
    nearest = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return np.asarray(nearest[places] * scale)
