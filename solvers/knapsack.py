"""Multiple-choice knapsack: groups that do not interact, one budget or several, solved close to or at the optimum.

The budgets are priced (`solvers.bounds.multiple_choice`); the priced choice is repaired, filled and improved by
exchanges (`solvers.knapsack_moves`); what could still improve on it is a small core, which is searched by dynamic
programming (`solvers.bounds.core`) in lists of growing length. With one budget the search usually ends with a proof of
optimality after a few thousand partial choices, for tens as for thousands of groups.

The certificate holds the prices at the root. Its check bounds every choice by one evaluation at these prices, removes
what cannot beat the objective by its reduced cost, and repeats the search over what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from solvers.bounds.multiple_choice import MultipleChoice, Relaxation, relax
from solvers.knapsack_check import CoreCheck
from solvers.knapsack_moves import Moves
from solvers.knapsack_tree import Box, Tree, search_box
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.result import (
    OPTIMAL_GAP,
    Certificate,
    Leaf,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)

#: Longest lists of partial choices at the root, one search after the other, with one budget and with several.
_BEAMS = ((300, 3_000, 30_000, 200_000), (300, 3_000))

#: Longest list in a box of branch and bound.
_NODE_BEAM = 20_000

#: Priced choices that are made feasible, the last ones first.
_STARTS = 12

#: Exchanges of two groups per start, with several budgets.
_EXCHANGES = 20

#: Options among which moves are looked for.
_NEAR = 4_000

#: Prices at which partial choices are bounded, with several budgets.
_PRICES = 10


@dataclass(frozen=True)
class Knapsack:
    """Chooses the levels of a separable `SelectionProblem`, with a certificate.

    Parameters
    ----------
    gap_tolerance
        Stop when the gap, a fraction of the lost value, is at most this; 0 asks for a proof of optimality.
    time_limit
        Wall seconds, None for no limit. With a time limit, what is found may depend on the machine's speed.
    max_states
        Most partial choices that are formed. This limit is deterministic.
    seed
        Recorded in the result. The search has no randomness: equal problems give equal results for every seed.

    Raises
    ------
    ValueError
        A tolerance or limit below 0.
    """

    gap_tolerance: float = 1e-6
    time_limit: float | None = 20.0
    max_states: int = 100_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gap_tolerance", "time_limit", "max_states"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for the strictest setting.")

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem whose terms each concern one group.

        Returns
        -------
        Result
            With a certificate whenever a choice within budget was found. An infeasible problem is an outcome. Ctrl-C
            ends the search with what is known.

        Raises
        ------
        ValueError
            A term concerns several groups, or amounts exceed 2^62: `solvers.allocation.Allocation` handles both.
        """
        return _Search(self, problem).run()


