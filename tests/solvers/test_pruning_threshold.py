"""Two laws of random supports: closed forms, the law of uniformly random eigenvectors, what cannot change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from solvers.effective_dimension import FloatArray, Spectrum
from solvers.pruning_threshold import (
    first_true,
    generic_loss,
    generic_spread,
    generic_threshold,
    paper_loss,
    paper_threshold,
)
from tests.solvers.test_effective_dimension import random_eigenvalues, rotated


def magnitude_path(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Number of kept weights and energy of removed ones when the largest stay, none to all."""
    squares = np.sort(weights**2)[::-1]
    return np.arange(len(weights) + 1.0), np.append(np.cumsum(squares[::-1])[::-1], 0.0)


@given(st.lists(st.booleans(), max_size=20))
def test_bisection_finds_where_truth_begins(flags: list[bool]) -> None:
    """The first index of a sorted list of False and True that is True; the length where there is none."""
    ordered = sorted(flags)
    assert first_true(len(ordered), lambda index: ordered[index]) == ordered.count(False)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 25.0])
def test_equal_curvature_gives_the_published_closed_form(curvature: float) -> None:
    """For H = h I the paper keeps the first k >= D R^2 / (R^2 + r^2), r^2 = 2 epsilon / h."""
    kept, energy = magnitude_path(np.random.default_rng(0).standard_normal(100))
    epsilon = 3.0
    radius = 2 * epsilon / curvature
    expected = np.flatnonzero(kept >= 100 * energy / (energy + radius))[0]
    assert paper_threshold(kept, energy, Spectrum.of_eigenvalues(np.full(100, curvature)), epsilon) == expected


@given(count=st.integers(1, 49), curvature=st.floats(1e-3, 1e3), energy=st.floats(1e-3, 1e3))
def test_equal_curvature_gives_the_generic_loss_exactly(count: int, curvature: float, energy: float) -> None:
    """For H = h I no update helps: the generic loss is h R^2 / 2 at every k."""
    spectrum = Spectrum.of_eigenvalues(np.full(50, curvature))
    assert generic_loss(count, energy, spectrum, 50) == pytest.approx(curvature * energy / 2)


def test_an_empty_support_loses_what_mean_curvature_says() -> None:
    """With nothing kept the generic loss is R^2 tr(H) / 2D: the limit of the law."""
    spectrum = Spectrum.of_eigenvalues([4.0, 1.0, 1.0, 0.0])
    assert generic_loss(0, 2.0, spectrum, 4) == pytest.approx(1.5)
    assert generic_loss(1e-6, 2.0, spectrum, 4) == pytest.approx(1.5, rel=1e-3)


def test_a_support_larger_than_the_rank_loses_nothing() -> None:
    """Where the support has as many weights as the curvature has directions, an update undoes everything."""
    spectrum = Spectrum.of_eigenvalues([3.0, 2.0, 1.0], size=20)
    assert [generic_loss(count, 5.0, spectrum, 20) for count in (3, 4, 10, 19)] == pytest.approx([0] * 4, abs=1e-12)
    assert generic_loss(2, 5.0, spectrum, 20) > 0


def exact_loss(inverse: FloatArray, weights: FloatArray, removed: NDArray[np.intp]) -> float:
    """Loss of removing some weights and updating the rest optimally (Hassibi and Stork 1993)."""
    return float(0.5 * weights[removed] @ np.linalg.solve(inverse[np.ix_(removed, removed)], weights[removed]))


def test_generic_law_is_the_mean_over_random_bases() -> None:
    """Exact updates of the largest weights under uniformly random eigenvectors lose what the law says, within 10 %."""
    rng = np.random.default_rng(0)
    size, counts = 200, (60, 100, 150)
    values = 10 ** rng.uniform(-3, 0, size)
    spectrum = Spectrum.of_eigenvalues(values)
    ratios = []
    for _ in range(60):
        weights = rng.standard_normal(size)
        order = np.argsort(-np.abs(weights))
        inverse = rotated(1 / values, rng)
        _, energy = magnitude_path(weights)
        ratios.append(
            [
                exact_loss(inverse, weights, order[count:]) / generic_loss(count, energy[count], spectrum, size)
                for count in counts
            ]
        )
    assert np.mean(ratios, axis=0) == pytest.approx(np.ones(len(counts)), abs=0.1)


