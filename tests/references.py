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
