"""Statistical dimensions by checked conic programs: formulas, laws of cones, and solvers that are made to fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from solvers.conic import (
    CLARABEL,
    SCS,
    Cone,
    ConicProjector,
    ConicSolver,
    EllipsoidCone,
    Estimate,
    ProjectionFailedError,
    closed_forms,
    constraints,
    group_descent,
    l1_descent,
    monte_carlo,
)

TILT = math.tan(0.4)

#: Stops after two steps, far from a solution.
CRIPPLED = ConicSolver(cp.CLARABEL, {"max_iter": 2})

#: Says that it has solved the problem, but to two digits.
SLOPPY = ConicSolver(cp.SCS, {"eps_abs": 1e-2, "eps_rel": 1e-2}, lower_triangle=True)


def circular(x: cp.Variable) -> list[cp.Constraint]:
    """The points within 0.4 radians of the first axis."""
    return [cp.norm(x[1:]) <= TILT * x[0]]


def semidefinite(side: int) -> Cone:
    """Positive semidefinite matrices in coordinates that keep the inner product."""

    def cone(x: cp.Variable) -> list[cp.Constraint]:
        matrix = cp.Variable((side, side), PSD=True)
        rows, columns = np.tril_indices(side)
        factors = np.where(rows == columns, 1.0, math.sqrt(2))
        return [cp.multiply(factors, matrix[rows, columns]) == x]

    return cone


def blocks(count: int, active: int) -> tuple[np.ndarray, np.ndarray]:
    """A vector with some nonzero groups of four, and the groups."""
    point = np.zeros(4 * count)
    point[: 4 * active] = np.random.default_rng(5).standard_normal(4 * active)
    return point, np.arange(4 * count).reshape(count, 4)


@pytest.mark.parametrize(
    ("cone", "dimension", "delta"),
    [
        (lambda x: [x >= 0], 40, 20.0),
        (lambda x: [x[:30] == 0], 40, 10.0),
        (lambda x: [cp.norm(x[1:]) <= x[0]], 40, 20.0),
        (circular, 40, closed_forms.circular(40, 0.4)),
        (semidefinite(6), 21, closed_forms.psd(6)),
        (constraints.monotone(), 40, closed_forms.monotone(40)),
        (constraints.inequalities(np.eye(40)), 40, 20.0),
        (lambda x: [], 40, 40.0),
    ],
    ids=["orthant", "subspace", "second-order", "circular", "semidefinite", "monotone", "inequalities", "space"],
)
def test_sampling_agrees_with_formulas(cone: Cone, dimension: int, delta: float) -> None:
    """Each cone with a formula is sampled within three standard errors of it."""
    found = monte_carlo(cone, dimension, samples=80, seed=2)
    assert abs(found.mean - delta) <= 3 * found.standard_error + 1e-5 * dimension


def test_descent_cones_agree_with_formulas() -> None:
    """Sampled descent cones of the l1 and the group norm are below their bound and within its error."""
    point, groups = blocks(12, 3)
    for found, formula in [
        (
            monte_carlo(constraints.group_norm_descent(point, groups), 48, 80),
            group_descent([4] * 12, [1] * 3 + [0] * 9),
        ),
        (monte_carlo(lambda x: [cp.norm1(x[6:]) <= -cp.sum(x[:6])], 48, 80), l1_descent(48, 6)),
    ]:
        assert formula.lower <= found.mean + 3 * found.standard_error
        assert formula.upper >= found.mean - 3 * found.standard_error


def polar_pairs() -> list[tuple[str, Cone, Cone]]:
    """Cones with their polars, each written down on its own."""
    rows = np.random.default_rng(0).standard_normal((8, 15))

    def generated(x: cp.Variable) -> list[cp.Constraint]:
        return [x == rows.T @ cp.Variable(8, nonneg=True)]

    def opposite(x: cp.Variable) -> list[cp.Constraint]:
        return [cp.norm(x[1:]) <= -x[0] / TILT]

    def falling(x: cp.Variable) -> list[cp.Constraint]:
        sums = cp.cumsum(x)  # <y, x> <= 0 for all monotone x: no partial sum is above 0, the whole is 0
        return [sums[:-1] <= 0, sums[-1] == 0]

    return [
        ("inequalities", constraints.inequalities(rows), generated),
        ("circular", circular, opposite),
        ("monotone", constraints.monotone(), falling),
    ]


@pytest.mark.parametrize(("name", "cone", "polar"), polar_pairs(), ids=[name for name, _, _ in polar_pairs()])
def test_moreau(name: str, cone: Cone, polar: Cone) -> None:
    """A point is the sum of its projections on a cone and on the polar, and so are squared norms and dimensions."""
    on_cone, on_polar = ConicProjector(cone, 15), ConicProjector(polar, 15)
    rng = np.random.default_rng(1)
    for _ in range(10):
        g = rng.standard_normal(15)
        one, other = on_cone(g), on_polar(g)
        assert one.squared_norm + other.squared_norm == pytest.approx(float(g @ g), rel=1e-5)
        assert one.point + other.point == pytest.approx(g, abs=1e-2)
    total = monte_carlo(cone, 15, 20, seed=4).mean + monte_carlo(polar, 15, 20, seed=4).mean
    assert total == pytest.approx(15, abs=1e-3)


def test_overlapping_groups_that_do_not_overlap_are_groups() -> None:
    """Single entries as groups give the l1 norm's cone, sample by sample."""
    point = np.zeros(20)
    point[:4] = [1.0, -2.0, 0.5, 3.0]
    signs = np.sign(point[:4])
    singles = monte_carlo(constraints.group_norm_descent(point, [[i] for i in range(20)]), 20, 20)
    plain = monte_carlo(lambda x: [cp.norm1(x[4:]) <= -signs @ x[:4]], 20, 20)
    assert singles.mean == pytest.approx(plain.mean, abs=1e-4)