class _Search:
    def __init__(self, settings: Knapsack, problem: SelectionProblem) -> None:
        self.settings = settings
        self.problem = problem
        self.started = time.perf_counter()
        self.classes = MultipleChoice.of(problem)
        self.limit: Limit | None = None
        self.best: IntArray | None = None
        self.objective = -np.inf
        self.bound = np.inf
        self.states = 0
        self.proof: CoreCheck | None = None
        self.boxes: list[Box] = []
        self.relaxed: Relaxation | None = None
        self.proven_infeasible = False

    # --- limits ----------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        if self.limit is None and self.settings.time_limit is not None and self.seconds() > self.settings.time_limit:
            self.limit = Limit.TIME
        return self.limit in (Limit.TIME, Limit.STOPPED)

    def gap(self) -> float:
        if self.best is None:
            return np.inf
        return relative_gap(self.objective, max(self.bound, self.objective), self.problem.total_value)

    def done(self) -> bool:
        tolerance = max(self.settings.gap_tolerance, OPTIMAL_GAP)
        return self.proven_infeasible or self.gap() <= tolerance or self.expired()

    # --- the incumbent ---------------------------------------------------------------------------------------------

    def offer(self, options: IntArray) -> bool:
        """Keep a choice within budget when it is the best so far."""
        value = self.problem.value(options - self.classes.starts[:-1])
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
                found = moves.fill(found)
                self.offer(moves.exchange(found, _EXCHANGES) if several else found)
            if self.done():
                return

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

    def short(self) -> str:
        """Which budgets no choice keeps, each on its own; empty when none."""
        texts = []
        least = self.classes.least.sum(axis=1)
        for k, capacity in enumerate(self.problem.capacities):
            over = int(least[k] - self.classes.room[k])
            if over > 0:
                texts.append(
                    f"{capacity.resource}: limit {capacity.limit}, smallest reachable {capacity.limit + over} "
                    f"(short by {over})"
                )
        if not texts:
            return ""
        advice = "Raise the limit to at least the smallest reachable amount, or allow smaller levels."
        return f"{'; '.join(texts)}. {advice}"

    def run(self) -> Result:
        short = self.short()
        if short:
            return self.result(Termination(TerminationReason.INFEASIBLE, None, short), None)
        try:
            self.improve()
        except KeyboardInterrupt:
            self.limit = Limit.STOPPED
        return self.conclude()

    def improve(self) -> None:
        """Prices, first choices, then searches of the core in ever longer lists."""
        relaxed = relax(self.classes)
        self.relaxed, self.bound = relaxed, relaxed.bound
        if not len(self.problem.groups):
            self.offer(np.zeros(0, dtype=np.int64))
            return
        worst = -float(self.classes.largest(-self.classes.values).sum())
        if relaxed.bound < worst - self.classes.value_rounding:
            self.proven_infeasible = True
            return
        self.first_choices(relaxed)
        tried = self.near_prices(relaxed)
        for beam in _BEAMS[len(self.classes.room) > 1]:
            while not self.done() and self.left() and self.search(relaxed, tried, beam):
                pass
        if not self.done() and self.left() and self.best is not None:
            self.branch(relaxed, tried)
        if not self.done() and not self.left():
            self.limit = Limit.NODES

    def left(self) -> int:
        """Partial choices that may still be formed."""
        return max(0, self.settings.max_states - self.states)

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
            self.proven_infeasible = found.complete
            return False
        bound = max(self.objective, found.bound) + classes.value_rounding
        if bound < self.bound and (found.complete or not improved):
            self.bound, self.proof = bound, CoreCheck(tried, beam, False, most)
            self.boxes = [self.whole(relaxed)]
        return improved and not found.complete

    def branch(self, relaxed: Relaxation, tried: FloatArray) -> None:
        """Split the core into boxes that are small enough to search."""

        def offer(options: IntArray) -> float:
            self.offer(self.maximal(options))
            return self.objective

        def target() -> float:
            lost = max(0.0, self.problem.total_value - self.objective)
            return self.objective + self.settings.gap_tolerance * lost

        tree = Tree(self.classes, tried, relaxed.bound, _NODE_BEAM)
        nodes = tree.run(self.objective, target, offer, self.left(), self.expired)
        self.states += tree.work
        bound = max(self.objective, max((node.bound for node in nodes), default=-np.inf)) + self.classes.value_rounding
        if bound < self.bound:
            # What was searched in one order may need longer lists in another.
            self.bound, self.proof = bound, CoreCheck(tried, 4 * _NODE_BEAM, True, self.settings.max_states)
            self.boxes = [node.box for node in nodes]

    def whole(self, relaxed: Relaxation) -> Box:
        """All options, at the root's prices."""
        return Box(self.classes.starts[:-1], self.classes.starts[1:] - 1, relaxed.prices)

    def maximal(self, options: IntArray) -> IntArray:
        """Raise groups to their next level while that loses no value and fits."""
        classes, options = self.classes, options.copy()
        slack = classes.room - classes.used(options)
        for g in range(len(options)):
            while options[g] + 1 < classes.starts[g + 1]:
                change = classes.costs[:, options[g] + 1] - classes.costs[:, options[g]]
                if classes.values[options[g] + 1] < classes.values[options[g]] or np.any(change > slack):
                    break
                options[g] += 1
                slack = slack - change
        return options

    # --- the answer ------------------------------------------------------------------------------------------------

    def conclude(self) -> Result:
        if self.best is None or self.relaxed is None:
            return self.result(self.without_choice(), None)
        options = self.best
        while True:
            raised = self.maximal(options)
            if np.array_equal(raised, options):
                break
            options = raised
        choice = options - self.classes.starts[:-1]
        evaluation = self.problem.evaluate(choice)
        self.objective = evaluation.value
        bound = max(self.bound, self.objective)
        gap = relative_gap(self.objective, bound, self.problem.total_value)
        first = self.classes.starts[:-1]
        boxes = self.boxes or [self.whole(self.relaxed)]
        resources = [capacity.resource for capacity in self.problem.capacities]
        certificate = Certificate(
            objective=self.objective,
            bound=bound,
            gap=gap,
            used=evaluation.used,
            allowed={capacity.resource: capacity.limit for capacity in self.problem.capacities},
            prices=dict(zip(resources, self.relaxed.prices.tolist(), strict=True)),
            leaves=tuple(Leaf(box.low - first, box.high - first, box.prices) for box in boxes),
            choice=choice,
            check=self.proof or CoreCheck(self.relaxed.prices[None], 0, False, 0),
        )
        return self.result(self.termination(gap), certificate)

    def without_choice(self) -> Termination:
        limits = ", ".join(f"{c.resource} at most {c.limit}" for c in self.problem.capacities)
        if self.proven_infeasible:
            text = f"No choice satisfies {limits} together, though each is possible alone. Raise one of the limits."
            return Termination(TerminationReason.INFEASIBLE, None, text)
        text = f"Stopped before finding a choice with {limits}. Raise a limit, or allow more time or states."
        return Termination(TerminationReason.UNKNOWN, self.limit, text)

    def termination(self, gap: float) -> Termination:
        if gap <= OPTIMAL_GAP:
            return Termination(TerminationReason.OPTIMAL, None, "No choice within budget keeps more value.")
        share = f"At most {100 * gap:.3g} % of the lost value is avoidable."
        if self.limit is None:
            text = f"{share} That is within gap_tolerance {self.settings.gap_tolerance:g}; lower it for a closer proof."
        elif self.limit is Limit.NODES:
            text = f"{share} Stopped after {self.states} partial choices; raise max_states for a smaller gap."
        elif self.limit is Limit.TIME:
            text = f"{share} Stopped after {self.seconds():.1f} s; raise time_limit for a smaller gap."
        else:
            text = f"{share} Stopped from the keyboard."
        return Termination(TerminationReason.FEASIBLE, self.limit, text)

    def result(self, termination: Termination, certificate: Certificate | None) -> Result:
        choice = None if certificate is None else certificate.choice
        selection = None if choice is None else self.problem.selection(choice)
        return Result(choice, selection, certificate, termination, self.settings.seed, self.seconds())
