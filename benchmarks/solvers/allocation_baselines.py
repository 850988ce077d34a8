"""What others do to choose widths within a budget, written plainly: thresholds, uniform, linearised costs, greedy.

Each rule orders the steps from narrow to wide, and is brought to the budget as well as it can: the longest part of its
order that fits, found by bisection over the rule's one parameter, then whatever else of the order still fits. Peers
stop without the latter; it only helps them. None of them proves anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.problem import Capacity, FloatArray, Group, IntArray, Powers, SelectionProblem, Table, Term

__all__ = ["BASELINES", "Baseline"]

#: Steps from the dense network to the budget when linearised costs are refreshed on the way.
ROUNDS = 30


@dataclass(frozen=True)
class Baseline:
    """A rule that chooses levels; None when not even the smallest fits."""

    name: str
    rule: Callable[[SelectionProblem], IntArray | None]

    def choose(self, problem: SelectionProblem) -> IntArray | None:
        """Return a choice within budget, level indices ``(G,)``.

        These rules know budgets alone. Levels that a value table allows only together with others, as those of a
        branch that goes whole, are left out.

        Raises
        ------
        ValueError
            Local limits, links, or value tables that say more than that.
        """
        free, dropped = freed(problem)
        choice = self.rule(free)
        if choice is None:
            return None
        choice = choice + dropped
        assert problem.evaluate(choice).feasible
        return choice


@dataclass(frozen=True)
class Step:
    """Widening a group from one level index to another: a segment of the concave hull of value over cost."""

    group: int
    before: int
    after: int
    value: float
    cost: float


def freed(problem: SelectionProblem) -> tuple[SelectionProblem, IntArray]:
    """The problem without value tables, and how many of the lowest levels each group lost for that."""
    dropped = np.zeros(len(problem.groups), dtype=np.int64)
    for table in problem.value_tables:
        for axis, g in enumerate(table.groups):
            forbidding = np.isneginf(np.moveaxis(table.entries, axis, 0)[0]).any()
            dropped[g] = max(dropped[g], int(forbidding and len(problem.groups[g]) > 1))
    rest = [table.entries[tuple(slice(dropped[g], None) for g in table.groups)] for table in problem.value_tables]
    if problem.local_limits or problem.links or any(entries.any() for entries in rest):
        raise ValueError(
            "Expected budgets, and value tables that only tie lowest levels. Got local limits, links or other tables. "
            "Compare on a problem without them."
        )
    if not problem.value_tables:
        return problem, dropped
    groups = [
        Group(group.name, group.levels[lost:], group.values[lost:], group.order)
        for group, lost in zip(problem.groups, dropped.tolist(), strict=True)
    ]
    capacities = []
    for capacity in problem.capacities:
        terms: list[Term] = []
        for term in capacity.terms:
            if isinstance(term, Table):
                where = tuple(slice(dropped[g], None) for g in term.groups)
                term = Table(term.groups, term.entries[where])
            terms.append(term)
        capacities.append(Capacity(capacity.resource, capacity.limit, tuple(terms)))
    return SelectionProblem(tuple(groups), tuple(capacities), problem.size), dropped


# ---------------------------------------------------------------- exact costs around a choice


class Costs:
    """Exact used amounts of a choice that changes one group at a time.

    Parameters
    ----------
    problem
        Products and tables of any number of groups.
    choice
        Where to begin, level indices ``(G,)``.
    """

    def __init__(self, problem: SelectionProblem, choice: IntArray) -> None:
        self.problem = problem
        self.choice = [int(index) for index in choice]
        self.limits = np.array([capacity.limit for capacity in problem.capacities], dtype=np.float64)
        groups = range(len(problem.groups))
        self._products: list[list[tuple[int, int, Powers]]] = [[] for _ in groups]
        self._tables: list[list[tuple[int, Table]]] = [[] for _ in groups]
        self._beside: list[set[int]] = [set() for _ in groups]
        for k, merged in enumerate(problem.polynomials):
            for coefficient, powers in merged.products:
                self._connect([g for g, _ in powers])
                for g, _ in powers:
                    self._products[g].append((k, coefficient, powers))
            for table in merged.tables:
                self._connect(table.groups)
                for g in table.groups:
                    self._tables[g].append((k, table))
        self.used = np.array(problem.used(self.choice), dtype=np.int64)
        self._curves: dict[int, IntArray] = {}

    def _connect(self, groups: list[int] | tuple[int, ...]) -> None:
        for g in groups:
            self._beside[g].update(groups)

    def beside(self, group: int) -> set[int]:
        """Groups whose costs depend on this one's level, itself included."""
        return self._beside[group] | {group}

    def change(self, group: int) -> IntArray:
        """How the used amounts ``(m, K)`` change when the group moves to each of its levels."""
        if group not in self._curves:
            own = self.problem.groups[group]
            curve = np.zeros((len(self.problem.capacities), len(own)), dtype=np.int64)
            slopes: dict[tuple[int, int], int] = {}
            for k, coefficient, powers in self._products[group]:
                exponent = 0
                for g, power in powers:
                    if g == group:
                        exponent = power
                    else:
                        coefficient *= int(self.problem.groups[g].levels[self.choice[g]]) ** power
                slopes[k, exponent] = slopes.get((k, exponent), 0) + coefficient
            for (k, exponent), slope in slopes.items():
                curve[k] += slope * own.levels**exponent
            for k, table in self._tables[group]:
                where = tuple(slice(None) if g == group else self.choice[g] for g in table.groups)
                curve[k] += table.entries[where]
            self._curves[group] = curve
        curve = self._curves[group]
        return curve - curve[:, [self.choice[group]]]

    def move(self, group: int, level: int) -> None:
        """Put the group at a level index."""
        if level != self.choice[group]:
            self.used = self.used + self.change(group)[:, level]
            self.choice[group] = level
            for other in self.beside(group):
                self._curves.pop(other, None)

    @property
    def feasible(self) -> bool:
        """Whether every limit holds."""
        return all(
            amount <= capacity.limit
            for amount, capacity in zip(self.used.tolist(), self.problem.capacities, strict=True)
        )

    def fits(self, group: int, level: int) -> bool:
        """Whether every limit would hold with the group at a level index."""
        change = self.change(group)[:, level].tolist()
        return all(
            amount + extra <= capacity.limit
            for amount, extra, capacity in zip(self.used.tolist(), change, self.problem.capacities, strict=True)
        )

    def chosen(self) -> IntArray:
        """The choice, level indices ``(G,)``."""
        return np.array(self.choice, dtype=np.int64)


