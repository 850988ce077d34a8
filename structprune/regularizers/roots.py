"""Roots of increasing functions, elementwise and to the last digits; and Lambert's W."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["increasing_root", "lambert_w"]


def increasing_root(function: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Where an increasing function crosses zero in ``[low, high]``: Newton's method, kept inside a shrinking bracket.

    Parameters
    ----------
    function
        Gives values and slopes at points, all of one shape, in float64.
    low, high
        The brackets. Where the function has one sign on all of a bracket, its nearer end is returned.
    """
    at = high
    for _ in range(200):
        value, slope = function(at)
        above = value > 0
        high, low = torch.where(above, at, high), torch.where(above, low, at)
        newton = at - value / slope
        inside = (newton > low) & (newton < high)
        # A step that leaves the bracket (or is NaN, from a slope of zero) is replaced by a halving.
        following = torch.where(inside, newton, 0.5 * (low + high))
        # A step below rounding has arrived; one of an infinite slope, where brackets may begin, has not.
        following = torch.where((newton == at) & torch.isfinite(slope), at, following)
        if bool((following == at).all()):
            break
        at = following
    return at


def lambert_w(x: Tensor) -> Tensor:
    """The root ``w >= 0`` of ``w e^w = x``, for ``x >= 0`` in float64.

    ``log(1 + x)`` lies above the root of an increasing convex function, so that Newton's method descends to it.
    """

    def excess(w: Tensor) -> tuple[Tensor, Tensor]:
        grown = torch.exp(w)
        return w * grown - x, (1 + w) * grown

    return increasing_root(excess, torch.zeros_like(x), torch.log1p(x))
