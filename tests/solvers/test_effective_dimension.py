"""Effective dimension: closed forms, brackets by Gauss and Gauss-Radau rules, coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.effective_dimension import FloatArray, Rule, Spectrum, lanczos_rules
from solvers.pruning_threshold import paper_threshold


def lanczos(matrix: FloatArray, start: FloatArray, steps: int) -> tuple[list[float], list[float]]:
    """Plain Lanczos on a matrix, every vector orthogonalised twice against all others."""
    basis = [start / np.linalg.norm(start)]
    alpha, beta = [], []
    for step in range(steps):
        image = matrix @ basis[-1]
        alpha.append(float(basis[-1] @ image))
        known = np.array(basis)
        for _ in range(2):
            image = image - known.T @ (known @ image)
        left = float(np.linalg.norm(image))
        beta.append(left if left > 1e-10 * np.abs(alpha).max() and step + 1 < len(start) else 0.0)
        if beta[-1] == 0:
            break
        basis.append(image / left)
    return alpha, beta


def probed(matrix: FloatArray, rng: np.random.Generator, probes: int, steps: int) -> Spectrum:
    """What Lanczos runs from random signs say of a matrix."""
    size = len(matrix)
    pairs = [lanczos_rules(*lanczos(matrix, rng.choice([-1.0, 1.0], size), steps)) for _ in range(probes)]
    return Spectrum(size, tuple(gauss for gauss, _ in pairs), tuple(radau for _, radau in pairs))


def random_eigenvalues(rng: np.random.Generator, size: int) -> FloatArray:
    """Spectra as networks have them: flat, falling like a power, or a few large ones; some with zeros."""
    shape = rng.integers(3)
    if shape == 0:
        values = rng.uniform(0.0, 1.0, size)
    elif shape == 1:
        values = np.arange(1, size + 1.0) ** -rng.uniform(0.5, 2.0)
    else:
        values = 10 ** rng.uniform(-4, 0, size)
    values[: int(rng.integers(0, size // 3 + 1))] *= rng.integers(2)
    return values


def rotated(values: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A matrix with these eigenvalues in a uniformly random basis."""
    basis, upper = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    basis = basis * np.sign(np.diag(upper))
    return (basis * values) @ basis.T


def true_dimension(values: FloatArray, mu: float) -> float:
    """N(mu) by its definition."""
    return float(np.sum(values / (values + mu)))


@pytest.mark.parametrize(("curvature", "mu"), [(1.0, 1.0), (0.3, 2.0), (50.0, 1e-3)])
def test_equal_curvature_has_a_closed_form(curvature: float, mu: float) -> None:
    """N(mu) of h times the identity is D h / (h + mu), with no width of its interval."""
    found = Spectrum.of_eigenvalues(np.full(40, curvature)).dimension(mu)
    assert found.low == found.value == found.high == pytest.approx(40 * curvature / (curvature + mu))


def test_multiplicities_count_like_repeated_eigenvalues() -> None:
    """An eigenvalue given once with its multiplicity says what it says given several times."""
    short = Spectrum.of_eigenvalues([2.0, 0.5], multiplicity=[3, 2], size=9)
    long = Spectrum.of_eigenvalues([2.0, 2.0, 2.0, 0.5, 0.5], size=9)
    assert short.dimension(0.7).value == pytest.approx(long.dimension(0.7).value)
    assert short.trace == pytest.approx(7.0) == pytest.approx(long.trace)


def test_no_scale_at_all_gives_the_rank() -> None:
    """N(0) counts the positive eigenvalues, whatever the size of the whole matrix."""
    assert Spectrum.of_eigenvalues([3.0, 1e-9, 0.0, 0.0], size=10).dimension(0.0).value == pytest.approx(2)


