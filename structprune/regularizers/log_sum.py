"""Log-sum: logarithms of norms, the penalty whose reweighted lasso is the iterated one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.regularizer import SeparableRegularizer, check_strength

__all__ = ["LogSum"]


@dataclass(frozen=True)
class LogSum(SeparableRegularizer):
    """The penalty

        strength * sum_i log(1 + ||u_i|| / epsilon).

    Its slope at zero is ``strength / epsilon``; large norms are shrunk by ``step * strength / norm`` only.

    Attributes
    ----------
    strength
        Weight of the penalty, at least 0.
    epsilon
        The norm at which the slope is half that at zero.

    References
    ----------
    Candes, Wakin, Boyd, "Enhancing sparsity by reweighted l1 minimization", J. Fourier Anal. Appl. 14 (2008), eq. (7).
    Prater-Bennette, Shen, Tripp, "The proximity operator of the log-sum penalty", J. Sci. Comput. 93 (2022).
    """

    strength: float = 1.0
    epsilon: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"Expected a finite epsilon above 0. Got {self.epsilon}. Use the size of small norms.")

    def penalty(self, norms: Tensor) -> Tensor:
        return self.strength * torch.log1p(norms / self.epsilon)

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        t = step * self.strength
        # Stationary points solve (x - norms)(x + epsilon) + t = 0.
        square = (norms + self.epsilon).square() - 4 * t
        root = 0.5 * (norms - self.epsilon + square.clamp(min=0).sqrt()).clamp(min=0)
        gain = 0.5 * norms.square() - 0.5 * (root - norms).square() - t * torch.log1p(root / self.epsilon)
        # Where the objective falls at zero the root is the only minimum; elsewhere zero is one too.
        falls = norms * self.epsilon > t
        return torch.where((square > 0) & (falls | (gain > 0)), root, 0.0)
