"""Weights per group, for instance the square roots of the groups' sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.regularizer import Regularizer, SeparableRegularizer

__all__ = ["Weighted"]


@dataclass(frozen=True, eq=False)
class Weighted(Regularizer):
    """``sum_i weights_i * penalty(||u_i||)`` for a penalty that is a sum over groups.

    Attributes
    ----------
    regularizer
        The penalty.
    weights
        One number of at least 0 per group, ``(n,)``.
    """

    regularizer: SeparableRegularizer
    weights: Tensor

    def __post_init__(self) -> None:
        if self.weights.ndim != 1 or not bool((torch.isfinite(self.weights) & (self.weights >= 0)).all()):
            raise ValueError(
                f"Expected one finite weight of at least 0 per group. Got shape {tuple(self.weights.shape)}. "
                "Use for instance the square roots of the groups' sizes."
            )

    def value(self, norms: Tensor) -> Tensor:
        """The weighted sum, a scalar."""
        return (self.weights.to(norms) * self.regularizer.penalty(norms)).sum()

    def prox_norms(self, norms: Tensor, step: float | Tensor) -> Tensor:
        """The proximal map with the step of each group multiplied by its weight."""
        weights = self.weights.to(device=norms.device, dtype=torch.float64)
        return self.regularizer.prox_norms(norms, weights * step)
