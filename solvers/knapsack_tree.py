"""Branch and bound over ranges of options, for knapsacks whose core is too large to search at once.

A node is a box of options: a range per class. It gets its own prices, so that its Lagrangian bound is that of its own
linear relaxation, and a short search of its core. A node whose bound is low or whose search is complete is closed;
otherwise the class in which the priced choices differ most in cost is cut between them. The closed and open boxes with
their prices are the proof: see `solvers.knapsack_check`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from solvers.bounds.core import Found, reduce, search
from solvers.bounds.multiple_choice import MultipleChoice, relax
from solvers.problem import BoolArray, FloatArray, IntArray

#: Evaluations of the bound in a node.
_EVALUATIONS = 25

#: Length of the lists that look for better choices in a node.
_GLANCE = 300

#: Priced choices that a node hands to its children.
_INHERITED = 40

#: Last priced choices that are compared to find where to cut.
_COMPARED = 6


@dataclass(frozen=True, eq=False)
class Box:
    """Ranges of options with the prices that bound the value inside.

    Parameters
    ----------
    low, high
        First and last option per class, shape ``(G,)``, both included.
    prices
        Value per unit of each budget, shape ``(m,)``.
    """

    low: IntArray
    high: IntArray
    prices: FloatArray


@dataclass(frozen=True, eq=False)
class Node:
    """A box of the search.

    Parameters
    ----------
    box
        Its ranges and prices.
    bound
        No choice of the box is worth more, unless it is worth no more than the floor.
    complete
        Whether a search of the box was complete.
    choices
        Priced choices, as options, shape ``(q, G)``.
    """

    box: Box
    bound: float
    complete: bool
    choices: IntArray


def kept(classes: MultipleChoice, low: IntArray, high: IntArray, allowed: BoolArray) -> BoolArray | None:
    """Which of the ``allowed`` options lie in a box, shape ``(N,)``; None when a class keeps none."""
    sizes = np.diff(classes.starts)
    options = np.arange(len(classes.values))
    keep: BoolArray = allowed & (options >= np.repeat(low, sizes)) & (options <= np.repeat(high, sizes))
    return None if np.any(np.add.reduceat(keep.astype(np.int64), classes.starts[:-1]) == 0) else keep


def restricted(classes: MultipleChoice, keep: BoolArray) -> tuple[MultipleChoice, IntArray]:
    """The classes with the options ``keep`` alone, and those options; every class must keep one."""
    members = np.flatnonzero(keep)
    starts = np.searchsorted(members, classes.starts)
    return replace(classes, values=classes.values[members], costs=classes.costs[:, members], starts=starts), members


def search_box(
    inner: MultipleChoice,
    prices: FloatArray,
    bound: float,
    shared: FloatArray,
    floor: float,
    beam: int,
    most: int,
    stop: Callable[[], bool] = lambda: False,
    whole: bool = False,
) -> Found:
    """Drop the options of a box whose reduced cost shows that they beat no ``floor``, and search what is left.

    Parameters
    ----------
    inner
        The box alone, see `restricted`.
    prices, bound
        Prices, shape ``(m,)``, and the Lagrangian bound at them.
    shared
        Further prices at which partial choices are bounded, shape ``(q, m)``.
    floor, beam, most, stop, whole
        See `solvers.bounds.core.search`.
    """
    core = reduce(inner, inner.reduced_costs(prices) <= bound - floor + inner.rounding(prices))
    if core is None:
        return Found(None, -np.inf, True, 0)
    return search(core, np.concatenate([prices[None], shared]), floor, beam, most, stop, whole)


class Tree:
    """Best-first search over boxes.

    Parameters
    ----------
    classes
        The whole problem.
    shared
        Prices of the root, the best first, shape ``(q, m)``.
    root_bound
        Lagrangian bound at ``shared[0]``.
    beam
        Longest list of the search in a node.
    """

    def __init__(self, classes: MultipleChoice, shared: FloatArray, root_bound: float, beam: int) -> None:
        self.classes = classes
        self.shared = shared
        self.root_bound = root_bound
        self.beam = beam
        self.falls = classes.reduced_costs(shared[0])
        self.work = 0
        self.nodes = 0

    def allowed(self, floor: float) -> BoolArray:
        """Options that the root's reduced costs leave in choices worth more than ``floor``."""
        return self.falls <= self.root_bound - floor + self.classes.rounding(self.shared[0])

    def node(
        self, low: IntArray, high: IntArray, parent: Node | None, floor: float, most: int, stop: Callable[[], bool]
    ) -> tuple[Node, IntArray | None]:
        """Price a box and search it; the second is a better choice, as options, shape ``(G,)``."""
        keep = kept(self.classes, low, high, self.allowed(floor))
        if keep is None:
            return Node(Box(low, high, self.shared[0]), -np.inf, True, np.zeros((0, len(low)), dtype=np.int64)), None
        inner, members = restricted(self.classes, keep)
        known, start = None, None
        if parent is not None:
            known = np.searchsorted(members, parent.choices[keep[parent.choices].all(axis=1)])
            start = parent.box.prices
        relaxed = relax(inner, floor, _EVALUATIONS, start, known)
        box = Box(low, high, relaxed.prices)
        choices = members[relaxed.choices[-_INHERITED:]]
        if relaxed.bound <= floor:
            return Node(box, relaxed.bound, False, choices), None
        given = (inner, relaxed.prices, relaxed.bound, self.shared, floor)
        found = search_box(*given, self.beam, most, stop, whole=True)
        self.work += found.work
        bound = relaxed.bound
        if found.complete:
            bound = max(floor, found.bound)
        else:
            glance = search_box(*given, _GLANCE, most, stop)
            self.work += glance.work
            found = replace(glance, complete=False)
        better = None if found.options is None else members[found.options]
        return Node(box, bound, found.complete, choices), better

    def cut(self, node: Node) -> tuple[int, int] | None:
        """Class to cut and the last option of the lower part; None for a box of one choice."""
        box, choices = node.box, node.choices[-_COMPARED:]
        differing = np.flatnonzero((choices != choices[0]).any(axis=0)) if len(choices) else np.zeros(0, np.int64)
        best: tuple[float, int, int] | None = None
        for g in differing.tolist():
            options = np.unique(choices[:, g])
            spread = float(box.prices @ np.ptp(self.classes.costs[:, options], axis=1))
            middle = int((options[0] + options[-1]) // 2)
            if best is None or spread > best[0]:
                best = (spread, g, middle)
        if best is not None and best[0] > 0:
            return best[1], best[2]
        widths = box.high - box.low
        if not widths.any():
            return None
        group = int(np.argmax(widths))
        return group, int(box.low[group] + widths[group] // 2)

    def run(
        self,
        floor: float,
        target: Callable[[], float],
        offer: Callable[[IntArray], float],
        most: int,
        stop: Callable[[], bool],
    ) -> list[Node]:
        """Split boxes until every bound is at most ``target()``, or ``most`` partial choices, or ``stop``.

        ``offer`` takes each better choice and returns the new floor. Returns the boxes that are left: they cover all
        choices.
        """
        node, better = self.node(self.classes.starts[:-1], self.classes.starts[1:] - 1, None, floor, most, stop)
        floor = floor if better is None else offer(better)
        heap = [(-node.bound, 0, node)]
        closed: list[Node] = []
        count = 0
        while heap and -heap[0][0] > target() and self.work < most and not stop():
            node = heapq.heappop(heap)[2]
            cut = None if node.complete else self.cut(node)
            if cut is None:
                closed.append(node)
                continue
            self.nodes += 1
            group, middle = cut
            below, above = node.box.high.copy(), node.box.low.copy()
            below[group], above[group] = middle, middle + 1
            for low, high in ((node.box.low, below), (above, node.box.high)):
                child, better = self.node(low, high, node, floor, most - self.work, stop)
                floor = floor if better is None else offer(better)
                count += 1
                heapq.heappush(heap, (-child.bound, count, child))
        return [*closed, *(node for _, _, node in sorted(heap, key=lambda entry: entry[1]))]
