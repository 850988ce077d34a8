"""Smoothly clipped absolute deviation: the lasso near zero, a bend, then constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.regularizer import SeparableRegularizer, check_strength

__all__ = ["SCAD"]


@dataclass(frozen=True)
class SCAD(SeparableRegularizer):
    """With ``s = strength`` and ``a = ||u_i||`` the sum over groups of

        s a                                            up to a = s,
        (2 gamma s a - a^2 - s^2) / (2 (gamma - 1))    up to a = gamma s,
        s^2 (gamma + 1) / 2                            beyond.

    Norms beyond ``gamma s`` are not shrunk when ``step < gamma - 1``; for larger steps the middle piece is too concave
    to hold a minimum, and the map jumps from the soft threshold to the norm itself.

    Attributes
    ----------
    strength
        Slope at zero, at least 0.
    gamma
        Where the penalty becomes constant, in multiples of the strength, above 1.

    References
    ----------
    Fan, Li, "Variable selection via nonconcave penalized likelihood and its oracle properties", JASA 96 (2001),
    eqs. (2.7)-(2.8), where gamma = 3.7.
    """

    strength: float = 1.0
    gamma: float = 3.7

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not (math.isfinite(self.gamma) and self.gamma > 1):
            raise ValueError(f"Expected a finite gamma above 1. Got {self.gamma}. Use 3.7.")

    def penalty(self, norms: Tensor) -> Tensor:
        s, gamma = self.strength, self.gamma
        # The slope, s up to a = s and then falling to 0 at gamma s, integrated piece by piece.
        bend = (norms - s).clamp(min=0).clamp(max=(gamma - 1) * s)
        return s * norms.clamp(max=s) + s * bend - bend.square() / (2 * (gamma - 1))

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        s, gamma = self.strength, self.gamma
        soft = (norms - step * s).clamp(min=0)
        convex = step < gamma - 1
        # The stationary point of the middle piece, both sides divided by gamma - 1.
        ratio = torch.where(convex, step / (gamma - 1), 0.0)
        bent = (norms - step * s - ratio * s) / (1 - ratio)
        smooth = torch.where(norms <= (1 + step) * s, soft, torch.where(norms <= gamma * s, bent, norms))
        # Soft threshold and the norm itself cost the same here; the soft threshold is 0 there if step >= gamma + 1.
        jump = torch.where(step < gamma + 1, 0.5 * (gamma + 1 + step), (step * (gamma + 1)).sqrt()) * s
        return torch.where(convex, smooth, torch.where(norms > jump, norms, soft))