def test_no_step_in_the_descent_cone_of_overlapping_groups_ascends() -> None:
    """Small steps along projections do not raise the norm beyond second order; points outside do raise it."""
    point, groups = np.zeros(14), [list(range(s, s + 6)) for s in range(0, 9, 4)]
    point[:4] = [1.0, -1.0, 2.0, 0.5]
    weights = [1.0, 2.0, 0.7]

    def norm(x: np.ndarray) -> float:
        return sum(w * float(np.linalg.norm(x[group])) for w, group in zip(weights, groups, strict=True))

    project = ConicProjector(constraints.group_norm_descent(point, groups, weights), 14)
    rng, step = np.random.default_rng(0), 1e-5
    outside = 0
    for _ in range(20):
        g = rng.standard_normal(14)
        found = project(g)
        assert norm(point + step * found.point) - norm(point) <= 1e-3 * step
        if float(g @ g) - found.squared_norm > 0.1:
            outside += 1
            assert norm(point + step * g) > norm(point)
    assert outside > 0


def test_tangent_cone_of_the_nm_polytope() -> None:
    """From a vertex, projections stay in the 2:4 polytope for a small step, and feasible directions are unchanged."""
    point = np.tile([1.0, -1.0, 0.0, 0.0], 3)
    project = ConicProjector(constraints.nm_tangent(point, 2, 4), 12)
    rng = np.random.default_rng(0)
    for _ in range(10):
        step = project(rng.standard_normal(12)).point
        moved = (point + 1e-3 * step).reshape(3, 4)
        assert np.abs(moved).max() <= 1 + 1e-6 and np.abs(moved).sum(axis=1).max() <= 2 + 1e-6
        inside = rng.uniform(-1, 1, (3, 4))
        inside *= np.minimum(1, 2 / np.abs(inside).sum(axis=1, keepdims=True))
        towards = inside.ravel() - point
        assert project(towards).squared_norm == pytest.approx(float(towards @ towards), rel=1e-5)


def test_inside_a_polytope_all_directions_are_free() -> None:
    """The tangent cone at an interior point is the whole space, at a point on one facet a half-space."""
    assert monte_carlo(constraints.nm_tangent(np.zeros(8), 2, 4), 8, 5).mean == pytest.approx(8, abs=1e-4)
    point = np.zeros(8)
    point[0] = 1.0
    assert abs(monte_carlo(constraints.nm_tangent(point, 2, 4), 8, 200).mean - 7.5) < 0.3


def test_intersections_are_smaller() -> None:
    """An intersection holds less than each of its parts, sample by sample."""
    parts = constraints.monotone(), lambda x: [x >= 0]
    both = monte_carlo(constraints.intersection(*parts), 15, 30)
    assert all(both.mean < monte_carlo(part, 15, 30).mean for part in parts)
    half = closed_forms.monotone(15) / 2  # nonnegative and monotone: half of the harmonic number
    assert abs(both.mean - half) <= 3 * both.standard_error


@pytest.mark.parametrize("solver", [CLARABEL, SCS], ids=["Clarabel", "SCS"])
@pytest.mark.parametrize("cone", [circular, semidefinite(4)], ids=["circular", "semidefinite"])
def test_solvers_agree(solver: ConicSolver, cone: Cone) -> None:
    """Both solvers' multipliers pass the check, whatever order they store matrices in, with equal projections."""
    g = np.random.default_rng(0).standard_normal(10)
    found = ConicProjector(cone, 10, solvers=[solver])(g)
    assert found.solver == solver.name
    assert found.squared_norm == pytest.approx(ConicProjector(cone, 10)(g).squared_norm, abs=1e-5)


