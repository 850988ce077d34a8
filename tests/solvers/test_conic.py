"""Statistical dimensions by formula: known values, laws of cones, plain sampling without a conic solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from solvers.conic import (
    EllipsoidCone,
    Estimate,
    closed_forms,
    effective_dimension,
    group_descent,
    l1_descent,
    loss_cone_dimension,
    nuclear_descent,
    sampled,
    sublevel_width,
)

seeds = st.integers(0, 10_000)


def near(estimate: Estimate, value: float) -> bool:
    """Whether a value is within three standard errors."""
    return abs(estimate.mean - value) <= 3 * estimate.standard_error


def random_ellipsoid(seed: int, size: int = 12, flat: int = 0) -> EllipsoidCone:
    """An ellipsoid of random axes that leaves the origin outside, with some flat directions."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(2 * rng.standard_normal(size))
    spectrum[:flat] = 0.0
    centre = rng.standard_normal(size)
    share = rng.uniform(0.01, 0.9)
    return EllipsoidCone(spectrum, centre, share * 0.5 * float(spectrum @ centre**2))


def test_the_mean_and_its_interval() -> None:
    """Of 1, 2, 3 the mean is 2, its standard error 1/sqrt(3), and Student's 95 % interval reaches 4.303 of it."""
    estimate = Estimate.of([1.0, 2.0, 3.0])
    low, high = estimate.interval()
    assert (estimate.mean, estimate.samples) == (2.0, 3)
    assert estimate.standard_error == pytest.approx(1 / math.sqrt(3))
    assert (high - 2, 2 - low) == pytest.approx((4.30265 / math.sqrt(3),) * 2, rel=1e-5)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 2.0])
def test_an_impossible_confidence_is_refused(confidence: float) -> None:
    """An interval needs a confidence strictly between 0 and 1."""
    with pytest.raises(ValueError, match="confidence"):
        Estimate(0.0, 1.0, 10).interval(confidence)


def test_one_sample_is_no_estimate() -> None:
    """A standard error needs two samples."""
    with pytest.raises(ValueError, match="at least 2"):
        Estimate.of([1.0])


def test_self_dual_cones_have_half_the_dimension() -> None:
    """Orthant, second-order and semidefinite cones equal their polars up to sign."""
    found = closed_forms.orthant(7), closed_forms.second_order(7), closed_forms.psd(4)
    assert found == (3.5, 3.5, 5.0)
    assert all(
        closed_forms.polar(value, dimension) == value for value, dimension in zip(found, (7, 7, 10), strict=True)
    )


@pytest.mark.parametrize(("dimension", "delta"), [(10, 2.984), (50, 13.000), (200, 50.500)])
def test_known_circular_cones(dimension: int, delta: float) -> None:
    """Cones of 30 degrees have the values that a prototype found by another integration."""
    assert closed_forms.circular(dimension, math.pi / 6) == pytest.approx(delta, abs=1e-3)


@pytest.mark.parametrize("dimension", [1, 2, 3, 10, 1000])
def test_circular_cones_range_from_a_ray_to_a_half_space(dimension: int) -> None:
    """Angle 0 is a ray (1/2), pi/4 is self-dual (D/2), pi/2 a half-space (D - 1/2)."""
    if dimension > 1:
        assert closed_forms.circular(dimension, math.pi / 4) == pytest.approx(dimension / 2)
        assert closed_forms.circular(dimension, math.pi / 2) == pytest.approx(dimension - 0.5)
    assert closed_forms.circular(dimension, 0.0) == pytest.approx(0.5)


@given(st.integers(2, 300), st.floats(0, math.pi / 2))
@settings(max_examples=25, deadline=None)
def test_a_circular_cone_and_its_polar_fill_the_space(dimension: int, angle: float) -> None:
    """The polar of a circular cone has the complementary angle, and delta(C) + delta(polar) = D."""
    total = closed_forms.circular(dimension, angle) + closed_forms.circular(dimension, math.pi / 2 - angle)
    assert total == pytest.approx(dimension, abs=1e-6)


def test_large_circular_cones_follow_their_asymptotic_law() -> None:
    """In a million dimensions delta is D sin^2 + cos(2 angle) up to a small remainder."""
    assert closed_forms.circular(10**6, 0.5) == pytest.approx(1e6 * math.sin(0.5) ** 2 + math.cos(1.0), abs=1e-3)