# ---------------------------------------------------------------- rules that order steps


def hull_steps(values: FloatArray, costs: FloatArray, group: int) -> tuple[int, list[Step]]:
    """The cheapest level and the steps up the concave hull of value over cost, steepest first."""
    frontier: list[int] = []
    for index in np.lexsort((-values, costs)).tolist():
        if frontier and values[index] <= values[frontier[-1]]:
            continue
        while len(frontier) > 1 and _slope(values, costs, *frontier[-2:]) <= _slope(values, costs, frontier[-1], index):
            frontier.pop()
        frontier.append(index)
    pairs = zip(frontier, frontier[1:], strict=False)
    steps = [Step(group, a, b, float(values[b] - values[a]), float(costs[b] - costs[a])) for a, b in pairs]
    return frontier[0], steps


def _slope(values: FloatArray, costs: FloatArray, before: int, after: int) -> float:
    rise, run = float(values[after] - values[before]), float(costs[after] - costs[before])
    return rise / run if run > 0 else np.inf


def longest(problem: SelectionProblem, base: IntArray, steps: list[Step], priority: FloatArray) -> IntArray | None:
    """From ``base``, take the steps by falling priority, as many as fit, then each further one that still fits.

    Steps of one group must come in their order, with priorities that do not rise.
    """
    order = [steps[i] for i in np.argsort(-priority, kind="stable")]

    def taken(count: int) -> IntArray:
        choice = base.copy()
        for step in order[:count]:
            choice[step.group] = step.after
        return choice

    if not problem.evaluate(base).feasible:
        return None
    first, last = 0, len(order)
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if problem.evaluate(taken(middle)).feasible else (first, middle - 1)
    costs = Costs(problem, taken(first))
    done: set[int] = set()  # a group whose next step does not fit takes no later one
    for step in order[first:]:
        if step.group not in done and costs.fits(step.group, step.after):
            costs.move(step.group, step.after)
        else:
            done.add(step.group)
    return costs.chosen()


