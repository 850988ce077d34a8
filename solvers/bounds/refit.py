"""Lower bounds on the loss of any selection with refit: perspective relaxation and spectrum.

**Perspective.** With a diagonal D >= 0 such that H - D is positive semidefinite, the loss of a selection z is, with the
fitted weights V (n, m) and G = H W',

    1/2 [ tr(W H W') + tr(V'(H - D)V) - 2 tr(G'V) + sum_i d_i |V_i|^2 / z_i ],

convex in (V, z), so that z may run through the hull of all selections (Frangioni and Gentile 2006; Dong, Chen and
Linderoth 2015). Its dual needs no inverse. For any U (n, m), let L = G - (H - D)U. As
``d|v|^2 / z >= 2 l'v - z|l|^2 / d`` for every l, and ``tr(V'(H-D)V) - 2 tr((G-L)'V) >= -tr(U'(H-D)U)`` for every V,
the loss is at least

    1/2 [ tr(W H W') - tr(U'(H - D)U) - max_z sum_i z_i |L_i|^2 / d_i ].

**Any** U and any such D give a bound: it does not hang on how well the relaxation was solved. The maximum over z is a
fractional knapsack. U comes from the relaxation: V at fixed z is one Cholesky factorisation, z at fixed V is a sort.

Inputs of a structure live and die together, so any invertible change of basis inside it is allowed; H is first
whitened structure by structure, which makes D block diagonal in the original inputs.

**Spectral.** ``W_S`` refitted is a map of rank at most the number r of kept inputs: the loss is at least half the sum
of all but the r largest eigenvalues of ``W H W'`` (Eckart and Young 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky

from solvers.bounds.diagonal import largest_diagonal
from solvers.quadratic import FloatArray, ReducedMap, RefitProblem, reduced

__all__ = [
    "BoundKind",
    "Capacity",
    "RefitBound",
    "WhiteMap",
    "dominates",
    "dual_value",
    "perspective_bound",
    "refit_bound",
    "spectral_bound",
    "whitened",
]

#: Smallest fraction of a structure in the relaxation: it only steers where the bound is evaluated.
LEAST = 1e-6

#: A round that raises the bound by a smaller part than this is the last.
LITTLE = 1e-3

#: Rounding of sums over n terms, in units of n times their size.
EPSILON = float(np.finfo(np.float64).eps)


class BoundKind(Enum):
    """The relaxation that gave a bound."""

    PERSPECTIVE = "perspective"
    SPECTRAL = "spectral"


@dataclass(frozen=True)
class RefitBound:
    """No selection loses less than ``value``."""

    value: float
    kind: BoundKind


@dataclass(frozen=True, eq=False)
class Capacity:
    """Fractions z in [0, 1] of structures with ``sum costs z <= limit``.

    Parameters
    ----------
    costs
        ``(n,)``, at least 0.
    limit
        At least 0.
    """

    costs: FloatArray
    limit: float

    def __post_init__(self) -> None:
        costs = np.asarray(self.costs, dtype=np.float64)
        if costs.ndim != 1 or not np.isfinite(costs).all() or (costs < 0).any() or not self.limit >= 0:
            raise ValueError("Expected finite costs >= 0 of shape (n,) and a limit >= 0. Got others. Mend them.")
        object.__setattr__(self, "costs", costs)

    @classmethod
    def keeping(cls, count: int, keep: int) -> Capacity:
        """At most ``keep`` of ``count`` structures."""
        return cls(np.ones(count), float(keep))

    def most(self, values: FloatArray) -> float:
        """Largest ``sum z values`` for values >= 0: the fractional knapsack, by its dual price."""
        free = self.costs == 0
        ratio = np.where(free, 0.0, values / np.where(free, 1.0, self.costs))
        order = np.argsort(-ratio, kind="stable")
        filled = np.cumsum(self.costs[order])
        last = int(np.searchsorted(filled, self.limit, side="right"))
        # Any price >= 0 bounds the maximum; that of the item that does not fit whole attains it.
        price = float(ratio[order[last]]) if last < len(order) else 0.0
        return price * self.limit + float(np.maximum(values - price * self.costs, 0.0).sum())

    def spread(self, amounts: FloatArray) -> FloatArray:
        """The z that minimises ``sum amounts^2 / z``: ``min(1, amounts / sqrt(price * costs))``, by bisection."""
        weights = np.sqrt(self.costs)
        if float(self.costs.sum()) <= self.limit:
            return np.ones(len(amounts))
        amounts = np.maximum(amounts, 1e-12 * float(amounts.max(initial=0.0)) + 1e-300)
        relative = amounts / np.where(weights > 0, weights, 1.0)
        low, high = 0.0, float((amounts * weights).sum()) / max(self.limit, 1e-9 * float(self.costs.sum()))
        for _ in range(100):
            middle = (low + high) / 2
            z = np.where(weights > 0, np.minimum(1.0, relative / middle), 1.0)
            low, high = (middle, high) if float(self.costs @ z) > self.limit else (low, middle)
        return np.where(weights > 0, np.minimum(1.0, relative / high), 1.0)


def refit_bound(problem: RefitProblem, capacity: Capacity | None = None, *, rounds: int = 6) -> RefitBound:
    """The better of both bounds, at least 0; ``capacity`` replaces the number of kept structures, if given."""
    maps = [reduced(one) for one in problem.maps]
    found = RefitBound(0.0, BoundKind.SPECTRAL)
    if capacity is None:
        found = RefitBound(max(0.0, spectral_bound(maps, problem.keep)), BoundKind.SPECTRAL)
    within = Capacity.keeping(problem.size, problem.keep) if capacity is None else capacity
    value = perspective_bound(maps, within, rounds=rounds)
    return RefitBound(value, BoundKind.PERSPECTIVE) if value > found.value else found


def spectral_bound(maps: Sequence[ReducedMap], keep: int) -> float:
    """Half the sum of all but the ``keep * s`` largest eigenvalues of ``W H W'``, over all maps."""
    total = 0.0
    for one in maps:
        values = np.linalg.eigvalsh(one.weight @ one.cross)
        rest = values[: max(len(values) - keep * one.each, 0)]
        total += 0.5 * (float(rest.sum()) - len(values) * EPSILON * float(np.abs(values).sum()))
    return total


