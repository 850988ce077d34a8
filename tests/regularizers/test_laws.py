"""Every regularizer and every parameterisation of tests/cases.py keeps the laws of tests/regularizers/laws.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structprune.regularizers import (
    DGating,
    Factors,
    Parameterisation,
    Powerpropagation,
    Regularizer,
    SeparableRegularizer,
)
from tests.cases import PARAMETERISATIONS, REGULARIZERS
from tests.regularizers import laws

SEPARABLE = [regularizer for regularizer in REGULARIZERS if isinstance(regularizer, SeparableRegularizer)]
STEPS = st.sampled_from([1e-3, 0.1, 1.0, 4.0, 30.0, 500.0])


def draw_norms(seed: int, count: int = 4) -> Tensor:
    """Norms over five decades, now and then a zero or a tie; float64."""
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(count, generator=generator, dtype=torch.float64)
    norms *= 10.0 ** (5 * torch.rand(count, generator=generator, dtype=torch.float64) - 2.5)
    if seed % 5 == 0:
        norms[0] = 0
    if seed % 7 == 0:
        norms[1] = norms[2]
    return norms


def draw_weights(seed: int) -> tuple[Tensor, Tensor]:
    """A matrix of four groups of several entries each, none of them zero, with entries of no group."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(20).reshape(4, 5) % 5 - 1
    sizes = 10.0 ** (2 * torch.rand(5, generator=generator, dtype=torch.float64) - 1)
    return torch.randn(4, 5, generator=generator, dtype=torch.float64) * sizes, groups


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), step=STEPS)
def test_prox_is_a_global_minimum(regularizer: Regularizer, seed: int, step: float) -> None:
    """No random point, no point near the answer and none with groups dropped or left whole is better."""
    norms = draw_norms(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    found = regularizer.prox_norms(norms, step)
    anywhere = norms * torch.rand(200, 4, generator=generator, dtype=torch.float64)
    near = (found * (1 + 0.05 * torch.randn(100, 4, generator=generator, dtype=torch.float64))).clamp(min=0)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    others = torch.cat([anywhere, anywhere * corners.repeat(13, 1)[:200], near, corners * found, corners * norms])
    laws.prox_is_at_most(regularizer, norms, step, others)


@pytest.mark.parametrize("regularizer", SEPARABLE, ids=repr)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), step=STEPS)
def test_prox_beats_a_dense_grid(regularizer: SeparableRegularizer, seed: int, step: float) -> None:
    """For sums over groups each norm can be tried at every point."""
    laws.prox_of_each_norm_beats_a_grid(regularizer, draw_norms(seed, 12), step)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), step=STEPS)
def test_prox_shrinks(regularizer: Regularizer, seed: int, step: float) -> None:
    """Norms fall, in order, none below zero."""
    laws.prox_shrinks_and_keeps_order(regularizer, draw_norms(seed, 12), step)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), step=STEPS)
def test_prox_is_stationary(regularizer: Regularizer, seed: int, step: float) -> None:
    """Closed forms and Newton's method satisfy the equation that they solve."""
    laws.prox_is_stationary_where_it_keeps(regularizer, draw_norms(seed, 12), step)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_values_and_gradients(regularizer: Regularizer, seed: int) -> None:
    """Values grow from zero; gradients are slopes, and 0 for groups that have vanished."""
    norms = draw_norms(seed).clamp(max=30)
    laws.value_grows_from_zero(regularizer, norms)
    laws.gradient_is_the_slope(regularizer, norms)
    laws.gradient_at_zero_is_zero(regularizer, norms)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_single_precision_is_the_rounded_answer(regularizer: Regularizer) -> None:
    """Types are kept, and float32 norms give the float64 answer to their own accuracy."""
    norms = draw_norms(3, 50).float()
    found = regularizer.prox_norms(norms, 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, regularizer.prox_norms(norms.double(), 0.3).float())


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_negative_steps_are_refused(regularizer: Regularizer) -> None:
    """A step is a learning rate."""
    for step in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Expected a finite step"):
            regularizer.prox_norms(torch.ones(3), step)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS, ids=repr)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_best_factors(parameterisation: Parameterisation, seed: int) -> None:
    """They make the weights, at the implied price, where gradients of the two prices agree."""
    weights, groups = draw_weights(seed)
    laws.best_factors_make_the_weights(parameterisation, weights, groups)
    laws.gradients_agree_at_balance(parameterisation, weights, groups)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS, ids=repr)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_any_factors_pay_more(parameterisation: Parameterisation, seed: int) -> None:
    """Random vectors and gates of either sign."""
    weights, groups = draw_weights(seed)
    like = parameterisation.best_factors(weights, groups).gates
    gates = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    laws.no_factors_decay_less(parameterisation, Factors(weights, 2 * gates), groups)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS, ids=repr)
def test_zero_groups_have_zero_factors(parameterisation: Parameterisation) -> None:
    """A vanished group is made of finite vectors, and all zeros are made of zeros."""
    groups = torch.tensor([0, 0, 1, 1, -1])
    for weights in (torch.tensor([3.0, 4.0, 0.0, 0.0, 2.0]), torch.zeros(5)):
        factors = parameterisation.best_factors(weights, groups)
        assert not bool(torch.isnan(factors.vectors).any() | torch.isnan(factors.gates).any())
        torch.testing.assert_close(parameterisation.effective(factors, groups), weights)


def test_wrong_settings_are_refused() -> None:
    """Depths and powers that imply no group sparsity."""
    with pytest.raises(ValueError, match="Expected a depth of at least 2"):
        DGating(depth=1)
    with pytest.raises(ValueError, match="Expected alpha of at least 2"):
        Powerpropagation(alpha=1.5)
    with pytest.raises(ValueError, match="Expected a finite strength"):
        DGating(-1.0)
