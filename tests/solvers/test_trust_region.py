"""The least of a quadratic inside a ball: optimality conditions, brute force, singular and hard cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from solvers.effective_dimension import FloatArray
from solvers.trust_region import trust_region


def tridiagonal(seed: int, size: int, rank: int) -> tuple[list[float], list[float], FloatArray]:
    """Diagonal and off-diagonal of a positive semidefinite matrix B'B, B upper bidiagonal, and the matrix."""
    rng = np.random.default_rng(seed)
    upper = np.diag(rng.uniform(0.2, 2.0, size)) + np.diag(rng.uniform(0.2, 1.0, size - 1), 1)
    # A zero on the diagonal of B takes one from the rank.
    upper[rank:, :] = 0.0
    matrix = upper.T @ upper
    return np.diag(matrix).tolist(), np.diag(matrix, 1).tolist(), matrix


def fall_at(matrix: FloatArray, norm: float, step: FloatArray) -> float:
    """By how much the quadratic falls at a step."""
    return float(norm * step[0] - 0.5 * step @ matrix @ step)


problems = given(seed=st.integers(0, 10_000), size=st.integers(1, 8), loss=st.integers(0, 2), power=st.floats(-3, 3))


@problems
def test_optimality_conditions_hold(seed: int, size: int, loss: int, power: float) -> None:
    """(T + s) h = b for one s >= 0, ||h|| <= radius, and s > 0 only on the boundary, singular T included."""
    alpha, beta, matrix = tridiagonal(seed, size, max(size - loss, 0))
    norm, radius = 1.7, 10**power
    step, fall = trust_region(alpha, beta, norm, radius)
    residual = norm * np.eye(size)[0] - matrix @ step
    length = float(np.linalg.norm(step))
    shift = float(residual @ step) / max(length**2, 1e-300)
    assert length <= radius * (1 + 1e-8)
    assert shift >= -1e-7
    assert residual == pytest.approx(shift * step, abs=1e-6)
    assert length == pytest.approx(radius, rel=1e-6) or abs(shift) <= 1e-6
    assert fall == pytest.approx(fall_at(matrix, norm, step), abs=1e-7)


@problems
def test_no_point_of_the_ball_is_better(seed: int, size: int, loss: int, power: float) -> None:
    """None of 200 random points of the ball lets the quadratic fall further."""
    alpha, beta, matrix = tridiagonal(seed, size, max(size - loss, 0))
    radius = 10**power
    _, fall = trust_region(alpha, beta, 1.0, radius)
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((200, size))
    points *= radius * rng.uniform(0, 1, (200, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    assert max(fall_at(matrix, 1.0, point) for point in points) <= fall + 1e-9 * max(1.0, radius)


@pytest.mark.parametrize("seed", range(6))
def test_a_general_optimiser_finds_the_same(seed: int) -> None:
    """scipy's constrained optimiser finds no other value."""
    alpha, beta, matrix = tridiagonal(seed, 5, 5 - seed % 2)
    radius = 0.3 * (seed + 1)
    _, fall = trust_region(alpha, beta, 1.0, radius)
    ball = {"type": "ineq", "fun": lambda h: radius**2 - h @ h}
    found = minimize(
        lambda h: -fall_at(matrix, 1.0, h),
        np.full(5, 0.01),
        method="SLSQP",
        constraints=[ball],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert fall == pytest.approx(-found.fun, abs=1e-6)


@problems
def test_a_larger_ball_is_never_worse(seed: int, size: int, loss: int, power: float) -> None:
    """The fall does not shrink with the radius."""
    alpha, beta, _ = tridiagonal(seed, size, max(size - loss, 0))
    falls = [trust_region(alpha, beta, 1.0, 10**power * factor)[1] for factor in (0.5, 1.0, 1.5, 4.0)]
    assert (np.diff(falls) >= -1e-9).all()


def test_without_curvature_the_step_goes_to_the_boundary() -> None:
    """The root then lies at the very end of its bracket, where rounding once left no change of sign."""
    for radius in np.geomspace(1e-3, 1e3, 200):
        step, fall = trust_region([0.0], [], 1.0, radius)
        assert step[0] == pytest.approx(radius)
        assert fall == pytest.approx(radius)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 8))
def test_no_ball_gives_the_shortest_minimiser(seed: int, size: int) -> None:
    """With an infinite radius the step is T^+ b where b lies in the range of T, and large balls come to the same."""
    alpha, beta, matrix = tridiagonal(seed, size, size)
    expected = np.linalg.pinv(matrix)[:, 0]
    step, fall = trust_region(alpha, beta, 1.0, np.inf)
    assert step == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert trust_region(alpha, beta, 1.0, 1e9)[1] == pytest.approx(fall, rel=1e-7)


def test_flat_directions_are_left_out_without_a_ball() -> None:
    """A push along a direction without curvature is ignored when nothing bounds the step, not followed for ever."""
    step, fall = trust_region([0.0], [], 2.0, np.inf)
    assert step == pytest.approx([0.0])
    assert fall == 0


def test_flat_directions_are_followed_to_the_boundary() -> None:
    """Without curvature the fall is linear: the step ends on the ball."""
    step, fall = trust_region([0.0, 0.0], [0.0], 2.0, 3.0)
    assert step == pytest.approx([3.0, 0.0])
    assert fall == pytest.approx(6.0)


def test_hard_case_needs_no_boundary() -> None:
    """Where the push has no part along the flat direction, the step may stay inside the ball."""
    step, fall = trust_region([2.0, 0.0], [0.0], 1.0, 10.0)
    assert step == pytest.approx([0.5, 0.0])
    assert fall == pytest.approx(0.25)


def test_a_point_allows_no_step() -> None:
    """Radius 0 and a push of 0 both give no step and no fall."""
    for norm, radius in ((1.0, 0.0), (0.0, 1.0)):
        step, fall = trust_region([2.0, 1.0], [0.5], norm, radius)
        assert (step == 0).all()
        assert fall == 0
