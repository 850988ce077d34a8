"""How many directions of a curvature matter at a scale, from eigenvalues or from Lanczos runs, with its error.

    N(mu) = tr[H (H + mu)^-1] = sum_i lambda_i / (lambda_i + mu),    H of size D, positive semidefinite.

A Lanczos run started at a random sign vector gives a Gauss rule: ``D sum_j w_j theta_j / (theta_j + mu)`` estimates
N(mu) (stochastic Lanczos quadrature; Ubaru, Chen and Saad 2017). ``mu / (t + mu)`` is completely monotone in t, so
for that vector the Gauss rule is never below, and the Gauss-Radau rule with a node at 0 never above, what exact
arithmetic would give (Golub and Meurant 2010, theorem 6.4): the quadrature's error is bracketed for free. The nodes
are used as they are; nothing is smoothed or binned.

That needs H >= 0. Of a curvature with negative directions, which count as none, no bracket is known: the rule of half
the run stands in for the second one, and the two tell how far the run has settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import brentq
from scipy.stats import norm, t

__all__ = ["Dimension", "Rule", "Spectrum", "lanczos_rules"]

FloatArray = NDArray[np.float64]

#: Nodes below minus this fraction of the largest are negative curvature, not rounding in single precision.
NEGATIVE = 1e-5
#: Fewer probes than this do not tell their own spread; the a-priori one is used.
PROBES_FOR_SPREAD = 6


@dataclass(frozen=True)
class Dimension:
    """N(mu) with an interval that holds sampling and quadrature."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes and weights of one quadrature rule, ``(m,)`` each, nodes >= 0; the weights sum to 1."""

    nodes: FloatArray
    weights: FloatArray

    def mean(self, mu: float) -> float:
        """``sum_j w_j theta_j / (theta_j + mu)``; at ``mu = 0`` the weight of the positive nodes."""
        if mu <= 0:
            return float(self.weights[self.nodes > 0].sum())
        return float(self.weights @ (self.nodes / (self.nodes + mu)))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of a curvature's eigenvalues.

    Attributes
    ----------
    size
        D.
    gauss, radau
        Two rules per probe, between which the truth lies as far as that is known; the same rule, once, where the
        eigenvalues are known (``exact``).
    confidence
        Of the interval over probes.
    """

    size: int
    gauss: tuple[Rule, ...]
    radau: tuple[Rule, ...]
    confidence: float = 0.95
    exact: bool = False

    @classmethod
    def of_eigenvalues(cls, eigenvalues: Any, multiplicity: Any = None, size: int | None = None) -> Spectrum:
        """All eigenvalues, with how often each occurs; where ``size`` is larger than their number the rest are 0.

        Raises
        ------
        ValueError
            If an eigenvalue is negative or not finite, or there are more than ``size``.
        """
        values = np.asarray(eigenvalues, dtype=np.float64).ravel()
        counts = np.ones(len(values)) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64).ravel()
        total = int(round(float(counts.sum())))
        size = total if size is None else size
        if not np.isfinite(values).all() or (values < 0).any() or counts.shape != values.shape:
            raise ValueError(
                f"Expected finite eigenvalues >= 0. Got {values.shape} of them, least {values.min(initial=np.inf)}. "
                "Clip negative curvature first."
            )
        if total > size:
            raise ValueError(f"Expected at most {size} eigenvalues. Got {total}. Pass the size of the whole curvature.")
        rule = Rule(values, counts / max(size, 1))
        return cls(size, (rule,), (rule,), exact=True)

    def dimension(self, mu: float) -> Dimension:
        """N(mu) with its interval."""
        if self.exact:
            value = self.size * self.gauss[0].mean(mu)
            return Dimension(value, value, value)
        above = self.size * np.array([rule.mean(mu) for rule in self.gauss])
        below = self.size * np.array([rule.mean(mu) for rule in self.radau])
        middle = (above + below) / 2
        value = float(middle.mean())
        half = self._half_width(middle)
        low = max(0.0, float(np.minimum(above, below).mean()) - half)
        return Dimension(low, value, min(float(self.size), float(np.maximum(above, below).mean()) + half))

    def _half_width(self, samples: FloatArray) -> float:
        """Of the mean over probes: Student's t, or by Var <= 2 ||H (H + mu)^-1||_F^2 <= 2 N for few of them."""
        count = len(samples)
        if count >= PROBES_FOR_SPREAD:
            return float(t.ppf((1 + self.confidence) / 2, count - 1) * samples.std(ddof=1) / np.sqrt(count))
        return float(norm.ppf((1 + self.confidence) / 2) * np.sqrt(2 * max(samples.mean(), 0.0) / count))

    def bracket(self, mu: float) -> float:
        """Width of the quadrature's bracket at mu relative to N(mu), averaged over probes."""
        above = np.array([rule.mean(mu) for rule in self.gauss])
        below = np.array([rule.mean(mu) for rule in self.radau])
        return float(np.abs(above - below).mean() / max(above.mean(), 1e-300))

    @cached_property
    def largest(self) -> float:
        """The largest node."""
        return max((float(rule.nodes.max(initial=0.0)) for rule in self.gauss), default=0.0)

    def squared_dimension(self, mu: float) -> float:
        """``tr[H^2 (H + mu)^-2]``, mu > 0."""
        means = [float(rule.weights @ np.square(rule.nodes / (rule.nodes + mu))) for rule in self.gauss]
        return self.size * float(np.mean(means))

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues."""
        means = [float(rule.weights @ rule.nodes) for rule in self.gauss]
        return self.size * float(np.mean(means))

    def scale(self, count: float, of: Callable[[Dimension], float] = lambda found: found.value) -> float:
        """The mu at which N(mu) is ``count`` > 0; 0 where N stays below it (``count`` exceeds the rank).

        ``of`` picks the value or one end of the interval. N falls in mu, so the answer is unique.
        """
        if of(self.dimension(0.0)) <= count or self.largest == 0:
            return 0.0
        high = self.largest
        while of(self.dimension(high)) > count:
            high *= 16
        low = 1e-18 * self.largest
        if of(self.dimension(low)) <= count:
            return 0.0
        # N is smooth and falling in log mu.
        log = brentq(lambda at: of(self.dimension(float(np.exp(at)))) - count, np.log(low), np.log(high), xtol=1e-9)
        return float(np.exp(log))


def lanczos_rules(
    diagonal: Sequence[float], off_diagonal: Sequence[float], resolution: float = 1e-12
) -> tuple[Rule, Rule]:
    """Gauss and Gauss-Radau (node at 0) rules of a Lanczos run; Gauss rules of all and half of it if T is indefinite.

    Parameters
    ----------
    diagonal
        alpha_1 ... alpha_m.
    off_diagonal
        beta_1 ... beta_m: the last one leads out of the space that was built; 0 where the space is invariant, and the
        two rules then agree.
    resolution
        Nodes below this fraction of the largest are rounding of the products, and zero: several times the machine
        epsilon of the arithmetic that they were made in.
    """
    alpha, beta = np.asarray(diagonal, dtype=np.float64), np.asarray(off_diagonal, dtype=np.float64)
    gauss, least = _rule(alpha, beta[:-1], resolution)
    if beta[-1] <= 1e-12 * max(float(np.abs(alpha).max()), 1e-300):
        return gauss, gauss
    if least < -NEGATIVE * float(gauss.nodes.max()):
        half = len(alpha) // 2
        nothing = Rule(np.zeros(1), np.ones(1))
        return gauss, _rule(alpha[:half], beta[: half - 1], resolution)[0] if half else nothing
    # The last pivot of T - 0 I is replaced so that 0 becomes an eigenvalue of the bordered matrix: with delta solving
    # T delta = beta_m^2 e_m, the new corner is delta_m (Golub 1973).
    end = _last_of_solution(alpha, beta[:-1]) * beta[-1] ** 2
    return gauss, _rule(np.append(alpha, end), beta, resolution)[0]


def _last_of_solution(alpha: FloatArray, beta: FloatArray) -> float:
    """The last entry of T^-1 e_m: the inverse of the last pivot of T = L D L'."""
    pivot = float(alpha[0])
    tiny = 1e-300 + 1e-15 * float(np.abs(alpha).max())
    for a, b in zip(alpha[1:], beta, strict=True):
        pivot = float(a) - float(b) ** 2 / max(pivot, tiny)
    return 1.0 / max(pivot, tiny)


def _rule(alpha: FloatArray, beta: FloatArray, resolution: float) -> tuple[Rule, float]:
    """Eigenvalues and squared first entries of the eigenvectors of the tridiagonal matrix, and the least eigenvalue.

    Negative nodes, and positive ones at rounding level, are zero.
    """
    nodes, vectors = eigh_tridiagonal(alpha, beta) if len(alpha) > 1 else (alpha, np.ones((1, 1)))
    noise = resolution * max(float(np.abs(nodes).max()), 1e-300)
    return Rule(np.where(nodes > noise, nodes, 0.0), vectors[0] ** 2), float(nodes.min())
