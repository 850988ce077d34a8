"""Normalised attention over blocks: what it implies with weight decay is a squared group l_{2/3} quasi-norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from structprune.regularizers.lq import largest_stationary_point
from structprune.regularizers.parameterisation import Parameterisation
from structprune.regularizers.regularizer import Regularizer, check_strength, checked_step
from structprune.regularizers.roots import increasing_root

__all__ = ["SoftmaxAttention", "SquaredGroupL23"]


@dataclass(frozen=True)
class SquaredGroupL23(Regularizer):
    """For ``n`` groups the penalty

        (strength / n^2) * (sum_i ||u_i||^(2/3))^3,

    which is no sum over groups: the more a group has of the attention, the less the others can have.

    Proximal map. Written with attention, ``t = step * strength`` and norms ``r_i``, it minimises over shares
    ``a_i >= 0`` with ``sum a_i = N = n / sqrt(2 t)`` the sum of ``r_i^2 / (2 (1 + a_i^2))``, and then
    ``x_i = r_i a_i^2 / (1 + a_i^2)``.

    1. The term is ``r_i^2`` times one falling function, so that shares are ordered as the norms: those of the ``k``
       largest norms are positive.
    2. If ``k >= 2``, every positive share is at least ``1 / sqrt(3)``, where the function turns convex. For let ``a``
       be one below, and ``b`` any other (at least ``a``). Both have the same marginal gain; giving ``a`` to ``b``
       gains if ``(2 b + a)(1 + b^2) > b (1 + a^2)(1 + (b + a)^2)``, and the difference of the two sides,
       ``b (2 - (1 + a^2)^2) + a + b^3 (1 - a^2) - a b^2 (1 + 2 a^2)``, is positive for all ``0 < a <= 1 / sqrt(3)``.
    3. So for each ``k`` the problem is convex, and its solution the stationary point where all ``x_i`` are the larger
       roots of ``x + (2/3) theta x^(-1/3) = r_i`` for one ``theta = 3 c s^2``, ``c = t / n^2``, ``s = sum x_i^(2/3)``.
       By duality its value is the least over prices of functions concave in ``k`` (sums of ``k`` falling terms), with
       the sign turned: the objective is convex in ``k``, and the best ``k`` is found by bisection.

    Attributes
    ----------
    strength
        Decay of the vectors, at least 0.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def value(self, norms: Tensor) -> Tensor:
        positive = norms > 0
        roots = torch.where(positive, torch.where(positive, norms, 1.0).pow(2 / 3), 0.0)
        return self.strength / max(1, len(norms)) ** 2 * roots.sum().pow(3)

    @torch.no_grad()
    def prox_norms(self, norms: Tensor, step: float | Tensor) -> Tensor:
        """The proximal map over all groups together, in float64; ``step`` is one number."""
        t = checked_step(step, norms)
        if t.ndim:
            raise ValueError(f"Expected one step for all groups. Got shape {tuple(t.shape)}. Pass a number.")
        c = float(t) * self.strength / max(1, len(norms)) ** 2
        exact = norms.double()
        positive = int((exact > 0).sum())
        if c == 0 or positive == 0:
            return norms.clone()
        order = torch.argsort(exact, descending=True, stable=True)
        largest = exact[order]
        # Cost with k groups kept is convex in k: find the first k after which it no longer falls.
        low, high = 1, positive
        while low < high:
            middle = (low + high) // 2
            if _cost(largest, c, middle + 1) < _cost(largest, c, middle):
                low = middle + 1
            else:
                high = middle
        shrunk = _kept(largest, c, low)
        assert shrunk is not None
        found = torch.zeros_like(exact)
        found[order[:low]] = shrunk
        return found.to(norms.dtype)


def _kept(largest: Tensor, c: float, k: int) -> Tensor | None:
    """The stationary point with the ``k`` largest norms kept, None where there is none (too many for the shares)."""
    r = largest[:k]
    if k == 1:
        return r / (1 + 2 * c)
    # Above this theta the smallest of the norms has no stationary point: x + (2/3) theta x^(-1/3) never gets so low.
    end = 1.5 * 3 * (r[-1] / 4) ** (4 / 3)

    def roots(theta: Tensor) -> Tensor:
        return largest_stationary_point(r, theta.expand_as(r), 2 / 3)

    def excess(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = roots(theta)
        curvature = 1 - 2 / 9 * theta * x.pow(-4 / 3)
        # At the end the smallest root is a double one, where the sum falls infinitely fast.
        slopes = torch.where(curvature > 1e-9, (2 / 3 * x.pow(-1 / 3)).square() / curvature, torch.inf)
        share = (theta / (3 * c)).sqrt()
        return share - x.pow(2 / 3).sum(), 0.5 * share / theta + slopes.sum()

    if bool(excess(end)[0] < 0):
        return None
    return roots(increasing_root(excess, torch.zeros_like(end), end))


def _cost(largest: Tensor, c: float, k: int) -> float:
    """Half the squared distance plus the penalty with the ``k`` largest norms kept."""
    x = _kept(largest, c, k)
    if x is None:
        return float("inf")
    # Differences of squares, so that groups far down the list do not drown what is compared.
    gain = (0.5 * x * (2 * largest[:k] - x)).sum() - c * x.pow(2 / 3).sum().pow(3)
    return -float(gain)


@dataclass(frozen=True)
class SoftmaxAttention(Parameterisation):
    """``u_i = A_i v_i`` with attention ``A = n softmax(logits)`` and decay ``strength * ||v||^2``; logits do not decay.

    For norms ``||u_i||`` the decay ``strength * sum ||u_i||^2 / A_i^2`` with ``sum A_i = n`` is least at ``A_i``
    proportional to ``||u_i||^(2/3)``, where it is `SquaredGroupL23`. So at a stationary point attention ranks groups
    as their effective norms do. For a group of zeros the least is approached as its logit goes to minus infinity.

    Attributes
    ----------
    strength
        Weight of the decay.

    References
    ----------
    The parameterisation is that of Yasuda et al., "SequentialAttention++ for block sparsification", NeurIPS 2024
    (arXiv 2402.17902), Algorithm 1; that paper's Lemma 2.1 is about attention without the normalisation.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)

    @property
    def implied(self) -> SquaredGroupL23:
        return SquaredGroupL23(self.strength)

    def scales(self, norms: Tensor, gates: Tensor) -> Tensor:
        logits = gates.sum(dim=0)
        return len(logits) * torch.softmax(logits, dim=0)

    def decay(self, norms: Tensor, gates: Tensor) -> Tensor:
        return self.strength * norms.square().sum()

    def balanced(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        if not bool((norms > 0).any()):
            return torch.zeros_like(norms), torch.zeros_like(norms)[None]
        logits = 2 / 3 * torch.log(norms / norms.max())
        attention = self.scales(norms, logits[None])
        return torch.where(norms > 0, norms / torch.where(norms > 0, attention, 1.0), 0.0), logits[None]
