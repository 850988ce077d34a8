"""What others do for multiple-choice and block knapsacks, written plainly and with the same care.

- Hull and greedy: the linear relaxation by upper hulls of the classes (Zemel 1984; Dyer 1984), steps taken while they
  fit; its bound is the relaxation's.
- Buckets: dynamic programming over a grid of costs, as SPDY (Frantar and Alistarh 2022) and its successors do, with
  costs rounded to the nearest bucket (which may break the budget), up (never does) or down (gives a bound).
- Golden section: the Lagrangian of FALCON (Meng et al. 2024), blocks under a limit on their number and one on their
  cost; every evaluation sorts the priced values.
- One threshold on the raw values of all layers.
- HiGHS: the integer programme, one binary per option.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from solvers.blocks import BlockLayers
from solvers.bounds.multiple_choice import MultipleChoice
from solvers.external import quiet
from solvers.problem import FloatArray, IntArray, SelectionProblem

__all__ = ["Answer", "bucket_bound", "buckets", "golden_section", "highs", "hull_greedy", "raw_threshold"]

#: Ratio of golden-section steps, and the relative width at which they end.
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
WIDTH = 1e-12


@dataclass(frozen=True)
class Answer:
    """What a baseline found: level indices or kept counts, shape ``(G,)``, and its bound if it has one."""

    choice: IntArray | None
    bound: float | None = None


# ---------------------------------------------------------------- one budget, multiple choice


def hull_greedy(problem: SelectionProblem) -> Answer:
    """Take the steps of all hulls in order of value per cost; those that do not fit end their class."""
    classes = MultipleChoice.of(problem)
    options, room = np.zeros(len(classes), dtype=np.int64), int(classes.room[0])
    steps: list[tuple[float, int, int, int, float]] = []  # minus slope, class, option, cost, value
    for g in range(len(classes)):
        part = slice(classes.starts[g], classes.starts[g + 1])
        hull = _hull(classes.costs[0, part], classes.values[part])
        options[g] = classes.starts[g] + hull[0]
        room -= int(classes.costs[0, options[g]])
        for before, after in zip(hull[:-1], hull[1:], strict=True):
            cost = int(classes.costs[0, part][after] - classes.costs[0, part][before])
            value = float(classes.values[part][after] - classes.values[part][before])
            steps.append((-value / cost, g, int(classes.starts[g] + after), cost, value))
    if room < 0:
        return Answer(None)
    bound, closed = float(classes.values[options].sum()), set[int]()
    broken = False
    for slope, g, option, cost, value in sorted(steps):
        if not broken:
            # The relaxation takes the first step that does not fit in part, and nothing after it.
            bound += value if cost <= room else -slope * room
            broken = cost > room
        if g in closed:
            continue
        if cost > room:
            closed.add(g)
            continue
        options[g] = option
        room -= cost
    return Answer(options - classes.starts[:-1], bound)


def _hull(costs: IntArray, values: FloatArray) -> list[int]:
    """Options on the rising upper hull, by cost, from the best of the cheapest on."""
    order = np.lexsort((-values, costs)).tolist()
    hull: list[int] = []
    for option in order:
        if hull and values[option] <= values[hull[-1]]:
            continue
        if hull and costs[option] == costs[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            rise, ahead = values[b] - values[a], values[option] - values[b]
            if ahead * float(costs[b] - costs[a]) < rise * float(costs[option] - costs[b]):
                break
            hull.pop()
        hull.append(option)
    return hull


def buckets(problem: SelectionProblem, count: int, rounding: str) -> Answer:
    """Best choice when costs are ``count`` buckets of the budget: 'nearest' may break it, 'up' never does.

    Raises
    ------
    ValueError
        Another rounding.
    """
    if rounding not in ("nearest", "up"):
        raise ValueError(f"Expected rounding 'nearest' or 'up'. Got {rounding!r}. For a bound use bucket_bound.")
    classes = MultipleChoice.of(problem)
    scaled = classes.costs[0].astype(np.float64) * count / max(1, int(classes.room[0]))
    grid = (np.rint(scaled) if rounding == "nearest" else np.ceil(scaled - 1e-9)).astype(np.int64)
    best, picks = _bucket_tables(classes, grid, count)
    if not np.isfinite(best).any():
        return Answer(None)
    at = int(np.argmax(best))
    choice = np.zeros(len(classes), dtype=np.int64)
    for g in range(len(classes) - 1, -1, -1):
        choice[g] = picks[g][at]
        at -= int(grid[classes.starts[g] + choice[g]])
    return Answer(choice)


def bucket_bound(problem: SelectionProblem, count: int) -> Answer:
    """Value of the best choice when costs are rounded down: no choice within budget exceeds it."""
    classes = MultipleChoice.of(problem)
    scaled = classes.costs[0].astype(np.float64) * count / max(1, int(classes.room[0]))
    best, _ = _bucket_tables(classes, np.floor(scaled * (1.0 - 1e-12)).astype(np.int64), count)
    return Answer(None, float(best.max()))


def _bucket_tables(classes: MultipleChoice, grid: IntArray, count: int) -> tuple[FloatArray, list[IntArray]]:
    """Best value at each exact number of buckets, and the level of each class that reaches it."""
    best = np.full(count + 1, -np.inf)
    best[0] = 0.0
    picks = []
    for g in range(len(classes)):
        nxt, pick = np.full(count + 1, -np.inf), np.zeros(count + 1, dtype=np.int64)
        part = slice(classes.starts[g], classes.starts[g + 1])
        # Of the levels in one bucket only the most valuable can matter.
        levels = np.lexsort((-classes.values[part], grid[part]))
        levels = levels[np.r_[True, np.diff(grid[part][levels]) > 0]]
        for level in levels[grid[part][levels] <= count].tolist():
            cost = int(grid[part][level])
            reached = best[: count + 1 - cost] + classes.values[part][level]
            better = reached > nxt[cost:]
            np.copyto(nxt[cost:], reached, where=better)
            np.copyto(pick[cost:], level, where=better)
        best = nxt
        picks.append(pick)
    return best, picks


# ---------------------------------------------------------------- integer programme


def highs(problem: SelectionProblem, time_limit: float) -> Answer:
    """Solve the integer programme by HiGHS through scipy on one thread; rows scaled to 1, objective to 10^4."""
    classes = MultipleChoice.of(problem)
    count = len(classes.values)
    each = csr_array((np.ones(count), (classes.owner, np.arange(count))), shape=(len(classes), count))
    unit = max(abs(problem.total_value), 1e-300) / 1e4
    rows = classes.costs / classes.units[:, None]
    with quiet():
        found = milp(
            -classes.values / unit,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(each, 1, 1), LinearConstraint(rows, -np.inf, classes.room / classes.units)],
            options={"time_limit": time_limit, "mip_rel_gap": 1e-9},
        )
    bound = None if found.mip_dual_bound is None else -float(found.mip_dual_bound) * unit
    if found.x is None:
        return Answer(None, bound)
    options = [int(np.argmax(found.x[a:b])) for a, b in zip(classes.starts[:-1], classes.starts[1:], strict=True)]
    return Answer(np.array(options, dtype=np.int64), bound)


# ---------------------------------------------------------------- blocks


def raw_threshold(blocks: BlockLayers) -> Answer:
    """Keep the most valuable blocks of all layers together, one threshold, as many as the limits allow."""
    values, layer = _flat(blocks)
    order = np.argsort(-values, kind="stable")
    used = np.cumsum(np.asarray(blocks.costs)[layer[order]], axis=0)
    fits = int(np.searchsorted(~(used <= blocks.limits).all(axis=1), True))
    return Answer(np.bincount(layer[order[:fits]], minlength=len(blocks.values)))


def golden_section(blocks: BlockLayers) -> Answer:
    """Blocks under a cost limit (first resource) and a limit on their number (second): one price by golden section.

    At price ``p`` the best ``count`` of the values ``v - p cost`` are kept, those above 0, which takes a sort. The
    value of the Lagrangian at the last price is a bound. The choice at the last price, in order of the priced values,
    is cut where it breaks a limit.
    """
    values, layer = _flat(blocks)
    costs = np.asarray(blocks.costs)[layer, 0].astype(np.float64)
    limit, count = float(blocks.limits[0]), int(blocks.limits[1])

    def lagrangian(price: float) -> float:
        ranked = np.sort(values - price * costs)[::-1][:count]
        return price * limit + float(ranked[ranked > 0].sum())

    low, high = 0.0, float((values / costs).max())
    full = high
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_a, at_b = lagrangian(a), lagrangian(b)
    while high - low > WIDTH * full:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - GOLDEN * (high - low)
            at_a = lagrangian(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + GOLDEN * (high - low)
            at_b = lagrangian(b)
    priced = values - high * costs
    order = np.argsort(-priced, kind="stable")[:count]
    order = order[priced[order] > 0]
    fits = int(np.searchsorted(np.cumsum(costs[order]), limit, side="right"))
    return Answer(np.bincount(layer[order[:fits]], minlength=len(blocks.values)), min(at_a, at_b))


def _flat(blocks: BlockLayers) -> tuple[FloatArray, IntArray]:
    values = np.concatenate([each.astype(np.float64) for each in blocks.values])
    sizes = [each.size for each in blocks.values]
    return values, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
