"""Primal moves on a choice: reach the budget, fill it, and exchange levels within it. All amounts are exact integers.

The moves follow the value lost or gained per unit of budget (the greedy rule of the multiple-choice knapsack,
Sinha and Zoltners 1979), measured at the current choice because products make every price depend on the others.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable

import numpy as np

from solvers.ledger import Amounts, Ledger
from solvers.problem import FloatArray, IntArray, SelectionProblem

#: Groups with more levels than this are searched near their level and at doubling distances.
_ALL_LEVELS = 256
_NEAR = 64

#: Levels to each side that a pair move looks at.
_PAIR_REACH = 12

#: Steps per group of the marginal greedy.
_GREEDY_STEPS = 64

#: Levels ahead that one filling step may take.
_RUN = 4096


def _never() -> bool:
    return False


class Mover:
    """Moves on one problem.

    Parameters
    ----------
    problem
        The problem.
    stop
        Asked between moves; True ends the current method early, with a choice that is as good as it got.
    """

    def __init__(self, problem: SelectionProblem, stop: Callable[[], bool] = _never) -> None:
        self.problem = problem
        self.stop = stop
        self.values = [group.values for group in problem.groups]
        self.epsilon = 1e-12 * max(1e-300, sum(float(np.abs(values).max()) for values in self.values))
        self.units = np.array([max(1.0, float(capacity.limit)) for capacity in problem.capacities])

    def _near(self, group: int, index: int) -> IntArray:
        """Other levels worth a look, in rising order."""
        count = len(self.values[group])
        if count <= _ALL_LEVELS:
            found = np.arange(count)
        else:
            doubling = 2 ** np.arange(6, count.bit_length())
            offsets = np.concatenate([np.arange(1, _NEAR), doubling])
            found = np.unique(np.concatenate([index - offsets, index + offsets, [0, count - 1]]))
            found = found[(found >= 0) & (found < count)]
        return found[found != index]

    def _excess(self, amounts: Amounts, limits: list[int]) -> FloatArray:
        """Amount above the limits in units of the limits, summed over capacities; shape of a column."""
        total = np.zeros(amounts.shape[1:])
        for k, limit in enumerate(limits):
            total += np.maximum((amounts[k] - limit).astype(np.float64), 0.0) / self.units[k]
        return total

    def reach(self, ledger: Ledger, most: int = sys.maxsize) -> bool:
        """Lower levels, least value lost per excess removed first, until every capacity holds.

        Parameters
        ----------
        ledger
            Any choice; changed in place.
        most
            Most moves to make.

        Returns
        -------
        bool
            Whether every capacity holds now. Without a limit on moves, only tables that do not rise can prevent it.
        """
        while not ledger.feasible and most > 0:
            most -= 1
            here = float(self._excess(np.array(ledger.used, dtype=object)[:, None], ledger.limits)[0])
            ways = [way for g in range(len(self.values)) if (way := self._ways_down(ledger, g, here)) is not None]
            if not ways:
                break
            ways.sort(key=lambda way: (float(way[1].min()), way[0]))
            g, rates, removed, levels = ways[0]
            rival = float(ways[1][1].min()) if len(ways) > 1 else np.inf
            # As far as no other group is cheaper: one long step instead of many short ones.
            good = rates <= max(rival, float(rates.min()))
            ledger.move(g, int(levels[np.argmax(np.where(good, removed, -np.inf))]))
        return ledger.feasible

    def _ways_down(self, ledger: Ledger, g: int, excess: float) -> tuple[int, FloatArray, FloatArray, IntArray] | None:
        """Levels of a group that reduce the excess: value lost per excess removed, excess removed, level indices."""
        near = self._near(g, ledger.choice[g])
        if not near.size:
            return None
        removed = excess - self._excess(ledger.moved(g, near), ledger.limits)
        helps = removed > 0
        if not helps.any():
            return None
        near, removed = near[helps], removed[helps]
        return g, (self.values[g][ledger.choice[g]] - self.values[g][near]) / removed, removed, near

    def fill(self, ledger: Ledger) -> None:
        """Raise levels one after the other, best value per cost first, until the choice is maximal.

        A level is raised when its value does not fall and every capacity still holds, also when nothing is gained.
        """
        while True:
            ranked = []
            for g in range(len(self.values)):
                rate = self._next_rate(ledger, g)
                if rate is not None:
                    ranked.append((-rate, g))
            if not ranked:
                return
            ranked.sort()
            rival = -ranked[1][0] if len(ranked) > 1 else -np.inf
            self._run(ledger, ranked[0][1], rival)

    def _next_rate(self, ledger: Ledger, g: int) -> float | None:
        """Value per cost of the next level of ``g``; None when it may not be taken."""
        index, values = ledger.choice[g], self.values[g]
        if index + 1 >= len(values) or values[index + 1] < values[index]:
            return None
        change = ledger.change(g, np.array([index + 1]))
        if not ledger.fits(ledger.shifted(change))[0]:
            return None
        return self._rate(float(values[index + 1] - values[index]), float((change[:, 0] / self.units).sum()))

    @staticmethod
    def _rate(gain: float, cost: float) -> float:
        return gain / cost if cost > 0 else np.inf

    def _run(self, ledger: Ledger, g: int, rival: float) -> None:
        """Raise ``g`` while its next level is allowed and no worse than the best of the others."""
        start, values = ledger.choice[g], self.values[g]
        ahead = np.arange(start + 1, min(len(values), start + 1 + _RUN))
        amounts = ledger.moved(g, ahead)
        gains = np.diff(values[start : ahead[-1] + 1])
        allowed = ledger.fits(amounts) & (gains >= 0)
        before = np.concatenate([np.array(ledger.used, dtype=amounts.dtype)[:, None], amounts[:, :-1]], axis=1)
        costs = ((amounts - before) / self.units[:, None]).astype(np.float64).sum(axis=0)
        rates = np.where(costs > 0, gains / np.where(costs > 0, costs, 1.0), np.inf)
        going = allowed & (rates >= rival)
        going[0] = True  # the caller found the first step best
        taken = len(going) if going.all() else int(np.argmin(going))
        ledger.move(g, int(ahead[taken - 1]))

    def improve(self, ledger: Ledger, pairs: int) -> None:
        """Best single moves, then exchanges between two groups, while the value rises.

        Parameters
        ----------
        ledger
            A choice within budget; changed in place.
        pairs
            Most pairs of groups to look at.
        """
        self._singles(ledger)
        improved = True
        while improved and pairs > 0 and not self.stop():
            improved = False
            for first in range(len(self.values)):
                for second in range(first + 1, len(self.values)):
                    pairs -= 1
                    if pairs < 0:
                        break
                    if self._exchange(ledger, first, second):
                        improved = True
            self._singles(ledger)

    def _singles(self, ledger: Ledger) -> None:
        improved = True
        while improved:
            improved = False
            for g, values in enumerate(self.values):
                near = self._near(g, ledger.choice[g])
                near = near[values[near] > values[ledger.choice[g]] + self.epsilon]
                if not near.size:
                    continue
                near = near[ledger.fits(ledger.moved(g, near))]
                if near.size:
                    ledger.move(g, int(near[np.argmax(values[near])]))
                    improved = True

    def _exchange(self, ledger: Ledger, first: int, second: int) -> bool:
        here, there = self.values[first][ledger.choice[first]], self.values[second][ledger.choice[second]]
        rows, columns = (self._around(g, ledger.choice[g]) for g in (first, second))
        gains = self.values[first][rows][:, None] - here + self.values[second][columns] - there
        if not np.any(gains > self.epsilon):
            return False
        amounts = ledger.moved(first, rows)[:, :, None] + ledger.change(second, columns)[:, None, :]
        extra = ledger.together(first, rows, second, columns)
        fits = ledger.fits(amounts if extra is None else amounts + extra)
        gains = np.where(fits, gains, -np.inf)
        row, column = divmod(int(np.argmax(gains)), len(columns))
        if gains[row, column] <= self.epsilon:
            return False
        ledger.move(first, int(rows[row]))
        ledger.move(second, int(columns[column]))
        return True

    def _around(self, group: int, index: int) -> IntArray:
        return np.arange(max(0, index - _PAIR_REACH), min(len(self.values[group]), index + _PAIR_REACH + 1))

    def greedy(self, ledger: Ledger, weights: FloatArray) -> None:
        """Marginal greedy from the current choice upwards: always the raise with most value per weighted cost.

        Parameters
        ----------
        ledger
            A choice within budget; changed in place.
        weights
            Weight of each capacity's unit, shape ``(m,)``.
        """
        heap: list[tuple[float, int, int]] = []
        counts = [len(values) for values in self.values]
        grids = [np.unique(np.linspace(0, n - 1, min(n, _GREEDY_STEPS)).astype(np.int64)) for n in counts]
        for g in range(len(self.values)):
            self._push(heap, ledger, g, grids[g], weights)
        while heap and not self.stop():
            rate, g, index = heapq.heappop(heap)
            # Costs only rise as other groups rise, so a stored rate is optimistic: refresh it before believing it.
            self._push(heap, ledger, g, grids[g], weights)
            if heap and heap[0] == (rate, g, index):
                heapq.heappop(heap)
                ledger.move(g, index)
                self._push(heap, ledger, g, grids[g], weights)

    def _push(
        self, heap: list[tuple[float, int, int]], ledger: Ledger, g: int, grid: IntArray, weights: FloatArray
    ) -> None:
        values, index = self.values[g], ledger.choice[g]
        above = grid[grid > index]
        above = above[values[above] > values[index]]
        if not above.size:
            return
        change = ledger.change(g, above)
        fits = ledger.fits(ledger.shifted(change))
        above, change = above[fits], change[:, fits]
        if not above.size:
            return
        costs = weights @ change.astype(np.float64)
        rates = (values[above] - values[index]) / np.maximum(costs, 1e-300)
        at = int(np.argmax(rates))
        heapq.heappush(heap, (-float(rates[at]), g, int(above[at])))
