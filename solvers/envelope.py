"""The lowest point of the largest of some lines: the master problem of cutting planes over prices.

    min over p >= 0 of max_i value_i + p . slack_i  =  max over weights w of sum_i w_i value_i,
                                                       w >= 0, sum w = 1, sum_i w_i slack_i >= 0

The right-hand side has one row more than there are prices, a handful, and one column per line. A revised simplex method
on it needs a few pivots of small dense systems, fewer when the last basis is kept while lines are added; a general
solver spends its time on setting up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.terms import FloatArray

#: Most pivots, in units of lines and rows; the lowest point found so far is then as good as any prices.
_PIVOTS = 20

#: Reduced costs and pivots below this, relative to the largest value, are zero.
_ZERO = 1e-13


@dataclass(frozen=True, eq=False)
class Lowest:
    """Height and prices ``(m,)`` of the lowest point, and the weights ``(n,)`` of the lines that meet there."""

    height: float
    prices: FloatArray
    weights: FloatArray


def lowest_point(values: FloatArray, slacks: FloatArray, ceiling: float) -> Lowest:
    """Minimise the largest line over prices of at least 0.

    Parameters
    ----------
    values
        Shape ``(n,)``.
    slacks
        Shape ``(n, m)``.
    ceiling
        A sum of prices, far beyond the useful, up to which a minimum is certainly found. It keeps the answer finite
        when all lines fall along some direction.
    """
    count, size = slacks.shape
    spread = float(np.abs(values - values.mean()).max()) or 1.0
    # Lines, then rows' surplus, then a line that rises with slope 1 in every price and is low at 0: it is never largest
    # below the ceiling, and gives a basis to start from.
    matrix = np.zeros((size + 1, count + size + 1))
    matrix[0, :count] = 1.0
    matrix[1:, :count] = slacks.T
    matrix[1:, count : count + size] = -np.eye(size)
    matrix[:, -1] = 1.0
    heights = np.zeros(count + size + 1)
    heights[:count] = (values - values.mean()) / spread
    heights[-1] = float(heights[:count].min()) - ceiling / spread
    basis = [count + size, *range(count, count + size)]
    right = np.zeros(size + 1)
    right[0] = 1.0
    scale = 1.0 + np.abs(heights[:-1]).max()
    amounts = right
    multipliers = np.zeros(size + 1)
    for turn in range(_PIVOTS * (size + 2)):
        columns = matrix[:, basis]
        try:
            amounts = np.linalg.solve(columns, right)
            multipliers = np.linalg.solve(columns.T, heights[basis])
        except np.linalg.LinAlgError:
            break
        reduced = heights - multipliers @ matrix
        reduced[basis] = 0.0
        better = reduced > _ZERO * (scale + float(np.abs(multipliers).max()))
        if not better.any():
            break
        # Largest gain first; the first of all once degenerate bases could go in circles (Bland 1977).
        entering = int(np.argmax(reduced)) if turn < 8 * (size + 2) else int(np.flatnonzero(better)[0])
        direction = np.linalg.solve(columns, matrix[:, entering])
        shrinking = direction > _ZERO * max(1.0, float(np.abs(direction).max()))
        if not shrinking.any():
            break
        ratios = np.where(shrinking, np.maximum(amounts, 0.0) / np.where(shrinking, direction, 1.0), np.inf)
        least = float(ratios.min())
        ties = np.flatnonzero(ratios <= least)
        basis[min(ties.tolist(), key=lambda row: basis[row])] = entering
    prices = np.maximum(-multipliers[1:], 0.0) * spread
    weights = np.zeros(count)
    for column, amount in zip(basis, amounts, strict=True):
        if column < count:
            weights[column] = max(0.0, float(amount))
    return Lowest(float((values + slacks @ prices).max()), prices, weights)
