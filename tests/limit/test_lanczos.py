"""Lanczos runs that are taken up again, quadrature by probes, and memory that is asked for before it is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import structprune.limit.lanczos as lanczos
import structprune.limit.slq as slq
from solvers.effective_dimension import Spectrum
from structprune.limit.lanczos import Lanczos, check_memory
from structprune.limit.slq import quadrature


def matrix(size: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A positive semidefinite matrix with eigenvalues over four decades, the rest zero."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.logspace(-4, 0, rank, dtype=torch.float64), torch.zeros(size - rank)])
    return ((basis * values) @ basis.T).to(dtype)


def start(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A start vector."""
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_the_basis_is_orthonormal_and_turns_the_operator_into_t() -> None:
    """V'V = 1 and V'HV is the tridiagonal matrix of alpha and beta, far beyond where plain Lanczos loses both."""
    whole = matrix(60, 60)
    run = Lanczos(lambda vector: whole @ vector, start(60))
    run.extend(50)
    basis = torch.stack([run.combine(unit) for unit in np.eye(50)])
    inner = np.diag(run.alpha) + np.diag(run.beta[:-1], 1) + np.diag(run.beta[:-1], -1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(50, dtype=torch.float64), atol=1e-12, rtol=0)
    np.testing.assert_allclose((basis @ whole @ basis.T).numpy(), inner, atol=1e-12)


def test_a_run_taken_up_again_is_one_run() -> None:
    """Extending in pieces gives what one long run gives."""
    whole = matrix(40, 40)
    pieces, once = (Lanczos(lambda vector: whole @ vector, start(40)) for _ in range(2))
    for steps in (3, 3, 8, 20):
        pieces.extend(steps)
    once.extend(20)
    assert pieces.alpha == once.alpha
    assert pieces.beta == once.beta


@pytest.mark.parametrize(("rank", "dtype"), [(5, torch.float64), (5, torch.float32), (12, torch.float64)])
def test_a_run_ends_where_the_space_is_invariant(rank: int, dtype: torch.dtype) -> None:
    """A start vector in general position reaches rank + 1 dimensions and no more."""
    whole = matrix(30, rank, dtype=dtype)
    whole = whole @ whole.T if dtype == torch.float64 else whole
    run = Lanczos(lambda vector: whole @ vector, start(30, dtype))
    run.extend(30)
    assert run.exhausted
    assert len(run.alpha) <= rank + 2


def test_a_run_is_no_longer_than_the_space() -> None:
    """More steps than dimensions are not made."""
    whole = matrix(6, 6)
    run = Lanczos(lambda vector: whole @ vector, start(6))
    run.extend(100)
    assert run.exhausted
    assert len(run.alpha) == 6


def test_nothing_to_start_from_is_exhausted() -> None:
    """A zero vector spans nothing, and the operator is not asked."""

    def never(vector: Tensor) -> Tensor:
        raise AssertionError

    run = Lanczos(never, torch.zeros(4))
    run.extend(3)
    assert run.exhausted
    assert run.alpha == []


def test_a_product_of_zero_is_invariant() -> None:
    """An operator without curvature ends the run after one step."""
    run = Lanczos(lambda vector: 0 * vector, start(5))
    run.extend(5)
    assert run.exhausted
    assert run.alpha == [0.0]


def probed(whole: Tensor, probes: int = 8, steps: int = 8, seed: int = 0, scale: float = 1e-2) -> slq.Quadrature:
    """The quadrature of a matrix for one scale."""
    return quadrature(lambda vector: whole @ vector, whole[0], probes, steps, lambda spectrum: scale, 0.95, seed)


def test_intervals_of_probes_hold_the_truth() -> None:
    """Over 40 matrices the 95 % interval of N(mu) contains the truth in at least 90 %."""
    inside = []
    for seed in range(40):
        whole = matrix(50, 40, seed)
        values = torch.linalg.eigvalsh(whole).clamp(min=0)
        found = probed(whole, seed=seed).spectrum.dimension(1e-2)
        inside.append(found.low <= float((values / (values + 1e-2)).sum()) <= found.high)
    assert np.mean(inside) >= 0.9


def test_steps_grow_until_the_bracket_is_closed() -> None:
    """A scale too fine for the first steps gets more; a coarse one does not."""
    whole = matrix(80, 80)
    fine, coarse = probed(whole, steps=4, scale=1e-3), probed(whole, steps=4, scale=10.0)
    assert coarse.steps == 4 < fine.steps
    assert max(fine.bracket, coarse.bracket) <= slq.CLOSED


def test_what_steps_cannot_close_is_told() -> None:
    """Where doubling ends too early, the widest bracket left is part of the answer."""
    whole = matrix(200, 200)
    found = probed(whole, probes=2, steps=1, scale=1e-6)
    assert found.steps == 2**slq.DOUBLINGS
    assert found.bracket > slq.CLOSED


def test_equal_seeds_draw_equal_probes() -> None:
    """The seed decides the quadrature."""
    whole = matrix(20, 20)
    one, same, other = (probed(whole, probes=1, seed=seed).spectrum for seed in (3, 3, 4))
    assert (one.gauss[0].weights == same.gauss[0].weights).all()
    assert not np.array_equal(one.gauss[0].weights, other.gauss[0].weights)


def test_single_precision_is_enough() -> None:
    """In float32 N(mu) at the scale that matters is that of float64 within a thousandth."""
    values = [
        probed(matrix(60, 60, dtype=dtype)).spectrum.dimension(1e-2).value for dtype in (torch.float32, torch.float64)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_exact_eigenvalues_lie_in_the_bracket() -> None:
    """The mean over probes of v'f(H)v by dense matrices is between Radau's and Gauss'."""
    whole = matrix(30, 30)
    found = probed(whole, probes=3, steps=5, scale=1e9).spectrum
    dense = whole @ torch.linalg.inv(whole + 0.01 * torch.eye(30))
    generator = torch.Generator().manual_seed(0)
    for above, below in zip(found.gauss, found.radau, strict=True):
        signs = torch.randint(0, 2, (30,), generator=generator).mul(2).sub(1).double()
        truth = float(signs @ dense @ signs) / 30
        assert below.mean(0.01) <= truth + 1e-12
        assert above.mean(0.01) >= truth - 1e-12
    assert isinstance(found, Spectrum)


def test_a_basis_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names what is needed, what there is, and how many steps would fit."""
    monkeypatch.setattr(lanczos, "available_memory", lambda device: 10_000_000)
    check_memory(7_000_000, torch.device("cpu"), 7, 125_000)
    with pytest.raises(MemoryError, match="basis of 64 x 125,000 numbers.*Pass steps=7 or fewer"):
        check_memory(64_000_000, torch.device("cpu"), 64, 125_000)


def test_memory_that_can_be_had_is_a_number() -> None:
    """The machine tells how much memory is free."""
    assert lanczos.available_memory(torch.device("cpu")) > 2**20
