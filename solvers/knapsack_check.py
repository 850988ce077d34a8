"""The check of a knapsack's certificate: bound every leaf at its prices, and repeat the searches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from solvers.bounds.multiple_choice import MultipleChoice
from solvers.knapsack_tree import Box, kept, restricted, search_box
from solvers.problem import BoolArray, FloatArray, SelectionProblem
from solvers.result import Certificate
from solvers.verify import check_choice, check_cover


@dataclass(frozen=True, eq=False)
class CoreProof:
    """What proves a bound on a multiple-choice knapsack.

    At the root, options are dropped by their reduced costs at the first of the shared prices. Then each box is bounded
    at its own prices and, where that does not do, searched.

    Parameters
    ----------
    boxes
        Boxes of options that cover all choices.
    shared
        Prices at which partial choices are bounded, the root's first, shape ``(q, m)``.
    beam
        Longest list of partial choices; 0 for a bound that rests on prices alone.
    whole
        Whether a search must be complete to count; otherwise the bounds that are cut off count as well.
    most
        Partial choices formed at most in one search.
    """

    boxes: tuple[Box, ...]
    shared: FloatArray
    beam: int
    whole: bool
    most: int

    def bounds(self, classes: MultipleChoice, floor: float, enough: float) -> list[float]:
        """Bound of each box, recomputed.

        Parameters
        ----------
        classes
            The problem.
        floor
            Value of the choice within budget that the bound is held against.
        enough
            A box whose prices prove this much is not searched.
        """
        root, _ = classes.evaluate(self.shared[0])
        if not len(classes):
            return [root]
        allowed = classes.reduced_costs(self.shared[0]) <= root - floor + classes.rounding(self.shared[0])
        return [min(root, self._bound(classes, box, allowed, floor, enough)) for box in self.boxes]

    def _bound(self, classes: MultipleChoice, box: Box, allowed: BoolArray, floor: float, enough: float) -> float:
        keep = kept(classes, box.low, box.high, allowed)
        if keep is None:
            return floor
        inner, _ = restricted(classes, keep)
        bound, _ = inner.evaluate(box.prices)
        if bound <= enough or not self.beam:
            return max(bound, floor)
        found = search_box(inner, box.prices, bound, self.shared, floor, self.beam, self.most, whole=self.whole)
        return min(bound, max(floor, found.bound) + classes.value_rounding)


@dataclass(frozen=True, eq=False)
class CoreCheck:
    """Checks a knapsack's certificate; it is called as the certificate's check. The leaves hold the proof's boxes."""

    proof: CoreProof

    def __call__(self, problem: SelectionProblem, certificate: Certificate) -> None:
        """Recompute the choice's facts and every leaf's bound. Raises ValueError when something is false."""
        check_choice(problem, certificate)
        classes = MultipleChoice.of(problem)
        for prices in (*self.proof.shared, *(leaf.prices for leaf in certificate.leaves)):
            _check_prices(classes, prices)
        proof = replace(self.proof, boxes=tuple(_boxes(problem, classes, certificate)))
        enough = certificate.bound + classes.value_rounding
        for number, proven in enumerate(proof.bounds(classes, certificate.objective, enough)):
            if not proven <= enough:
                raise ValueError(
                    f"Expected leaf {number} to prove the bound {certificate.bound!r}. Got {proven!r}. "
                    "The bound is not proven."
                )


def _check_prices(classes: MultipleChoice, prices: FloatArray) -> None:
    if prices.shape != classes.room.shape or np.any(prices < 0) or not np.all(np.isfinite(prices)):
        raise ValueError(
            f"Expected {len(classes.room)} finite prices of at least 0. Got {prices}. No bound follows from them."
        )


def _boxes(problem: SelectionProblem, classes: MultipleChoice, certificate: Certificate) -> list[Box]:
    """The leaves as boxes of options. Raises ValueError when they do not cover all choices."""
    if not certificate.leaves:
        raise ValueError("Expected at least one proof leaf. Got none. A bound without a proof is no certificate.")
    first, top = classes.starts[:-1], np.diff(classes.starts) - 1
    lows = np.array([leaf.low for leaf in certificate.leaves], dtype=np.int64)
    highs = np.array([leaf.high for leaf in certificate.leaves], dtype=np.int64)
    if lows.shape != (len(certificate.leaves), len(top)) or highs.shape != lows.shape:
        raise ValueError(f"Expected leaves over {len(top)} groups. Got {lows.shape}. Use its own certificate.")
    if np.any(lows < 0) or np.any(highs > top) or np.any(lows > highs):
        raise ValueError("Expected leaves inside the problem's levels. Got one outside. Use its own certificate.")
    check_cover(lows, highs, problem.minimum_choice, top)
    return [Box(first + leaf.low, first + leaf.high, leaf.prices) for leaf in certificate.leaves]