def test_isotonic_regression_has_harmonic_dimension() -> None:
    """Projections on monotone vectors have the mean squared norm 1 + 1/2 + ... + 1/D."""
    found = sampled(lambda g: isotonic_regression(g, increasing=False).x, 20, samples=2000)
    assert near(found, closed_forms.monotone(20))


def test_products_add() -> None:
    """An orthant is a product of rays."""
    assert closed_forms.product(*[closed_forms.orthant(1)] * 9, closed_forms.subspace(2)) == 4.5 + 2


def test_the_width_is_within_its_interval() -> None:
    """The width of a subspace, the mean of a chi variable, obeys w^2 <= delta <= w^2 + 1."""
    width = math.sqrt(2) * math.gamma(4) / math.gamma(3.5)
    low, high = closed_forms.width_interval(closed_forms.subspace(7))
    assert low <= width <= high


@pytest.mark.parametrize("call", [lambda: closed_forms.circular(3, 2.0), lambda: closed_forms.polar(4, 3)])
def test_impossible_cones_are_refused(call) -> None:
    """Angles beyond a right one and dimensions beyond the space's are mistakes."""
    with pytest.raises(ValueError, match="Expected"):
        call()


@pytest.mark.parametrize(("share", "psi"), [(0.1, 0.32879), (0.5, 0.83130)])
def test_known_values_of_the_l1_norm(share: float, psi: float) -> None:
    """The phase transition curve of compressed sensing at two densities."""
    assert l1_descent(100_000, round(100_000 * share)).upper / 100_000 == pytest.approx(psi, abs=1e-5)


def l1_sample(dimension: int, active: int, samples: int) -> Estimate:
    """delta itself, not its bound: the least squared distance to ``t df`` over t, sample by sample."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(samples):
        g = rng.standard_normal(dimension)
        steps = np.linspace(0, 6, 601)[:, None]
        away = ((g[:active] - steps) ** 2).sum(axis=1)
        away += (np.maximum(np.abs(g[active:]) - steps, 0) ** 2).sum(axis=1)
        values.append(away.min())
    return Estimate.of(values)


@pytest.mark.parametrize(("dimension", "active"), [(60, 6), (40, 1), (30, 20)])
def test_descent_dimensions_hold_within_their_error(dimension: int, active: int) -> None:
    """The formula is above the sampled statistical dimension, and by no more than its stated error."""
    found, plain = l1_descent(dimension, active), l1_sample(dimension, active, 500)
    low, high = plain.mean - 3 * plain.standard_error, plain.mean + 3 * plain.standard_error
    assert found.upper >= low and found.lower <= high


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_single_entry_groups_are_the_l1_norm(seed: int) -> None:
    """Groups of one entry have the same cone, whichever are active; a common weight changes nothing."""
    rng = np.random.default_rng(seed)
    dimension = int(rng.integers(1, 50))
    active = rng.random(dimension) < rng.random()
    found = group_descent(np.ones(dimension), active, np.full(dimension, 3.0))
    assert found.upper == pytest.approx(l1_descent(dimension, int(active.sum())).upper, abs=1e-9)


def test_with_all_groups_active_nothing_is_saved() -> None:
    """Where every group is active the bound is the whole dimension; with none it is 0."""
    sizes = np.array([2, 5, 3])
    assert group_descent(sizes, np.ones(3, bool)).upper == 10
    assert group_descent(sizes, np.zeros(3, bool)).upper == 0


def test_one_group_is_active_or_idle() -> None:
    """A single active group leaves a half-space, which the bound rounds up to the dimension."""
    found = group_descent([8], [True])
    assert found.lower <= 8 - 0.5 <= found.upper == 8


def test_unequal_groups_against_sampling() -> None:
    """J(t) of unequal weighted groups is the mean squared distance to t times the subdifferential."""
    sizes, weights = np.array([1, 4, 2, 7, 3]), np.array([1.0, 2.0, 1.5, 2.5, 0.7])
    active = np.array([False, True, False, False, True])
    found = group_descent(sizes, active, weights)
    rng = np.random.default_rng(1)
    distances = np.zeros(20_000)
    for size, weight, on in zip(sizes, weights, active, strict=True):
        g = rng.standard_normal((len(distances), size))
        g[:, 0] -= on * found.multiplier * weight
        length = np.linalg.norm(g, axis=1)
        distances += (length if on else np.maximum(length - found.multiplier * weight, 0)) ** 2
    assert near(Estimate.of(distances), found.upper)


def test_larger_blocks_need_fewer_measurements() -> None:
    """Of equally many active entries, fewer and larger groups have a smaller descent cone."""
    found = [group_descent(np.full(120 // b, b), np.arange(120 // b) < 24 // b).upper for b in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)


def test_known_value_of_the_nuclear_norm() -> None:
    """A 60 x 60 matrix of rank 6 has .3511 of its dimension."""
    assert nuclear_descent(60, 60, 6) / 3600 == pytest.approx(0.3511, abs=5e-5)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(20, 20, 3), (12, 30, 4)])
def test_nuclear_norm_against_sampling(rows: int, columns: int, rank: int) -> None:
    """Sampled singular values give the limit's value within a percent already at small sizes."""
    rng = np.random.default_rng(0)
    values = [np.linalg.svd(rng.standard_normal((rows - rank, columns - rank)), compute_uv=False) for _ in range(300)]
    steps = np.linspace(0, 15, 301)
    above = np.mean([(np.maximum(one[:, None] - steps, 0) ** 2).sum(axis=0) for one in values], axis=0)
    plain = float(np.min(rank * (rows + columns - rank) + rank * steps**2 + above))
    assert nuclear_descent(rows, columns, rank) == pytest.approx(plain, rel=0.01)
    assert nuclear_descent(rows, columns, rank) == pytest.approx(nuclear_descent(columns, rows, rank))