def global_threshold(problem: SelectionProblem) -> IntArray | None:
    """One threshold on the raw scores of all layers, as in Torch-Pruning's global pruning without a normaliser."""
    return _threshold(problem, normalised=False)


def normalised_threshold(problem: SelectionProblem) -> IntArray | None:
    """One threshold on scores divided by their layer's mean, Torch-Pruning's default normaliser."""
    return _threshold(problem, normalised=True)


def _threshold(problem: SelectionProblem, normalised: bool) -> IntArray | None:
    base, steps, scores = problem.minimum_choice, [], []
    for g, group in enumerate(problem.groups):
        widths = group.levels.astype(np.float64)
        base[g], own = hull_steps(group.values, widths, g)
        mean = _slope(group.values, widths, 0, len(group) - 1) if normalised and len(group) > 1 else 1.0
        steps += own
        scores += [step.value / step.cost / (mean if mean > 0 else 1.0) for step in own]
    return longest(problem, base, steps, np.array(scores))


def uniform(problem: SelectionProblem) -> IntArray | None:
    """The same fraction of every layer."""
    steps = [
        Step(g, index - 1, index, 0.0, 0.0) for g, group in enumerate(problem.groups) for index in range(1, len(group))
    ]
    kept = [problem.groups[s.group].levels[s.after] / problem.groups[s.group].levels[-1] for s in steps]
    return longest(problem, problem.minimum_choice, steps, -np.array(kept, dtype=np.float64))


def linearised(problem: SelectionProblem) -> IntArray | None:
    """Value per cost with the costs that a channel has in the dense network, as in HALP's one-shot knapsack.

    The order is the linear knapsack's; the true costs decide how much of it fits.
    """
    return _by_cost_at(problem, widest(problem))


def relinearised(problem: SelectionProblem) -> IntArray | None:
    """Value per cost with costs refreshed at ever narrower networks, in equal ratios down to the budget."""
    at = widest(problem)
    dense = np.maximum(np.array(problem.used(at), dtype=np.float64), 1.0)
    limits = np.maximum(np.array([capacity.limit for capacity in problem.capacities], dtype=np.float64), 1.0)
    best: IntArray | None = None
    for number in range(1, ROUNDS + 2):  # the last round refreshes the costs at the budget itself
        share = min(1.0, number / ROUNDS)
        between = dense * (limits / dense) ** share
        eased = {c.resource: max(c.limit, int(b)) for c, b in zip(problem.capacities, between, strict=True)}
        found = _by_cost_at(problem.with_limits(eased), at)
        if found is None:
            break
        at = found
        if problem.evaluate(found).feasible and (best is None or problem.value(found) > problem.value(best)):
            best = found
    return best


def widest(problem: SelectionProblem) -> IntArray:
    """The widest choice."""
    return np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)


def _by_cost_at(problem: SelectionProblem, at: IntArray) -> IntArray | None:
    """Value per cost that each level has with the other groups at ``at``; limits make budgets comparable."""
    costs = Costs(problem, at)
    prices = 1.0 / np.maximum(costs.limits, 1.0)
    base, steps, ratios = problem.minimum_choice, [], []
    for g, group in enumerate(problem.groups):
        base[g], own = hull_steps(group.values, prices @ costs.change(g), g)
        steps += own
        ratios += [step.value / step.cost if step.cost > 0 else np.inf for step in own]
    return longest(problem, base, steps, np.array(ratios))


