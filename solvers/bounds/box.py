"""Lower bounds on quadratic losses of removals: the convex relaxation over the box, linearised.

The loss ``f(z) = 1/2 z'Qz + q'z`` of removing z (0 or 1) may give its diagonal to the linear term: ``z_i^2 = z_i`` at
0 and 1, so ``1/2 z'(Q - diag(d))z + (q + d/2)'z`` has the same values there. It is convex where Q - diag(d) is positive
semidefinite, and the larger d, the tighter it is in between (Billionnet and Elloumi 2007); where Q itself is not, d is
negative.

For **any** point z (it need not satisfy a thing) and any prices p >= 0 of the resources, convexity and weak duality
give, over all removals that free at least ``need_r`` of each resource,

    f >= f(z) - f'(z) z + sum_r p_r need_r + sum_i min(0, f'(z)_i - sum_r p_r c_ri).

How well the relaxation was solved decides how good this bound is, not whether it is one. The relaxation is solved by
accelerated projected gradients (Beck and Teboulle 2009) with restarts; projections and prices come from the dual of
the few budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from solvers.bounds.diagonal import largest_diagonal
from solvers.quadratic import FloatArray, PairwiseProblem

__all__ = ["BoxBound", "box_bound", "linearised_bound"]

#: Up to so many structures d is optimised; above, all its entries are equal.
LARGE = 512

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class BoxBound:
    """A lower bound with its proof.

    Attributes
    ----------
    value
        No removal within budget loses less.
    point
        z, ``(n,)``: where the loss was linearised.
    prices
        ``(r,)``: loss per unit of each resource that the kept structures do without.
    diagonal
        d, ``(n,)``: what was moved to the linear term.
    """

    value: float
    point: FloatArray
    prices: FloatArray
    diagonal: FloatArray


def linearised_bound(problem: PairwiseProblem, point: FloatArray, prices: FloatArray, diagonal: FloatArray) -> float:
    """The bound of the module's text, less what rounding may have added.

    Raises
    ------
    ValueError
        If a price is negative, or Q - diag(d) is not positive semidefinite.
    """
    if (prices < 0).any():
        raise ValueError(f"Expected prices >= 0. Got {prices.min()}. Take them from a BoxBound.")
    if not _is_convex(problem.quadratic, diagonal):
        raise ValueError("Expected Q - diag(d) to be positive semidefinite. Got one that is not. Lower the diagonal.")
    return _value(problem, point, prices, diagonal)


def _value(problem: PairwiseProblem, point: FloatArray, prices: FloatArray, diagonal: FloatArray) -> float:
    image = problem.quadratic @ point - diagonal * point
    slope = image + problem.linear + diagonal / 2
    need = problem.costs.sum(axis=1) - problem.limits
    reduced = slope - prices @ problem.costs
    value = -0.5 * float(point @ image) + float(prices @ need) + float(np.minimum(reduced, 0.0).sum())
    scale = float(np.abs(point) @ np.abs(image)) + float(prices @ np.abs(need)) + float(np.abs(slope).sum())
    return value - 4 * len(point) * EPSILON * (scale + float((prices @ problem.costs).sum()))


def box_bound(problem: PairwiseProblem, start: FloatArray | None = None, iterations: int = 300) -> BoxBound:
    """Solve the relaxation nearly and linearise there; ``inf`` if even removing all is not within budget."""
    count = problem.size
    need = (problem.costs.sum(axis=1) - problem.limits).astype(np.float64)
    if (problem.limits < 0).any():
        return BoxBound(np.inf, np.ones(count), np.zeros(len(need)), np.zeros(count))
    diagonal = _diagonal(problem.quadratic)
    convex = problem.quadratic - np.diag(diagonal)
    top = _largest(convex)
    z = np.full(count, 0.5) if start is None else np.asarray(start, dtype=np.float64)
    projection = _Projection(problem.costs.astype(np.float64), need)
    z = projection(z)
    ahead, momentum = z, 1.0
    linear = problem.linear + diagonal / 2
    best = BoxBound(-np.inf, z, np.zeros(len(need)), diagonal)
    for number in range(iterations):
        slope = convex @ ahead + linear
        following = projection(ahead - slope / max(top, 1e-300))
        if float((ahead - following) @ (following - z)) > 0:
            momentum = 1.0  # the momentum points uphill (O'Donoghue and Candes 2015)
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / grown * (following - z)
        momentum, moved, z = grown, float(np.abs(following - z).max(initial=0.0)), following
        if number % 50 == 49 or moved < 1e-7 or number == iterations - 1:
            prices = _prices(convex @ z + linear, problem.costs.astype(np.float64), need)
            found = BoxBound(_value(problem, z, prices, diagonal), z, prices, diagonal)
            close = found.value - best.value < 1e-4 * abs(found.value)
            best = max(best, found, key=lambda one: one.value)
            if close or moved < 1e-7:
                break
    return best


def _prices(slope: FloatArray, costs: FloatArray, need: FloatArray) -> FloatArray:
    """Nearly best prices for ``min slope'z`` over the box with ``costs z >= need``."""
    binding = need > 0
    prices = np.zeros(len(need))
    if not binding.any() or not costs.size:
        return prices
    if len(need) == 1:
        useful = costs[0] > 0
        ratio = slope[useful] / costs[0][useful]
        order = np.argsort(ratio, kind="stable")
        place = int(np.searchsorted(np.cumsum(costs[0][useful][order]), need[0] * (1 - 1e-12)))
        prices[0] = max(float(ratio[order[min(place, len(order) - 1)]]), 0.0)
        return prices
    scale = np.maximum(np.abs(need), 1.0)
    unit = max(float(np.abs(slope).max(initial=0.0)), 1e-300)
    answer = linprog(slope / unit, A_ub=-costs / scale[:, None], b_ub=-need / scale, bounds=(0, 1), method="highs")
    if answer.status == 0:
        prices = np.maximum(-answer.ineqlin.marginals, 0.0) * unit / scale
    return np.asarray(prices)


