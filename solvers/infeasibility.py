"""Why no choice is within budget, and what would help, exactly.

Alone, a budget is out of reach when even the least use of its resource exceeds it; what that least consists of says
where to look. Budgets that are each within reach can still exclude one another: a deletion filter (Chinneck and
Dravnieks 1991) leaves a set that is infeasible although any part of it is feasible, and for each of its budgets the
smallest limit that the others allow.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import numpy as np

from solvers.bounds.boxes import Least, least
from solvers.bounds.lagrangian import MAX_CELLS
from solvers.problem import Group, SelectionProblem
from solvers.reduction import without_links
from solvers.result import OPTIMAL_GAP, relative_gap
from solvers.search import Limits, Search
from solvers.terms import Capacity, Link, LocalLimit, ValueTable

Part = TypeVar("Part")

#: Limits of each search that an explanation makes.
_LIMITS = Limits(gap_tolerance=0.0, time_limit=10.0, max_nodes=500, max_cells=MAX_CELLS)

#: Largest table of a product that becomes a value to minimise, in cells.
_MOST_CELLS = 4_000_000

#: Parts of a least amount that a text names.
_NAMED = 3


@dataclass(frozen=True)
class Share:
    """A part of the least amount of a resource: what it is due to, how much, and why it cannot go."""

    name: str
    amount: float
    reason: str


@dataclass(frozen=True)
class Floor:
    """A budget below the least that any choice uses.

    Parameters
    ----------
    resource, limit
        The budget.
    minimum
        Proven least amount.
    exact
        Whether some choice uses exactly ``minimum``; otherwise the least may be larger.
    breakdown
        Parts of the least choice's amount, largest first; products count in equal parts for their groups.
    """

    resource: str
    limit: int
    minimum: int
    exact: bool
    breakdown: tuple[Share, ...]

    @property
    def shortfall(self) -> int:
        """By how much the limit is too small."""
        return self.minimum - self.limit

    @property
    def due(self) -> str:
        """What most of the least amount is due to."""
        total = sum(share.amount for share in self.breakdown)
        return ", ".join(
            f"{100 * share.amount / total:.0f} % {share.name}: {share.reason}"
            for share in self.breakdown[:_NAMED]
            if total > 0
        )

    @property
    def text(self) -> str:
        """One line."""
        what = "smallest reachable" if self.exact else "smallest reachable at least"
        due = f" because of {self.due}" if self.due else ""
        return f"{self.resource}: limit {self.limit}, {what} {self.minimum} (short by {self.shortfall}){due}"


@dataclass(frozen=True)
class Relaxation:
    """The smallest limit of one resource that the other budgets allow; ``proven`` when no smaller one would do."""

    resource: str
    limit: int
    needed: int
    proven: bool


@dataclass(frozen=True)
class Infeasibility:
    """Why no choice is within budget.

    Parameters
    ----------
    floors
        Budgets that are out of reach each on its own.
    conflict
        Otherwise names of budgets, or of local limits, forbidden combinations and links, that are infeasible together
        while leaving out any one of them helps; empty when the searches were too short to tell.
    relaxations
        For each budget of the conflict the smallest limit that would help; those that were found.
    """

    floors: tuple[Floor, ...] = ()
    conflict: tuple[str, ...] = ()
    relaxations: tuple[Relaxation, ...] = ()

    @property
    def text(self) -> str:
        """What is wrong, and what to do."""
        if self.floors:
            found = "; ".join(floor.text for floor in self.floors)
            return f"{found}. Raise the limit to at least the smallest reachable amount, or allow smaller levels."
        if not self.conflict:
            return "No choice satisfies all limits together, though each is possible alone. Raise one of the limits."
        text = f"No choice satisfies {self.conflict[0]}, whatever the budgets."
        if len(self.conflict) > 1:
            text = f"No choice satisfies {' and '.join(self.conflict)} together, though any fewer of them are possible."
        ways = [
            f"{way.resource} from {way.limit} to {way.needed}" + ("" if way.proven else " (less may do)")
            for way in self.relaxations
        ]
        return f"{text} Raise {', or '.join(ways)}." if ways else f"{text} Relax one of them."


def floors(problem: SelectionProblem) -> tuple[Floor, ...]:
    """Budgets below the least that any choice uses of their resource."""
    found = []
    for k, capacity in enumerate(problem.capacities):
        lowest = least(problem, capacity.resource)
        if lowest.amount is not None and lowest.amount > capacity.limit:
            shares = _breakdown(problem, k, lowest)
            found.append(Floor(capacity.resource, capacity.limit, lowest.amount, lowest.exact, shares))
    return tuple(found)


def explain(problem: SelectionProblem) -> Infeasibility:
    """Explain a problem that has no choice within budget.

    Raises
    ------
    ValueError
        A choice within budget exists.
    """
    short = floors(problem)
    if short:
        return Infeasibility(short)
    structure: list[ValueTable | LocalLimit | Link] = [table for table in problem.value_tables if table.forbids]
    structure += [*problem.local_limits, *problem.links]
    bare = replace(problem, capacities=())
    if structure and _feasible(bare) is False:
        kept = _irreducible(structure, lambda parts: _feasible(_structured(bare, parts)))
        return Infeasibility(conflict=tuple(_named(problem, part) for part in kept))
    whole = _feasible(problem)
    if whole:
        raise ValueError("Expected a problem without a choice within budget. Got one that has some. Solve it.")
    if whole is None:
        return Infeasibility()
    kept_budgets = _irreducible(
        list(problem.capacities), lambda capacities: _feasible(replace(problem, capacities=tuple(capacities)))
    )
    reached = [_relaxation(replace(problem, capacities=tuple(kept_budgets)), k) for k in range(len(kept_budgets))]
    names = tuple(f"{capacity.resource} at most {capacity.limit}" for capacity in kept_budgets)
    return Infeasibility(conflict=names, relaxations=tuple(way for way in reached if way is not None))


def _breakdown(problem: SelectionProblem, k: int, lowest: Least) -> tuple[Share, ...]:
    """The least choice's amount by group."""
    choice = problem.minimum_choice if lowest.choice is None else lowest.choice
    merged = problem.polynomials[k]
    amounts = [0.0] * len(problem.groups)
    widths = [int(group.levels[index]) for group, index in zip(problem.groups, choice, strict=True)]
    parts = [
        (c * math.prod(widths[g] ** power for g, power in powers), [g for g, _ in powers])
        for c, powers in merged.products
    ]
    parts += [(int(t.entries[tuple(choice[g] for g in t.groups)]), list(t.groups)) for t in merged.tables]
    for amount, groups in parts:
        for g in groups:
            amounts[g] += amount / len(groups)
    shares = [Share("constant terms", float(merged.constant), "not prunable")] if merged.constant else []
    for group, index, amount in zip(problem.groups, choice, amounts, strict=True):
        if amount > 0:
            level, dense = int(group.levels[index]), int(group.levels[-1])
            reason = f"fixed at {level}" if len(group) == 1 else f"smallest level {level} of {dense}"
            if index > 0:
                reason = f"level {level} of {dense}, less is forbidden or costs more"
            shares.append(Share(group.name, amount, reason))
    return tuple(sorted(shares, key=lambda share: (-share.amount, share.name)))