@given(seed=st.integers(0, 10_000), size=st.integers(2, 14), steps=st.integers(1, 14), power=st.floats(-4, 2))
def test_gauss_and_radau_bracket_the_truth(seed: int, size: int, steps: int, power: float) -> None:
    """For every start vector Gauss >= v'H(H + mu)^-1 v >= Gauss-Radau, whatever the matrix and the number of steps."""
    rng = np.random.default_rng(seed)
    matrix = rotated(random_eigenvalues(rng, size), rng)
    matrix = (matrix + matrix.T) / 2
    start = rng.standard_normal(size)
    gauss, radau = lanczos_rules(*lanczos(matrix, start, steps))
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0.0)
    mu = 10**power * max(float(values.max()), 1e-300)
    truth = float((vectors.T @ start / np.linalg.norm(start)) ** 2 @ (values / (values + mu)))
    assert gauss.mean(mu) >= truth - 1e-9
    assert radau.mean(mu) <= truth + 1e-9


@given(seed=st.integers(0, 10_000), size=st.integers(2, 14))
def test_rules_agree_once_the_space_is_exhausted(seed: int, size: int) -> None:
    """After as many steps as there are dimensions both rules are the exact value."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.1, 1.0, size)
    matrix, start = rotated(values, rng), rng.standard_normal(size)
    gauss, radau = lanczos_rules(*lanczos(matrix, start, size))
    truth = start @ np.linalg.solve(matrix + 0.2 * np.eye(size), matrix @ start) / (start @ start)
    assert gauss.mean(0.2) == pytest.approx(radau.mean(0.2)) == pytest.approx(truth)


def test_weights_of_rules_sum_to_one() -> None:
    """A rule is a mean: its weights are those of a probability distribution on nodes >= 0."""
    rng = np.random.default_rng(0)
    for rule in lanczos_rules(*lanczos(rotated(random_eigenvalues(rng, 30), rng), rng.standard_normal(30), 8)):
        assert rule.weights.sum() == pytest.approx(1)
        assert (rule.weights >= 0).all() and (rule.nodes >= 0).all()


def test_radau_rule_has_a_node_at_zero() -> None:
    """The bordered matrix of an unfinished run has the eigenvalue 0."""
    rng = np.random.default_rng(1)
    _, radau = lanczos_rules(*lanczos(rotated(rng.uniform(0.5, 1.0, 20), rng), rng.standard_normal(20), 5))
    assert len(radau.nodes) == 6
    assert radau.nodes.min() == 0


@given(seed=st.integers(0, 10_000), first=st.floats(-5, 2), second=st.floats(-5, 2))
def test_dimension_falls_with_the_scale(seed: int, first: float, second: float) -> None:
    """A larger mu never has a larger N(mu), for exact and for probed spectra."""
    rng = np.random.default_rng(seed)
    values = random_eigenvalues(rng, 12)
    low, high = sorted((10**first, 10**second))
    for spectrum in (Spectrum.of_eigenvalues(values), probed(np.diag(values) + 0.01, rng, 2, 4)):
        assert spectrum.dimension(low).value >= spectrum.dimension(high).value - 1e-9


@given(seed=st.integers(0, 10_000), part=st.floats(0.02, 0.98))
@settings(max_examples=50)
def test_scale_inverts_dimension(seed: int, part: float) -> None:
    """N(scale(k)) = k for every k below the rank, for exact and for probed spectra."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.01, 1.0, 20)
    for spectrum in (Spectrum.of_eigenvalues(values), probed(rotated(values, rng), rng, 3, 6)):
        count = part * spectrum.dimension(0.0).value
        assert spectrum.dimension(spectrum.scale(count)).value == pytest.approx(count, rel=1e-6)


def test_scale_is_zero_beyond_the_rank() -> None:
    """No positive mu has as many directions as the rank or more."""
    spectrum = Spectrum.of_eigenvalues([1.0, 2.0, 3.0], size=8)
    assert spectrum.scale(3) == 0 == spectrum.scale(5)
    assert Spectrum.of_eigenvalues(np.zeros(4)).scale(1) == 0


