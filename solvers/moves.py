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
from solvers.reduction import without_links

#: Groups with more levels than this are searched near their level and at doubling distances.
_ALL_LEVELS = 256
_NEAR = 64

#: Levels to each side that a pair move looks at.
_PAIR_REACH = 12

#: Levels of each of two groups with forbidden combinations that a pair move looks at, beside the near ones.
_TIED_LEVELS = 48

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
        self.frozen: frozenset[int] = frozenset()  # groups that stay where they are
        self.values = [group.values for group in problem.groups]
        scale = sum(float(np.abs(values).max()) for values in self.values)
        finite = [table.entries[np.isfinite(table.entries)] for table in problem.value_tables]
        self.epsilon = 1e-12 * max(1e-300, scale + sum(float(np.abs(e).max(initial=0.0)) for e in finite))
        limits = [capacity.limit for capacity in problem.capacities]
        limits += [limit.limit for limit in problem.local_limits]
        self.units = np.array([max(1.0, float(limit)) for limit in limits])

    def _near(self, group: int, index: int) -> IntArray:
        """Other levels worth a look, in rising order."""
        if group in self.frozen:
            return np.zeros(0, dtype=np.int64)
        count = len(self.values[group])
        if count <= _ALL_LEVELS:
            found = np.arange(count)
        else:
            doubling = 2 ** np.arange(6, count.bit_length())
            offsets = np.concatenate([np.arange(1, _NEAR), doubling])
            found = np.unique(np.concatenate([index - offsets, index + offsets, [0, count - 1]]))
            found = found[(found >= 0) & (found < count)]
        return found[found != index]

    def _excess(self, amounts: Amounts, ledger: Ledger) -> FloatArray:
        """Amount above the limits in units of the limits, summed over all of them; shape of a row of ``amounts``."""
        shape = (-1, *[1] * (amounts.ndim - 1))
        over = np.maximum(ledger.over(amounts), 0).astype(np.float64) / self.units.reshape(shape)
        total: FloatArray = over.sum(axis=0)
        return total

    def _saved(self, amounts: Amounts, ledger: Ledger) -> FloatArray:
        """Amount saved of what is above its limit now, in units of the limits; shape of a row of ``amounts``."""
        broken = np.asarray(ledger.over(ledger.now)[:, 0] > 0, dtype=bool)
        saved = (ledger.now[broken] - amounts[broken]).astype(np.float64) / self.units[broken, None]
        total: FloatArray = saved.sum(axis=0)
        return total

    def reach(self, ledger: Ledger, most: int = sys.maxsize, saving: bool = False) -> bool:
        """Change levels, least value lost per excess removed first, until nothing is broken.

        A forbidden combination counts as an excess of its own, larger than any other. Two groups with forbidden
        combinations move together where one alone would break them.

        Parameters
        ----------
        ledger
            Any choice; changed in place.
        most
            Most moves to make.
        saving
            Count all that a move saves of what is above its limit, also beyond the limit.

        Returns
        -------
        bool
            Whether everything holds now. Without a limit on moves, only costs that do not rise with the levels and
            forbidden combinations can prevent it.
        """
        while not ledger.feasible and most > 0:
            most -= 1
            here = float(self._excess(ledger.now, ledger)[0])
            weight = 1.0 + here
            groups = range(len(self.values))
            ways = [way for g in groups if (way := self._ways_down(ledger, g, here, weight, saving))]
            both = [way for g in groups for way in self._ways_of_two(ledger, g, here)]
            if not ways and not both:
                break
            ways.sort(key=lambda way: (float(way[1].min()), way[0]))
            if both and (not ways or min(both)[0] < float(ways[0][1].min())):
                _, g, level, h, other = min(both)
                ledger.move(g, level)
                ledger.move(h, other)
                continue
            g, rates, removed, levels = ways[0]
            rival = float(ways[1][1].min()) if len(ways) > 1 else np.inf
            # As far as no other group is cheaper: one long step instead of many short ones.
            good = rates <= max(rival, float(rates.min()))
            ledger.move(g, int(levels[np.argmax(np.where(good, removed, -np.inf))]))
        return ledger.feasible

    def _ways_down(
        self, ledger: Ledger, g: int, excess: float, weight: float, saving: bool
    ) -> tuple[int, FloatArray, FloatArray, IntArray] | None:
        """Levels of a group that reduce the excess: value lost per excess removed, excess removed, level indices."""
        near = self._near(g, ledger.choice[g])
        if not near.size:
            return None
        amounts = ledger.moved(g, near)
        removed = excess - self._excess(amounts, ledger)
        if saving:
            removed = np.where(removed > 0, self._saved(amounts, ledger), 0.0)
        gains = ledger.gain(g, near)
        if ledger.value_tables[g]:
            broken = ledger.breaks(g, near)
            removed = np.where(broken > 0, 0.0, removed - weight * broken)
            gains = np.where(np.isfinite(gains), gains, 0.0)
        helps = removed > 0
        if not helps.any():
            return None
        near, removed = near[helps], removed[helps]
        return g, -gains[helps] / removed, removed, near

    def _ways_of_two(self, ledger: Ledger, g: int, excess: float) -> list[tuple[float, int, int, int, int]]:
        """For each tied partner of ``g`` the best move of both: value lost per excess removed, groups and levels."""
        partners = [h for h in ledger.tied[g] if h > g]
        if not partners:
            return []
        found = []
        near = self._near(g, ledger.choice[g])
        rows = near[ledger.breaks(g, near) > 0]
        for h in partners if rows.size else []:
            columns = self._near(h, ledger.choice[h])
            gains = ledger.joint_gain(g, rows, h, columns)
            removed = excess - self._excess(self._amounts(ledger, g, rows, h, columns), ledger)
            useful = (removed > 0) & np.isfinite(gains)
            if useful.any():
                rates = np.where(useful, -gains / np.where(useful, removed, 1.0), np.inf)
                row, column = divmod(int(np.argmin(rates)), len(columns))
                found.append((float(rates[row, column]), g, int(rows[row]), h, int(columns[column])))
        return found

    @staticmethod
    def _amounts(ledger: Ledger, first: int, rows: IntArray, second: int, columns: IntArray) -> Amounts:
        """Amounts when two groups move, shape ``(M, len(rows), len(columns))``."""
        amounts: Amounts = ledger.moved(first, rows)[:, :, None] + ledger.change(second, columns)[:, None, :]
        extra = ledger.together(first, rows, second, columns)
        return amounts if extra is None else amounts + extra

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
        if index + 1 >= len(values) or g in self.frozen:
            return None
        gain = ledger.exact_gain(g, index + 1)
        if gain < 0:
            return None
        change = ledger.change(g, np.array([index + 1]))
        if not ledger.fits(ledger.shifted(change))[0]:
            return None
        return self._rate(gain, float((change[:, 0] / self.units).sum()))

    @staticmethod
    def _rate(gain: float, cost: float) -> float:
        return gain / cost if cost > 0 else np.inf

    def _run(self, ledger: Ledger, g: int, rival: float) -> None:
        """Raise ``g`` while its next level is allowed and no worse than the best of the others."""
        start, values = ledger.choice[g], self.values[g]
        # With value tables the next gain has to be looked up exactly each time.
        far = start + 2 if ledger.value_tables[g] else start + 1 + _RUN
        ahead = np.arange(start + 1, min(len(values), far))
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
            for g in range(len(self.values)):
                near = self._near(g, ledger.choice[g])
                gains = ledger.gain(g, near)
                better = gains > self.epsilon
                if not better.any():
                    continue
                near, gains = near[better], gains[better]
                fits = ledger.fits(ledger.moved(g, near))
                if fits.any():
                    ledger.move(g, int(near[np.argmax(np.where(fits, gains, -np.inf))]))
                    improved = True

    def _exchange(self, ledger: Ledger, first: int, second: int) -> bool:
        tied = second in ledger.tied[first]
        rows, columns = (self._around(g, ledger.choice[g], tied) for g in (first, second))
        gains = ledger.joint_gain(first, rows, second, columns)
        if not np.any(gains > self.epsilon):
            return False
        fits = ledger.fits(self._amounts(ledger, first, rows, second, columns))
        gains = np.where(fits, gains, -np.inf)
        row, column = divmod(int(np.argmax(gains)), len(columns))
        if gains[row, column] <= self.epsilon:
            return False
        ledger.move(first, int(rows[row]))
        ledger.move(second, int(columns[column]))
        return True

    def _around(self, group: int, index: int, tied: bool) -> IntArray:
        """Levels near the current one; all over the range, thinned, for groups with forbidden combinations."""
        if group in self.frozen:
            return np.array([index])
        last = len(self.values[group]) - 1
        near = np.arange(max(0, index - _PAIR_REACH), min(last, index + _PAIR_REACH) + 1)
        return np.union1d(near, np.linspace(0, last, min(last + 1, _TIED_LEVELS)).astype(np.int64)) if tied else near

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
        above = grid[grid > ledger.choice[g]] if g not in self.frozen else grid[:0]
        gains = ledger.gain(g, above)
        above, gains = above[gains > 0], gains[gains > 0]
        if not above.size:
            return
        change = ledger.change(g, above)
        fits = ledger.fits(ledger.shifted(change))
        above, change, gains = above[fits], change[:, fits], gains[fits]
        if not above.size:
            return
        costs = weights @ change[: len(weights)].astype(np.float64)
        rates = gains / np.maximum(costs, 1e-300)
        at = int(np.argmax(rates))
        heapq.heappush(heap, (-float(rates[at]), g, int(above[at])))


def filled(problem: SelectionProblem, choice: IntArray) -> IntArray:
    """A choice within budget with every level raised that still fits and loses nothing; linked groups rise as one."""
    reduced = without_links(problem)
    lowered = None if reduced is None else reduced.lower(choice)
    if reduced is None or lowered is None:
        return choice
    ledger = Ledger(reduced.problem, lowered)
    Mover(reduced.problem).fill(ledger)
    return reduced.lift(ledger.choice)
