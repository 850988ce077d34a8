"""Slow, obvious versions of what the library does fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from solvers.problem import SelectionProblem, Table


@dataclass(frozen=True)
class Best:
    """The best choice of levels within budget."""

    choice: tuple[int, ...]
    value: float


def amounts(problem: SelectionProblem, choice: tuple[int, ...]) -> list[int]:
    """Used amount of each capacity, term by term in Python integers."""
    used = []
    for capacity in problem.capacities:
        total = 0
        for term in capacity.terms:
            if isinstance(term, Table):
                total += int(term.entries[tuple(choice[g] for g in term.groups)])
            else:
                total += term.coefficient * math.prod(int(problem.groups[g].levels[choice[g]]) for g in term.groups)
        used.append(total)
    return used


def all_choices(problem: SelectionProblem) -> Iterator[tuple[int, ...]]:
    """Every choice of level indices."""
    return itertools.product(*(range(len(group.levels)) for group in problem.groups))


def value(problem: SelectionProblem, choice: tuple[int, ...]) -> float:
    """Values of the groups and of their combinations; -inf when one is forbidden."""
    parts = [float(group.values[index]) for group, index in zip(problem.groups, choice, strict=True)]
    parts += [float(table.entries[tuple(choice[g] for g in table.groups)]) for table in problem.value_tables]
    return math.fsum(parts)


def allowed(problem: SelectionProblem, choice: tuple[int, ...]) -> bool:
    """Whether no combination is forbidden, and every local limit and link holds; budgets aside."""
    if value(problem, choice) == -math.inf:
        return False
    widths = [int(group.levels[index]) for group, index in zip(problem.groups, choice, strict=True)]
    if any(sum(c * widths[g] for g, c in limit.terms) > limit.limit for limit in problem.local_limits):
        return False
    return all(len({choice[g] if link.by_index else widths[g] for g in link.groups}) == 1 for link in problem.links)


def within_budget(problem: SelectionProblem, choice: tuple[int, ...]) -> bool:
    """Whether a choice is allowed and every capacity holds."""
    used = amounts(problem, choice)
    fits = all(amount <= capacity.limit for amount, capacity in zip(used, problem.capacities, strict=True))
    return fits and allowed(problem, choice)


def best_choice(problem: SelectionProblem) -> Best | None:
    """Try every choice; None when none is within budget."""
    best: Best | None = None
    for choice in all_choices(problem):
        if not within_budget(problem, choice):
            continue
        found = value(problem, choice)
        if best is None or found > best.value:
            best = Best(choice, found)
    return best


def lagrangian(problem: SelectionProblem, prices: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Largest priced value of allowed choices over a box, by trying every choice in it."""
    largest = -math.inf
    for choice in itertools.product(*(range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))):
        if not allowed(problem, choice):
            continue
        found = value(problem, choice)
        for price, capacity, amount in zip(prices, problem.capacities, amounts(problem, choice), strict=True):
            found += float(price) * (capacity.limit - amount)
        largest = max(largest, found)
    return largest


def marginal_greedy(problem: SelectionProblem) -> list[int]:
    """From the smallest levels up: always the next level with most value per share of the budgets that still fits."""
    choice = [0] * len(problem.groups)
    while True:
        used, best = amounts(problem, tuple(choice)), (-math.inf, -1)
        for g, group in enumerate(problem.groups):
            if choice[g] + 1 == len(group.levels):
                continue
            raised = [*choice[:g], choice[g] + 1, *choice[g + 1 :]]
            after = amounts(problem, tuple(raised))
            if all(amount <= capacity.limit for amount, capacity in zip(after, problem.capacities, strict=True)):
                cost = sum((a - b) / c.limit for a, b, c in zip(after, used, problem.capacities, strict=True))
                best = max(best, (float(group.values[choice[g] + 1] - group.values[choice[g]]) / cost, g))
        if best[1] < 0:
            return choice
        choice[best[1]] += 1


def global_threshold(problem: SelectionProblem) -> list[int]:
    """Keep all structures whose score reaches one threshold, the lowest within budget; levels round down."""
    scores = [np.diff(group.values) / np.diff(group.levels) for group in problem.groups]
    for threshold in np.sort(np.concatenate(scores)):
        choice = [int(np.sum(own >= threshold)) for own in scores]
        if within_budget(problem, tuple(choice)):
            return choice
    return [0] * len(problem.groups)


def uniform(problem: SelectionProblem) -> list[int]:
    """The largest common fraction of every group that is within budget; levels round down."""
    for share in np.linspace(1.0, 0.0, 1001):
        choice = [max(0, int(np.sum(g.levels <= share * g.levels[-1])) - 1) for g in problem.groups]
        if within_budget(problem, tuple(choice)):
            return choice
    return [0] * len(problem.groups)
