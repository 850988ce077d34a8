"""Allocation where few groups couple all others: fix their levels in every way, and each rest is a knapsack.

A transformer's width of the residual stream meets every layer's heads and hidden units in products; with that one width
fixed, nothing is coupled any more (cutset conditioning, Pearl 1988). Allocation bounds all combinations at once first.
One evaluation of the Lagrangian bound then sets most of them aside, and a multiple-choice knapsack settles each of the
others, where coarse levels leave gaps that prices cannot close.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from solvers.allocation import Allocation
from solvers.bounds import Lagrangian, least_reachable
from solvers.knapsack import Knapsack
from solvers.moves import filled
from solvers.problem import Capacity, IntArray, Product, SelectionProblem, Table, Term
from solvers.result import (
    OPTIMAL_GAP,
    ROUNDING,
    Certificate,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)
from solvers.verify import check_choice

__all__ = ["Conditioning", "conditioned", "cutset"]

#: Combinations up to which fixing levels is worth a try.
MOST = 512

#: Nodes that allocation may spend before levels are fixed.
FIRST_NODES = 60


def cutset(problem: SelectionProblem, most: int = MOST) -> tuple[int, ...] | None:
    """Groups without which no other groups are coupled, few and greedily chosen.

    None where value tables, local limits or links couple groups, where there is nothing to fix, and where the levels of
    these groups have more than ``most`` combinations.
    """
    if problem.value_tables or problem.local_limits or problem.links:
        return None
    scopes = {frozenset(g for g, _ in powers) for merged in problem.polynomials for _, powers in merged.products}
    scopes |= {frozenset(table.groups) for merged in problem.polynomials for table in merged.tables}
    chosen: list[int] = []
    while True:
        coupled = [scope.difference(chosen) for scope in scopes if len(scope.difference(chosen)) > 1]
        if not coupled:
            break
        counts = np.bincount([g for scope in coupled for g in scope], minlength=len(problem.groups))
        chosen.append(int(np.argmax(counts)))
        if math.prod(len(problem.groups[g]) for g in chosen) > most:
            return None
    return tuple(sorted(chosen)) or None


def conditioned(problem: SelectionProblem, fixed: Mapping[int, int]) -> SelectionProblem:
    """The problem of the other groups, with level index ``fixed[g]`` of group g; in the order they had."""
    place = {g: i for i, g in enumerate(g for g in range(len(problem.groups)) if g not in fixed)}

    def term(one: Term) -> Term:
        left = tuple(place[g] for g in one.groups if g in place)
        if isinstance(one, Product):
            levels = (int(problem.groups[g].levels[fixed[g]]) for g in one.groups if g in fixed)
            return Product(left, one.coefficient * math.prod(levels))
        entries = one.entries[tuple(fixed.get(g, slice(None)) for g in one.groups)]
        return Table(left, entries) if left else Product((), int(entries))

    capacities = [Capacity(c.resource, c.limit, tuple(map(term, c.terms))) for c in problem.capacities]
    return SelectionProblem(tuple(problem.groups[g] for g in place), tuple(capacities), problem.size)


@dataclass(frozen=True, eq=False)
class Case:
    """One combination of fixed levels and why none of its choices exceeds the bound.

    Attributes
    ----------
    levels
        Level index of each group of the cutset.
    certificate
        Of the rest as a knapsack; None where the Lagrangian bound at the proof's prices suffices.
    infeasible
        Whether the least that the rest takes is beyond a budget.
    """

    levels: tuple[int, ...]
    certificate: Certificate | None = None
    infeasible: bool = False


@dataclass(frozen=True, eq=False)
class Proof:
    """Cases that exhaust the levels of a few groups.

    Attributes
    ----------
    groups
        The cutset.
    prices
        Value per unit of each resource, shape ``(m,)``, for the cases without a certificate of their own.
    cases
        One per combination of levels.
    """

    groups: tuple[int, ...]
    prices: np.ndarray = field(repr=False)
    cases: tuple[Case, ...] = field(repr=False)

    def __call__(self, problem: SelectionProblem, certificate: Certificate) -> None:
        """Recompute what the certificate says of its choice, and the bound of every case.

        Raises
        ------
        ValueError
            Something is false, or a combination is missing.
        """
        check_choice(problem, certificate)
        wanted = set(_combinations(problem, self.groups))
        if {case.levels for case in self.cases} != wanted:
            raise ValueError(
                f"Expected cases for all {len(wanted)} combinations of levels of groups {self.groups}. "
                f"Got {len(self.cases)} that are others. The proof is incomplete."
            )
        if self.prices.shape != (len(problem.capacities),) or not np.all(self.prices >= 0):
            raise ValueError(f"Expected prices of at least 0 for every resource. Got {self.prices}. No bound follows.")
        lagrangian = Lagrangian(problem)
        rounding = ROUNDING * max(abs(problem.total_value), abs(certificate.bound))
        for case in self.cases:
            fixed = dict(zip(self.groups, case.levels, strict=True))
            if case.infeasible:
                rest = conditioned(problem, fixed)
                least = least_reachable(rest)
                if all(least[capacity.resource] <= capacity.limit for capacity in rest.capacities):
                    raise ValueError(f"Expected no choice with levels {case.levels}. Got some. The proof is false.")
                continue
            bound = _priced(problem, lagrangian, self.prices, fixed)
            if case.certificate is not None:
                case.certificate.verify(conditioned(problem, fixed))
                bound = _offset(problem, fixed) + case.certificate.bound
            if bound > certificate.bound + rounding:
                raise ValueError(
                    f"Expected at most {certificate.bound!r} with levels {case.levels} of groups {self.groups}. "
                    f"Got {bound!r}. The bound is not proven."
                )


@dataclass(frozen=True)
class Conditioning:
    """Chooses levels where `cutset` finds few combinations; any other problem is refused.

    Parameters
    ----------
    gap_tolerance
        Stop when the gap, a fraction of the lost value, is at most this.
    time_limit
        Wall seconds, checked between combinations; None for no limit.
    seed
        Recorded in the result; nothing is drawn.
    """

    gap_tolerance: float = 1e-3
    time_limit: float | None = 60.0
    seed: int = 0

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem; an infeasible one is an outcome.

        Raises
        ------
        ValueError
            The groups that couple the others have too many combinations of levels.
        """
        groups = cutset(problem)
        if groups is None:
            raise ValueError(
                f"Expected groups with at most {MOST} combinations of levels whose fixing uncouples all others, by "
                "products and tables of costs alone. Got a problem without. Use solvers.allocation.Allocation."
            )
        started = time.perf_counter()
        first = Allocation(self.gap_tolerance, self.time_limit, FIRST_NODES, self.seed).solve(problem)
        certificate = first.certificate
        if certificate is None or certificate.gap <= self.gap_tolerance or first.termination.limit is not Limit.NODES:
            return first
        return _Cases(self, problem, groups, first, certificate, started).result()


