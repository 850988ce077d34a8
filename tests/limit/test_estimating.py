"""What the estimators say along a path: laws recomputed, networks rebuilt, epsilons compared."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from solvers.effective_dimension import Spectrum
from structprune.limit.active import checked_path
from structprune.limit.curvature import GaussNewton
from structprune.limit.estimating import ESTIMATORS, RADII, Estimating
from structprune.limit.value import Interval, LimitEstimate
from structprune.structures import Structures, blocks, channels
from tests.limit.small import at, dense, trained

KINDS = ("weights", "channels", "blocks")
EPSILONS = (0.003, 0.02, 0.1, 0.4)
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def matrix() -> Tensor:
    """The Gauss-Newton matrix of the network."""
    loss, here = at(*trained())
    return dense(GaussNewton(loss, here), here)


def eigenvalues() -> np.ndarray:
    """All of them, none below zero."""
    return torch.linalg.eigvalsh(matrix()).clamp(min=0).numpy()


def estimating(kind: str = "weights", epsilon: float = 0.05, tau: tuple[float, ...] = (0.05, 0.1)) -> Estimating:
    """The estimators of a network at rest, with every eigenvalue known."""
    model, data = trained()
    structures: Structures | None = None
    if kind == "channels":
        structures = channels(model, data[0][0])
    elif kind == "blocks":
        structures = blocks(model, (1, 3), example=data[0][0])
    loss, here = at(model, data)
    path, _ = checked_path(loss, here, structures)
    alive = np.ones(len(here), dtype=bool)
    allowed = Interval(0.8 * epsilon, epsilon, 1.2 * epsilon)
    spectrum = Spectrum.of_eigenvalues(eigenvalues())
    return Estimating(loss, here, path, lambda vector: matrix() @ vector, spectrum, alive, allowed, tau, 60)


def every(run: Estimating) -> list[LimitEstimate]:
    """What all estimators say."""
    return [one for name in ESTIMATORS for one in run.estimates(name)]


@kinds
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_network_at_the_constructive_limit_loses_no_more_than_epsilon(kind: str, epsilon: float) -> None:
    """A network of exactly that support, with weights written into a copy of it, has a loss of at most L + epsilon."""
    run = estimating(kind, epsilon)
    (estimate,) = run.estimates("constructive")
    position = run.position_of(estimate)
    kept = run.path.kept(position)
    update = run.building.at(position)
    model, data = trained()
    inputs, targets = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    losses = []
    for tau in RADII:
        pruned = copy.deepcopy(model)
        weights = run.here * kept + update.step(tau)
        assert not bool(weights[~kept].any())
        pruned.load_state_dict(run.path.layout.split(weights))
        with torch.no_grad():
            losses.append(float(F.cross_entropy(pruned(inputs), targets)))
    with torch.no_grad():
        before = float(F.cross_entropy(model(inputs), targets))
    assert estimate.is_upper_bound
    assert estimate.kept == int(kept.sum())
    assert position == run.path.last or min(losses) <= before + epsilon + 1e-9


@kinds
def test_limits_do_not_rise_with_epsilon(kind: str) -> None:
    """Who may lose more keeps no more, by every estimator."""
    found = np.array([[one.keep_fraction.value for one in every(estimating(kind, eps))] for eps in EPSILONS])
    assert (np.diff(found, axis=0) <= 0).all()
    assert (found[0] > found[-1]).all()


@kinds
def test_intervals_hold_their_values(kind: str) -> None:
    """Low <= value <= high, and kept weights and structures are those of the path at the value."""
    run = estimating(kind)
    for one in every(run):
        assert one.keep_fraction.low <= one.keep_fraction.value <= one.keep_fraction.high <= 1
        position = run.position_of(one)
        assert one.kept == int(run.path.kept(position).sum()) == pytest.approx(one.keep_fraction.value * len(run.here))
        assert one.structures == run.path.structures[position]


def test_only_what_was_measured_is_called_a_bound() -> None:
    """Of all estimates the constructive one alone is an upper bound."""
    assert [one.name for one in every(estimating()) if one.is_upper_bound] == ["constructive"]


def test_estimates_are_named_for_their_radius() -> None:
    """There is one estimate per law, and one per radius of the trust region."""
    names = [one.name for one in every(estimating(tau=(0.05, 0.2)))]
    assert names == ["paper", "generic", "trust 0.05", "trust 0.2", "constructive"]


@kinds
def test_larger_radii_keep_no_more(kind: str) -> None:
    """A trust region that holds another never has the larger limit."""
    found = [one.keep_fraction.value for one in estimating(kind, tau=(0.0, 0.05, 0.2, 1.0)).estimates("trust")]
    assert found == sorted(found, reverse=True)


@kinds
def test_curves_are_the_losses_at_their_keep_fractions(kind: str) -> None:
    """Points of the trust region's curve are E(tau) there, those beyond its limit within epsilon."""
    run = estimating(kind)
    (one, _) = run.estimates("trust")
    assert one.curve
    for fraction, rise in one.curve:
        position = int(np.searchsorted(run.fractions, fraction - 1e-12))
        assert rise == pytest.approx(run.updates.at(position).loss(0.05))
    at_limit = [rise for fraction, rise in one.curve if fraction == one.keep_fraction.value]
    assert at_limit or one.keep_fraction.value == 1
    assert max(at_limit, default=0.0) <= run.epsilon.value


def test_the_published_law_is_its_fixed_point() -> None:
    """The paper's k is the first that is at least N(2 epsilon / R(k)^2), the eigenvalues summed here."""
    run = estimating()
    products = np.outer(run.energy, eigenvalues())
    allowed = run.path.counts() >= (products / (products + 2 * run.epsilon.value)).sum(axis=1)
    position = int(np.flatnonzero(allowed)[0])
    assert run.paper_position == position
    assert run.paper_scale == pytest.approx(2 * run.epsilon.value / run.energy[position])


def test_the_quadratic_model_is_right_for_small_epsilon() -> None:
    """For a network at rest the measured rise of the smallest cut is the predicted one."""
    run = estimating(epsilon=1e-4)
    position = run.path.last - 1
    predicted = run.updates.at(position).loss(0.0)
    measured = run.at(run.here * run.path.kept(position)) - run.base_loss
    assert measured == pytest.approx(predicted, rel=0.3, abs=1e-6)


def test_model_error_is_measured_against_predicted() -> None:
    """The model's error is |measured - predicted| in units of epsilon where a network was built, else unknown."""
    run = estimating()
    (estimate,) = run.estimates("constructive")
    position = run.position_of(estimate)
    measured, predicted = run.rises[position]
    assert run.model_error(position) == pytest.approx(abs(measured - predicted) / 0.05)
    assert run.model_error(0) is None or 0 in run.rises
