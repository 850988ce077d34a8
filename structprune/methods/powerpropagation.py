"""Group powerpropagation: weights that are their own gates, so that large structures grow and small ones fade."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from structprune.methods.masked import Masked
from structprune.methods.method import TrainingMethod
from structprune.methods.phases import Cubic, Kind, Plan, Segment
from structprune.methods.selection import Keep
from structprune.structures import Structures

__all__ = ["GroupPowerpropagation", "PowerMasked"]

TINY = 1e-30  # inside the root, so that its slope is finite where a structure's weights are all zero


class PowerMasked(Masked):
    """A masked network with effective weights ``||phi_i||^(alpha - 1) phi_i`` for each structure ``i``.

    The parameters become ``phi_i = W_i / ||W_i||^((alpha - 1) / alpha)``, so that the effective weights are the
    network's to rounding. Started at the weights themselves, as plain powerpropagation is not, every layer would begin
    at another scale.
    """

    def __init__(self, model: nn.Module, structures: Structures, alpha: float) -> None:
        super().__init__(model, structures)
        self.alpha = alpha
        with torch.no_grad():
            scale = self._norms() ** ((1 - alpha) / alpha)
            named = dict(model.named_parameters())
            for place in self.places:
                if place.gated:
                    weight = named[place.tensor]
                    own = scale[place.group.entries].to(weight.dtype)
                    weight.copy_(self.part(place, weight.device).scale(weight, own))

    def gates(self) -> Tensor:
        """``||phi_i||^(alpha - 1)``, ``(n,)``."""
        return self._norms() ** (self.alpha - 1)

    def _norms(self) -> Tensor:
        named = dict(self.inner.named_parameters())
        squares = {place.tensor: named[place.tensor].square() for place in self.places if place.gated}
        return (self.sums(squares) + TINY).sqrt()


@dataclass(frozen=True, kw_only=True)
class GroupPowerpropagation(TrainingMethod):
    """Powerpropagation of Schwarz et al. (2021) by structures: ``theta = ||phi||^(alpha - 1) phi``.

    With weight decay on ``phi`` this is a group penalty with exponent ``2 / alpha``: the group lasso at 2 (lemma 2.3 of
    SequentialAttention++). Half of the run is dense, then structures go by the norm of ``theta``.

    Attributes
    ----------
    alpha
        The power, more than 1.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 1):
            raise ValueError(f"Expected alpha > 1. Got {self.alpha}. Use 2; 1 is plain training.")

    def own_schedule(self) -> Plan:
        """50 % dense, 25 % removal, 25 % sparse."""
        return Plan((Segment(Kind.DENSE, 2), Segment(Kind.SPARSIFY, 1, Cubic()), Segment(Kind.SPARSE, 1)))

    def wrap(self, model: nn.Module, structures: Structures, keep: Keep) -> Masked:
        """The network with its weights in the powers' form."""
        return PowerMasked(model, structures, self.alpha)
