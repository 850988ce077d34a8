"""The search for the best choice of a multiple-choice knapsack: prices, moves, core, branch and bound.

Arrays in, arrays out; `solvers.knapsack` and `solvers.block_knapsack` give it their problems.
"""

from __future__ import annotations

import math
import time

import numpy as np

from solvers.bounds.multiple_choice import MultipleChoice, Relaxation, relax
from solvers.knapsack_check import CoreProof
from solvers.knapsack_core import narrow_core
from solvers.knapsack_moves import Moves
from solvers.knapsack_tree import Box, Tree, search_box
from solvers.problem import FloatArray, IntArray
from solvers.result import OPTIMAL_GAP, Limit, Termination, TerminationReason, relative_gap

#: Longest lists of partial choices at the root, one search after the other; then boxes of it are searched.
_BEAMS = (300, 3_000)

#: Longest list in a box of branch and bound.
_NODE_BEAM = 20_000

#: Priced choices that are made feasible, the last ones first.
_STARTS = 12

#: Exchanges of two groups, with several budgets.
_EXCHANGES = 20

#: Options beyond one per class in the programs over a narrow core, with several budgets, and their nodes.
_CORES = (60, 100)
_CORE_NODES = 2_000

#: Share of the time left that one of them may take.
_CORE_SHARE = 0.15

#: Options among which moves are looked for.
_NEAR = 4_000

#: Prices at which partial choices are bounded, with several budgets.
_PRICES = 10


