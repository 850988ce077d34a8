"""Small random separable problems of every kind for the knapsack tests."""

from __future__ import annotations

import numpy as np

from solvers.problem import Capacity, Group, Product, SelectionProblem, Table, Term
from tests.solvers.instances import WIDTH, drawn_values


def small_separable(seed: int) -> SelectionProblem:
    """Up to 6 groups of up to 5 levels; 1 to 4 budgets of constants, products of one group and tables."""
    rng = np.random.default_rng(seed)
    budgets = int(rng.integers(1, 5))
    groups: list[Group] = []
    terms: list[list[Term]] = [[Product((), int(rng.integers(0, 9)))] for _ in range(budgets)]
    for g in range(int(rng.integers(1, 7))):
        count = int(rng.integers(1, 6))
        levels = np.sort(rng.choice(WIDTH, count, replace=False))
        groups.append(Group(f"group{g}", levels, drawn_values(rng, count), WIDTH * g + rng.permutation(WIDTH)))
        for each in terms:
            kind = rng.random()
            if kind < 0.5:
                each.append(Product((g,) * int(rng.integers(1, 3)), int(rng.integers(0, 6))))
            if kind > 0.4:
                each.append(Table((g,), rng.integers(0, 50, size=count)))
    capacities = []
    for k, each in enumerate(terms):
        alone = SelectionProblem(tuple(groups), (Capacity("alone", 0, tuple(each)),), WIDTH * len(groups))
        ends = alone.used(alone.minimum_choice)[0], alone.used([len(group) - 1 for group in groups])[0]
        limit = min(ends) + int(abs(ends[1] - ends[0]) * rng.uniform(-0.05, 0.9))
        capacities.append(Capacity(f"resource{k}", limit, tuple(each)))
    return SelectionProblem(tuple(groups), tuple(capacities), WIDTH * len(groups))
