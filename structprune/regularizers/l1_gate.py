"""One gate with an absolute value for its decay: group l_{2/3}."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from structprune.regularizers.lq import GroupLq
from structprune.regularizers.parameterisation import Parameterisation
from structprune.regularizers.regularizer import check_strength

__all__ = ["L1Gate"]


@dataclass(frozen=True)
class L1Gate(Parameterisation):
    """``u_i = g_i v_i`` with decay ``strength * (||g||_1 + ||v||^2)``.

    For a norm ``a`` the decay ``|g| + a^2 / g^2`` is least at ``g = (2 a^2)^(1/3)``, where it is
    ``(3/2) 2^(1/3) a^(2/3)``.

    Attributes
    ----------
    strength
        Weight of the decay.

    References
    ----------
    Yasuda et al., "SequentialAttention++ for block sparsification", NeurIPS 2024 (arXiv 2402.17902), Lemma 2.2.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    @property
    def implied(self) -> GroupLq:
        return GroupLq(1.5 * 2 ** (1 / 3) * self.strength, 2 / 3)

    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        return gates.prod(dim=0)

    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        return self.strength * (gates.abs().sum() + norms.square().sum())

    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        gates = (2 * norms.square()).pow(1 / 3)
        # a / g = (a / 2)^(1/3), without a division by zero.
        return (norms / 2).pow(1 / 3), gates[None]
