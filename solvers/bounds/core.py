"""Exact search over the core of a multiple-choice knapsack: dynamic programming over lists of partial choices.

An option whose reduced cost at the prices ``p`` exceeds ``D(p) - floor`` is in no choice worth more than ``floor``.
What is left is the core (Balas and Zemel 1980; Pisinger 1995). Its classes are joined one after the other. A partial
choice is dropped when it is over budget whatever follows, when its bound is at most ``floor``, or, with one budget,
when another one leaves as much room and is worth as much. The bound of a partial choice is the linear relaxation of
what follows: exact with one budget (a concave function of the room that is left), an upper estimate of it with more.

Lists longer than ``beam`` are cut to the best bounds. The largest bound that was cut off, with ``floor`` and the best
choice found, then bounds every choice: cutting weakens the proof, never falsifies it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.bounds.multiple_choice import MultipleChoice
from solvers.problem import BoolArray, FloatArray, IntArray

#: Integers below this are exact in float64.
_EXACT_FLOAT = 2**53

#: Most entries of one list before it is cut to the beam.
_MOST_ENTRIES = 2_000_000


@dataclass(frozen=True, eq=False)
class Core:
    """What may still improve on a floor.

    Parameters
    ----------
    classes
        The classes with more than one option left, in the order in which they are joined.
    members
        For each of its options, the option of the whole problem, shape ``(N',)``.
    fixed
        Options of the whole problem in classes with one option left.
    worth
        Value of ``fixed``.
    """

    classes: MultipleChoice
    members: IntArray
    fixed: IntArray
    worth: float


@dataclass(frozen=True, eq=False)
class Found:
    """Outcome of a search.

    Parameters
    ----------
    options
        Best choice found that is worth more than the floor, as options of the whole problem in class order, shape
        ``(G,)``; None when there is none.
    bound
        No choice within budget is worth more than this and the floor.
    complete
        Whether no list was cut.
    work
        Partial choices that were formed.
    """

    options: IntArray | None
    bound: float
    complete: bool
    work: int


def reduce(classes: MultipleChoice, keep: BoolArray) -> Core | None:
    """The core of the options ``keep``, shape ``(N,)``; None when a class keeps none, so nothing beats the floor."""
    keep = keep.copy()
    if len(classes.room) == 1:
        _drop_dominated(classes, keep)
    counts = np.add.reduceat(keep.astype(np.int64), classes.starts[:-1]) if len(classes) else np.zeros(0, np.int64)
    if np.any(counts == 0):
        return None
    left = np.flatnonzero(keep)
    single = counts[classes.owner[left]] == 1
    fixed = left[single]
    open_classes = np.flatnonzero(counts > 1)
    options = left[~single]
    edges = np.r_[0, np.cumsum(counts[open_classes])].astype(np.int64)
    # Coarse classes first: the linear relaxation of the fine ones that follow is then close to the truth.
    coarse = np.zeros(len(open_classes))
    for row, unit in zip(classes.costs, classes.units, strict=True):
        for j, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            steps = np.diff(np.sort(row[options[a:b]]))
            coarse[j] += float(steps[steps > 0].min(initial=0)) / unit if steps.size else 0.0
    order = np.argsort(-coarse, kind="stable")
    members = [options[edges[j] : edges[j + 1]] for j in order]
    flat = np.concatenate(members) if members else np.zeros(0, dtype=np.int64)
    starts = np.r_[0, np.cumsum([len(each) for each in members], dtype=np.int64)].astype(np.int64)
    room = classes.room - classes.used(fixed)
    inner = MultipleChoice(classes.values[flat], classes.costs[:, flat], starts, room)
    return Core(inner, flat, fixed, float(classes.values[fixed].sum()))


def _drop_dominated(classes: MultipleChoice, keep: BoolArray) -> None:
    """With one budget: take out options of which another one of the class costs no more and is worth no less."""
    counts = np.add.reduceat(keep.astype(np.int64), classes.starts[:-1]) if len(classes) else np.zeros(0, np.int64)
    left = np.flatnonzero(keep)
    left = left[counts[classes.owner[left]] > 1]
    left = left[np.lexsort((-classes.values[left], classes.costs[0, left], classes.owner[left]))]
    edges = np.searchsorted(classes.owner[left], np.flatnonzero(counts > 1))
    for several in np.split(left, edges[1:]):
        values = classes.values[several]
        leading = np.r_[-np.inf, np.maximum.accumulate(values)[:-1]]
        keep[several[values <= leading]] = False


class _Suffix:
    """Bounds on the value of the classes from one on, given the room that is left.

    Two kinds: the Lagrangian bound at fixed prices, and, at the first prices, the least one along each price's axis,
    which is the linear relaxation in one budget with the others priced.
    """

    def __init__(self, classes: MultipleChoice, prices: FloatArray) -> None:
        self.classes = classes
        count, budgets = len(classes), len(classes.room)
        self.least = np.zeros((budgets, count + 1), dtype=np.int64)
        self.least[:, :count] = np.cumsum(classes.least[:, ::-1], axis=1)[:, ::-1]
        others = np.repeat(prices[:1], budgets, axis=0)
        np.fill_diagonal(others, 0.0)
        self.axes = [(other, _relaxations(classes, k, other)) for k, other in enumerate(others)]
        # One budget's axis holds the best of all prices.
        self.prices = prices if budgets != 1 else prices[:0]
        self.heights = np.zeros((len(self.prices), count + 1))
        if count and len(self.prices):
            best = np.array([classes.largest(classes.scores(price)) for price in self.prices])
            self.heights[:, :count] = np.cumsum(best[:, ::-1], axis=1)[:, ::-1]
            self.heights += np.array([classes.rounding(price) for price in self.prices])[:, None]

    def bound(self, first: int, room: IntArray, worth: FloatArray, floor: float) -> FloatArray:
        """Bound on partial choices with ``room`` left, shape ``(m, n)``, and ``worth``, shape ``(n,)``.

        Where it is at most ``floor`` it need not be the least that is known.
        """
        left = room.astype(np.float64)
        bound = worth + self._on_axes(first, room, left)
        if not len(self.prices):
            return bound
        open_ones = np.flatnonzero(bound > floor)
        if 2 * open_ones.size > bound.size:
            np.minimum(bound, worth + self._at_prices(first, left), out=bound)
        elif open_ones.size:
            tighter = worth[open_ones] + self._at_prices(first, left[:, open_ones])
            bound[open_ones] = np.minimum(bound[open_ones], tighter)
        return bound

    def completed(self, first: int, room: IntArray) -> FloatArray:
        """With one budget: value of the classes from ``first`` on when their steps are taken while they fit.

        That is a choice, so that a partial choice with ``room`` left, shape ``(n,)``, can become one of this value.
        """
        x, y = self.axes[0][1][first]
        value: FloatArray = y[np.searchsorted(x, (room - self.least[0, first]).astype(np.float64), side="right") - 1]
        return value

    def _on_axes(self, first: int, room: IntArray, left: FloatArray) -> FloatArray:
        bound = np.full(room.shape[1], np.inf if len(room) else self.heights[0, first])
        for k, (other, curves) in enumerate(self.axes):
            x, y = curves[first]
            height = np.interp((room[k] - self.least[k, first]).astype(np.float64), x, y)
            np.minimum(bound, height + other @ left if other.any() else height, out=bound)
        return bound

    def _at_prices(self, first: int, left: FloatArray) -> FloatArray:
        bound = np.full(left.shape[1], np.inf)
        for price, height in zip(self.prices, self.heights[:, first], strict=True):
            np.minimum(bound, price @ left + height, out=bound)
        return bound


def _relaxations(classes: MultipleChoice, k: int, others: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    """Value of the linear relaxation in budget ``k`` from each class on, by room beyond the least cost.

    The other budgets are priced. The curve of several classes has the steps of their hulls, steepest first.
    """
    scores = classes.scores(others)
    base, gains, widths = (classes.rounding(others) if others.any() else 0.0), np.zeros(0), np.zeros(0)
    curves = [(np.zeros(1), np.full(1, base))]
    for j in range(len(classes) - 1, -1, -1):
        part = slice(classes.starts[j], classes.starts[j + 1])
        _, heights, steps = _hull(classes.costs[k, part].astype(np.float64), scores[part])
        base += heights[0]
        gains, widths = np.r_[gains, np.diff(heights)], np.r_[widths, steps]
        order = np.argsort(-gains / widths, kind="stable")
        gains, widths = gains[order], widths[order]
        curves.append((np.r_[0.0, np.cumsum(widths)], base + np.r_[0.0, np.cumsum(gains)]))
    curves.reverse()
    return curves


def _completion(classes: MultipleChoice, first: int, room: int) -> IntArray:
    """The options behind `_Suffix.completed`: of the classes from ``first`` on, shape ``(G - first,)``."""
    options = np.zeros(len(classes), dtype=np.int64)
    slopes: list[FloatArray] = []
    targets: list[IntArray] = []
    for j in range(len(classes) - 1, first - 1, -1):
        part = slice(classes.starts[j], classes.starts[j + 1])
        hull, heights, steps = _hull(classes.costs[0, part].astype(np.float64), classes.values[part])
        options[j] = classes.starts[j] + hull[0]
        room -= int(classes.costs[0, options[j]])
        slopes.append(-np.diff(heights) / steps)
        targets.append(classes.starts[j] + hull[1:])
    if not slopes:
        return options[first:]
    flat = np.concatenate(targets)
    for option in flat[np.argsort(np.concatenate(slopes), kind="stable")].tolist():
        j = int(classes.owner[option])
        room -= int(classes.costs[0, option] - classes.costs[0, options[j]])
        if room < 0:
            break
        options[j] = option
    return options[first:]


def _hull(costs: FloatArray, values: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Options on the rising upper hull of a class, from its cheapest on, their values, and the cost of each step."""
    order = np.lexsort((-values, costs))
    hull: list[int] = []
    xs: list[float] = []
    ys: list[float] = []
    for option, x, y in zip(order.tolist(), costs[order].tolist(), values[order].tolist(), strict=True):
        # Of options that cost the same the most valuable comes first.
        if ys and (y <= ys[-1] or x == xs[-1]):
            continue
        while len(xs) > 1 and (y - ys[-1]) * (xs[-1] - xs[-2]) >= (ys[-1] - ys[-2]) * (x - xs[-1]):
            hull.pop()
            xs.pop()
            ys.pop()
        hull.append(option)
        xs.append(x)
        ys.append(y)
    return np.array(hull, dtype=np.int64), np.array(ys), np.diff(np.array(xs))


def search(
    core: Core,
    prices: FloatArray,
    floor: float,
    beam: int,
    most: int,
    stop: Callable[[], bool] = lambda: False,
    whole: bool = False,
) -> Found:
    """Best choice of a core that is worth more than ``floor``.

    Parameters
    ----------
    core
        What `reduce` left.
    prices
        Prices at which partial choices are bounded, shape ``(q, m)``, the best first; not used with one budget.
    floor
        Value to beat.
    beam
        Longest list of partial choices.
    most
        Partial choices formed at most; beyond, lists are cut to what is left of it.
    stop
        Asked before each class; True gives the search up without a bound.
    whole
        Give the search up, without a bound, rather than cut a list.
    """
    classes, suffix = core.classes, _Suffix(core.classes, prices)
    if np.any(classes.room < suffix.least[:, 0]):
        return Found(None, -np.inf, True, 0)
    room, worth = classes.room[:, None].copy(), np.array([core.worth])
    trail: list[tuple[IntArray, IntArray]] = []
    whole_numbers = len(room) == 1 and int(room[0, 0]) < _EXACT_FLOAT
    ended: _Ended | None = None
    cut, work, complete = -np.inf, 0, True
    for j in range(len(classes)):
        if stop():
            return Found(None, np.inf, False, work)
        part = slice(classes.starts[j], classes.starts[j + 1])
        costs, values = classes.costs[:, part], classes.values[part]
        wide = max(1, min(_MOST_ENTRIES, (most - work) // (len(classes) - j)) // len(values))
        if len(worth) > wide:
            if whole:
                return Found(None, np.inf, False, work)
            kept, lost = _best(suffix.bound(j, room, worth, floor), wide)
            room, worth, cut, complete = room[:, kept], worth[kept], max(cut, lost), False
            trail[-1] = trail[-1][0][kept], trail[-1][1][kept]
        count = len(worth)
        work += len(values) * count
        room = (room[:, None, :] - costs[:, :, None]).reshape(len(room), -1)
        worth = (values[:, None] + worth).ravel()
        fits = np.flatnonzero((room >= suffix.least[:, j + 1, None]).all(axis=0))
        room, worth = room[:, fits], worth[fits]
        bound = suffix.bound(j + 1, room, worth, floor)
        alive = np.flatnonzero(bound > floor)
        if len(room) == 1 and alive.size:
            alive = alive[_undominated(room[0, alive], worth[alive])]
        if whole_numbers and alive.size:
            reached = worth[alive] + suffix.completed(j + 1, room[0, alive])
            best = int(np.argmax(reached))
            if reached[best] > floor:
                floor = float(reached[best])
                option, parent = divmod(int(fits[alive[best]]), count)
                ended = _Ended(j, option, parent, int(room[0, alive[best]]))
                alive = alive[bound[alive] > floor]
        if alive.size > beam:
            if whole:
                return Found(None, np.inf, False, work)
            kept, lost = _best(bound[alive], beam)
            alive, cut, complete = alive[kept], max(cut, lost), False
        if not alive.size:
            break
        room, worth = room[:, alive], worth[alive]
        options, parents = np.divmod(fits[alive], count)
        trail.append((parents, options))
    else:
        best = int(np.argmax(worth))
        if worth[best] > floor:
            last = _Ended(len(classes), 0, best, 0)
            return Found(_unwind(core, trail, last), max(cut, float(worth[best])), complete, work)
    if ended is None:
        return Found(None, cut, complete, work)
    return Found(_unwind(core, trail, ended), max(cut, floor), complete, work)


def _best(bound: FloatArray, count: int) -> tuple[IntArray, float]:
    """Positions of the ``count`` largest bounds, in order, and the largest bound of the others."""
    order = np.argpartition(-bound, count)
    return np.sort(order[:count]), float(bound[order[count]])


def _undominated(room: IntArray, worth: FloatArray) -> IntArray:
    """Partial choices to which no other leaves as much room at as much worth."""
    order = np.argsort(-room, kind="stable")
    ranked = worth[order]
    leading = np.r_[-np.inf, np.maximum.accumulate(ranked)[:-1]]
    kept: IntArray = order[ranked > leading]
    return kept


@dataclass(frozen=True)
class _Ended:
    """A partial choice of classes ``0 .. last`` whose rest is the completion within ``room``."""

    last: int
    option: int
    parent: int
    room: int


def _unwind(core: Core, trail: list[tuple[IntArray, IntArray]], ended: _Ended) -> IntArray:
    """The whole choice behind a partial one, as options of the whole problem."""
    starts, last = core.classes.starts, ended.parent
    own = np.zeros(len(core.classes), dtype=np.int64)
    if ended.last < len(own):
        own[ended.last] = starts[ended.last] + ended.option
        own[ended.last + 1 :] = _completion(core.classes, ended.last + 1, ended.room)
    for j in range(min(ended.last, len(own)) - 1, -1, -1):
        parents, options = trail[j]
        own[j] = starts[j] + int(options[last])
        last = int(parents[last])
    return np.sort(np.concatenate([core.fixed, core.members[own]]))
