"""Which structures to remove when every pair of removed ones adds its own loss: greedy, then exchanges.

The loss of removing z is ``f(z) = 1/2 z'Qz + q'z`` (nothing is fitted anew). With ``g = Qz + q`` at hand,

    removing i costs  g_i + Q_ii / 2,    bringing j back gains  g_j - Q_jj / 2,
    and both at once costs the difference, less Q_ij:

all pairs are compared at once, and a move changes g by two columns. Within several budgets the greedy choice goes by
loss per unit of what is still too much, and exchanges keep to what is left over (after Yu et al. 2022, who swap single
pairs of weights; here over budgets and all pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import numpy as np

from solvers.bounds.box import BoxBound, box_bound
from solvers.quadratic import BoolArray, FloatArray, IntArray, PairwiseProblem
from solvers.result import OPTIMAL_GAP, Limit, Selection, Termination, TerminationReason

__all__ = ["Pairwise", "PairwiseResult"]

#: Structures on either side that are compared before all pairs are.
CANDIDATES = 96

#: Structures on either side that a kick exchanges.
KICK = 10


@dataclass(frozen=True, eq=False)
class PairwiseResult:
    """A selection without refit and what is known about it.

    Attributes
    ----------
    selection
        Kept structures, ``(n,)``, True = kept; None if none is within budget.
    loss
        ``1/2 z'Qz + q'z``; None with ``selection``.
    bound
        Lower bound with its proof; None when not asked for. `linearised_bound` recomputes it.
    gap
        ``(loss - bound) / loss``, the part of the loss that might still be avoidable; None without a bound or where
        the loss is not positive.
    used
        Exact amount of each resource, ``(r,)``; None with ``selection``.
    termination, seed, seconds
        Why the solver stopped; equal seeds give equal results; wall time.
    """

    selection: Selection | None
    loss: float | None
    bound: BoxBound | None
    gap: float | None
    used: IntArray | None
    termination: Termination
    seed: int
    seconds: float


@dataclass(frozen=True)
class Pairwise:
    """Greedy removal by pairwise loss per cost, then exchanges of all pairs.

    Parameters
    ----------
    swaps
        Whether to exchange after the greedy removal.
    kicks
        How often to exchange a few at random and search again (iterated local search, Lourenco et al. 2003).
    bound
        Whether to bound the loss from below.
    time_limit
        Wall seconds for the exchanges, None for no limit.
    seed
        For the kicks: equal seeds give equal results.
    """

    swaps: bool = True
    kicks: int = 20
    bound: bool = False
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.kicks, bool) or not isinstance(self.kicks, int) or self.kicks < 0:
            raise ValueError(f"Expected kicks to be an integer >= 0. Got {self.kicks!r}. Use 20, or 0 for none.")
        if self.time_limit is not None and not self.time_limit >= 0:
            raise ValueError(f"Expected time_limit >= 0 or None. Got {self.time_limit}. Give wall seconds.")

    def solve(self, problem: PairwiseProblem, start: BoolArray | None = None) -> PairwiseResult:
        """Select within budget; ``start`` is a selection to begin from, cut by the greedy rule if it is over budget."""
        begin = monotonic()
        until = np.inf if self.time_limit is None else begin + self.time_limit
        if (problem.limits < 0).any():
            wrong = int(np.argmin(problem.limits))
            text = f"Resource {wrong} allows {problem.limits[wrong]}: even nothing uses 0. Raise that limit."
            ending = Termination(TerminationReason.INFEASIBLE, None, text)
            return PairwiseResult(None, None, None, None, None, ending, self.seed, monotonic() - begin)
        selection, loss, limit = self._searched(problem, start, until)
        bound = box_bound(problem) if self.bound and limit is not Limit.STOPPED else None
        gap = None
        if bound is not None and loss > 0:
            gap = min(max(loss - bound.value, 0.0) / loss, 1.0) if bound.value >= 0 else 1.0
        ending = _termination(limit, bound, gap)
        return PairwiseResult(
            selection, loss, bound, gap, problem.used(selection), ending, self.seed, monotonic() - begin
        )

    def _searched(
        self, problem: PairwiseProblem, start: BoolArray | None, until: float
    ) -> tuple[Selection, float, Limit | None]:
        """The best end of searches from the full set, or ``start``, from the empty set, and from kicks of the best."""
        best, least = np.zeros(problem.size, dtype=bool), np.inf
        rng = np.random.default_rng(self.seed)
        limit: Limit | None = None
        for turn in range(2 + self.kicks if self.swaps else 1):
            state = self._begun(problem, start, best, turn, rng)
            try:
                if self.swaps and not state.improve(until):
                    limit = Limit.TIME
            except KeyboardInterrupt:
                limit = Limit.STOPPED
            found = problem.loss(state.kept)
            if found < least:
                best, least = state.kept.copy(), found
            if limit is not None:
                break
        return best, least, limit

    def _begun(
        self, problem: PairwiseProblem, start: BoolArray | None, best: BoolArray, turn: int, rng: np.random.Generator
    ) -> _State:
        """Within budget: cut down from all or from ``start``, grown from nothing, then kicked from the best so far."""
        if turn == 0:
            state = _State(problem, start)
        elif turn == 1:
            state = _State(problem, np.zeros(problem.size, dtype=bool))
            state.grow()
        else:
            state = _State(problem, best)
            for side in (np.flatnonzero(best), np.flatnonzero(~best)):
                for place in rng.permutation(side)[: min(KICK, (len(side) + 3) // 4)].tolist():
                    (state.remove if state.kept[place] else state.bring_back)(place)
        state.shrink()
        return state


def _termination(limit: Limit | None, bound: BoxBound | None, gap: float | None) -> Termination:
    stopped = {Limit.TIME: "Stopped by the time limit", Limit.STOPPED: "Stopped by Ctrl-C"}
    why = "No move within budget lowers the loss" if limit is None else stopped[limit]
    if bound is None:
        return Termination(TerminationReason.HEURISTIC, limit, f"{why}; there is no bound, use bound=True for one.")
    if gap is not None and gap <= OPTIMAL_GAP and limit is None:
        return Termination(TerminationReason.OPTIMAL, None, "The bound proves that no selection loses less.")
    share = "an unknown part" if gap is None else f"at most {100 * gap:.3g} %"
    return Termination(TerminationReason.FEASIBLE, limit, f"{why}; {share} of the loss might be avoidable.")


class _State:
    """A selection with g = Qz + q and what is left of each resource."""

    def __init__(self, problem: PairwiseProblem, start: BoolArray | None) -> None:
        self.problem = problem
        self.kept = np.ones(problem.size, dtype=bool)
        if start is not None:
            problem.loss(start)  # checks it
            self.kept = np.array(start, dtype=bool)
        self.half = np.diag(problem.quadratic) / 2
        self.slope = problem.quadratic @ (~self.kept).astype(np.float64) + problem.linear
        self.over = problem.used(self.kept) - problem.limits

    def remove(self, place: int) -> None:
        self.kept[place] = False
        self.slope += self.problem.quadratic[place]
        self.over -= self.problem.costs[:, place]

    def bring_back(self, place: int) -> None:
        self.kept[place] = True
        self.slope -= self.problem.quadratic[place]
        self.over += self.problem.costs[:, place]

    def shrink(self) -> None:
        """Remove by loss per share of the excess until the budgets hold, then bring back what fits and gains."""
        costs = self.problem.costs.astype(np.float64)
        while (self.over > 0).any():
            excess = np.maximum(self.over, 0).astype(np.float64)
            rows = excess > 0
            # What exceeds the need of a resource is no use.
            useful = (np.minimum(costs[rows], excess[rows, None]) / excess[rows, None]).sum(axis=0)
            price = self.slope + self.half
            score = np.where(price > 0, price / np.maximum(useful, 1e-300), price * np.maximum(useful, 1e-300))
            self.remove(int(np.argmin(np.where(self.kept & (useful > 0), score, np.inf))))

    def grow(self) -> None:
        """Bring back by gain per share of what is left, while something fits."""
        costs = self.problem.costs.astype(np.float64)
        while True:
            left = np.maximum(-self.over, 0).astype(np.float64)
            fits = ~self.kept & (costs <= left[:, None]).all(axis=0)
            gain = self.slope - self.half
            if not (fits & (gain > 0)).any():
                return
            share = (costs / np.maximum(left, 1.0)[:, None]).sum(axis=0)
            self.bring_back(int(np.argmax(np.where(fits, gain / np.maximum(share, 1e-300), -np.inf))))

    def improve(self, until: float) -> bool:
        """Moves that lower the loss until there is none; False if time ran out."""
        scale = float(np.abs(self.half).sum() + np.abs(self.problem.linear).sum())
        least = 1e-12 * scale
        for number in range(10**9):
            if monotonic() >= until:
                return False
            if number % 256 == 255:  # sums of many columns gather rounding
                gone = (~self.kept).astype(np.float64)
                self.slope = self.problem.quadratic @ gone + self.problem.linear
            if self._single(least):
                continue
            if not (self._pair(CANDIDATES, least) or self._pair(self.problem.size, least)):
                return True
        return True

    def _single(self, least: float) -> bool:
        """The best removal or return of one structure, if it lowers the loss."""
        fits = (self.problem.costs + self.over[:, None] <= 0).all(axis=0)
        gain = np.where(self.kept, -(self.slope + self.half), np.where(fits, self.slope - self.half, -np.inf))
        place = int(np.argmax(gain)) if len(gain) else 0
        if not len(gain) or gain[place] <= least:
            return False
        if self.kept[place]:
            self.remove(place)
        else:
            self.bring_back(place)
        return True

    def _pair(self, most: int, least: float) -> bool:
        """The best removal of one and return of another, of the likeliest ``most`` on either side."""
        inside, outside = np.flatnonzero(self.kept), np.flatnonzero(~self.kept)
        cost, gain = (self.slope + self.half)[inside], (self.slope - self.half)[outside]
        if len(inside) > most:
            inside = inside[np.sort(np.argsort(cost, kind="stable")[:most])]
        if len(outside) > most:
            outside = outside[np.sort(np.argsort(-gain, kind="stable")[:most])]
        if not len(inside) or not len(outside):
            return False
        total = self._gains(inside, outside)
        row, column = np.unravel_index(int(np.argmax(total)), total.shape)
        if total[row, column] <= least:
            return False
        self.remove(int(inside[row]))
        self.bring_back(int(outside[column]))
        return True

    def _gains(self, inside: IntArray, outside: IntArray) -> FloatArray:
        """How much the loss falls with each exchange; -inf where it is over budget."""
        total = (self.slope - self.half)[outside][None, :] - (self.slope + self.half)[inside][:, None]
        total += self.problem.quadratic[np.ix_(inside, outside)]
        for costs, over in zip(self.problem.costs, self.over, strict=True):
            if int(costs[outside].max()) - int(costs[inside].min()) + int(over) > 0:
                total[over + costs[outside][None, :] - costs[inside][:, None] > 0] = -np.inf
        return np.asarray(total)