class _Cases:
    """The combinations of one problem, the most promising first."""

    def __init__(
        self,
        settings: Conditioning,
        problem: SelectionProblem,
        groups: tuple[int, ...],
        first: Result,
        certificate: Certificate,
        started: float,
    ) -> None:
        self.settings, self.problem, self.groups = settings, problem, groups
        self.first, self.certificate, self.started = first, certificate, started
        self.best, self.objective = certificate.choice, certificate.objective
        self.limit: Limit | None = None

    def target(self) -> float:
        """Bound at which a combination needs no closer look."""
        lost = max(0.0, self.problem.total_value - self.objective)
        return self.objective + max(self.settings.gap_tolerance, 0.5 * OPTIMAL_GAP) * lost

    def left(self) -> float | None:
        """Wall seconds that are left."""
        limit = self.settings.time_limit
        return None if limit is None else max(0.0, limit - (time.perf_counter() - self.started))

    def result(self) -> Result:
        problem, groups = self.problem, self.groups
        prices = np.array([self.certificate.prices[capacity.resource] for capacity in problem.capacities])
        lagrangian = Lagrangian(problem)
        ahead = []
        for levels in _combinations(problem, groups):
            fixed = dict(zip(groups, levels, strict=True))
            ahead.append((_priced(problem, lagrangian, prices, fixed), levels, fixed))
        ahead.sort(key=lambda one: (-one[0], one[1]))
        cases, bound = [], -np.inf
        for priced, levels, fixed in ahead:
            case, found = Case(levels), priced
            if priced > self.target() and self.limit is None:
                try:
                    case, found = self.settled(case, priced, fixed)
                except KeyboardInterrupt:
                    self.limit = Limit.INTERRUPTED
                if self.left() == 0.0:
                    self.limit = self.limit or Limit.TIME
            cases.append(case)
            bound = max(bound, found)
        return self.answer(max(bound, self.objective), Proof(groups, prices, tuple(cases)))

    def settled(self, case: Case, priced: float, fixed: dict[int, int]) -> tuple[Case, float]:
        """The case with the better of two bounds; its best choice is kept if it is the best so far."""
        rest = conditioned(self.problem, fixed)
        found = Knapsack(self.settings.gap_tolerance, self.left(), seed=self.settings.seed).solve(rest)
        if found.certificate is None or found.choice is None:
            least = least_reachable(rest)
            impossible = any(least[capacity.resource] > capacity.limit for capacity in rest.capacities)
            return (replace(case, infeasible=True), -np.inf) if impossible else (case, priced)
        choice = np.zeros(len(self.problem.groups), dtype=np.int64)
        choice[list(fixed)] = list(fixed.values())
        choice[[g for g in range(len(choice)) if g not in fixed]] = found.choice
        value = self.problem.value(choice)
        if value > self.objective:
            self.best, self.objective = choice, value
        bound = _offset(self.problem, fixed) + found.certificate.bound
        return (replace(case, certificate=found.certificate), bound) if bound < priced else (case, priced)

    def answer(self, bound: float, proof: Proof) -> Result:
        problem = self.problem
        if bound >= self.certificate.bound:  # what allocation has proven is as good
            bound, proof_of = self.certificate.bound, self.certificate
        else:
            names = ", ".join(repr(problem.groups[g].name) for g in self.groups)
            kind = f"every level of {names}, each with a Lagrangian bound or a knapsack's"
            proof_of = replace(self.certificate, leaves=(), fixings=(), check=proof, kind=kind)
        self.best = filled(problem, self.best)
        self.objective = problem.value(self.best)
        bound = max(bound, self.objective)
        gap = relative_gap(self.objective, bound, problem.total_value)
        used = problem.evaluate(self.best).used
        certificate = replace(proof_of, objective=self.objective, bound=bound, gap=gap, used=used, choice=self.best)
        if gap <= OPTIMAL_GAP:
            ending = Termination(TerminationReason.OPTIMAL, None, "No choice within budget keeps more value.")
        else:
            share = f"At most {100 * gap:.3g} % of the lost value is avoidable."
            advice = "raise time_limit for a smaller gap" if self.limit else "lower gap_tolerance for a closer proof"
            ending = Termination(TerminationReason.FEASIBLE, self.limit, f"{share} To go on, {advice}.")
        seconds = time.perf_counter() - self.started
        selection = problem.selection(self.best)
        return replace(
            self.first,
            choice=self.best,
            selection=selection,
            certificate=certificate,
            termination=ending,
            seconds=seconds,
        )


def _combinations(problem: SelectionProblem, groups: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(problem.groups[g])) for g in groups))


def _offset(problem: SelectionProblem, fixed: Mapping[int, int]) -> float:
    return math.fsum(float(problem.groups[g].values[index]) for g, index in fixed.items())


def _priced(problem: SelectionProblem, lagrangian: Lagrangian, prices: np.ndarray, fixed: Mapping[int, int]) -> float:
    """The Lagrangian bound with some levels fixed."""
    low: IntArray = np.zeros(len(problem.groups), dtype=np.int64)
    high: IntArray = np.array([len(group) - 1 for group in problem.groups], dtype=np.int64)
    for g, index in fixed.items():
        low[g] = high[g] = index
    return lagrangian.evaluate(prices, low, high).bound
