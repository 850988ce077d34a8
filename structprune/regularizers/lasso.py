"""Group lasso: the sum of norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from structprune.regularizers.regularizer import SeparableRegularizer, check_strength

__all__ = ["GroupLasso"]


@dataclass(frozen=True)
class GroupLasso(SeparableRegularizer):
    """The convex group-sparse penalty

        strength * sum_i ||u_i||,      prox: ||u_i|| -> max(||u_i|| - step * strength, 0).

    It sets groups to zero and shrinks all others by the same amount, however large they are.

    Attributes
    ----------
    strength
        Weight of the penalty, at least 0.

    References
    ----------
    Yuan, Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68 (2006), section 2.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def penalty(self, norms: Tensor) -> Tensor:
        return self.strength * norms

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        return (norms - step * self.strength).clamp(min=0)
