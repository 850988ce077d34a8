"""Gates that are exponentials, as attention has them before it is normalised: a ridge that turns into a logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.parameterisation import Parameterisation
from structprune.regularizers.regularizer import SeparableRegularizer, check_strength
from structprune.regularizers.roots import increasing_root, lambert_w

__all__ = ["ExpGate", "ExpGatePenalty"]

#: The least ``(1 + v) e^v / (v - 1)`` over ``v > 1``, at ``v = sqrt(3)``; see `ExpGatePenalty.minimiser`.
_TURNING = (1 + math.sqrt(3)) * math.exp(math.sqrt(3)) / (math.sqrt(3) - 1)


@dataclass(frozen=True)
class ExpGatePenalty(SeparableRegularizer):
    """With ``m = logit_decay`` and Lambert's ``W = W(2 ||u_i||^2 / m)`` the sum over groups of

        strength * m * (W^2 / 4 + W / 2).

    Near zero it is the ridge ``strength * ||u_i||^2``: it never sets a group to zero, and it is not subadditive, so
    that the uniqueness theorem of its paper (Theorem 1.1) says nothing about it. Only for norms above about
    ``e sqrt(m)`` does it grow more slowly than they, like a squared logarithm. A small ``logit_decay`` moves that
    region down.

    Attributes
    ----------
    strength
        Weight of the penalty, at least 0.
    logit_decay
        Decay of the logits relative to that of the vectors, above 0.

    References
    ----------
    Yasuda et al., "SequentialAttention++ for block sparsification", NeurIPS 2024 (arXiv 2402.17902), Lemma 2.1, where
    ``logit_decay = 1``.
    """

    strength: float = 1.0
    logit_decay: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not (math.isfinite(self.logit_decay) and self.logit_decay > 0):
            raise ValueError(f"Expected a finite logit_decay above 0. Got {self.logit_decay}. Use 1 or less.")

    def penalty(self, norms: Tensor) -> Tensor:
        # The decay at the best logit. By the envelope theorem its gradient is right with the logit held fixed.
        logits = best_logits(norms, self.logit_decay)
        return self.strength * (self.logit_decay * logits.square() + (norms * torch.exp(-logits)).square())

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        """Stationary points solve ``x (1 + 2 t e^-v) = norms`` with ``v = W(2 x^2 / m)``, ``t = step * strength``.

        The left side as a function of ``v`` turns where ``(1 + v) e^v / (v - 1) = 2 t``: nowhere if ``2 t`` is less
        than the least of that, else once below ``v = sqrt(3)`` and once above. It rises before the one and after the
        other; each rise holds at most one local minimum of the objective, and the better is the answer.
        """
        t = (step * self.strength).expand_as(norms)
        # No x exceeds the norm.
        end = lambert_w(2 * norms.square() / self.logit_decay)
        turns = 2 * t > _TURNING
        middle = torch.full_like(t, math.sqrt(3))
        first = torch.where(turns, _turning_point(t, torch.ones_like(t), middle, falling=True), end)
        second = torch.where(turns, _turning_point(t, middle, 3 + torch.log1p(2 * t), falling=False), 0.0)
        low = self._at(self._rise(norms, t, torch.zeros_like(t), torch.minimum(first, end)))
        high = self._at(self._rise(norms, t, torch.minimum(second, end), end))
        # Where one of the rises holds no root its end was found: no minimum, and never the better point.
        costs = [0.5 * (x - norms).square() + step * self.penalty(x) for x in (low, high)]
        return torch.where(costs[1] < costs[0], high, low)

    def _at(self, v: Tensor) -> Tensor:
        """The norm ``x`` with ``W(2 x^2 / m) = v``."""
        return (0.5 * self.logit_decay * v).sqrt() * torch.exp(0.5 * v)

    def _rise(self, norms: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The ``v`` of the stationary point in a bracket where ``x (1 + 2 t e^-v)``, squared, increases."""
        target = 2 * norms.square() / self.logit_decay

        def excess(v: Tensor) -> tuple[Tensor, Tensor]:
            up, down = torch.exp(v), 4 * t.square() * torch.exp(-v)
            return v * (up + 4 * t + down) - target, up + 4 * t + down + v * (up - down)

        return increasing_root(excess, low, high)


@dataclass(frozen=True)
class ExpGate(Parameterisation):
    """``u_i = e^(w_i) v_i`` with decay ``strength * (||v||^2 + logit_decay * ||w||^2)``, which is `ExpGatePenalty`.

    Attributes
    ----------
    strength
        Weight of the decay.
    logit_decay
        Decay of the logits ``w`` relative to that of the vectors.
    """

    strength: float = 1.0
    logit_decay: float = 1.0

    def __post_init__(self) -> None:
        ExpGatePenalty(self.strength, self.logit_decay)

    @property
    def implied(self) -> ExpGatePenalty:
        return ExpGatePenalty(self.strength, self.logit_decay)

    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        return torch.exp(gates.sum(dim=0))

    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        return self.strength * (norms.square().sum() + self.logit_decay * gates.square().sum())

    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        logits = best_logits(norms, self.logit_decay)
        return norms * torch.exp(-logits), logits[None]


@torch.no_grad()
def best_logits(norms: Tensor, logit_decay: float) -> Tensor:
    """The ``w`` that minimises ``logit_decay * w^2 + norms^2 e^(-2 w)``: ``W(2 norms^2 / logit_decay) / 2``."""
    return 0.5 * lambert_w(2 * norms.double().square() / logit_decay).to(norms.dtype)


def _turning_point(t: Tensor, low: Tensor, high: Tensor, *, falling: bool) -> Tensor:
    """Where ``(1 + v) e^v - 2 t (v - 1)`` is zero in a bracket in which it has one sign change."""
    sign = -1.0 if falling else 1.0

    def excess(v: Tensor) -> tuple[Tensor, Tensor]:
        grown = torch.exp(v)
        return sign * ((1 + v) * grown - 2 * t * (v - 1)), sign * ((2 + v) * grown - 2 * t)

    return increasing_root(excess, low, high)