@pytest.mark.parametrize("count", [20, 60])
def test_random_bases_scatter_as_the_spread_says(count: int) -> None:
    """The standard deviation of exact losses over 400 random bases, within 20 % (its own error is 4 %)."""
    rng = np.random.default_rng(1)
    size = 80
    values = 10 ** rng.uniform(-2, 0, size)
    weights = rng.standard_normal(size)
    removed = np.argsort(-np.abs(weights))[count:]
    losses = [exact_loss(rotated(1 / values, rng), weights, removed) for _ in range(400)]
    spread = generic_spread(count, Spectrum.of_eigenvalues(values), size)
    assert np.std(losses) / np.mean(losses) == pytest.approx(spread, rel=0.2)


@given(seed=st.integers(0, 1000), count=st.integers(1, 29))
def test_the_laws_differ_by_removed_over_kept(seed: int, count: int) -> None:
    """The loss that the paper's law allows at k is the generic one times (D - k) / k."""
    spectrum = Spectrum.of_eigenvalues(random_eigenvalues(np.random.default_rng(seed), 30))
    generic = generic_loss(count, 2.0, spectrum, 30)
    assert paper_loss(count, 2.0, spectrum) == pytest.approx(generic * (30 - count) / count)


@given(seed=st.integers(0, 1000), level=st.floats(-3, 1))
def test_thresholds_are_where_the_losses_fall_within_epsilon(seed: int, level: float) -> None:
    """At the threshold each law's loss is at most epsilon, and one weight earlier it is more."""
    rng = np.random.default_rng(seed)
    size = 40
    spectrum = Spectrum.of_eigenvalues(rng.uniform(0.01, 1.0, size))
    kept, energy = magnitude_path(rng.standard_normal(size))
    epsilon = 10**level
    paper = paper_threshold(kept, energy, spectrum, epsilon)
    generic = generic_threshold(kept, energy, spectrum, size, epsilon)
    # The last support removes nothing; no law is asked there.
    assert paper == size or paper_loss(kept[paper], energy[paper], spectrum) <= epsilon * (1 + 1e-6)
    assert generic_loss(kept[generic], energy[generic], spectrum, size) <= epsilon
    if paper:
        assert paper_loss(kept[paper - 1], energy[paper - 1], spectrum) > epsilon * (1 - 1e-6)
    if generic:
        assert generic_loss(kept[generic - 1], energy[generic - 1], spectrum, size) > epsilon


@given(seed=st.integers(0, 1000), first=st.floats(-3, 1), second=st.floats(-3, 1))
def test_thresholds_do_not_rise_with_epsilon(seed: int, first: float, second: float) -> None:
    """Who may lose more keeps no more."""
    rng = np.random.default_rng(seed)
    spectrum = Spectrum.of_eigenvalues(random_eigenvalues(rng, 40))
    kept, energy = magnitude_path(rng.standard_normal(40))
    low, high = sorted((10**first, 10**second))
    assert paper_threshold(kept, energy, spectrum, high) <= paper_threshold(kept, energy, spectrum, low)
    assert generic_threshold(kept, energy, spectrum, 40, high) <= generic_threshold(kept, energy, spectrum, 40, low)


@given(seed=st.integers(0, 1000), power=st.integers(-20, 20))
def test_thresholds_do_not_depend_on_the_unit_of_the_loss(seed: int, power: int) -> None:
    """Curvature and epsilon times a common factor leave both thresholds as they are."""
    rng = np.random.default_rng(seed)
    values, factor = random_eigenvalues(rng, 30), 2.0**power
    one, other = Spectrum.of_eigenvalues(values), Spectrum.of_eigenvalues(factor * values)
    kept, energy = magnitude_path(rng.standard_normal(30))
    assert paper_threshold(kept, energy, one, 0.3) == paper_threshold(kept, energy, other, 0.3 * factor)
    assert generic_threshold(kept, energy, one, 30, 0.3) == generic_threshold(kept, energy, other, 30, 0.3 * factor)


def test_the_whole_network_is_kept_where_nothing_less_will_do() -> None:
    """With an epsilon of nearly nothing both laws keep everything that has energy."""
    kept, energy = magnitude_path(np.ones(10))
    spectrum = Spectrum.of_eigenvalues(np.ones(10))
    assert paper_threshold(kept, energy, spectrum, 1e-12) == 10
    assert generic_threshold(kept, energy, spectrum, 10, 1e-12) == 10