class KnapsackSearch:
    """One search. ``run`` once, then read ``best``, ``objective``, ``bound``, ``proof`` and ``termination``.

    Parameters
    ----------
    classes
        The problem.
    total
        Largest value when no budget binds; gaps are measured from it.
    gap_tolerance, time_limit, max_states
        See `solvers.knapsack.Knapsack`.
    started
        Reading of ``time.perf_counter`` from which the time limit counts.

    Attributes
    ----------
    best
        Best choice within budget, as options, shape ``(G,)``; None when none is known.
    objective, bound
        Its value, and what no choice exceeds.
    prices
        Value per unit of each budget at the root, shape ``(m,)``.
    proof
        What proves the bound.
    """

    def __init__(
        self,
        classes: MultipleChoice,
        total: float,
        gap_tolerance: float,
        time_limit: float | None,
        max_states: int,
        started: float,
    ) -> None:
        self.classes = classes
        self.total = total
        self.gap_tolerance = gap_tolerance
        self.time_limit = time_limit
        self.max_states = max_states
        self.started = started
        self.limit: Limit | None = None
        self.best: IntArray | None = None
        self.objective = -np.inf
        self.bound = np.inf
        self.states = 0
        self.prices = np.zeros(len(classes.room))
        self.proof = CoreProof((self.whole(self.prices),), self.prices[None], 0, False, 0)
        self.infeasible = bool(np.any(classes.least.sum(axis=1) > classes.room))

    # --- limits ----------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        if self.limit is None and self.time_limit is not None and self.seconds() > self.time_limit:
            self.limit = Limit.TIME
        return self.limit in (Limit.TIME, Limit.STOPPED)

    def gap(self) -> float:
        if self.best is None:
            return np.inf
        return relative_gap(self.objective, max(self.bound, self.objective), self.total)

    def done(self) -> bool:
        tolerance = max(self.gap_tolerance, OPTIMAL_GAP)
        return self.infeasible or self.gap() <= tolerance or self.expired()

    # --- the incumbent ---------------------------------------------------------------------------------------------

    def offer(self, options: IntArray) -> bool:
        """Keep a choice within budget when it is the best so far."""
        value = math.fsum(self.classes.values[options].tolist())
        if value <= self.objective:
            return False
        self.best, self.objective = options, value
        return True

    def first_choices(self, relaxed: Relaxation) -> None:
        """Make the last priced choices feasible, and the cheapest one of each budget."""
        classes = self.classes
        falls = classes.reduced_costs(relaxed.prices)
        near = np.arange(len(falls), dtype=np.int64)
        if len(falls) > _NEAR:
            near = np.sort(np.argpartition(falls, _NEAR)[:_NEAR]).astype(np.int64)
        moves = Moves(classes, relaxed.prices, near)
        several = len(classes.room) > 1
        starts = list(relaxed.choices[::-1][:_STARTS])
        starts += [self.cheapest(k) for k in range(len(classes.room))]
        for options in starts:
            found = moves.repair(options)
            if found is not None:
                self.offer(moves.fill(found))
            if self.done():
                return
        if several and self.best is not None:
            self.offer(moves.exchange(self.best, _EXCHANGES))

    def cheapest(self, k: int) -> IntArray:
        """The most valuable of the options that use least of one budget, in each class."""
        classes = self.classes
        cheap = classes.costs[k] == np.repeat(classes.least[k], np.diff(classes.starts))
        values = np.where(cheap, classes.values, -np.inf)
        best = np.repeat(classes.largest(values), np.diff(classes.starts))
        hits = np.flatnonzero(values == best)
        owners = classes.owner[hits]
        return hits[np.r_[True, owners[1:] != owners[:-1]]]

    # --- the search ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Search until the tolerance, a limit, or Ctrl-C."""
        if self.infeasible:
            return
        try:
            self.improve()
        except KeyboardInterrupt:
            self.limit = Limit.STOPPED
        if self.best is not None:
            # Raising may gain nothing, and is still wanted: no level that fits is left out.
            self.best = self.maximal(self.best)
            self.objective = math.fsum(self.classes.values[self.best].tolist())
            self.bound = max(self.bound, self.objective)

    def improve(self) -> None:
        """Prices, first choices, then searches of the core in ever longer lists."""
        relaxed = relax(self.classes)
        self.prices, self.bound = relaxed.prices, relaxed.bound
        self.proof = CoreProof((self.whole(relaxed.prices),), relaxed.prices[None], 0, False, 0)
        if not len(self.classes):
            self.offer(np.zeros(0, dtype=np.int64))
            return
        worst = -float(self.classes.largest(-self.classes.values).sum())
        if relaxed.bound < worst - self.classes.value_rounding:
            self.infeasible = True
            return
        self.first_choices(relaxed)
        tried = self.near_prices(relaxed)
        for beam in _BEAMS:
            while not self.done() and self.left() and self.search(relaxed, tried, beam):
                pass
        if len(self.classes.room) > 1:
            self.narrow(relaxed)
        if not self.done() and self.left() and self.best is not None:
            self.branch(relaxed, tried)
        if not self.done() and (not self.left() or self.best is None):
            self.limit = Limit.NODES

    def left(self) -> int:
        """Partial choices that may still be formed."""
        return max(0, self.max_states - self.states)

    def near_prices(self, relaxed: Relaxation) -> FloatArray:
        """The prices with the lowest bounds, the best first, shape ``(q, m)``."""
        if len(self.classes.room) <= 1:
            return relaxed.prices[None]
        last = relaxed.tried[-2 * _PRICES :]
        order = np.argsort([self.classes.evaluate(prices)[0] for prices in last], kind="stable")
        return np.concatenate([relaxed.prices[None], last[order[:_PRICES]]])

    def search(self, relaxed: Relaxation, tried: FloatArray, beam: int) -> bool:
        """Search the core once; True when a better choice was found but not proven best: then search again."""
        classes, most, floor = self.classes, self.left(), self.objective
        if floor == -np.inf:
            floor = -classes.spread - 2.0 * abs(relaxed.bound) - 1.0
        found = search_box(classes, relaxed.prices, relaxed.bound, tried, floor, beam, most, self.expired)
        self.states += found.work
        improved = found.options is not None and self.offer(self.maximal(found.options))
        if self.best is None:
            self.infeasible = found.complete
            return False
        bound = max(self.objective, found.bound) + classes.value_rounding
        if bound < self.bound and (found.complete or not improved):
            self.bound, self.proof = bound, CoreProof((self.whole(relaxed.prices),), tried, beam, False, most)
        return improved and not found.complete

    def narrow(self, relaxed: Relaxation) -> None:
        """Better choices from narrow cores: branch and bound then has less to look at."""
        classes = self.classes
        moves = Moves(classes, relaxed.prices, np.arange(len(classes.values), dtype=np.int64)[:_NEAR])
        for extra in _CORES:
            if self.done():
                return
            seconds = None if self.time_limit is None else _CORE_SHARE * (self.time_limit - self.seconds())
            found = narrow_core(classes, relaxed.prices, extra, _CORE_NODES, seconds)
            if found is not None and (classes.used(found) > classes.room).any():
                found = moves.repair(found)
            if found is not None:
                self.offer(self.maximal(found))

    def branch(self, relaxed: Relaxation, tried: FloatArray) -> None:
        """Split the core into boxes that are small enough to search."""

        def offer(options: IntArray) -> float:
            self.offer(self.maximal(options))
            return self.objective

        def target() -> float:
            lost = max(0.0, self.total - self.objective)
            return self.objective + self.gap_tolerance * lost

        tree = Tree(self.classes, tried, relaxed.bound, _NODE_BEAM)
        nodes = tree.run(self.objective, target, offer, self.left(), self.expired)
        self.states += tree.work
        bound = max(self.objective, max((node.bound for node in nodes), default=-np.inf)) + self.classes.value_rounding
        if bound < self.bound:
            # What was searched in one order may need longer lists in another.
            boxes = tuple(node.box for node in nodes)
            self.bound, self.proof = bound, CoreProof(boxes, tried, 4 * _NODE_BEAM, True, self.max_states)

    def whole(self, prices: FloatArray) -> Box:
        """All options."""
        return Box(self.classes.starts[:-1], self.classes.starts[1:] - 1, prices)

    def maximal(self, options: IntArray) -> IntArray:
        """Raise classes to their next option while that loses no value and fits."""
        classes, options = self.classes, options.copy()
        slack = classes.room - classes.used(options)
        while True:
            following = np.minimum(options + 1, len(classes.values) - 1)
            change = classes.costs[:, following] - classes.costs[:, options]
            rising = (options + 1 < classes.starts[1:]) & (classes.values[following] >= classes.values[options])
            raised = False
            for g in np.flatnonzero(rising & (change <= slack[:, None]).all(axis=0)):
                if np.all(change[:, g] <= slack):
                    options[g] += 1
                    slack = slack - change[:, g]
                    raised = True
            if not raised:
                return options

    # --- what to say -----------------------------------------------------------------------------------------------

    def termination(self, limits: str) -> Termination:
        """Why the search stopped; ``limits`` names the budgets."""
        if self.best is None:
            if self.infeasible:
                text = f"No choice satisfies {limits} together. Raise one of the limits."
                return Termination(TerminationReason.INFEASIBLE, None, text)
            text = f"Stopped before finding a choice with {limits}. Raise a limit, or allow more time or states."
            return Termination(TerminationReason.UNKNOWN, self.limit, text)
        gap = self.gap()
        if gap <= OPTIMAL_GAP:
            return Termination(TerminationReason.OPTIMAL, None, "No choice within budget keeps more value.")
        share = f"At most {100 * gap:.3g} % of the lost value is avoidable."
        if self.limit is None:
            text = f"{share} That is within gap_tolerance {self.gap_tolerance:g}; lower it for a closer proof."
        elif self.limit is Limit.NODES:
            text = f"{share} Stopped after {self.states} partial choices; raise max_states for a smaller gap."
        elif self.limit is Limit.TIME:
            text = f"{share} Stopped after {self.seconds():.1f} s; raise time_limit for a smaller gap."
        else:
            text = f"{share} Stopped from the keyboard."
        return Termination(TerminationReason.FEASIBLE, self.limit, text)