# ---------------------------------------------------------------- marginal greedy


def greedy_down(problem: SelectionProblem) -> IntArray | None:
    """From the dense network: again and again the narrowing that loses least value per cost saved, then fill up.

    Every narrower level of a group is looked at, so that a staircase of costs does not stop it.
    """
    costs = Costs(problem, widest(problem))
    scores: dict[int, tuple[float, int]] = {}
    stale = set(range(len(problem.groups)))
    over = costs.used > costs.limits
    while not costs.feasible:
        now = costs.used > costs.limits
        if np.any(now != over):  # only limits that are broken have a price
            over, stale = now, set(range(len(problem.groups)))
        prices = over / np.maximum(costs.limits, 1.0)
        for g in stale:
            scores[g] = _best_narrowing(costs, g, prices)
        group = min(scores, key=lambda g: (scores[g][0], g))
        if scores[group][0] == np.inf:
            return greedy_up(problem)
        stale = costs.beside(group)
        costs.move(group, scores[group][1])
    return _filled(costs)


def _best_narrowing(costs: Costs, g: int, prices: FloatArray) -> tuple[float, int]:
    """Least value lost per priced cost saved over all narrower levels, with the level."""
    index = costs.choice[g]
    saved = -(prices @ costs.change(g)[:, :index])
    values = costs.problem.groups[g].values
    lost = np.maximum(values[index] - values[:index], 0.0)
    if not np.any(saved > 0):
        return np.inf, index
    ratios = np.divide(lost, saved, out=np.full(index, np.inf), where=saved > 0)
    best = int(np.flatnonzero(ratios == ratios.min())[-1])
    return float(ratios[best]), best


def greedy_up(problem: SelectionProblem) -> IntArray | None:
    """From the smallest network: again and again the widening that fits and gains most value per cost."""
    costs = Costs(problem, problem.minimum_choice)
    return _filled(costs) if costs.feasible else None


def _filled(costs: Costs) -> IntArray:
    """Widen while something fits, most value per cost first."""
    prices = 1.0 / np.maximum(costs.limits, 1.0)
    scores: dict[int, tuple[float, int]] = {}
    stale = set(range(len(costs.problem.groups)))
    while True:
        for g in stale:
            scores[g] = _best_widening(costs, g, prices)
        fitting = [g for g in scores if scores[g][0] > 0]
        if not fitting:
            return costs.chosen()
        group = max(fitting, key=lambda g: (scores[g][0], -g))
        stale = costs.beside(group)
        if not costs.fits(group, scores[group][1]):  # others have taken the room since it was scored
            stale = {group}
            continue
        costs.move(group, scores[group][1])


def _best_widening(costs: Costs, g: int, prices: FloatArray) -> tuple[float, int]:
    """Most value gained per priced cost over all wider levels that fit, with the level; 0 when none does."""
    index = costs.choice[g]
    change = costs.change(g)[:, index + 1 :]
    values = costs.problem.groups[g].values
    gained = values[index + 1 :] - values[index]
    allowed = (costs.used[:, None] + change <= costs.limits[:, None]).all(axis=0) & (gained > 0)
    if not allowed.any():
        return 0.0, index
    price = np.maximum(prices @ change, 0.0)
    ratios = np.where(allowed, gained / np.maximum(price, 1e-300), -np.inf)
    best = int(np.argmax(ratios))
    return float(ratios[best]), index + 1 + best


BASELINES: tuple[Baseline, ...] = (
    Baseline("uniform", uniform),
    Baseline("global threshold", global_threshold),
    Baseline("normalised threshold", normalised_threshold),
    Baseline("linearised once", linearised),
    Baseline(f"linearised x{ROUNDS}", relinearised),
    Baseline("greedy down", greedy_down),
    Baseline("greedy up", greedy_up),
)