@dataclass(frozen=True, eq=False)
class WhiteMap:
    """A map whose structures' own moments are the identity: moment (n, n), cross G (n, r), energy tr(W H W')."""

    moment: FloatArray
    cross: FloatArray
    energy: float
    each: int


def whitened(one: ReducedMap) -> WhiteMap:
    """Change the basis inside each structure so that its own moment is the identity."""
    count = len(one.moment) // one.each
    index = np.arange(len(one.moment)).reshape(count, one.each)
    factors = np.linalg.cholesky(one.moment[index[:, :, None], index[:, None, :]])
    inverse = np.linalg.inv(factors)
    half = (inverse @ one.moment.reshape(count, one.each, -1)).reshape(one.moment.shape)
    moment = (inverse @ half.T.reshape(count, one.each, -1)).reshape(one.moment.shape)
    cross = (inverse @ one.cross.reshape(count, one.each, -1)).reshape(len(one.moment), -1)
    return WhiteMap((moment + moment.T) / 2, cross, 2 * one.energy, one.each)


def perspective_bound(
    maps: Sequence[ReducedMap], capacity: Capacity, *, rounds: int = 6, iterations: int = 25
) -> float:
    """The largest perspective bound found.

    D starts at the smallest eigenvalue and at the largest trace. The relaxation is concave in D with the gradient
    ``|V_i|^2 (1 / z_i - 1)``; each further round maximises its linearisation and moves D halfway there.
    """
    white = [whitened(one) for one in maps]
    uniform = [np.full(len(one.moment), 0.999 * max(_smallest(one.moment), 0.0)) for one in white]
    best, fractions, slopes = _relaxed(white, uniform, capacity, None, iterations)
    diagonals = [largest_diagonal(one.moment, np.ones(len(one.moment))) for one in white]
    for number in range(rounds):
        value, fractions, slopes = _relaxed(white, diagonals, capacity, fractions, iterations)
        rising = value > best * (1 + LITTLE)
        best = max(best, value)
        if number + 1 == rounds or not (rising or number == 0):
            break
        target = [largest_diagonal(one.moment, slope) for one, slope in zip(white, slopes, strict=True)]
        diagonals = [(old + new) / 2 for old, new in zip(diagonals, target, strict=True)]
    return best


