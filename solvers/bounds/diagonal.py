"""The largest diagonal that a positive definite matrix dominates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky

__all__ = ["largest_diagonal"]

FloatArray = NDArray[np.float64]


def largest_diagonal(matrix: FloatArray, weights: FloatArray, accuracy: float = 1e-3) -> FloatArray:
    """Nearly maximise ``sum weights * d`` over ``d >= 0`` with ``matrix - diag(d)`` positive semidefinite, ``(n,)``.

    Newton's method on the barrier ``weights'd + mu (logdet(matrix - diag(d)) + sum log d)`` for falling mu; with
    ``X = (matrix - diag(d))^-1`` its gradient is ``weights + mu (1/d - diag(X))`` and its Hessian
    ``-mu (X * X + diag(1/d^2))``, elementwise. Every iterate is strictly feasible, so stopping early is safe.

    Parameters
    ----------
    matrix
        ``(n, n)``, positive definite.
    weights
        ``(n,)``, at least 0.
    accuracy
        The sum may fall short of its maximum by this fraction.
    """
    count = len(matrix)
    weights = weights / max(float(weights.max(initial=0.0)), 1e-300)
    smallest = float(np.linalg.eigvalsh(matrix)[0]) if count else 0.0
    if smallest <= 8 * count * np.finfo(np.float64).eps * float(np.abs(matrix).max(initial=0.0)):
        return np.zeros(count)  # singular as far as float64 can tell
    d = np.full(count, smallest / 2)
    factor = cholesky(matrix - np.diag(d), lower=True)
    mu = float(weights @ d) / count
    length = 1.0
    for _ in range(60):
        inverse = cho_solve((factor, True), np.eye(count))
        gradient = weights / mu + 1 / d - np.diag(inverse)
        # In units of d, which keep the Hessian at least the identity.
        curvature = d[:, None] * inverse**2 * d + np.eye(count)
        try:
            step = d * cho_solve((cholesky(curvature, lower=True), True), d * gradient)
        except np.linalg.LinAlgError:
            break  # too close to the boundary for float64
        decrement = float(gradient @ step)
        moved = _advanced(matrix, weights / mu, d, step, factor, min(1.0, 2 * length))
        if moved is None:
            break
        d, factor, length = moved
        if decrement < 0.25 * count:
            if 2 * count * mu < accuracy * float(weights @ d):
                break
            mu *= 0.2
    return np.asarray(d * (1 - 1e-9))


def _advanced(
    matrix: FloatArray, slope: FloatArray, d: FloatArray, step: FloatArray, factor: FloatArray, length: float
) -> tuple[FloatArray, FloatArray, float] | None:
    """The longest of a few shares of the step, at most ``length``, that raises the barrier's value.

    Returns the new d, its Cholesky factor and the share; None if none raises it.
    """
    falling = step < 0
    length = min(length, 0.9 * float(np.min(-d[falling] / step[falling], initial=np.inf)))
    value = _barrier(slope, d, factor)
    for _ in range(30):
        trial = d + length * step
        try:
            found = cholesky(matrix - np.diag(trial), lower=True)
        except np.linalg.LinAlgError:
            length *= 0.6
            continue
        if _barrier(slope, trial, found) > value:
            return trial, found, length
        length *= 0.5
    return None


def _barrier(slope: FloatArray, d: FloatArray, factor: FloatArray) -> float:
    return float(slope @ d + 2 * np.log(np.diag(factor)).sum() + np.log(d).sum())
