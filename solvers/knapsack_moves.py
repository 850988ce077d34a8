"""Choices of a multiple-choice knapsack within budget: repaired, filled, and improved by exchanges of two classes."""

from __future__ import annotations

import numpy as np

from solvers.bounds.multiple_choice import MultipleChoice
from solvers.problem import FloatArray, IntArray

#: Options that take part in exchanges of two classes.
_MOST_EXCHANGED = 300


class Moves:
    """Single and paired changes of options, looked for among ``candidates`` (option indices, shape ``(C,)``)."""

    def __init__(self, classes: MultipleChoice, prices: FloatArray, candidates: IntArray) -> None:
        self.classes = classes
        self.candidates = candidates
        self.owner = classes.owner[candidates]
        self.values = classes.values[candidates]
        self.costs = classes.costs[:, candidates]
        self.scores = self.values - prices @ self.costs.astype(np.float64)
        self.prices = prices

    def repair(self, options: IntArray) -> IntArray | None:
        """Bring a choice within budget by the changes that lose least per amount of excess; None when stuck."""
        options = options.copy()
        units = self.classes.units
        for _ in range(4 * len(options) + 8):
            used = self.classes.used(options)
            excess = np.maximum(0, used - self.classes.room) / units
            if not excess.any():
                return options
            after = (used - self.classes.room)[:, None] + self.costs - self.classes.costs[:, options[self.owner]]
            left = (np.maximum(0, after) / units[:, None]).sum(axis=0)
            saved = excess.sum() - left
            useful = np.flatnonzero(saved > 1e-15)
            if not useful.size:
                return None
            now = options[self.owner[useful]]
            lost = self.classes.values[now] - self.prices @ self.classes.costs[:, now] - self.scores[useful]
            # A change that loses nothing is best when it saves most.
            rate = np.where(lost > 0, lost / saved[useful], lost - saved[useful])
            pick = useful[int(np.argmin(rate))]
            options[self.owner[pick]] = self.candidates[pick]
        return None

    def fill(self, options: IntArray) -> IntArray:
        """Take the change of one option that gains most, while one fits."""
        options = options.copy()
        while True:
            slack = self.classes.room - self.classes.used(options)
            now = options[self.owner]
            gains = self.values - self.classes.values[now]
            fits = ((self.costs - self.classes.costs[:, now]) <= slack[:, None]).all(axis=0) & (gains > 0)
            if not fits.any():
                return options
            pick = int(np.argmax(np.where(fits, gains, -np.inf)))
            options[self.owner[pick]] = self.candidates[pick]

    def exchange(self, options: IntArray, rounds: int) -> IntArray:
        """Take the pair of changes that gains most, while one fits, then fill again."""
        options = options.copy()
        for _ in range(rounds):
            slack = self.classes.room - self.classes.used(options)
            now = options[self.owner]
            fall = self.classes.values[now] - self.prices @ self.classes.costs[:, now] - self.scores
            near = np.argsort(fall + np.where(now == self.candidates, np.inf, 0.0), kind="stable")[:_MOST_EXCHANGED]
            near = near[now[near] != self.candidates[near]]
            gains = self.values[near] - self.classes.values[now[near]]
            change = self.costs[:, near] - self.classes.costs[:, now[near]]
            fits = self.owner[near][:, None] != self.owner[near]
            for row, free in zip(change, slack, strict=True):
                fits &= row[:, None] + row <= free
            both = np.where(fits, gains[:, None] + gains, -np.inf)
            if not both.size or both.max() <= 1e-15 * self.classes.spread:
                return options
            for pick in np.unravel_index(int(np.argmax(both)), both.shape):
                options[self.owner[near[pick]]] = self.candidates[near[pick]]
            options = self.fill(options)
        return options