def test_effective_dimension_falls_from_the_rank_to_zero() -> None:
    """At mu = 0 it is the rank, then it decreases; multiplicities repeat eigenvalues."""
    spectrum = np.array([0.0, 1.0, 2.0, 5.0])
    found = [effective_dimension(spectrum, mu) for mu in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert found[0] == 3 and found == sorted(found, reverse=True) and found[-1] < 1e-6
    times = [2, 1, 3, 1]
    assert effective_dimension(spectrum, 0.7, times) == pytest.approx(
        effective_dimension(np.repeat(spectrum, times), 0.7)
    )


def test_a_ball_has_the_circular_cone() -> None:
    """For H = h I the loss cone has D r^2 / R^2, the published sum D r^2 / (R^2 + r^2)."""
    size, h, radius, inner = 40, 3.0, 2.0, 0.8
    centre = np.full(size, radius / math.sqrt(size))
    epsilon = 0.5 * h * inner**2
    assert loss_cone_dimension(np.full(size, h), centre**2, epsilon) == pytest.approx(size * inner**2 / radius**2)
    published = size * inner**2 / (radius**2 + inner**2)
    assert sublevel_width(np.full(size, h), radius, epsilon) == pytest.approx(published)
    exact = closed_forms.circular(size, math.asin(inner / radius))
    assert exact == pytest.approx(size * inner**2 / radius**2, abs=1)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_loss_cones_widen_with_epsilon(seed: int) -> None:
    """A larger allowed loss never gives a smaller cone; it ends as the whole space."""
    cone = random_ellipsoid(seed, flat=seed % 3)
    losses = 0.5 * float(cone.eigenvalues @ cone.centre**2) * np.array([1e-6, 1e-3, 0.1, 0.5, 0.99, 1.0])
    found = [loss_cone_dimension(cone.eigenvalues, cone.centre**2, loss) for loss in losses]
    assert found == sorted(found) and found[-1] == 12


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_loss_cones_ignore_units(seed: int, unit: float, length: float) -> None:
    """Measuring loss or weights in other units changes neither the loss cone nor the published sum."""
    cone = random_ellipsoid(seed)
    spectrum, centre, epsilon = cone.eigenvalues, cone.centre, cone.epsilon
    scaled = unit / length**2 * spectrum, length * centre, unit * epsilon
    radius = float(np.linalg.norm(centre))
    same = loss_cone_dimension(scaled[0], scaled[1] ** 2, scaled[2])
    assert same == pytest.approx(loss_cone_dimension(spectrum, centre**2, epsilon), abs=1e-6)
    same = sublevel_width(scaled[0], length * radius, scaled[2])
    assert same == pytest.approx(sublevel_width(spectrum, radius, epsilon), abs=1e-6)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_the_published_sum_is_at_most_the_loss_cone(seed: int) -> None:
    """mu of the loss cone is at least 2 epsilon / R^2, so the published width squared is smaller."""
    cone = random_ellipsoid(seed)
    radius = float(np.linalg.norm(cone.centre))
    published = sublevel_width(cone.eigenvalues, radius, cone.epsilon)
    assert published <= loss_cone_dimension(cone.eigenvalues, cone.centre**2, cone.epsilon) + 1e-9


def test_repeated_eigenvalues_may_be_counted() -> None:
    """Energies summed over an eigenspace and its multiplicity give the same dimension."""
    rng = np.random.default_rng(0)
    spectrum, energies = np.array([0.0, 0.3, 2.0, 7.0]), rng.random((4, 5))
    long = loss_cone_dimension(np.repeat(spectrum, 5), energies.ravel(), 0.2)
    assert loss_cone_dimension(spectrum, energies.sum(axis=1), 0.2, [5] * 4) == pytest.approx(long)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_the_ellipsoid_projection_is_moreaus(seed: int) -> None:
    """The projection is in the cone; the rest is orthogonal to it and in the polar."""
    cone = random_ellipsoid(seed, flat=seed % 3)
    spectrum, centre, epsilon = cone.eigenvalues, cone.centre, cone.epsilon
    rng = np.random.default_rng(seed + 1)
    g = rng.standard_normal(len(centre)) + rng.choice([-2, 0, 2]) * centre
    x = cone.project(g)
    excess = float(spectrum @ centre**2) - 2 * epsilon
    scale = float(spectrum @ x**2) + 1e-12
    along = float(spectrum @ (centre * x))
    assert float(spectrum @ x**2) - along**2 / excess <= 1e-7 * scale and along >= -1e-9 * math.sqrt(scale * excess)
    assert abs(float((g - x) @ x)) <= 1e-7 * float(g @ g)
    # Points of the ellipsoid generate the cone: centre + sqrt(2 epsilon) H^-1/2 (unit vector), any flat part.
    units = rng.standard_normal((400, len(centre)))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    reach = np.divide(math.sqrt(2 * epsilon), np.sqrt(spectrum), out=np.zeros_like(spectrum), where=spectrum > 0)
    points = centre + units * reach
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert np.all(points @ (g - x) <= 1e-7 * np.linalg.norm(g))


@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
def test_loss_cones_against_exact_projections(share: float) -> None:
    """The deterministic equivalent is within a few percent of D of sampled exact projections, closer than the sum."""
    rng = np.random.default_rng(3)
    size = 120
    spectrum, centre = np.exp(1.5 * rng.standard_normal(size)), rng.standard_normal(size)
    epsilon = share * 0.5 * float(spectrum @ centre**2)
    plain = sampled(EllipsoidCone(spectrum, centre, epsilon).project, size, samples=400)
    found = loss_cone_dimension(spectrum, centre**2, epsilon)
    assert abs(found - plain.mean) <= 0.02 * size + 3 * plain.standard_error
    published = sublevel_width(spectrum, float(np.linalg.norm(centre)), epsilon)
    assert abs(found - plain.mean) < abs(published - plain.mean)


def test_inside_the_ellipsoid_there_is_no_cone_to_project_on() -> None:
    """The cone of a point within the loss is the whole space, and the error says so."""
    with pytest.raises(ValueError, match="is D"):
        EllipsoidCone(np.ones(3), np.ones(3), 2.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: effective_dimension([-1.0, 1.0], 0.1),
        lambda: effective_dimension([1.0], -0.1),
        lambda: loss_cone_dimension([1.0, 2.0], [1.0], 0.1),
        lambda: loss_cone_dimension([1.0, 2.0], [1.0, 1.0], 0.0),
        lambda: sublevel_width([1.0], 0.0, 0.1),
        lambda: group_descent([1, 2], [True]),
        lambda: group_descent([1, 0], [True, False]),
        lambda: l1_descent(3, 4),
        lambda: nuclear_descent(3, 4, 5),
    ],
)
def test_impossible_arguments_are_refused(call) -> None:
    """Negative curvature, shapes that disagree and counts out of range say what was expected."""
    with pytest.raises(ValueError, match=r"Expected .* Got .*"):
        call()
