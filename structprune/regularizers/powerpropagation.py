"""Group powerpropagation: a vector times a power of its own norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.lq import GroupLq
from structprune.regularizers.parameterisation import Parameterisation
from structprune.regularizers.regularizer import check_strength

__all__ = ["Powerpropagation"]


@dataclass(frozen=True)
class Powerpropagation(Parameterisation):
    """``u_i = ||v_i||^(alpha - 1) v_i`` with decay ``strength * ||v||^2``.

    The factors are determined by the weights, ``||v_i|| = ||u_i||^(1/alpha)``, so that the decay is
    ``strength * sum_i ||u_i||^(2/alpha)``: the group lasso for ``alpha = 2``. Starting from ``v = u / sqrt(||u||)``
    (`best_factors`) leaves the network what it was.

    Attributes
    ----------
    strength
        Weight of the decay, and of the implied penalty.
    alpha
        The power, at least 2.

    References
    ----------
    Schwarz et al., "Powerpropagation", NeurIPS 2021. Groups: Yasuda et al., "SequentialAttention++ for block
    sparsification", NeurIPS 2024 (arXiv 2402.17902), Lemma 2.3 for ``alpha = 2``.
    """

    strength: float = 1.0
    alpha: float = 2.0

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.alpha < 2:
            raise ValueError(f"Expected alpha of at least 2. Got {self.alpha}. Below 2 the decay selects no groups.")

    @property
    def implied(self) -> GroupLq:
        return GroupLq(self.strength, 2 / self.alpha)

    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        positive = norms > 0
        return torch.where(positive, torch.where(positive, norms, 1.0).pow(self.alpha - 1), 0.0)

    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        return self.strength * norms.square().sum()

    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        return norms.pow(1 / self.alpha), norms.new_zeros(0, len(norms))
