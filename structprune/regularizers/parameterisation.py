"""Weights as products of factors: what attention masks, gates and powers do, and the penalty that decay then implies.

Each group ``u_i`` of the effective weights is a vector times a scale, ``u_i = scale_i * v_i``. Decay of the factors,
minimised over all factors that give the same ``u``, is a penalty on the norms ``||u_i||``; training the factors with
decay is training ``u`` with that penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.groups import group_norms, spread
from structprune.regularizers.regularizer import Regularizer

__all__ = ["Factors", "Parameterisation"]


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of grouped weights.

    Attributes
    ----------
    vectors
        In the shape of the weights.
    gates
        The scalars of each group, ``(G, n)``; ``G = 0`` where the scale is made of the vectors themselves.
    """

    vectors: Tensor
    gates: Tensor


class Parameterisation(ABC):
    """A scale for each group, a decay of all factors, and the penalty on norms that the two imply."""

    @property
    @abstractmethod
    def implied(self) -> Regularizer:
        """The least decay over all factors of the same weights, as a penalty on the groups' norms."""

    @abstractmethod
    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        """What the vectors are multiplied by, ``(n,)``, from their norms ``(n,)`` and the gates ``(G, n)``."""

    @abstractmethod
    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        """The decay, a scalar, of vectors with these norms ``(n,)`` and gates ``(G, n)``."""

    @abstractmethod
    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Norms of vectors ``(n,)`` and gates ``(G, n)`` of least decay for effective ``norms`` ``(n,)``."""

    def effective(self, factors: Factors, groups: Tensor) -> Tensor:
        """The weights that the factors make, in the shape of ``groups``; entries of no group are the vectors'."""
        return factors.vectors * spread(self.scales(self._norms(factors, groups), factors.gates), groups)

    def ridge(self, factors: Factors, groups: Tensor) -> Tensor:
        """The decay of the factors, a scalar; entries of no group are left out."""
        return self.decay(self._norms(factors, groups), factors.gates)

    @torch.no_grad()
    def best_factors(self, weights: Tensor, groups: Tensor, count: int | None = None) -> Factors:
        """The factors of least decay among those whose effective weights are ``weights``."""
        norms = group_norms(weights, groups, count)
        vectors, gates = self.balanced(norms)
        ratio = torch.where(norms > 0, vectors / torch.where(norms > 0, norms, 1.0), 0.0)
        return Factors((weights * spread(ratio, groups)).to(weights.dtype), gates)

    def _norms(self, factors: Factors, groups: Tensor) -> Tensor:
        """Norms of the vectors; the gates tell how many groups there are."""
        return group_norms(factors.vectors, groups, factors.gates.shape[1])
