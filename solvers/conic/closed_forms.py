"""Statistical dimensions that need no sampling.

The statistical dimension of a closed convex cone C in R^D,

    delta(C) = E |P_C(g)|^2,    g standard normal, P_C the projection on C,

is to cones what the dimension is to subspaces: two cones in random position meet in more than the origin almost surely
or almost never as their statistical dimensions sum to more or less than D. It is invariant under rotation, adds over
products, and delta(C) + delta(polar of C) = D, because |g|^2 = |P_C(g)|^2 + |P_polar(g)|^2 (Moreau).

References
----------
Amelunxen, Lotz, McCoy, Tropp, "Living on the edge: phase transitions in convex programs with random data",
Information and Inference 3 (2014).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, gammaln

__all__ = [
    "circular",
    "monotone",
    "orthant",
    "polar",
    "product",
    "psd",
    "second_order",
    "subspace",
    "width_interval",
]

#: Gauss-Legendre nodes and weights: the integrand is analytic and a few dozen would do.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(160)


def _check_dimension(dimension: int) -> None:
    if dimension < 1:
        raise ValueError(f"Expected a dimension of at least 1. Got {dimension}. Give the dimension of the space.")


def _check_within(delta: float, dimension: int) -> None:
    if not 0 <= delta <= dimension:
        raise ValueError(
            f"Expected a statistical dimension between 0 and {dimension}. Got {delta}. "
            "Give that of a cone in a space of this dimension."
        )


def subspace(rank: int) -> float:
    """A linear subspace of dimension ``rank``: its dimension."""
    if rank < 0:
        raise ValueError(f"Expected a rank of at least 0. Got {rank}. Give the subspace's dimension.")
    return float(rank)


def orthant(dimension: int) -> float:
    """``{x >= 0}``, its own polar up to sign: half the dimension."""
    _check_dimension(dimension)
    return dimension / 2


def second_order(dimension: int) -> float:
    """``{|x[1:]| <= x[0]}`` in R^dimension, its own polar up to sign: half the dimension."""
    _check_dimension(dimension)
    return dimension / 2


def psd(side: int) -> float:
    """Positive semidefinite matrices among the symmetric ones, ``D = side (side + 1) / 2``: half the dimension."""
    _check_dimension(side)
    return side * (side + 1) / 4


def monotone(dimension: int) -> float:
    """``{x[0] >= x[1] >= ...}``: the harmonic number ``1 + 1/2 + ... + 1/dimension``.

    The projection is isotonic regression: given k level sets its squared norm is chi-squared with k degrees of freedom,
    and k is distributed like the number of cycles of a random permutation.
    """
    _check_dimension(dimension)
    return math.fsum(1 / rank for rank in range(1, dimension + 1))


def circular(dimension: int, angle: float) -> float:
    """The points within ``angle`` radians of an axis, 0 to pi/2; by one integral over the angle theta to the axis.

    |g|^2 is independent of theta, whose density is proportional to ``sin(theta)^(D-2)``, so

        delta = D [ P(theta <= a) + E(cos(theta - a)^2 ; a <= theta <= a + pi/2) ].

    Raises
    ------
    ValueError
        The angle is outside ``[0, pi/2]``.
    """
    _check_dimension(dimension)
    if not 0 <= angle <= math.pi / 2:
        raise ValueError(f"Expected an angle from 0 to pi/2 radians. Got {angle}. A wider cone is not convex.")
    if dimension == 1:  # a ray, for which theta is 0 or pi
        return 0.5
    log_norm = gammaln(dimension / 2) - gammaln((dimension - 1) / 2) - 0.5 * math.log(math.pi)
    within = 0.5 * float(betainc((dimension - 1) / 2, 0.5, math.sin(angle) ** 2))
    # In many dimensions all directions but exp(-72) of them lie this near to a right angle.
    near = 12 / math.sqrt(dimension)
    low, high = max(angle, math.pi / 2 - near), min(angle, near) + math.pi / 2
    theta = (low + high) / 2 + (high - low) / 2 * NODES
    log_sine = np.log(np.clip(np.sin(theta), np.finfo(np.float64).tiny, None))
    values = np.exp(log_norm + (dimension - 2) * log_sine) * np.cos(theta - angle) ** 2
    return dimension * (within + (high - low) / 2 * float(WEIGHTS @ values))


def product(*deltas: float) -> float:
    """The product of cones with these statistical dimensions, each in a space of its own: their sum."""
    return math.fsum(deltas)


def polar(delta: float, dimension: int) -> float:
    """The polar ``{y : <y, x> <= 0 for all x in C}`` of a cone C with this delta: ``dimension - delta``."""
    _check_within(delta, dimension)
    return dimension - delta


def width_interval(delta: float) -> tuple[float, float]:
    """Least and greatest Gaussian width ``w = E sup {<g, x> : x in C, |x| <= 1}`` that a statistical dimension allows.

    ``w = E |P_C(g)|``, and a projection's norm is 1-Lipschitz in g, so its variance ``delta - w^2`` is between 0 and 1:
    ``w^2 <= delta <= w^2 + 1``. (Over the unit sphere in place of the ball the width is at most w.)
    """
    if not delta >= 0:
        raise ValueError(f"Expected a statistical dimension of at least 0. Got {delta}. Give E |P_C(g)|^2.")
    return math.sqrt(max(0.0, delta - 1)), math.sqrt(delta)
