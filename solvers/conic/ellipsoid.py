"""The cone under which a point sees the weights whose quadratic loss is small.

Around its minimiser c the loss is ``1/2 (x - c)' H (x - c)``; the weights with a loss of at most eps fill an ellipsoid.
Seen from the origin outside it, it spans the cone C. A random subspace of dimension k through the origin reaches it
with near certainty if k + delta(C) > D, and misses it if k + delta(C) < D (D the dimension, up to about sqrt(D)).

Everything is in the eigenbasis of H: eigenvalues lambda_i >= 0 and coordinates c_i of the centre, or energies c_i^2.

References
----------
Amelunxen, Lotz, McCoy, Tropp, "Living on the edge" (2014): the kinematic statement.
Larsen, Fort, Becker, Ganguli, "How many degrees of freedom do we need to train deep networks", arXiv 2107.05802, and
Zhang et al., "How sparse can we prune a deep network", arXiv 2306.05857: the sum of `sublevel_width`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

__all__ = ["EllipsoidCone", "effective_dimension", "loss_cone_dimension", "sublevel_width"]

FloatArray = NDArray[np.float64]


def effective_dimension(eigenvalues: ArrayLike, mu: float, multiplicity: ArrayLike | None = None) -> float:
    """``N(mu) = tr[H (H + mu)^-1] = sum_i m_i lambda_i / (lambda_i + mu)``; the rank of H at ``mu = 0``.

    Parameters
    ----------
    eigenvalues
        ``(n,)``, at least 0.
    mu
        At least 0, in the units of the eigenvalues.
    multiplicity
        m_i, how often each eigenvalue stands, ``(n,)``; once if not given.

    Raises
    ------
    ValueError
        An eigenvalue or mu is negative, or shapes disagree.
    """
    spectrum, times = _spectrum(eigenvalues, multiplicity)
    if not mu >= 0:
        raise ValueError(f"Expected mu >= 0. Got {mu}. Give a ridge in the units of the eigenvalues.")
    if mu == 0:
        return float(times[spectrum > 0].sum())
    return float(times @ (spectrum / (spectrum + mu)))


def loss_cone_dimension(
    eigenvalues: ArrayLike, energies: ArrayLike, epsilon: float, multiplicity: ArrayLike | None = None
) -> float:
    """Statistical dimension ``D - N(mu)`` of the loss cone, with ``1/2 mu c' H (H + mu)^-1 c = epsilon``.

    On a random subspace of dimension k the least loss is close to the left side at ``N(mu) = k``, by the deterministic
    equivalent ``S (S' H S)^-1 S' ~ (H + mu)^-1`` of random sketches. Exact as D grows; for ``H = h I`` it gives
    ``D r^2 / R^2``, the leading term of a circular cone, with r the ball's radius and R = |c|. All of R^D, D, when the
    origin itself has a loss of at most epsilon.

    Parameters
    ----------
    eigenvalues, multiplicity
        As in `effective_dimension`.
    energies
        Sum of c_i^2 over the eigenspace of each eigenvalue, ``(n,)``.
    epsilon
        Greatest loss, more than 0.

    Raises
    ------
    ValueError
        Something is negative, not finite or of another shape.
    """
    spectrum, times = _spectrum(eigenvalues, multiplicity)
    squares = np.asarray(energies, dtype=np.float64)
    if squares.shape != spectrum.shape or not np.all((squares >= 0) & np.isfinite(squares)):
        raise ValueError(
            f"Expected finite energies >= 0 of shape {spectrum.shape}. Got shape {squares.shape}. "
            "Give the centre's squared coordinates in the eigenbasis."
        )
    _check_epsilon(epsilon)
    total = float(times.sum())
    work = spectrum * squares
    if 0.5 * math.fsum(work) <= epsilon:
        return total

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        return 0.5 * float(np.sum(work * (mu / (spectrum + mu)))) - epsilon

    # mu c'H(H + mu)^-1 c lies between mu c'Hc / (largest + mu) and mu |c|^2 (of the curved part).
    low = math.log(2 * epsilon / float(np.sum(squares[work > 0]))) - 1e-6
    high = low + 1.0
    while excess(high) < 0:
        high += 2 * (high - low)
    mu = math.exp(brentq(excess, low, high, xtol=1e-13, rtol=1e-13)) if excess(low) < 0 else math.exp(low)
    return total - effective_dimension(spectrum, mu, times)


def sublevel_width(
    eigenvalues: ArrayLike, radius: float, epsilon: float, multiplicity: ArrayLike | None = None
) -> float:
    """The published squared width ``sum_i r_i^2 / (R^2 + r_i^2)``, ``r_i^2 = 2 epsilon / lambda_i``, R = ``radius``.

    It equals ``D - N(2 epsilon / R^2)`` and, since mu of `loss_cone_dimension` is at least ``2 epsilon / R^2``, is at
    most the loss cone's statistical dimension: for ``H = h I`` it is ``D r^2 / (R^2 + r^2)``.

    Raises
    ------
    ValueError
        Something is negative or of another shape.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"Expected a finite radius > 0. Got {radius}. Give the distance to the ellipsoid's centre.")
    _check_epsilon(epsilon)
    spectrum, times = _spectrum(eigenvalues, multiplicity)
    return float(times.sum()) - effective_dimension(spectrum, 2 * epsilon / radius**2, times)


