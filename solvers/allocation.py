"""Certified allocation: how many structures each group keeps within budgets that are products of widths or tables.

Dual: the budgets are priced (`solvers.dual`) and the rest is maximised exactly by variable elimination
(`solvers.bounds`). Primal: Lagrangian choices are moved within the budget and improved (`solvers.moves`). What gap
remains is closed by best-first branch and bound on ranges of levels: the range that is split is the one in which the
choices that meet at the dual's minimum differ most in cost, and it is split between them, so that neither child can
form their convex combination again. The boxes left at the end, with their prices, are the proof.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.bounds.boxes import Boxes, least_choice, least_reachable
from solvers.bounds.lagrangian import MAX_CELLS, Lagrangian
from solvers.dual import Cut, Dual, Minimum
from solvers.ledger import Ledger
from solvers.moves import Mover
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.result import (
    OPTIMAL_GAP,
    ROUNDING,
    Certificate,
    Leaf,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)
from solvers.verify import check_lagrangian

#: Most evaluations of the bound with one capacity, at the root and in a node, and for every further capacity.
_ROOT_EVALUATIONS = (40, 40)
_NODE_EVALUATIONS = (6, 2)

#: Pairs of groups looked at when improving an incumbent, and when ending.
_PAIRS = 4000

#: Moves, beyond one per group, that bring a node's choice within budget before it is given up.
_NODE_MOVES = 32

#: Shortest time between two reports of progress without a better choice, in seconds.
_REPORT_EVERY = 0.2


@dataclass(frozen=True)
class Progress:
    """What a running solve knows; ``objective`` is None before any choice within budget."""

    seconds: float
    objective: float | None
    bound: float
    gap: float | None
    nodes: int


@dataclass(frozen=True, eq=False)
class _Node:
    """A box of the search. ``low .. high`` covers its choices, ``tight`` is what the budgets leave of it."""

    low: IntArray
    high: IntArray
    tight: tuple[IntArray, IntArray] | None
    minimum: Minimum

    def leaf(self) -> Leaf:
        return Leaf(self.low, self.high, self.minimum.prices)


@dataclass(frozen=True)
class Allocation:
    """Chooses the levels of a `SelectionProblem`, with a certificate.

    Parameters
    ----------
    gap_tolerance
        Stop when the gap, a fraction of the lost value, is at most this; 0 asks for a proof of optimality.
    time_limit
        Wall seconds, checked between evaluations of the bound; None for no limit. With a time limit, what is found
        depends on the machine's speed.
    max_nodes
        Most boxes that are split. This limit is deterministic.
    seed
        Recorded in the result. The search has no randomness: equal problems give equal results for every seed.
    max_cells
        Largest table of the elimination, in float64 cells. Above it the bound is weaker, never wrong.

    Raises
    ------
    ValueError
        A tolerance, limit or size below 0.
    """

    gap_tolerance: float = 1e-3
    time_limit: float | None = 60.0
    max_nodes: int = 2000
    seed: int = 0
    max_cells: int = MAX_CELLS

    def __post_init__(self) -> None:
        for name in ("gap_tolerance", "time_limit", "max_nodes", "max_cells"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for the strictest setting.")

    def solve(self, problem: SelectionProblem, progress: Callable[[Progress], bool | None] | None = None) -> Result:
        """Solve a problem.

        Parameters
        ----------
        problem
            Groups, values and capacities.
        progress
            Called with a `Progress` now and then and at every better choice; True ends the search.

        Returns
        -------
        Result
            With a certificate whenever a choice within budget was found. An infeasible problem is an outcome, with
            the binding resource in the termination's text.
        """
        return _Search(self, problem, progress).run()


class _Search:
    def __init__(
        self, settings: Allocation, problem: SelectionProblem, progress: Callable[[Progress], bool | None] | None
    ) -> None:
        self.settings = settings
        self.problem = problem
        self.progress = progress
        self.started = time.perf_counter()
        self.reported = self.started
        self.limit: Limit | None = None
        self.boxes = Boxes(problem)
        self.dual = Dual(Lagrangian(problem, max(1, settings.max_cells)), self.expired)
        self.mover = Mover(problem, self.expired)
        self.best: IntArray | None = None
        self.objective = -np.inf
        self.bound = np.inf
        self.nodes = 0

    # --- limits and reports --------------------------------------------------------------------------------------

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        """Whether the time is up or somebody asked to stop."""
        if self.limit is None and self.settings.time_limit is not None and self.seconds() > self.settings.time_limit:
            self.limit = Limit.TIME
        return self.limit in (Limit.TIME, Limit.STOPPED)

    def report(self, bound: float, force: bool = False) -> None:
        now = time.perf_counter()
        if self.progress is None or (not force and now - self.reported < _REPORT_EVERY):
            return
        self.reported = now
        known = self.best is not None
        objective = self.objective if known else None
        gap = relative_gap(self.objective, max(bound, self.objective), self.problem.total_value) if known else None
        if self.progress(Progress(self.seconds(), objective, bound, gap, self.nodes)) is True:
            self.limit = Limit.STOPPED

    # --- the incumbent -------------------------------------------------------------------------------------------

    def offer(self, ledger: Ledger, pairs: int) -> bool:
        """Improve a choice within budget, and keep it when it is the best so far."""
        self.mover.improve(ledger, 0)
        self.mover.fill(ledger)
        if ledger.value() <= self.objective:
            return False
        self.mover.improve(ledger, pairs)
        self.mover.fill(ledger)
        self.best, self.objective = np.array(ledger.choice, dtype=np.int64), ledger.value()
        return True

    def try_cut(self, cut: Cut, most: int = sys.maxsize) -> None:
        ledger = Ledger(self.problem, cut.choice)
        if self.mover.reach(ledger, most):
            self.offer(ledger, _PAIRS)

    def first_choices(self, root: Minimum) -> None:
        """Incumbents from the minimum choice, the root's Lagrangian choices and the marginal greedy."""
        starts = [least_choice(self.problem, capacity.resource) for capacity in self.problem.capacities]
        for start in [self.problem.minimum_choice, *starts]:
            ledger = Ledger(self.problem, start)
            if not (ledger.feasible or self.mover.reach(ledger)):
                continue
            floor = list(ledger.choice)
            if self.best is None:
                # Whatever the time limit, a choice within budget that is maximal.
                self.offer(ledger, 0)
            if self.expired():
                return
            for weights in {tuple((1.0 / self.dual.units).tolist()), tuple(root.prices.tolist())}:
                if any(weights):
                    ledger.reset(floor)
                    self.mover.greedy(ledger, np.array(weights))
                    self.offer(ledger, _PAIRS)
            break
        feasible = [cut for cut in root.cuts if cut.feasible]
        others = [cut for cut, _ in root.active if not cut.feasible]
        others += [cut for cut in root.cuts[-4:] if not cut.feasible]
        for cut in [*sorted(feasible, key=lambda cut: -cut.value)[:2], *others]:
            if not self.expired():
                self.try_cut(cut)

    # --- branch and bound ----------------------------------------------------------------------------------------

    def target(self) -> float:
        """Bound at which the search may stop."""
        if self.best is None:
            return -np.inf
        lost = max(0.0, self.problem.total_value - self.objective)
        rounding = ROUNDING * max(abs(self.problem.total_value), abs(self.objective))
        return self.objective + max(max(self.settings.gap_tolerance, 0.5 * OPTIMAL_GAP) * lost, 0.5 * rounding)

    def node(self, low: IntArray, high: IntArray, parent: Minimum | None) -> _Node:
        """Bound a box, and try its Lagrangian choices as incumbents."""
        tight = self.boxes.tighten(low, high)
        start = np.zeros(len(self.problem.capacities)) if parent is None else parent.prices
        if tight is None:
            return _Node(low, high, None, Minimum(-np.inf, start, (), ()))
        cuts = () if parent is None else parent.cuts
        first, further = _ROOT_EVALUATIONS if parent is None else _NODE_EVALUATIONS
        evaluations = first + further * (len(self.problem.capacities) - 1)
        minimum = self.dual.minimise(*tight, cuts, start, self.target(), evaluations)
        if parent is None:
            self.first_choices(minimum)
        else:
            self.node_choices(minimum)
        return _Node(low, high, tight, minimum)

    def node_choices(self, minimum: Minimum) -> None:
        if self.best is None or minimum.bound > self.target():
            before = self.objective
            for cut in sorted((c for c in minimum.cuts if c.feasible), key=lambda c: -c.value)[:1]:
                if cut.value > self.objective or self.best is None:
                    self.try_cut(cut)
            broken = [cut for cut, _ in sorted(minimum.active, key=lambda pair: -pair[1]) if not cut.feasible]
            for cut in broken[:1]:
                self.try_cut(cut, most=_NODE_MOVES + len(self.problem.groups))
            if self.objective > before:
                self.report(self.bound, force=True)

    def split(self, node: _Node) -> tuple[int, int] | None:
        """Group to split and the last level of the lower part; None for a box of one choice."""
        assert node.tight is not None
        low, high = node.tight
        active = node.minimum.active
        base = max(active, key=lambda pair: pair[1])[0] if active else self.dual.cut(low)
        weights = np.array([weight for _, weight in active])
        choices = np.array([cut.choice for cut, _ in active])
        best: tuple[float, int, int] | None = None
        if len(active) > 1:
            ledger = Ledger(self.problem, base.choice)
            prices = node.minimum.prices if node.minimum.prices.any() else 1.0 / self.dual.units
            for g in np.flatnonzero((choices != choices[0]).any(axis=0)).tolist():
                levels = np.unique(choices[:, g])
                costs = prices @ ledger.change(g, levels).astype(np.float64)
                spread = float(costs.max() - costs.min())
                mean = float(weights @ choices[:, g] / weights.sum())
                middle = int(min(max(np.floor(mean), levels[0]), levels[-1] - 1))
                if best is None or spread > best[0]:
                    best = (spread, g, middle)
        if best is not None and best[0] > 0:
            return best[1], best[2]
        widths = high - low
        if not widths.any():
            return None
        group = int(np.argmax(widths))
        return group, min(max(int(base.choice[group]), int(low[group])), int(high[group]) - 1)

    def run(self) -> Result:
        top = np.array([len(group) - 1 for group in self.problem.groups], dtype=np.int64)
        least = least_reachable(self.problem)
        short = [c for c in self.problem.capacities if least[c.resource] > c.limit]
        if short:
            text = "; ".join(
                f"{c.resource}: limit {c.limit}, smallest reachable {least[c.resource]} "
                f"(short by {least[c.resource] - c.limit})"
                for c in short
            )
            text += ". Raise the limit to at least the smallest reachable amount, or allow smaller levels."
            return self.result(Termination(TerminationReason.INFEASIBLE, None, text), None)
        root = self.node(self.problem.minimum_choice, top, None)
        self.bound = root.minimum.bound
        self.report(self.bound, force=True)
        heap = [(-root.minimum.bound, 0, root)]
        closed: list[_Node] = []
        count = 0
        while heap and -heap[0][0] > self.target() and not self.expired():
            if self.nodes >= self.settings.max_nodes:
                self.limit = Limit.NODES
                break
            node = heapq.heappop(heap)[2]
            cut = self.split(node) if node.tight is not None else None
            if cut is None:
                closed.append(node)
                continue
            self.nodes += 1
            for low, high in self.halves(node, *cut):
                count += 1
                child = self.node(low, high, node.minimum)
                heapq.heappush(heap, (-child.minimum.bound, count, child))
            self.bound = max(-heap[0][0], max((other.minimum.bound for other in closed), default=-np.inf))
            self.report(self.bound)
        leaves = [*closed, *(node for _, _, node in sorted(heap, key=lambda entry: entry[1]))]
        return self.conclude(root, leaves)

    def halves(self, node: _Node, group: int, middle: int) -> list[tuple[IntArray, IntArray]]:
        below, above = node.high.copy(), node.low.copy()
        below[group], above[group] = middle, middle + 1
        return [(node.low, below), (above, node.high)]

    def conclude(self, root: _Node, leaves: list[_Node]) -> Result:
        """Turn the remaining boxes into the proof, and say what was reached."""
        bound = max((node.minimum.bound for node in leaves), default=-np.inf)
        if self.best is None:
            proven = bound == -np.inf
            reason = TerminationReason.INFEASIBLE if proven else TerminationReason.UNKNOWN
            limits = ", ".join(f"{c.resource} at most {c.limit}" for c in self.problem.capacities)
            text = (
                f"No choice satisfies {limits} together, though each is possible alone. Raise one of the limits."
                if proven
                else f"Stopped before finding a choice with {limits}. Raise a limit, or allow more time or nodes."
            )
            return self.result(Termination(reason, self.limit, text), None)
        bound = max(bound, self.objective)
        gap = relative_gap(self.objective, bound, self.problem.total_value)
        evaluation = self.problem.evaluate(self.best)
        certificate = Certificate(
            objective=self.objective,
            bound=bound,
            gap=gap,
            used=evaluation.used,
            allowed={capacity.resource: capacity.limit for capacity in self.problem.capacities},
            prices=self.named(root.minimum.prices),
            leaves=tuple(node.leaf() for node in leaves),
            choice=self.best,
            check=check_lagrangian,
        )
        return self.result(self.termination(gap), certificate)

    def named(self, prices: FloatArray) -> dict[str, float]:
        resources = [capacity.resource for capacity in self.problem.capacities]
        return dict(zip(resources, prices.tolist(), strict=True))

    def termination(self, gap: float) -> Termination:
        if gap <= OPTIMAL_GAP:
            return Termination(TerminationReason.OPTIMAL, None, "No choice within budget keeps more value.")
        share = f"At most {100 * gap:.3g} % of the lost value is avoidable."
        if self.limit is None:
            text = f"{share} That is within gap_tolerance {self.settings.gap_tolerance:g}; lower it for a closer proof."
        elif self.limit is Limit.NODES:
            text = f"{share} Stopped after {self.nodes} nodes; raise max_nodes for a smaller gap."
        elif self.limit is Limit.TIME:
            text = f"{share} Stopped after {self.seconds():.1f} s; raise time_limit for a smaller gap."
        else:
            text = f"{share} Stopped by the progress callback."
        return Termination(TerminationReason.FEASIBLE, self.limit, text)

    def result(self, termination: Termination, certificate: Certificate | None) -> Result:
        choice = None if certificate is None else certificate.choice
        selection = None if choice is None else self.problem.selection(choice)
        return Result(choice, selection, certificate, termination, self.settings.seed, self.seconds())
