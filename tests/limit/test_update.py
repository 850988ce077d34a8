"""Updates of the survivors inside a trust region against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from structprune.limit.curvature import GaussNewton
from structprune.limit.path import Path, removal_path
from structprune.limit.update import Updates
from tests.limit.small import at, batches, dense, made, mlp

TAU = (0.0, 0.05, 0.3, 2.0, float("inf"))


def updates(seed: int = 0, steps: int = 200) -> tuple[Updates, np.ndarray, np.ndarray]:
    """Updates of a small network along the path of single weights, its curvature and its weights as arrays."""
    loss, here = at(made(mlp, seed), batches(4))
    operator = GaussNewton(loss, here)
    # Some curvature everywhere, so that dense inverses are safe.
    matrix = dense(operator, here) + 1e-4 * torch.eye(len(here), dtype=here.dtype)

    def product(vector: Tensor) -> Tensor:
        return matrix @ vector

    return Updates(product, here, removal_path(loss.model), steps, TAU), matrix.numpy(), here.numpy()


def dense_loss(matrix: np.ndarray, weights: np.ndarray, path: Path, position: int, tau: float) -> float:
    """E(tau) through the eigenvectors of the survivors' curvature and the secular equation."""
    kept, cut = path.kept(position).numpy(), path.cut(position).numpy()
    gone = np.where(cut, weights, 0.0)
    values, vectors = np.linalg.eigh(matrix[np.ix_(kept, kept)])
    push = vectors.T @ (matrix @ gone)[kept]
    radius = tau * float(np.linalg.norm(weights[kept]))

    def length(shift: float) -> float:
        return float(np.linalg.norm(push / (values + shift)))

    if length(0.0) <= radius:
        change = push / values
    elif radius == 0:
        change = np.zeros(len(values))
    else:
        change = push / (
            values + brentq(lambda shift: length(shift) - radius, 0, length(0) * values.max() / radius + 1)
        )
    whole = np.zeros(len(weights))
    whole[kept] = vectors @ change
    return float(0.5 * (whole - gone) @ matrix @ (whole - gone))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_full_krylov_space_gives_the_dense_optimum(seed: int, part: float) -> None:
    """E(tau) of the whole Krylov space is the minimum over the ball, found densely, for every radius."""
    run, matrix, weights = updates(seed)
    position = int(part * run.path.last)
    for tau in TAU:
        expected = dense_loss(matrix, weights, run.path, position, tau)
        assert run.at(position).loss(tau) == pytest.approx(expected, rel=5e-3, abs=1e-9)


def test_the_step_has_the_loss_that_is_told() -> None:
    """1/2 (d - w_p)' H (d - w_p) at the step d is E(tau), d lies on the survivors and inside its ball."""
    run, matrix, weights = updates()
    position = run.path.last // 2
    update = run.at(position)
    gone = np.where(run.path.cut(position).numpy(), weights, 0.0)
    kept = run.path.kept(position).numpy()
    for tau in TAU:
        step = update.step(tau).numpy()
        assert 0.5 * (step - gone) @ matrix @ (step - gone) == pytest.approx(update.loss(tau))
        assert not step[~kept].any()
        assert np.linalg.norm(step) <= tau * np.linalg.norm(weights[kept]) * (1 + 1e-9)


def test_no_radius_means_no_update() -> None:
    """E(0) is the loss of zeroing alone, 1/2 w_p' H w_p."""
    run, matrix, weights = updates()
    gone = np.where(run.path.cut(10).numpy(), weights, 0.0)
    assert run.at(10).loss(0.0) == pytest.approx(0.5 * gone @ matrix @ gone)
    assert not bool(run.at(10).step(0.0).any())


def test_larger_balls_and_larger_supports_lose_no_more() -> None:
    """E falls with tau, and with no bound on the step it falls along the path."""
    run, _, _ = updates()
    losses = np.array([run.losses(position) for position in range(0, run.path.last + 1, 4)])
    assert (np.diff(losses, axis=1) <= 1e-9).all()
    assert (np.diff(losses[:, -1]) <= 1e-3 * losses[:-1, -1] + 1e-12).all()
    assert losses[-1].max() == pytest.approx(0, abs=1e-12) or run.path.last % 4


def test_losses_are_remembered() -> None:
    """A position is computed once."""
    run, _, _ = updates()
    first = run.losses(7)
    run.seen[7] = tuple(2 * loss for loss in first)
    assert run.losses(7) == tuple(2 * loss for loss in first)


def test_survivors_of_no_length_do_not_move() -> None:
    """Where all survivors are zero a relative radius is no radius, and movement is a number."""
    loss, here = at(made(mlp), batches(4))
    path = removal_path(loss.model)
    here = here * ~path.kept(0)
    update = Updates(GaussNewton(loss, here), here, path, 20, (0.1,)).at(0)
    assert update.loss(0.1) == update.base
    assert np.isfinite(update.movement())


def test_the_unbounded_update_does_not_depend_on_the_scale_of_weights() -> None:
    """w -> S w, H -> S^-1 H S^-1 with a positive diagonal S leaves E(infinity) as it is, and changes E(0.3)."""
    run, matrix, weights = updates()
    position = run.path.last // 2
    scales = 10 ** np.random.default_rng(0).uniform(-0.5, 0.5, len(weights))
    turned = torch.from_numpy(matrix / np.outer(scales, scales))
    other = Updates(lambda vector: turned @ vector, torch.from_numpy(weights * scales), run.path, 200, TAU)
    assert other.at(position).loss(float("inf")) == pytest.approx(run.at(position).loss(float("inf")), rel=1e-2)
    assert other.at(position).loss(0.3) != pytest.approx(run.at(position).loss(0.3), rel=1e-2)