@dataclass(frozen=True, eq=False)
class EllipsoidCone:
    """The closed cone spanned by ``{x : 1/2 (x - c)' H (x - c) <= epsilon}``, with its exact projection.

    x is in the cone if some t >= 0 has ``(x - t c)' H (x - t c) <= 2 epsilon t^2``. Minimising over t leaves

        x' Q x <= 0 and c' H x >= 0,    Q = H - H c c' H / (c' H c - 2 epsilon),

    an elliptic cone: on the range of H, Q has one negative eigenvalue.

    Attributes
    ----------
    eigenvalues
        lambda_i, ``(D,)``, at least 0.
    centre
        c_i in the eigenbasis, ``(D,)``.
    epsilon
        Greatest loss, more than 0 and less than the loss at the origin.

    Raises
    ------
    ValueError
        Shapes disagree, an eigenvalue is negative, or the origin is inside: the cone is then the whole space.
    """

    eigenvalues: FloatArray
    centre: FloatArray
    epsilon: float
    _curved: NDArray[np.bool_] = field(init=False, repr=False)
    _values: FloatArray = field(init=False, repr=False)
    _vectors: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spectrum, _ = _spectrum(self.eigenvalues, None)
        centre = np.asarray(self.centre, dtype=np.float64)
        if centre.shape != spectrum.shape or not np.all(np.isfinite(centre)):
            raise ValueError(
                f"Expected a finite centre of shape {spectrum.shape}. Got shape {centre.shape}. "
                "Give the centre's coordinates in the eigenbasis."
            )
        _check_epsilon(self.epsilon)
        if 0.5 * float(spectrum @ centre**2) <= self.epsilon:
            raise ValueError(
                f"Expected epsilon below the origin's loss {0.5 * float(spectrum @ centre**2):g}. Got {self.epsilon}. "
                "From inside the ellipsoid every direction is in the cone: its statistical dimension is D."
            )
        curved = spectrum > 0
        pull = spectrum[curved] * centre[curved]
        excess = float(spectrum @ centre**2) - 2 * self.epsilon
        values, vectors = np.linalg.eigh(np.diag(spectrum[curved]) - np.outer(pull, pull) / excess)
        if pull @ vectors[:, 0] < 0:  # the axis points to the ellipsoid
            vectors[:, 0] *= -1
        for name, value in {"_curved": curved, "_values": values, "_vectors": vectors}.items():
            object.__setattr__(self, name, value)

    def project(self, point: ArrayLike) -> FloatArray:
        """The cone's nearest point, ``(D,)``, to one in the eigenbasis.

        In Q's eigenbasis, q_1 < 0 < q_2 <= ..., the nearest point is ``y_i = g_i / (1 + nu q_i)``, nu >= 0 such that
        y'Qy = 0 and y_1 > 0: below ``1/|q_1|`` if g_1 > 0, above it if g_1 < 0. Flat directions are in the cone.
        """
        given = np.asarray(point, dtype=np.float64)
        if given.shape != self._curved.shape:
            raise ValueError(f"Expected a point of shape {self._curved.shape}. Got {given.shape}. Use the eigenbasis.")
        found = given.copy()
        found[self._curved] = self._vectors @ self._nearest(self._vectors.T @ given[self._curved])
        return found

    def _nearest(self, g: FloatArray) -> FloatArray:
        q = self._values
        depth, first = -float(q[0]), float(g[0])
        rest, squares = q[1:], g[1:] ** 2
        if first >= 0 and float(rest @ squares) <= depth * first**2:
            return g
        if first <= 0 and float(np.sum(squares / rest)) <= first**2 / depth:
            return np.zeros_like(g)

        def outside(nu: float) -> float:
            """y'Qy, multiplied by (1 - nu depth)^2 > 0."""
            return (1 - nu * depth) ** 2 * float(np.sum(rest * squares / (1 + nu * rest) ** 2)) - depth * first**2

        if first == 0:
            nu = 1 / depth
        elif first > 0:
            nu = float(brentq(outside, 0.0, 1 / depth, xtol=1e-300, rtol=1e-14))
        else:
            high = 2 / depth
            while outside(high) <= 0:
                high *= 2
            nu = float(brentq(outside, 1 / depth, high, xtol=1e-300, rtol=1e-14))
        tail = g[1:] / (1 + nu * rest)
        # On the surface the axis follows from the others, also where 1 + nu q_1 is close to 0.
        return np.concatenate([[math.sqrt(float(rest @ tail**2) / depth)], tail])


def _spectrum(eigenvalues: ArrayLike, multiplicity: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """The eigenvalues and how often each stands, checked, ``(n,)`` both."""
    spectrum = np.asarray(eigenvalues, dtype=np.float64)
    if spectrum.ndim != 1 or len(spectrum) == 0 or not np.all((spectrum >= 0) & np.isfinite(spectrum)):
        raise ValueError(
            f"Expected finite eigenvalues >= 0 in one row. Got shape {spectrum.shape}, "
            f"least {spectrum.min(initial=np.inf):g}. Use a positive semidefinite curvature such as Gauss-Newton."
        )
    times = np.ones(len(spectrum)) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64)
    if times.shape != spectrum.shape or not np.all((times >= 0) & np.isfinite(times)):
        raise ValueError(
            f"Expected multiplicities >= 0 of shape {spectrum.shape}. Got shape {times.shape}. Give one per eigenvalue."
        )
    return spectrum, times


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"Expected a finite epsilon > 0. Got {epsilon}. Give a loss in the units of x' H x.")
