"""Decay of factors is a penalty on their product: each identity, by minimising over the factors numerically.

The penalties are written out here a second time, so that a constant that is wrong in two places of the package shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

from structprune.regularizers import (
    DGating,
    ExpGate,
    Factors,
    L1Gate,
    Parameterisation,
    Powerpropagation,
    SoftmaxAttention,
    group_norms,
)

LAM = 0.7
NORMS = np.array([0.05, 0.4, 1.0, 2.5])


def exp_gate(norms: np.ndarray, logit_decay: float) -> float:
    """Lemma 2.1, with a decay of the logits of their own."""
    w = scipy.special.lambertw(2 * norms**2 / logit_decay).real
    return float(LAM * logit_decay * (w**2 / 4 + w / 2).sum())


IDENTITIES: list[tuple[Parameterisation, Callable[[np.ndarray], float]]] = [
    (DGating(LAM), lambda a: LAM * a.sum()),
    (DGating(LAM, depth=3), lambda a: LAM * (a ** (2 / 3)).sum()),
    (DGating(LAM, depth=4), lambda a: LAM * np.sqrt(a).sum()),
    (ExpGate(LAM), lambda a: exp_gate(a, 1.0)),
    (ExpGate(LAM, logit_decay=0.01), lambda a: exp_gate(a, 0.01)),
    (L1Gate(LAM), lambda a: 1.5 * 2 ** (1 / 3) * LAM * (a ** (2 / 3)).sum()),
    (SoftmaxAttention(LAM), lambda a: LAM / len(a) ** 2 * (a ** (2 / 3)).sum() ** 3),
]


def least_decay(parameterisation: Parameterisation, norms: np.ndarray, seed: int) -> float:
    """The least decay over gates from three random starts; the gates determine the vectors' norms."""
    target = torch.from_numpy(norms)
    count = parameterisation.balanced(target)[1].shape[0]

    def decay(flat: np.ndarray) -> tuple[float, np.ndarray]:
        # Gates may be any positive numbers; logits any.
        raw = torch.from_numpy(flat).reshape(count, -1).requires_grad_()
        gates = raw if isinstance(parameterisation, ExpGate | SoftmaxAttention) else raw.exp()
        loss = parameterisation.decay(target / parameterisation.scales(target, gates), gates)
        (gradient,) = torch.autograd.grad(loss, raw)
        return float(loss.detach()), gradient.numpy().ravel()

    rng = np.random.default_rng(seed)
    starts = rng.normal(size=(3, count * len(norms)))
    options = {"maxiter": 2000, "gtol": 1e-11}
    return min(scipy.optimize.minimize(decay, x, jac=True, method="BFGS", options=options).fun for x in starts)


@pytest.mark.parametrize(("parameterisation", "penalty"), IDENTITIES, ids=[repr(pair[0]) for pair in IDENTITIES])
def test_the_least_decay_is_the_penalty(
    parameterisation: Parameterisation, penalty: Callable[[np.ndarray], float]
) -> None:
    """Found by descent, written out, and as the package has it: three equal numbers."""
    wanted = penalty(NORMS)
    assert least_decay(parameterisation, NORMS, 0) == pytest.approx(wanted, rel=1e-8)
    assert float(parameterisation.implied.value(torch.from_numpy(NORMS))) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("alpha", "power"), [(2.0, 1.0), (3.0, 2 / 3), (4.0, 1 / 2)])
def test_powerpropagation_has_one_preimage(alpha: float, power: float) -> None:
    """Its vectors are determined by the weights: ||v||^(alpha - 1) v = u, and their decay is l_{2 / alpha}."""
    norms = torch.from_numpy(NORMS)
    parameterisation = Powerpropagation(LAM, alpha)
    vectors, gates = parameterisation.balanced(norms)
    torch.testing.assert_close(vectors.pow(alpha - 1) * vectors, norms)
    wanted = LAM * float((NORMS**power).sum())
    assert float(parameterisation.decay(vectors, gates)) == pytest.approx(wanted, rel=1e-12)
    assert float(parameterisation.implied.value(norms)) == pytest.approx(wanted, rel=1e-12)


def test_attention_at_its_best_ranks_as_the_norms_do() -> None:
    """A is proportional to ||u||^(2/3): at a stationary point it says nothing that effective norms do not."""
    parameterisation = SoftmaxAttention(LAM)
    norms = torch.from_numpy(NORMS)
    _, logits = parameterisation.balanced(norms)
    attention = parameterisation.scales(norms, logits)
    assert float(attention.mean()) == pytest.approx(1.0, rel=1e-12)
    ratio = attention / norms.pow(2 / 3)
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


@pytest.mark.parametrize("parameterisation", [pair[0] for pair in IDENTITIES] + [Powerpropagation(LAM)], ids=repr)
def test_training_factors_with_decay_is_training_weights_with_the_penalty(parameterisation: Parameterisation) -> None:
    """Descent on factors reaches weights that are stationary for loss plus penalty, with balanced factors."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    truth = torch.tensor([2.0, 1.0, 0.0, 0.0, -0.5, 0.8], dtype=torch.float64)
    targets = inputs @ truth + 0.1 * torch.randn(30, generator=generator, dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    start = parameterisation.best_factors(truth + 0.3, groups)
    factors = Factors(start.vectors.clone().requires_grad_(), start.gates.clone().requires_grad_())
    leaves = [factors.vectors, factors.gates] if factors.gates.numel() else [factors.vectors]
    optimizer = torch.optim.LBFGS(
        leaves, max_iter=3000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        fit = 0.5 * (inputs @ parameterisation.effective(factors, groups) - targets).square().mean()
        loss = fit + 0.02 * parameterisation.ridge(factors, groups)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weights = parameterisation.effective(factors, groups).detach().requires_grad_()
    penalty = parameterisation.implied.value(group_norms(weights, groups))
    fit = 0.5 * (inputs @ weights - targets).square().mean()
    ridge = float(parameterisation.ridge(factors, groups).detach())
    assert ridge == pytest.approx(float(penalty.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(fit + 0.02 * penalty, weights)
    kept = group_norms(weights.detach(), groups)[groups] > 1e-3
    assert bool(kept[:2].all())
    assert float(gradient[kept].abs().max()) < 1e-4
