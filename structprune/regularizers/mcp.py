"""Minimax concave penalty: the lasso near zero, constant for large norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.regularizer import SeparableRegularizer, check_strength

__all__ = ["MCP"]


@dataclass(frozen=True)
class MCP(SeparableRegularizer):
    """With ``s = strength`` and ``a = ||u_i||`` the sum over groups of

        s a - a^2 / (2 gamma)   up to a = gamma s,      gamma s^2 / 2   beyond.

    Norms beyond ``gamma s`` are not shrunk at all. For ``step < gamma`` the proximal map is the firm threshold, for
    larger steps the hard one at ``s sqrt(step gamma)``. As ``gamma`` grows it becomes the group lasso.

    Attributes
    ----------
    strength
        Slope at zero, at least 0.
    gamma
        How slowly the slope falls, above 0.

    References
    ----------
    Zhang, "Nearly unbiased variable selection under minimax concave penalty", Ann. Statist. 38 (2010),
    eqs. (2.1)-(2.3).
    """

    strength: float = 1.0
    gamma: float = 3.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"Expected a finite gamma above 0. Got {self.gamma}. Use about 3.")

    def penalty(self, norms: Tensor) -> Tensor:
        a = norms.clamp(max=self.gamma * self.strength)
        return self.strength * a - a.square() / (2 * self.gamma)

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        convex = step < self.gamma
        slope = 1 - torch.where(convex, step / self.gamma, 0.0)
        firm = (norms - step * self.strength).clamp(min=0) / slope
        firm = torch.where(norms <= self.gamma * self.strength, firm, norms)
        hard = torch.where(norms > self.strength * (step * self.gamma).sqrt(), norms, 0.0)
        return torch.where(convex, firm, hard)
