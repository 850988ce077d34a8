"""A problem as factors: what the elimination sums over sets of groups, and what belongs to one group alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.bounds.plan import Factor, Scope
from solvers.problem import FloatArray, SelectionProblem
from solvers.terms import LocalLimit

#: Largest table of a local limit, in cells. Beyond it some of its groups are taken at their least.
_MASK_CELLS = 2_000_000


@dataclass(frozen=True, eq=False)
class Priced:
    """A box with prices: what every table of one evaluation needs."""

    prices: tuple[float, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def window(self, group: int) -> slice:
        return slice(self.low[group], self.high[group] + 1)


def expand(array: FloatArray, scope: Scope, target: Scope) -> FloatArray:
    """View of ``array`` (axes ``scope``) that broadcasts over the axes ``target``, which are in the same order."""
    if len(scope) == len(target):
        return array
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if g in scope else 1 for g in target])


def least_costs(factor: Factor, levels: list[FloatArray], k: int, box: Priced, kept: Scope) -> FloatArray:
    """Cost of capacity ``k`` over the box and the axes ``kept``, every other group at its least."""
    total = np.zeros([box.high[g] - box.low[g] + 1 for g in kept])
    for coefficient, powers in factor.products[k]:
        array = np.array(float(coefficient)).reshape([1] * len(kept))
        for g, power in zip(factor.scope, powers, strict=True):
            if g in kept:
                array = array * expand(levels[g][box.window(g)] ** power, (g,), kept)
            else:
                array = array * levels[g][box.low[g]] ** power
        total = total + array
    for table in factor.tables[k]:
        dropped = tuple(axis for axis, g in enumerate(factor.scope) if g not in kept)
        total = total + table[tuple(box.window(g) for g in factor.scope)].min(axis=dropped)
    return total


def collect(problem: SelectionProblem) -> tuple[tuple[Factor, ...], FloatArray, list[dict[int, FloatArray]]]:
    """Factors over several groups; cost per level, shape ``(m, G)``; per group its other costs by capacity."""
    m, count = len(problem.capacities), len(problem.groups)
    levels = [group.levels.astype(np.float64) for group in problem.groups]
    products: dict[Scope, list[list[tuple[int, tuple[int, ...]]]]] = {}
    tables: dict[Scope, list[list[NDArray[np.int64]]]] = {}
    linear = np.zeros((m, count))
    curved: list[dict[int, FloatArray]] = [{} for _ in range(count)]

    def bend(k: int, group: int, cost: FloatArray) -> None:
        curved[group][k] = curved[group].get(k, np.zeros(len(cost))) + cost

    for k, merged in enumerate(problem.polynomials):
        for coefficient, powers in merged.products:
            # A group with one level is a number: factors that it leaves are smaller, and often meet fewer others.
            for g, power in powers:
                coefficient *= int(problem.groups[g].levels[0]) ** power if len(problem.groups[g]) == 1 else 1
            several = [(g, power) for g, power in powers if len(problem.groups[g]) > 1]
            scope = tuple(g for g, _ in several)
            if len(scope) > 1:
                row = products.setdefault(scope, [[] for _ in range(m)])
                row[k].append((coefficient, tuple(power for _, power in several)))
                tables.setdefault(scope, [[] for _ in range(m)])
            elif not scope:
                bend(k, powers[0][0], np.array([float(coefficient)]))
            elif several[0][1] == 1:
                linear[k, scope[0]] += coefficient
            else:
                bend(k, scope[0], float(coefficient) * levels[scope[0]] ** several[0][1])
        for table in merged.tables:
            axes = sorted(range(len(table.groups)), key=table.groups.__getitem__)
            scope = tuple(table.groups[axis] for axis in axes if len(problem.groups[table.groups[axis]]) > 1)
            entries = table.entries.transpose(axes).squeeze()
            if len(scope) > 1:
                products.setdefault(scope, [[] for _ in range(m)])
                tables.setdefault(scope, [[] for _ in range(m)])[k].append(entries)
            else:
                bend(k, scope[0] if scope else table.groups[0], entries.astype(np.float64).reshape(-1))
    factors = [
        Factor(scope, tuple(map(tuple, products[scope])), tuple(map(tuple, tables[scope])))
        for scope in sorted(products)
    ]
    nothing: tuple[tuple[()], ...] = ((),) * m
    factors += [Factor(scope, nothing, nothing, values) for scope, values in sorted(_values(problem).items())]
    return tuple(factors), linear, curved


def _values(problem: SelectionProblem) -> dict[Scope, FloatArray]:
    """Value tables and local limits, added up by scope."""
    values: dict[Scope, FloatArray] = {}
    for table in problem.value_tables:
        axes = sorted(range(len(table.groups)), key=table.groups.__getitem__)
        scope = tuple(table.groups[axis] for axis in axes)
        entries = table.entries.transpose(axes)
        values[scope] = values[scope] + entries if scope in values else entries
    for limit in problem.local_limits:
        scope, mask = _mask(problem, limit)
        if len(scope) > 1:
            values[scope] = values[scope] + mask if scope in values else mask
    return {scope: entries for scope, entries in values.items() if np.any(entries)}


def _mask(problem: SelectionProblem, limit: LocalLimit) -> tuple[Scope, FloatArray]:
    """0 where a local limit holds and -inf where it cannot; a limit on one group is the boxes' matter."""
    terms = {g: c for g, c in limit.terms if c}
    scope = sorted(terms)
    room = limit.limit
    if sum(c * int(problem.groups[g].levels[-1]) for g, c in terms.items()) <= room:
        return (), np.zeros(())
    while math.prod(len(problem.groups[g]) for g in scope) > _MASK_CELLS:
        largest = max(scope, key=lambda g: (len(problem.groups[g]), -g))
        scope.remove(largest)
        room -= terms[largest] * int(problem.groups[largest].levels[0])
    top = sum(c * int(problem.groups[g].levels[-1]) for g, c in terms.items())
    kind: type = np.int64 if top < 2**62 else object
    total: NDArray[Any] = np.zeros([1] * len(scope), dtype=kind)
    for axis, g in enumerate(scope):
        shape = [-1 if a == axis else 1 for a in range(len(scope))]
        total = total + terms[g] * problem.groups[g].levels.astype(kind).reshape(shape)
    return tuple(scope), np.where(total <= max(-1, room), 0.0, -np.inf)