def test_the_ellipsoid_cone_as_constraints() -> None:
    """The conic program of a loss cone finds the exact projection."""
    rng = np.random.default_rng(0)
    spectrum, centre = np.exp(rng.standard_normal(20)), rng.standard_normal(20)
    exact = EllipsoidCone(spectrum, centre, 0.3)
    root = np.sqrt(spectrum)

    def cone(x: cp.Variable) -> list[cp.Constraint]:
        t = cp.Variable(nonneg=True)
        return [cp.norm(cp.multiply(root, x) - root * centre * t) <= math.sqrt(0.6) * t]

    project = ConicProjector(cone, 20)
    for _ in range(10):
        g = rng.standard_normal(20)
        plain = exact.project(g)
        assert project(g).squared_norm == pytest.approx(float(plain @ plain), abs=1e-5)


def test_the_recomputed_error_covers_the_true_one() -> None:
    """Stopped early, a solver's answer is as wrong as the check says, or less."""
    rng = np.random.default_rng(0)
    for steps in range(1, 9):
        loose = ConicProjector(circular, 20, 0.999999, [ConicSolver(cp.CLARABEL, {"max_iter": steps})])
        g = rng.standard_normal(20) * 3
        true = ConicProjector(circular, 20)(g).squared_norm
        try:
            found = loose(g)
        except ProjectionFailedError:
            continue
        assert abs(found.squared_norm - true) <= found.error + 1e-6 * float(g @ g)


@pytest.mark.parametrize("solver", [CRIPPLED, SLOPPY], ids=["stopped early", "calls it solved"])
def test_an_inaccurate_answer_is_not_taken(solver: ConicSolver) -> None:
    """An answer that fails the check goes to the next solver, and the mean is the right one."""
    found = monte_carlo(circular, 20, 10, solvers=[solver, CLARABEL])
    assert found.mean == pytest.approx(monte_carlo(circular, 20, 10).mean, abs=1e-4)
    with pytest.raises(ProjectionFailedError, match="Sample 0 of 10"):
        monte_carlo(circular, 20, 10, solvers=[solver])


def test_when_all_solvers_fail_the_sample_is_named() -> None:
    """The error names the sample, the seed and what each solver said."""
    with pytest.raises(ProjectionFailedError, match=r"Sample 0 of 3 \(seed 7\).*CLARABEL.*SCS"):
        monte_carlo(circular, 20, 3, seed=7, solvers=[CRIPPLED, SLOPPY])


@pytest.mark.parametrize(
    "cone",
    [
        lambda x: [cp.norm(x) <= 1],
        lambda x: [cp.sum(x) == 1],
        lambda x: [x >= 1],
        lambda x: [x >= 0, x <= 1e6],
        lambda x: [cp.sum_squares(x[1:]) <= x[0]],
        lambda x: [x == cp.Variable(6, bounds=[0, 1])],
        lambda x: [cp.norm(x) >= 0.0 * x[0] + cp.norm(x[1:])],
        lambda x: [x == cp.Variable(6, integer=True)],
        lambda x: [cp.sum(x) <= cp.Parameter()],
        lambda x: [cp.exp(x[0]) <= x[1]],
        lambda x: x >= 0,
    ],
    ids=[
        "ball",
        "plane",
        "no origin",
        "box",
        "paraboloid",
        "bounds",
        "not convex",
        "integer",
        "parameter",
        "exp",
        "list",
    ],
)
def test_what_is_no_convex_cone_is_refused(cone: Callable) -> None:
    """Constraints that do not hold at 0 or at 2 x with x, or are not convex, are refused before any sample."""
    with pytest.raises(ValueError, match="Expected"):
        monte_carlo(cone, 6, 5)


def test_equal_seeds_give_equal_estimates() -> None:
    """Sampling is reproducible, another seed gives another estimate."""
    first = monte_carlo(circular, 10, 5, seed=1)
    assert first == monte_carlo(circular, 10, 5, seed=1) != monte_carlo(circular, 10, 5, seed=2)


def test_rotations_and_scales_leave_the_dimension() -> None:
    """A rotated cone, and one whose constraints are multiplied, has the same statistical dimension."""
    rows = np.random.default_rng(0).standard_normal((5, 12))
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    found = [monte_carlo(constraints.inequalities(one), 12, 150, seed) for seed, one in enumerate([rows, rows @ turn])]
    error = math.hypot(found[0].standard_error, found[1].standard_error)
    assert abs(found[0].mean - found[1].mean) <= 3 * error
    assert monte_carlo(constraints.inequalities(100 * rows), 12, 20).mean == pytest.approx(
        monte_carlo(constraints.inequalities(rows), 12, 20).mean, abs=1e-4
    )


def test_progress_is_told() -> None:
    """The callback hears of every sample."""
    heard: list[tuple[int, int]] = []
    monte_carlo(circular, 5, 3, progress=lambda done, samples: heard.append((done, samples)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_directions_alone_vary_less() -> None:
    """Taking the length of g at its mean leaves an orthant a standard error below that of squared norms."""
    rng = np.random.default_rng(0)
    plain = Estimate.of((np.maximum(rng.standard_normal((200, 40)), 0) ** 2).sum(axis=1))
    assert monte_carlo(lambda x: [x >= 0], 40, 200).standard_error < 0.9 * plain.standard_error
