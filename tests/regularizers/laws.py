"""Laws that every regularizer and every parameterisation keeps; tests call them on the lists of tests/cases.py."""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.regularizers import Factors, Parameterisation, Regularizer, SeparableRegularizer, group_norms


def objective(regularizer: Regularizer, points: Tensor, norms: Tensor, step: float) -> Tensor:
    """What the proximal map minimises, at each row of ``points`` ``(m, n)``; shape ``(m,)``."""
    penalties = torch.stack([regularizer.value(point) for point in points])
    return 0.5 * (points - norms).square().sum(dim=1) + step * penalties


def prox_is_at_most(regularizer: Regularizer, norms: Tensor, step: float, others: Tensor) -> None:
    """No other point ``(m, n)`` has a lower objective than the proximal map's."""
    found = regularizer.prox_norms(norms, step)
    best = float(objective(regularizer, found[None], norms, step))
    scale = float(norms.square().sum())
    assert best <= float(objective(regularizer, others, norms, step).min()) + 1e-12 * scale


def prox_of_each_norm_beats_a_grid(regularizer: SeparableRegularizer, norms: Tensor, step: float) -> None:
    """Norm by norm, against 1000 points from 0 to the norm."""
    found = regularizer.prox_norms(norms, step)
    grid = torch.linspace(0, 1, 1001, dtype=norms.dtype)[:, None] * norms
    costs = 0.5 * (grid - norms).square() + step * regularizer.penalty(grid)
    mine = 0.5 * (found - norms).square() + step * regularizer.penalty(found)
    assert bool((mine <= costs.min(dim=0).values + 1e-13 * norms.square()).all())


def prox_shrinks_and_keeps_order(regularizer: Regularizer, norms: Tensor, step: float) -> None:
    """0 <= x <= norms, zeros stay, larger norms stay at least as large; a step of zero changes nothing.

    Of equal norms some may be kept and others not.
    """
    found = regularizer.prox_norms(norms, step)
    assert bool((found >= 0).all() and (found <= norms).all())
    assert bool((found[norms == 0] == 0).all())
    order = torch.argsort(found, stable=True)
    order = order[torch.argsort(norms[order], stable=True)]
    assert bool((found[order].diff() >= -1e-10 * norms.max()).all())
    assert torch.equal(regularizer.prox_norms(norms, 0.0), norms)


def prox_is_stationary_where_it_keeps(regularizer: Regularizer, norms: Tensor, step: float) -> None:
    """``x - norms + step * gradient of value(x) = 0`` for every kept group."""
    found = regularizer.prox_norms(norms, step).requires_grad_()
    (slope,) = torch.autograd.grad(regularizer.value(found), found)
    kept = found.detach() > 0
    residual = (found.detach() - norms + step * slope)[kept].abs()
    assert residual.numel() == 0 or float(residual.max()) <= 1e-7 * float(norms.max())


def value_grows_from_zero(regularizer: Regularizer, norms: Tensor) -> None:
    """Nothing costs nothing, and larger norms never cost less."""
    assert float(regularizer.value(torch.zeros_like(norms))) == 0.0
    values = [float(regularizer.value(scale * norms)) for scale in (0.0, 0.1, 0.5, 1.0, 3.0)]
    assert values == sorted(values)


def gradient_is_the_slope(regularizer: Regularizer, norms: Tensor) -> None:
    """Central differences at norms away from zero and from the kinks of second derivatives."""
    at = (norms + 0.05).requires_grad_()
    (gradient,) = torch.autograd.grad(regularizer.value(at), at)
    for i in range(len(norms)):
        shift = torch.zeros_like(norms)
        shift[i] = 1e-6 * float(at.detach()[i])
        high, low = regularizer.value(at.detach() + shift), regularizer.value(at.detach() - shift)
        assert abs(float((high - low) / (2 * shift[i]) - gradient[i])) <= 1e-5 * (1 + abs(float(gradient[i])))


def gradient_at_zero_is_zero(regularizer: Regularizer, norms: Tensor) -> None:
    """Weights of a vanished group get a finite gradient of 0 from the penalty, whatever its slope there."""
    weights = torch.cat([norms + 0.1, norms.new_zeros(1)]).requires_grad_()
    groups = torch.arange(len(weights))
    (gradient,) = torch.autograd.grad(regularizer.value(group_norms(weights, groups)), weights)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[-1]) == 0.0


def best_factors_make_the_weights(parameterisation: Parameterisation, weights: Tensor, groups: Tensor) -> None:
    """Their product is the weights, and their decay the implied penalty."""
    factors = parameterisation.best_factors(weights, groups)
    torch.testing.assert_close(parameterisation.effective(factors, groups), weights, rtol=1e-11, atol=1e-13)
    implied = parameterisation.implied.value(group_norms(weights, groups))
    torch.testing.assert_close(parameterisation.ridge(factors, groups), implied, rtol=1e-11, atol=1e-13)


def no_factors_decay_less(parameterisation: Parameterisation, factors: Factors, groups: Tensor) -> None:
    """Any factors pay at least the implied penalty of what they make."""
    made = group_norms(parameterisation.effective(factors, groups), groups, factors.gates.shape[1])
    ridge = float(parameterisation.ridge(factors, groups))
    assert ridge >= float(parameterisation.implied.value(made)) * (1 - 1e-11) - 1e-13


def gradients_agree_at_balance(parameterisation: Parameterisation, weights: Tensor, groups: Tensor) -> None:
    """At the best factors the decay's gradient is that of the implied penalty through the product.

    So a stationary point of a penalised loss, lifted to its best factors, is stationary for the factors.
    """
    best = parameterisation.best_factors(weights, groups)
    factors = Factors(best.vectors.clone().requires_grad_(), best.gates.clone().requires_grad_())
    made = parameterisation.effective(factors, groups)
    implied = parameterisation.implied.value(group_norms(made, groups, factors.gates.shape[1]))
    wanted = torch.autograd.grad(implied, (factors.vectors, factors.gates), allow_unused=True)
    ridge = parameterisation.ridge(factors, groups)
    found = torch.autograd.grad(ridge, (factors.vectors, factors.gates), allow_unused=True)
    for one, other, like in zip(found, wanted, (factors.vectors, factors.gates), strict=True):
        zero = torch.zeros_like(like)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other, rtol=1e-8, atol=1e-9)
