"""Lagrangian bound of many blocks in layers, from values that were sorted once.

Layer ``l`` keeps its ``k_l`` most valuable blocks, each at the cost ``c_l``. For prices ``p`` the best count is that of
the values above ``p . c_l``, so one evaluation takes a binary search per layer.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.bounds.multiple_choice import Line, MultipleChoice
from solvers.problem import FloatArray, IntArray

#: Values summed in one piece; a partial sum reads at most one piece.
_PIECE = 4096

_EPSILON = float(np.finfo(np.float64).eps)


class SortedLayer:
    """The values of one layer, largest first, with their sums.

    Parameters
    ----------
    values
        Shape ``(n,)``, in any order.
    name
        What an error calls the layer.

    Raises
    ------
    ValueError
        NaN or infinite values.
    """

    def __init__(self, values: NDArray[np.floating], name: str = "the layer") -> None:
        # Negated, so that an ascending array starts with the largest value.
        self.negated = np.negative(values, dtype=np.float64)
        self.negated.sort()
        if self.negated.size and not (np.isfinite(self.negated[0]) and np.isfinite(self.negated[-1])):
            raise ValueError(f"Expected finite values in {name}. Got NaN or infinite ones. Check the scores.")
        pieces = np.arange(0, self.negated.size, _PIECE)
        sums = np.add.reduceat(self.negated, pieces) if pieces.size else np.zeros(0)
        self.sums = np.r_[0.0, np.cumsum(sums)]

    def __len__(self) -> int:
        return int(self.negated.size)

    def count_above(self, threshold: float) -> int:
        """How many values exceed a threshold."""
        return int(np.searchsorted(self.negated, -threshold))

    def top(self, count: int) -> float:
        """Sum of the ``count`` largest values."""
        piece = count // _PIECE
        return -float(self.sums[piece] + self.negated[piece * _PIECE : count].sum())

    def tops(self, first: int, last: int) -> FloatArray:
        """Sums of the ``first .. last`` largest values, shape ``(last - first + 1,)``."""
        return self.top(first) - np.r_[0.0, np.cumsum(self.negated[first:last])]

    @cached_property
    def magnitude(self) -> float:
        """Sum of absolute values."""
        return float(np.abs(self.negated).sum())


class SortedLayers:
    """Sorted layers with their costs; the bound for any limits.

    Parameters
    ----------
    layers
        The sorted values.
    costs
        Cost of one block, shape ``(L, m)``, int64.
    minimum, maximum
        Least and most kept blocks, shape ``(L,)``.
    """

    def __init__(self, layers: tuple[SortedLayer, ...], costs: IntArray, minimum: IntArray, maximum: IntArray) -> None:
        self.layers = layers
        self.costs = costs
        self.minimum = minimum
        self.maximum = maximum

    @cached_property
    def _scale(self) -> tuple[float, float, FloatArray]:
        depth = 40.0 + max((len(layer.sums) for layer in self.layers), default=0) + len(self.layers)
        return depth, sum(layer.magnitude for layer in self.layers), self.costs.T.astype(np.float64) @ self.maximum

    @cached_property
    def total(self) -> float:
        """Largest value when no budget binds."""
        return self._value(self._counts(np.zeros(self.costs.shape[1])))

    @cached_property
    def spread(self) -> float:
        """Largest minus least value, or more."""
        return 2.0 * self._scale[1]

    def rounding(self, prices: FloatArray) -> float:
        """How far float64 may be off in a bound."""
        depth, magnitude, amounts = self._scale
        return _EPSILON * (depth * magnitude + 8.0 * float(prices @ amounts))

    def evaluate(self, prices: FloatArray, limits: IntArray) -> Line:
        """The bound at prices, with the best number of kept blocks per layer, shape ``(L,)``."""
        counts = self._counts(prices)
        value = self._value(counts)
        slack = limits - counts @ self.costs
        # Value and slack are those of one choice, so nothing cancels that is not in both.
        bound = value + float(prices @ slack.astype(np.float64)) + self.rounding(prices)
        return Line(bound, value, slack.astype(np.float64), counts)

    def between(self, first: IntArray, last: IntArray, limits: IntArray) -> MultipleChoice:
        """Counts ``first .. last`` per layer, both included, as a multiple-choice knapsack."""
        starts = np.r_[0, np.cumsum(last - first + 1)].astype(np.int64)
        spans = list(zip(first.tolist(), last.tolist(), strict=True))
        values = [layer.tops(a, b) for layer, (a, b) in zip(self.layers, spans, strict=True)]
        kept = [np.arange(a, b + 1, dtype=np.int64) for a, b in spans]
        costs = [np.outer(cost, count) for cost, count in zip(self.costs, kept, strict=True)]
        if not values:
            return MultipleChoice(np.zeros(0), np.zeros((len(limits), 0), np.int64), starts, limits)
        return MultipleChoice(np.concatenate(values), np.concatenate(costs, axis=1), starts, limits)

    def edge(self, prices: FloatArray, counts: IntArray, first: IntArray, last: IntArray) -> float:
        """Least fall of the bound when a layer leaves its window: curves are concave, so the edges are nearest."""
        fall = np.inf
        for layer, cost, k, a, b, least, most in zip(
            self.layers, self.costs @ prices, counts, first, last, self.minimum, self.maximum, strict=True
        ):
            best = layer.top(int(k)) - cost * k
            if a > least:
                fall = min(fall, best - (layer.top(int(a)) - cost * a))
            if b < most:
                fall = min(fall, best - (layer.top(int(b)) - cost * b))
        return max(0.0, fall)

    def _counts(self, prices: FloatArray) -> IntArray:
        thresholds = self.costs @ prices
        above = [layer.count_above(float(t)) for layer, t in zip(self.layers, thresholds, strict=True)]
        counts: IntArray = np.clip(np.array(above, dtype=np.int64), self.minimum, self.maximum)
        return counts

    def _value(self, counts: IntArray) -> float:
        return float(sum(layer.top(int(k)) for layer, k in zip(self.layers, counts, strict=True)))