def _smallest(moment: FloatArray) -> float:
    return float(np.linalg.eigvalsh(moment)[0]) - len(moment) * EPSILON if len(moment) else 0.0


def _relaxed(
    maps: Sequence[WhiteMap],
    diagonals: Sequence[FloatArray],
    capacity: Capacity,
    fractions: FloatArray | None,
    iterations: int,
) -> tuple[float, FloatArray, list[FloatArray]]:
    """Best dual value on the way to the relaxation's minimum, its fractions, and the slopes by D."""
    count = len(capacity.costs)
    share = capacity.limit / max(float(capacity.costs.sum()), 1e-300)
    z = np.full(count, min(1.0, max(share, LEAST))) if fractions is None else fractions
    diagonals = [np.maximum(diagonal, 1e-12) for diagonal in diagonals]
    if any(not dominates(one.moment, diagonal) for one, diagonal in zip(maps, diagonals, strict=True)):
        return 0.0, z, [np.ones(len(one.moment)) for one in maps]
    best = 0.0
    slopes: list[FloatArray] = []
    for _ in range(iterations):
        z = np.clip(z, LEAST, 1.0)
        amounts = np.zeros(count)
        fitted, slopes = [], []
        for one, diagonal in zip(maps, diagonals, strict=True):
            root = np.sqrt(np.repeat(z, one.each))
            system = (one.moment - np.diag(diagonal)) * root[:, None] * root + np.diag(diagonal)
            weights = root[:, None] * cho_solve(cho_factor(system, lower=True), root[:, None] * one.cross)
            sizes = (weights**2).sum(axis=1)
            amounts += (diagonal * sizes).reshape(count, one.each).sum(axis=1)
            fitted.append(weights)
            slopes.append(sizes * (1 / root**2 - 1) + 1e-6 * float(sizes.mean()) + 1e-300)
        value = dual_value(maps, diagonals, fitted, capacity)
        rising = value > best * (1 + 1e-4)
        best = max(best, value)
        following = capacity.spread(np.sqrt(amounts))
        if not rising and float(np.abs(following - z).max(initial=0.0)) < 1e-3:
            break
        z = following
    return best, z, slopes


def dual_value(
    maps: Sequence[WhiteMap], diagonals: Sequence[FloatArray], weights: Sequence[FloatArray], capacity: Capacity
) -> float:
    """The bound of the module's text at D and U, less what rounding of its sums may have added."""
    total, scale, size = 0.0, 0.0, 0
    values = np.zeros(len(capacity.costs))
    for one, diagonal, fitted in zip(maps, diagonals, weights, strict=True):
        image = one.moment @ fitted - diagonal[:, None] * fitted
        inner = float((fitted * image).sum())
        rest = ((one.cross - image) ** 2).sum(axis=1) / diagonal
        values += rest.reshape(len(values), one.each).sum(axis=1)
        total += one.energy - inner
        scale += one.energy + abs(inner) + float((fitted**2).sum())
        size += len(one.moment)
    most = capacity.most(values)
    return 0.5 * (total - most - 4 * size * EPSILON * (scale + most))


def dominates(moment: FloatArray, diagonal: FloatArray) -> bool:
    """Whether moment - diag(diagonal) is positive semidefinite beyond what rounding could feign."""
    try:
        cholesky(moment - np.diag(diagonal + 4 * len(moment) * EPSILON), lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return False
    return True
