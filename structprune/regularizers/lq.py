"""Group l_q with 0 < q < 1: norms to a power below one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.regularizer import SeparableRegularizer, check_strength
from structprune.regularizers.roots import increasing_root

__all__ = ["GroupLq", "largest_stationary_point"]


@dataclass(frozen=True)
class GroupLq(SeparableRegularizer):
    """The group bridge

        strength * sum_i ||u_i||^q,   0 < q <= 1.

    With ``t = step * strength`` the proximal map sets norms to zero up to

        (2 - q) / (2 (1 - q)) * (2 t (1 - q))^(1 / (2 - q))

    and maps larger ones ``r`` to the larger root of ``x + t q x^(q - 1) = r``: in closed form for q = 1/2 (a cosine)
    and q = 2/3 (a quartic), by Newton's method inside a bracket for any other q. At q = 1 it is the group lasso.

    Attributes
    ----------
    strength
        Weight of the penalty, at least 0.
    q
        The power.

    References
    ----------
    Xu, Chang, Xu, Zhang, "L1/2 regularization: a thresholding representation theory and a fast solver", IEEE TNNLS 23
    (2012), Theorem 1. Cao, Sun, Xu, "Fast image deconvolution using closed-form thresholding formulas of Lq (q = 1/2,
    2/3) regularization", JVCIR 24 (2013). Marjanovic, Solo, "On lq optimization and matrix completion", IEEE TSP 60
    (2012), section III (the threshold for any q).
    """

    strength: float = 1.0
    q: float = 0.5

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not 0 < self.q <= 1:
            raise ValueError(f"Expected 0 < q <= 1. Got {self.q}. Use 1/2 or 2/3, which have closed forms.")

    def penalty(self, norms: Tensor) -> Tensor:
        positive = norms > 0
        return self.strength * torch.where(positive, torch.where(positive, norms, 1.0).pow(self.q), 0.0)

    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        t = step * self.strength
        if self.q == 1:
            return (norms - t).clamp(min=0)
        least = (2 * t * (1 - self.q)).pow(1 / (2 - self.q))
        above = norms > (2 - self.q) / (2 * (1 - self.q)) * least
        # Below the threshold there may be no root at all: the roots there are asked for at another norm.
        safe = torch.where(above, norms, 2 * least + 1)
        return torch.where(above, largest_stationary_point(safe, t, self.q), 0.0)


def largest_stationary_point(norms: Tensor, t: Tensor, q: float) -> Tensor:
    """The larger root ``x`` of ``x + t q x^(q - 1) = norms``, where there is one; float64.

    It is where ``(x - norms)^2 / 2 + t x^q`` has its local minimum away from zero.
    """
    if q == 0.5:
        # With x = z^2 a cubic z^3 - norms z + t / 2 = 0 of three real roots; this is its largest.
        angle = torch.acos((t / 4 * (norms / 3).pow(-1.5)).clamp(max=1.0))
        return 2 / 3 * norms * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    if abs(q - 2 / 3) < 1e-15:
        return _quartic(norms, 2 / 3 * t).pow(3)
    # x + t q x^(q - 1) falls up to here and rises after.
    turn = (t * q * (1 - q)).pow(1 / (2 - q))

    def excess(x: Tensor) -> tuple[Tensor, Tensor]:
        pull = t * q * x.pow(q - 1)
        return x + pull - norms, 1 - (1 - q) * pull / x

    return increasing_root(excess, torch.minimum(turn, norms), norms)


def _quartic(r: Tensor, c: Tensor) -> Tensor:
    """The larger real root of ``y^4 - r y + c = 0`` for ``r, c > 0`` (Ferrari), where there is one.

    The quartic is ``(y^2 + m y + (m^2 + r/m)/2) (y^2 - m y + (m^2 - r/m)/2)`` when ``z = m^2`` solves
    ``z^3 - 4 c z - r^2 = 0``; that cubic has one positive root, by Viete's hyperbolic formula. The real roots of the
    quartic are those of the second factor.
    """
    size = (4 * c / 3).sqrt()
    ratio = (r * r / (2 * size.pow(3))).clamp(min=1.0)
    m = (2 * size * torch.cosh(torch.acosh(ratio) / 3)).sqrt()
    return 0.5 * (m + (2 * r / m - m * m).clamp(min=0).sqrt())