class _Projection:
    """Onto ``0 <= z <= 1``, ``costs z >= need``: ``z = clip(y + prices costs)`` with prices that make it so."""

    def __init__(self, costs: FloatArray, need: FloatArray) -> None:
        scale = np.maximum(np.linalg.norm(costs, axis=1), 1e-300)
        self.costs, self.need = costs / scale[:, None], need / scale
        self.prices = np.zeros(len(need))

    def __call__(self, y: FloatArray) -> FloatArray:
        # Block coordinate ascent of the dual: each price in turn exactly; one pass is exact for one budget.
        for _ in range(1 if len(self.need) == 1 else 12):
            before = self.prices.copy()
            for row, need in enumerate(self.need):
                others = self.prices @ self.costs - self.prices[row] * self.costs[row]
                self.prices[row] = _price(y + others, self.costs[row], float(need))
            if np.allclose(before, self.prices, rtol=1e-9, atol=1e-12):
                break
        return np.clip(y + self.prices @ self.costs, 0.0, 1.0)


def _price(y: FloatArray, costs: FloatArray, need: float) -> float:
    """The least price >= 0 at which ``clip(y + price costs)`` covers the need, by its breakpoints."""
    covered = float(costs @ np.clip(y, 0.0, 1.0))
    if covered >= need:
        return 0.0
    useful = costs > 0
    y, costs = y[useful], costs[useful]
    points = np.concatenate([np.maximum(-y / costs, 0.0), np.maximum((1 - y) / costs, 0.0)])
    steeper = np.concatenate([costs**2, -(costs**2)])
    order = np.argsort(points, kind="stable")
    points, slopes = points[order], np.cumsum(steeper[order])
    # What is covered is piecewise linear in the price: its values at the breakpoints.
    values = covered + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(points))])
    place = int(np.searchsorted(values, need))
    if place >= len(values):
        return float(points[-1])
    if place == 0 or slopes[place - 1] <= 0:
        return float(points[place])
    return float(points[place - 1] + (need - values[place - 1]) / slopes[place - 1])


def _largest(matrix: FloatArray) -> float:
    """The largest eigenvalue, from above: power iteration, then a margin; the row sums at most."""
    if not len(matrix):
        return 0.0
    rows = float(np.abs(matrix).sum(axis=1).max())
    vector = np.ones(len(matrix)) / np.sqrt(len(matrix)) + 1e-3 * np.cos(np.arange(len(matrix)))
    value = 0.0
    for _ in range(30):
        image = matrix @ vector
        value = float(np.linalg.norm(image)) / max(float(np.linalg.norm(vector)), 1e-300)
        vector = image / max(float(np.linalg.norm(image)), 1e-300)
    return min(rows, 1.1 * value)


def _diagonal(matrix: FloatArray) -> FloatArray:
    """A large d that leaves the matrix positive semidefinite: the largest sum where affordable, else all equal."""
    if not len(matrix):
        return np.zeros(0)
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    d = np.full(len(matrix), smallest)
    if smallest > 0 and len(matrix) <= LARGE:
        d = largest_diagonal(matrix, np.ones(len(matrix)))
    slack = 2 * _slack(matrix)
    while not _is_convex(matrix, d - slack):
        slack *= 4
    return d - slack


def _slack(matrix: FloatArray) -> float:
    return 4 * len(matrix) * EPSILON * float(np.abs(np.diag(matrix)).sum() + np.abs(matrix).max(initial=1e-300))


def _is_convex(matrix: FloatArray, diagonal: FloatArray) -> bool:
    try:
        np.linalg.cholesky(matrix - np.diag(diagonal - _slack(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True
