"""The least of a quadratic inside balls of several sizes, from one Lanczos run (Gould, Lucidi, Roma and Toint 1999).

Minimise ``c - b'd + 1/2 d'A d`` over ``||d|| <= radius`` in the Krylov space of (A, b): with the orthonormal basis V,
``V'AV = T`` tridiagonal and ``V'b = ||b|| e_1``, that is the same problem for h = V'd, solved through T's eigenvectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import brentq

__all__ = ["trust_region"]

FloatArray = NDArray[np.float64]


def trust_region(
    diagonal: Sequence[float], off_diagonal: Sequence[float], norm: float, radius: float
) -> tuple[FloatArray, float]:
    """The best h, ``(m,)``, and the fall of the quadratic, >= 0.

    Parameters
    ----------
    diagonal, off_diagonal
        alpha_1 ... alpha_m and beta_1 ... beta_{m-1} of T; negative eigenvalues are taken as 0.
    norm
        ||b||.
    radius
        Bound on ||h||; infinity for none. Directions of zero curvature are then left out (the shortest minimiser).
    """
    alpha, beta = np.asarray(diagonal, dtype=np.float64), np.asarray(off_diagonal, dtype=np.float64)
    values, vectors = eigh_tridiagonal(alpha, beta) if len(alpha) > 1 else (alpha, np.ones((1, 1)))
    values = np.maximum(values, 0.0)
    push = norm * vectors[0]
    # Rounding leaves curvature of about 1e-15 where there is none.
    flat = values <= 1e-12 * max(float(values.max(initial=0.0)), 1e-300)
    if norm == 0 or radius == 0:
        return np.zeros(len(alpha)), 0.0

    def length(shift: float) -> float:
        return float(np.linalg.norm(push / (values + shift)))

    free = np.where(flat, 0.0, push / np.where(flat, 1.0, values))
    if np.isinf(radius) or (np.linalg.norm(free) <= radius and np.linalg.norm(push[flat]) <= 1e-9 * norm):
        step = free
    else:
        # (values + shift) >= shift gives length(shift) <= norm / shift: twice that is beyond the root for certain.
        high = low = 2 * norm / radius
        while length(low) <= radius and low > 1e-300:
            low /= 16
        shift = brentq(lambda log: np.log(length(np.exp(log)) / radius), np.log(low), np.log(high), xtol=1e-12)
        step = push / (values + np.exp(shift))
    fall = float(push @ step - 0.5 * step @ (values * step))
    return vectors @ step, max(fall, 0.0)
