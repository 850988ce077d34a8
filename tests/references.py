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


def best_choice(problem: SelectionProblem) -> Best | None:
    """Try every choice; None when none is within budget."""
    best: Best | None = None
    for choice in all_choices(problem):
        used = amounts(problem, choice)
        if any(amount > capacity.limit for amount, capacity in zip(used, problem.capacities, strict=True)):
            continue
        value = math.fsum(group.values[index] for group, index in zip(problem.groups, choice, strict=True))
        if best is None or value > best.value:
            best = Best(choice, value)
    return best


def lagrangian(problem: SelectionProblem, prices: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Largest priced value over a box, by trying every choice in it."""
    largest = -math.inf
    for choice in itertools.product(*(range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))):
        value = sum(float(group.values[index]) for group, index in zip(problem.groups, choice, strict=True))
        for price, capacity, amount in zip(prices, problem.capacities, amounts(problem, choice), strict=True):
            value += float(price) * (capacity.limit - amount)
        largest = max(largest, value)
    return largest