def _feasible(problem: SelectionProblem) -> bool | None:
    """Whether a choice is within budget; None when the search was too short to tell."""
    reduced = without_links(problem)
    if reduced is None:
        return False
    search = Search(reduced.problem, replace(_LIMITS, gap_tolerance=1e12))
    search.run()
    if search.incumbents.best is not None:
        return True
    return False if search.empty() else None


def _irreducible(parts: Sequence[Part], feasible: Callable[[list[Part]], bool | None]) -> list[Part]:
    """Drop part after part while what is left stays infeasible."""
    kept = list(parts)
    for part in parts:
        fewer = [other for other in kept if other is not part]
        if feasible(fewer) is False:
            kept = fewer
    return kept


def _structured(problem: SelectionProblem, parts: list[ValueTable | LocalLimit | Link]) -> SelectionProblem:
    return replace(
        problem,
        value_tables=tuple(part for part in parts if isinstance(part, ValueTable)),
        local_limits=tuple(part for part in parts if isinstance(part, LocalLimit)),
        links=tuple(part for part in parts if isinstance(part, Link)),
    )


def _named(problem: SelectionProblem, part: ValueTable | LocalLimit | Link) -> str:
    if isinstance(part, LocalLimit):
        return f"local limit {part.label!r} at most {part.limit}"
    names = [problem.groups[g].name for g in part.groups]
    if isinstance(part, Link):
        return f"the link of {names}"
    return f"the allowed combinations {part.label!r} of {names}"


def _relaxation(problem: SelectionProblem, k: int) -> Relaxation | None:
    """Least use of one resource within the other budgets."""
    capacity = problem.capacities[k]
    costly = _cost_as_value(problem, k)
    reduced = None if costly is None else without_links(costly)
    if reduced is None:
        return None
    search = Search(reduced.problem, _LIMITS)
    search.run()
    if search.incumbents.best is None:
        return None
    needed = problem.used(reduced.lift(search.incumbents.best))[k]
    gap = relative_gap(search.objective, search.proof()[0], reduced.problem.total_value)
    return Relaxation(capacity.resource, capacity.limit, needed, gap <= OPTIMAL_GAP)


def _cost_as_value(problem: SelectionProblem, k: int) -> SelectionProblem | None:
    """The problem that keeps most value where value is the negative amount of one resource."""
    own = [np.zeros(len(group)) for group in problem.groups]
    tables = [
        ValueTable(table.groups, np.where(np.isneginf(table.entries), -np.inf, 0.0), table.label)
        for table in problem.value_tables
        if table.forbids
    ]
    merged = problem.polynomials[k]
    for coefficient, powers in merged.products:
        groups = tuple(g for g, _ in powers)
        if math.prod(len(problem.groups[g]) for g in groups) > _MOST_CELLS:
            return None
        factors = [problem.groups[g].levels.astype(np.float64) ** power for g, power in powers]
        entries = -float(coefficient) * reduce(operator.mul, np.ix_(*factors))
        if len(groups) == 1:
            own[groups[0]] = own[groups[0]] + entries
        else:
            tables.append(ValueTable(groups, entries))
    for table in merged.tables:
        if len(table.groups) == 1:
            own[table.groups[0]] = own[table.groups[0]] - table.entries
        else:
            tables.append(ValueTable(table.groups, -table.entries.astype(np.float64)))
    groups_out = tuple(
        Group(group.name, group.levels, values, group.order) for group, values in zip(problem.groups, own, strict=True)
    )
    capacities: tuple[Capacity, ...] = tuple(c for j, c in enumerate(problem.capacities) if j != k)
    return replace(problem, groups=groups_out, value_tables=tuple(tables), capacities=capacities)
