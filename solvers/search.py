"""Best-first branch and bound on ranges of levels, with bounds by prices and levels left out by max-marginals.

The range that is split is the one in which the choices that meet at the dual's minimum differ most in cost, and it is
split between them, so that neither child can form their convex combination again. Levels whose max-marginal does not
exceed what is known leave the search: at the root for good, wherever they lie, so that all tables shrink; in a box from
its ends. The boxes left at the end, with their prices, are the proof.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.bounds.boxes import Boxes
from solvers.bounds.lagrangian import Lagrangian
from solvers.bounds.marginals import marginals
from solvers.dual import Cut, Dual, Minimum
from solvers.incumbents import Incumbents
from solvers.ledger import Ledger
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.reduction import with_levels
from solvers.result import OPTIMAL_GAP, ROUNDING, Fixing, Leaf, Limit, Phase, relative_gap

#: Most evaluations of the bound with one capacity, at the root and in a node, and for every further capacity.
_ROOT_EVALUATIONS = (40, 40)
_NODE_EVALUATIONS = (6, 2)

#: Moves, beyond one per group, that bring a node's choice within budget before it is given up.
_NODE_MOVES = 32

#: Share of the levels, in terms of the logarithm of the number of choices, that makes another round of fixing worth it.
_WORTH_FIXING = 0.1

#: Most rounds of fixing before the search begins.
_FIXING_ROUNDS = 4

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


@dataclass(frozen=True)
class Limits:
    """When to stop: see `solvers.allocation.Allocation`."""

    gap_tolerance: float
    time_limit: float | None
    max_nodes: int
    max_cells: int


@dataclass(frozen=True, eq=False)
class Node:
    """A box of the search.

    ``low .. high`` covers its choices; outside ``inner`` none exceeds the bound, by the max-marginals at ``trim``
    prices (None when nothing was trimmed); ``tight`` is what the budgets leave of ``inner``, None for nothing.
    """

    low: IntArray
    high: IntArray
    inner: tuple[IntArray, IntArray]
    trim: FloatArray | None
    tight: tuple[IntArray, IntArray] | None
    minimum: Minimum

    def trimming(self) -> list[Leaf]:
        """The proof of what was trimmed."""
        return [] if self.trim is None else [Leaf(self.low, self.high, self.trim, self.inner)]

    def leaves(self) -> list[Leaf]:
        """The proof of the whole box."""
        if np.any(self.inner[0] > self.inner[1]):
            return self.trimming()
        return [*self.trimming(), Leaf(*self.inner, self.minimum.prices)]


class Search:
    """One search. Its state can be read whenever it stops, by whatever limit.

    Parameters
    ----------
    problem
        A problem without links.
    limits
        When to stop.
    progress
        Called now and then with the seconds since ``started`` and what is known; True ends the search.
    lagrangian
        A bound of the same terms whose tables are used again.
    """

    def __init__(
        self,
        problem: SelectionProblem,
        limits: Limits,
        progress: Callable[[Progress], bool | None] | None = None,
        lagrangian: Lagrangian | None = None,
    ) -> None:
        self.problem = problem
        self.limits = limits
        self.progress = progress
        self.started = time.perf_counter()
        self.reported = self.started
        self.limit: Limit | None = None
        self.incumbents = Incumbents(problem, self.expired)
        self.total = problem.total_value
        self.floor = _least_value(problem)
        self.lagrangian = lagrangian or Lagrangian(problem, max(1, limits.max_cells))
        self._enter(problem, self.lagrangian)
        self.kept = [np.arange(len(group), dtype=np.int64) for group in problem.groups]
        self.fixings: list[Fixing] = []
        self.proofs: list[Leaf] = []
        self.heap: list[tuple[float, int, Node]] = []
        self.closed: list[Node] = []
        self.open: Node | None = None
        self.bound = np.inf
        self.removed = -np.inf  # largest max-marginal of what was left out
        self.root_prices = np.zeros(len(problem.capacities))
        self.root_lines: tuple[IntArray, ...] = ()
        self.nodes = 0
        self.count = 0
        self.evaluations = 0
        self.phases: list[Phase] = []
        self._phase: Phase | None = None

    def _enter(self, work: SelectionProblem, lagrangian: Lagrangian) -> None:
        """Search a reduced problem from now on."""
        self.work = work
        self.boxes = Boxes(work)
        self.dual = Dual(lagrangian, self.expired)
        self.ledger = Ledger(work, work.minimum_choice)

    def enter_phase(self, name: str | None) -> None:
        """End the phase that goes on, if any, and begin another, if any."""
        now = Phase(name or "", self.seconds(), self.evaluations + self.dual.evaluations, self.nodes)
        before = self._phase
        if before is not None:
            spent = now.seconds - before.seconds, now.evaluations - before.evaluations, now.nodes - before.nodes
            self.phases.append(Phase(before.name, *spent))
        self._phase = None if name is None else now

    # --- limits and reports --------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        """Whether the time is up or somebody asked to stop."""
        if self.limit is None and self.limits.time_limit is not None and self.seconds() > self.limits.time_limit:
            self.limit = Limit.TIME
        return self.limit in (Limit.TIME, Limit.STOPPED, Limit.INTERRUPTED)

    @property
    def objective(self) -> float:
        """Value of the best choice, -inf when there is none."""
        return self.incumbents.objective

    def report(self, force: bool = False) -> None:
        """Tell the caller, at most a few times per second or when something got better."""
        now = time.perf_counter()
        if self.progress is None or (not force and now - self.reported < _REPORT_EVERY):
            return
        self.reported = now
        known = self.incumbents.best is not None
        objective = self.objective if known else None
        gap = relative_gap(self.objective, max(self.bound, self.objective), self.total) if known else None
        bound = max(self.bound, self.objective)
        if self.progress(Progress(self.seconds(), objective, bound, gap, self.nodes)) is True:
            self.limit = Limit.STOPPED

    def target(self) -> float:
        """Bound at which the search may stop."""
        if self.incumbents.best is None:
            return self.floor
        lost = max(0.0, self.total - self.objective)
        rounding = ROUNDING * max(abs(self.total), abs(self.objective))
        return self.objective + max(max(self.limits.gap_tolerance, 0.5 * OPTIMAL_GAP) * lost, 0.5 * rounding)

    # --- choices -------------------------------------------------------------------------------------------------

    def lifted(self, choice: IntArray) -> list[int]:
        """A choice of the reduced problem in level indices of the problem."""
        return [int(kept[index]) for kept, index in zip(self.kept, choice, strict=True)]

    def root_choices(self, minimum: Minimum) -> None:
        """Incumbents from the starts and from the choices that the root's dual met."""
        self.incumbents.starts(minimum.prices)
        feasible = [cut for cut in minimum.cuts if cut.feasible]
        others = [cut for cut, _ in minimum.active if not cut.feasible]
        others += [cut for cut in minimum.cuts[-4:] if not cut.feasible]
        for cut in [*sorted(feasible, key=lambda cut: -cut.value)[:2], *others]:
            if not self.expired():
                self.incumbents.attempt(self.lifted(cut.choice))

    def node_choices(self, minimum: Minimum) -> None:
        """Incumbents from the choices that a node's dual met."""
        known = self.incumbents.best is not None
        if known and minimum.bound <= self.target():
            return
        before = self.objective
        for cut in sorted((c for c in minimum.cuts if c.feasible), key=lambda c: -c.value)[:1]:
            if cut.value > self.objective or not known:
                self.incumbents.attempt(self.lifted(cut.choice))
        broken: list[Cut] = [cut for cut, _ in sorted(minimum.active, key=lambda pair: -pair[1]) if not cut.feasible]
        for cut in broken[:1]:
            self.incumbents.attempt(self.lifted(cut.choice), _NODE_MOVES + len(self.work.groups))
        if self.objective > before:
            self.report(force=True)

    # --- boxes ---------------------------------------------------------------------------------------------------

    def whole(self) -> tuple[IntArray, IntArray]:
        """Corners of all choices of the reduced problem."""
        return _corners(self.work)

    def bounded(
        self, box: tuple[IntArray, IntArray], start: FloatArray, cuts: tuple[Cut, ...], first: int, further: int
    ) -> Minimum:
        """Bound a box; ``first`` and ``further`` evaluations for one capacity and each other one."""
        evaluations = first + further * max(0, len(self.work.capacities) - 1)
        return self.dual.minimise(*box, cuts, start, self.target(), evaluations)

    def node(self, low: IntArray, high: IntArray, parent: Minimum) -> Node:
        """Bound a box, try its Lagrangian choices as incumbents, and trim it."""
        tight = self.boxes.tighten(low, high)
        if tight is None:
            return Node(low, high, (low, high), None, None, Minimum(-np.inf, parent.prices, (), ()))
        minimum = self.bounded(tight, parent.prices, parent.cuts, *_NODE_EVALUATIONS)
        self.node_choices(minimum)
        node = Node(low, high, (low, high), None, tight, minimum)
        return node if minimum.bound <= self.target() or self.expired() else self.trimmed(node)

    def trimmed(self, node: Node) -> Node:
        """Drop levels at the ends of a box whose max-marginals do not exceed the target."""
        assert node.tight is not None
        if self.incumbents.best is None:
            return node
        target, (low, high) = self.target(), node.tight
        first, last = low.copy(), high.copy()
        found = marginals(self.dual.lagrangian, node.minimum.prices, low, high)
        for g, bounds in enumerate(found):
            good = np.flatnonzero(bounds > target)
            if not good.size:
                self.removed = max(self.removed, float(bounds.max()))
                first, last = low.copy(), high.copy()
                last[g] = first[g] - 1
                minimum = Minimum(-np.inf, node.minimum.prices, (), ())
                return Node(node.low, node.high, (first, last), node.minimum.prices, None, minimum)
            first[g], last[g] = low[g] + good[0], low[g] + good[-1]
        if np.array_equal(first, low) and np.array_equal(last, high):
            return node
        for g, bounds in enumerate(found):
            out = np.r_[bounds[: first[g] - low[g]], bounds[last[g] - low[g] + 1 :]]
            self.removed = max(self.removed, float(out.max(initial=-np.inf)))
        inner, prices = (first, last), node.minimum.prices
        tight = self.boxes.tighten(first, last)
        if tight is None:
            return Node(node.low, node.high, inner, prices, None, Minimum(-np.inf, prices, (), ()))
        minimum = self.bounded(tight, prices, node.minimum.cuts, 3, 1)
        if minimum.bound >= node.minimum.bound:
            minimum = Minimum(node.minimum.bound, prices, minimum.cuts, minimum.active)
        return Node(node.low, node.high, inner, prices, tight, minimum)

    def fix(self, minimum: Minimum) -> Minimum:
        """Leave out every level of the problem whose max-marginal is within the target; bound what is left."""
        for _ in range(_FIXING_ROUNDS):
            if self.incumbents.best is None or minimum.bound <= self.target() or self.expired():
                break
            box = self.boxes.tighten(*self.whole())
            if box is None:
                break
            target, first = self.target(), box[0]
            kept, out = [], -np.inf
            for g, bounds in enumerate(marginals(self.dual.lagrangian, minimum.prices, *box)):
                good = np.flatnonzero(bounds > target)
                if not good.size:
                    good = np.array([int(np.argmax(bounds))])
                out = max(out, float(np.delete(bounds, good).max(initial=-np.inf)))
                kept.append(first[g] + good)
            size = sum(math.log(len(group)) for group in self.work.groups)
            if sum(math.log(len(own)) for own in kept) > (1.0 - _WORTH_FIXING) * size:
                break
            fixings = [*self.fixings, Fixing(minimum.prices, tuple(kept))]
            self.removed = max(self.removed, out)
            levels = [before[own] for before, own in zip(self.kept, kept, strict=True)]
            work = with_levels(self.work, kept).problem
            low, high = _corners(work)
            self.evaluations += self.dual.evaluations
            root = Node(low, high, (low, high), None, (low, high), minimum)
            # In one statement, so that an interrupt finds old or new, not both.
            self.fixings, self.kept, self.open = fixings, levels, root
            self._enter(work, Lagrangian(work, max(1, self.limits.max_cells)))
            box = self.boxes.tighten(*self.whole())
            if box is None:
                return Minimum(-np.inf, minimum.prices, (), ())
            minimum = self.bounded(box, minimum.prices, (), *_ROOT_EVALUATIONS)
            self.node_choices(minimum)
        return minimum

    # --- the search ----------------------------------------------------------------------------------------------

    def run(self, start: FloatArray | None = None, choices: Sequence[IntArray] = ()) -> None:
        """Search until a limit, from prices ``start`` and with the lines of ``choices``, if there are any."""
        self.enter_phase("root bound")
        box = self.boxes.tighten(*self.whole())
        low, high = self.whole()
        if box is None:
            self.closed = [Node(low, high, (low, high), None, None, Minimum(-np.inf, self.root_prices, (), ()))]
            self.bound = -np.inf
            return
        known = tuple(cut for cut in map(self.dual.cut, choices) if cut.value > -np.inf)
        minimum = self.bounded(box, self.root_prices if start is None else start, known, *_ROOT_EVALUATIONS)
        self.root_prices, self.root_lines = minimum.prices, tuple(cut.choice for cut in minimum.cuts)
        self.bound = minimum.bound
        self.open = Node(low, high, (low, high), None, box, minimum)
        self.enter_phase("first choices")
        self.root_choices(minimum)
        self.report(force=True)
        if self.expired() or minimum.bound <= self.target():
            return
        self.enter_phase("fixing levels")
        minimum = self.fix(minimum)
        self.enter_phase("branching")
        low, high = self.whole()
        root = Node(low, high, (low, high), None, self.boxes.tighten(low, high), minimum)
        self.bound = min(self.bound, max(minimum.bound, self.removed))
        self.open, self.heap = None, [(-root.minimum.bound, 0, root)]
        while self.heap and -self.heap[0][0] > self.target() and not self.expired():
            if self.nodes >= self.limits.max_nodes:
                self.limit = Limit.NODES
                break
            self.branch()

    def branch(self) -> None:
        """Split the node with the largest bound."""
        self.open = node = self.heap[0][2]
        heapq.heappop(self.heap)
        cut = self.split(node) if node.tight is not None else None
        if cut is None:
            self.closed.append(node)
            self.open = None
            return
        self.nodes += 1
        children = [self.node(low, high, node.minimum) for low, high in self.halves(node, *cut)]
        for child in children:
            self.count += 1
            heapq.heappush(self.heap, (-child.minimum.bound, self.count, child))
        # Only now does the node go: an interrupt before leaves a box twice, never none.
        self.proofs += node.trimming()
        self.open = None
        bounds = [-self.heap[0][0], self.removed, *(other.minimum.bound for other in self.closed)]
        self.bound = min(self.bound, max(bounds))
        self.report()

    def split(self, node: Node) -> tuple[int, int] | None:
        """Group to split and the last level of the lower part; None for a box of one choice."""
        assert node.tight is not None
        low, high = node.tight
        active = node.minimum.active
        base = max(active, key=lambda pair: pair[1])[0].choice if active else low
        weights = np.array([weight for _, weight in active])
        choices = np.array([cut.choice for cut, _ in active])
        best: tuple[float, int, int] | None = None
        if len(active) > 1:
            self.ledger.reset(base)
            prices = node.minimum.prices if node.minimum.prices.any() else 1.0 / self.dual.units
            for g in np.flatnonzero((choices != choices[0]).any(axis=0)).tolist():
                levels = np.unique(choices[:, g])
                costs = prices @ self.ledger.change(g, levels)[: len(prices)].astype(np.float64)
                spread = float(costs.max() - costs.min())
                mean = float(weights @ choices[:, g] / weights.sum())
                middle = int(min(max(np.floor(mean), levels[0]), levels[-1] - 1))
                if best is None or spread > best[0]:
                    best = (spread, g, middle)
        if best is not None and best[0] > 0 and low[best[1]] <= best[2] < high[best[1]]:
            return best[1], best[2]
        widths = high - low
        if not widths.any():
            return None
        group = int(np.argmax(widths))
        return group, min(max(int(base[group]), int(low[group])), int(high[group]) - 1)

    def halves(self, node: Node, group: int, middle: int) -> list[tuple[IntArray, IntArray]]:
        """The two parts of a node's inner box."""
        low, high = node.inner
        below, above = high.copy(), low.copy()
        below[group], above[group] = middle, middle + 1
        return [(low, below), (above, high)]

    def settle(self) -> None:
        """After an interrupt: have a choice and a bound, if they come at once."""
        low, high = _corners(self.problem)
        if self.incumbents.best is None:
            self.incumbents.least()
        if not self.remaining() and not self.fixings:
            box = self.boxes.tighten(low, high)
            prices = np.zeros(len(self.problem.capacities))
            bound = -np.inf if box is None else self.lagrangian.evaluate(prices, *box).bound
            self.open = Node(low, high, (low, high), None, box, Minimum(bound, prices, (), ()))

    def empty(self) -> bool:
        """Whether the bound proves that no choice is within budget."""
        return self.incumbents.best is None and self.proof()[0] < self.floor

    def remaining(self) -> list[Node]:
        """Nodes whose boxes were not split, in the order in which they were made."""
        found = [*self.closed, *(node for _, _, node in sorted(self.heap, key=lambda entry: entry[1]))]
        return found if self.open is None else [*found, self.open]

    def proof(self) -> tuple[float, list[Leaf]]:
        """Bound on all choices, and the leaves that prove it."""
        nodes = self.remaining()
        bound = max([self.removed, *(node.minimum.bound for node in nodes)], default=-np.inf)
        return bound, [*self.proofs, *(leaf for node in nodes for leaf in node.leaves())]


def _corners(problem: SelectionProblem) -> tuple[IntArray, IntArray]:
    return problem.minimum_choice, np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)


def _least_value(problem: SelectionProblem) -> float:
    """A value that every allowed choice exceeds: a smaller bound proves that there is none."""
    values = [float(group.values.min()) for group in problem.groups]
    for table in problem.value_tables:
        finite = table.entries[np.isfinite(table.entries)]
        values.append(float(finite.min()) if finite.size else 0.0)
    least = math.fsum(values)
    return least - 1e-9 * max(1e-300, math.fsum(abs(value) for value in values))