def test_exact_signs_need_no_spread() -> None:
    """For a diagonal matrix sign probes agree, so that finished runs leave no interval."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1.0, 16)
    found = probed(np.diag(values), rng, 6, 16).dimension(0.3)
    assert found.low == pytest.approx(found.high) == pytest.approx(true_dimension(values, 0.3))


def test_few_probes_have_an_interval_that_does_not_rest_on_their_spread() -> None:
    """One probe has an interval too: by the variance that sign probes have at most."""
    rng = np.random.default_rng(0)
    found = probed(rotated(rng.uniform(0.1, 1.0, 50), rng), rng, 1, 50).dimension(0.3)
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(2 * found.value), rel=1e-3)


def problem(seed: int) -> tuple[FloatArray, Spectrum, np.random.Generator]:
    """Eigenvalues, and the probed spectrum of their matrix, every fourth time in the coordinates' own basis."""
    rng = np.random.default_rng(seed)
    values = random_eigenvalues(rng, int(rng.integers(60, 200)))
    matrix = np.diag(values) if seed % 4 == 0 else rotated(values, rng)
    return values, probed(matrix, rng, probes=8, steps=16), rng


def test_intervals_hold_the_truth() -> None:
    """Over 200 random problems the 95 % intervals of N(mu) and of the paper's k contain the truth in at least 90 %."""
    inside = np.zeros((200, 2), dtype=bool)
    for seed in range(len(inside)):
        values, spectrum, rng = problem(seed)
        mu = 10 ** rng.uniform(-2.5, 0.5) * values.mean()
        found = spectrum.dimension(mu)
        inside[seed, 0] = found.low - 1e-9 <= true_dimension(values, mu) <= found.high + 1e-9
        squares = np.sort(rng.standard_normal(len(values)) ** 2)[::-1]
        energy = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        kept = np.arange(len(values) + 1.0)
        epsilon = 0.5 * mu * energy[len(values) // 3]
        low = paper_threshold(kept, energy, spectrum, epsilon, lambda one: one.low)
        high = paper_threshold(kept, energy, spectrum, epsilon, lambda one: one.high)
        inside[seed, 1] = low <= paper_threshold(kept, energy, Spectrum.of_eigenvalues(values), epsilon) <= high
    assert inside.mean(axis=0).min() >= 0.9


def test_negative_curvature_counts_as_none() -> None:
    """Rules of an indefinite matrix settle on what its positive eigenvalues say, and their difference goes."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.geomspace(1e-4, 1, 150), -0.03 * rng.uniform(0, 1, 50) ** 2])
    matrix, start = rotated(values, rng), rng.choice([-1.0, 1.0], 200)
    within, vectors = np.linalg.eigh(matrix)
    within = np.maximum(within, 0.0)
    truth = float((vectors.T @ start) ** 2 @ (within / (within + 0.05))) / 200
    for steps, part in ((8, 0.1), (32, 0.02), (128, 0.005)):
        whole, half = lanczos_rules(*lanczos(matrix, start, steps))
        assert whole.mean(0.05) == pytest.approx(truth, rel=part)
        assert whole.mean(0.05) == pytest.approx(half.mean(0.05), rel=2 * part)


def test_indefinite_runs_have_an_interval_in_order() -> None:
    """Low <= value <= high also where the second rule is no lower bound."""
    rng = np.random.default_rng(3)
    matrix = rotated(np.concatenate([np.geomspace(1e-3, 1, 40), -0.1 * rng.uniform(0, 1, 20)]), rng)
    for steps in (1, 2, 5, 20):
        spectrum = probed(matrix, rng, 6, steps)
        found = spectrum.dimension(0.02)
        assert 0 <= found.low <= found.value <= found.high <= 60
        assert spectrum.bracket(0.02) >= 0


@pytest.mark.parametrize("values", [[1.0, -0.1], [1.0, np.nan], [1.0, np.inf]])
def test_curvature_that_is_none_is_refused(values: list[float]) -> None:
    """Negative and non-finite eigenvalues are refused with what to do."""
    with pytest.raises(ValueError, match="Clip negative curvature"):
        Spectrum.of_eigenvalues(values)


def test_more_eigenvalues_than_the_size_are_refused() -> None:
    """A matrix of size 2 has no three eigenvalues."""
    with pytest.raises(ValueError, match="at most 2 eigenvalues. Got 3"):
        Spectrum.of_eigenvalues([1.0, 2.0, 3.0], size=2)


def test_no_curvature_has_no_dimension() -> None:
    """A rule whose nodes are all zero says 0 at every scale."""
    flat = Rule(np.zeros(3), np.full(3, 1 / 3))
    assert flat.mean(1.0) == 0 == flat.mean(0.0)
