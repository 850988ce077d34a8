"""Where along a path of ever smaller supports a quadratic loss must exceed epsilon: two laws of random supports.

A path keeps k_0 < k_1 < ... < k_n = D of D weights; R_j^2 is the energy of the weights that support j removes. Both
laws know only k, R and the curvature's eigenvalues, not how the support lies to its eigenvectors.

*Paper* (Zhang et al. 2024, arXiv 2306.05857; the width of a sublevel set seen from the pruned point, after Larsen et
al. 2022, arXiv 2107.05802): the smallest k with

    k >= sum_i lambda_i R^2 / (lambda_i R^2 + 2 epsilon) = N(2 epsilon / R(k)^2).

*Generic*: the survivors are updated optimally and the eigenvectors are uniformly random. The removed part is orthogonal
to the support that stays, for which

    E = 1/2 R^2 mu_k k / (D - k),    N(mu_k) = k.

Neither bounds what a network loses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.effective_dimension import Dimension, FloatArray, Spectrum

__all__ = ["first_true", "generic_loss", "generic_spread", "generic_threshold", "paper_loss", "paper_threshold"]

End = Callable[[Dimension], float]


def _value(found: Dimension) -> float:
    return found.value


def first_true(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest index with ``holds``, which is false and then true, by bisection; ``count`` where it never is."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def paper_threshold(kept: FloatArray, energy: FloatArray, spectrum: Spectrum, epsilon: float, of: End = _value) -> int:
    """Index of the smallest support that the paper's law allows.

    Parameters
    ----------
    kept
        k_j, ``(n,)``, increasing, the last one D.
    energy
        R_j^2, ``(n,)``, not increasing, the last one 0.
    spectrum
        Of the curvature, in nats per squared weight.
    epsilon
        Allowed rise of the loss, in nats.
    of
        Which end of the interval of N to use.
    """

    def holds(index: int) -> bool:
        if energy[index] <= 0:
            return True
        return bool(kept[index] >= of(spectrum.dimension(2 * epsilon / float(energy[index]))))

    return min(first_true(len(kept), holds), len(kept) - 1)


def paper_loss(count: float, energy: float, spectrum: Spectrum, of: End = _value) -> float:
    """The epsilon at which the paper's law just allows ``count`` kept weights that remove ``energy``, in nats."""
    return float("inf") if count <= 0 < energy else 0.5 * energy * spectrum.scale(count, of)


def generic_loss(count: float, energy: float, spectrum: Spectrum, size: int, of: End = _value) -> float:
    """Loss in nats after the best update of ``count`` kept weights of ``size``, for uniformly random eigenvectors.

    ``size`` may be less than the spectrum's: coordinates that are zero and without curvature need not count.
    """
    if energy <= 0 or count >= size:
        return 0.0
    if count <= 0:
        return 0.5 * energy * spectrum.trace / size  # mu_k k tends to the trace
    return 0.5 * energy * spectrum.scale(count, of) * count / (size - count)


def generic_spread(count: float, spectrum: Spectrum, size: int) -> float:
    """Standard deviation of the generic loss over random bases, relative to its mean.

    The loss is a quadratic form of the removed weights, a vector in n = D - k dimensions, in a randomly turned matrix
    whose eigenvalues count like r = k (k - N_2) / N_2 equal ones, N_2 = tr[H^2 (H + mu_k)^-2]. A unit vector gives
    the variance ``2 / (n + 2) (n / r - 1)``. Large networks hardly scatter.
    """
    squared = spectrum.squared_dimension(spectrum.scale(count))
    rest = size - count
    concentration = rest * squared / max(count * (count - squared), 1e-300)
    return float(np.sqrt(2 / (rest + 2) * max(concentration - 1, 0.0)))


def generic_threshold(
    kept: FloatArray, energy: FloatArray, spectrum: Spectrum, size: int, epsilon: float, of: End = _value
) -> int:
    """Index of the smallest support whose generic loss is within epsilon; arguments as in :func:`paper_threshold`.

    Towards k = D the law may rise again, where k / (D - k) has its pole; what counts is where it first falls below
    epsilon, found on a grid and then by bisection.
    """
    last = len(kept) - 1

    def holds(index: int) -> bool:
        return generic_loss(float(kept[index]), float(energy[index]), spectrum, size, of) <= epsilon

    grid = np.unique(np.linspace(0, last, min(last + 1, 33)).astype(int))
    place = next((number for number, index in enumerate(grid) if holds(int(index))), len(grid) - 1)
    if place == 0:
        return int(grid[0])
    low, high = int(grid[place - 1]), int(grid[place])
    return low + first_true(high - low, lambda step: holds(low + step))
