"""D-gating: a vector times D - 1 scalar gates, which weight decay turns into group l_{2/D}."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from structprune.regularizers.lq import GroupLq
from structprune.regularizers.parameterisation import Parameterisation
from structprune.regularizers.regularizer import check_strength

__all__ = ["DGating"]


@dataclass(frozen=True)
class DGating(Parameterisation):
    """``u_i = g_i1 ... g_i(D-1) v_i`` with decay ``(strength / D) (||v||^2 + ||g||^2)``.

    By the inequality of arithmetic and geometric means the least decay is ``strength * sum_i ||u_i||^(2/D)``, where
    all factors of a group have the norm ``||u_i||^(1/D)``. ``depth = 2`` is one gate, and its penalty the group lasso.

    Attributes
    ----------
    strength
        Weight of the implied penalty.
    depth
        Number of factors D, at least 2.

    References
    ----------
    Kolb et al., "Differentiable sparsity via D-gating", NeurIPS 2025 (arXiv 2509.23898). Depth 2: Hoff, "Lasso,
    fractional norm and structured sparse estimation using a Hadamard product parametrization", CSDA 115 (2017).
    """

    strength: float = 1.0
    depth: int = 2

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.depth < 2:
            raise ValueError(f"Expected a depth of at least 2. Got {self.depth}. Use 2 for one gate per group.")

    @property
    def implied(self) -> GroupLq:
        return GroupLq(self.strength, 2 / self.depth)

    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        return gates.prod(dim=0)

    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        return self.strength / self.depth * (norms.square().sum() + gates.square().sum())

    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        each = norms.pow(1 / self.depth)
        return each, each.expand(self.depth - 1, -1).clone()
