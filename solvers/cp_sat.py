"""Selection problems for OR-Tools' CP-SAT: the solver for logical side constraints that tables cannot say.

One literal per level; products of levels by multiplication constraints, tables by element constraints. Costs stay the
exact integers that they are, only divided by what all of them share. Values become integers by a power of two, and the
bound carries what that rounding can hide. Hints cover every variable, the products too: a hint on widths alone is lost.

CP-SAT knows nothing of prices or treewidth. On allocation problems `solvers.allocation` is faster and proves more;
this is the way to ask for "if this layer goes, that one stays".

References
----------
Perron, Didier, Gay, "The CP-SAT-LP solver", CP 2023.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from ortools.sat.python import cp_model

from solvers.external import Answer, interrupts_kept, quiet, to_result, without_room
from solvers.problem import IntArray, SelectionProblem, Table
from solvers.result import Limit, Result
from solvers.terms import Powers

__all__ = ["CpSat", "CpVariables"]

#: Integer units of the largest total value; a finer scale makes CP-SAT's arithmetic slower and gains nothing.
_UNITS = 2.0**42

#: Largest amount of a resource after division by the common factor: CP-SAT counts in 64 bits with room to spare.
_LARGEST = 2**60


@dataclass(frozen=True)
class CpVariables:
    """What a side constraint may refer to.

    Attributes
    ----------
    chosen
        Per group one literal per level, of which exactly one is true.
    index
        Per group the level index.
    level
        Per group the number of kept structures, a linear expression.
    """

    chosen: tuple[tuple[cp_model.IntVar, ...], ...]
    index: tuple[cp_model.IntVar, ...]
    level: tuple[cp_model.LinearExprT, ...]


@dataclass(frozen=True)
class CpSat:
    """Solves a `SelectionProblem` by CP-SAT.

    Parameters
    ----------
    time_limit
        Wall seconds; with ``deterministic`` units of CP-SAT's own deterministic time, about a second each; None for
        no limit.
    workers
        Threads. More than one is not deterministic.
    seed
        Of CP-SAT's search.
    deterministic
        Whether equal seeds give equal answers on any machine: one worker, no clock.
    also
        Adds constraints to the model: called with it and the `CpVariables`. The bound then holds for choices that
        satisfy them as well, and ``start`` counts only as a hint.

    Raises
    ------
    ValueError
        Limits below 0, no workers, several of them with ``deterministic``.
    """

    time_limit: float | None = 60.0
    workers: int = 1
    seed: int = 0
    deterministic: bool = True
    also: Callable[[cp_model.CpModel, CpVariables], object] | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit >= 0:
            raise ValueError(f"Expected time_limit of at least 0. Got {self.time_limit}. Use None for no limit.")
        if self.workers < 1 or (self.deterministic and self.workers > 1):
            raise ValueError(
                f"Expected one worker, or more of them with deterministic=False. Got {self.workers}. "
                "CP-SAT's threads race, so that equal seeds give different answers."
            )

    def solve(self, problem: SelectionProblem, start: ArrayLike | None = None) -> Result:
        """Solve a problem, from a choice if one is given.

        Raises
        ------
        ValueError
            A start that is no choice, costs beyond 64 bits, side constraints that make no valid model.
        """
        started = time.perf_counter()
        hint = None if start is None else problem.checked(start)
        model = _Model(problem)
        if self.also is not None:
            self.also(model.model, model.variables)
        if hint is not None:
            model.hint(hint)
        wrong = model.model.validate()
        if wrong:
            raise ValueError(f"Expected constraints that make a valid model. Got: {wrong}. Check `also` and the costs.")
        answer = self._run(model)
        if answer.choice is None and not answer.infeasible and hint is not None and self.also is None:
            if problem.evaluate(hint).feasible:
                answer = Answer(hint, answer.bound, False, answer.limit)
        if self.also is None:
            answer = without_room(problem, answer)
        source = "CP-SAT" if self.also is None else "CP-SAT, with further constraints,"
        return to_result(problem, answer, source, self.seed, time.perf_counter() - started)

    def _run(self, model: _Model) -> Answer:
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self.workers
        solver.parameters.random_seed = self.seed % 2**31
        if self.time_limit is not None:
            if self.deterministic:
                solver.parameters.max_deterministic_time = self.time_limit
            else:
                solver.parameters.max_time_in_seconds = self.time_limit
        # CP-SAT itself ends at Ctrl-C with what it has.
        with quiet(), interrupts_kept():
            status = solver.solve(model.model)
        if status == cp_model.INFEASIBLE:
            return Answer(None, None, True, None)
        known = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        choice = np.array([solver.value(one) for one in model.variables.index], dtype=np.int64) if known else None
        limit = None if status == cp_model.OPTIMAL else self._limit(solver)
        # Stopped in presolve CP-SAT reports a bound of 0 that is none; the total value always is one.
        bound = model.value_of(solver.best_objective_bound) if known else model.problem.total_value
        return Answer(choice, bound, False, limit)

    def _limit(self, solver: cp_model.CpSolver) -> Limit:
        spent = solver.deterministic_time if self.deterministic else solver.wall_time
        return Limit.TIME if self.time_limit is not None and spent >= 0.5 * self.time_limit else Limit.INTERRUPTED


class _Model:
    def __init__(self, problem: SelectionProblem) -> None:
        self.problem = problem
        self.model = cp_model.CpModel()
        self.variables, self.widths, self.shared = self._levels()
        self.products: dict[Powers, cp_model.IntVar] = {}
        self.entries: list[tuple[tuple[int, ...], IntArray, cp_model.IntVar]] = []
        for place in range(len(problem.capacities)):
            self._capacity(place)
        self._local_limits()
        self._links()
        self.unit = self._unit()
        self.rounded = 0
        self._objective()

    def _levels(self) -> tuple[CpVariables, list[cp_model.IntVar], list[int]]:
        """Literals, indices and widths; widths in multiples of what a group's levels share, to keep numbers small."""
        chosen, index, widths, shared = [], [], [], []
        for group in self.problem.groups:
            each = math.gcd(*group.levels.tolist()) or 1
            literals = tuple(self.model.new_bool_var("") for _ in range(len(group)))
            self.model.add_exactly_one(literals)
            index.append(self.model.new_int_var(0, len(group) - 1, ""))
            self.model.add(index[-1] == sum(i * one for i, one in enumerate(literals)))
            units = [int(level) // each for level in group.levels]
            widths.append(self.model.new_int_var_from_domain(cp_model.Domain.from_values(units), ""))
            self.model.add(widths[-1] == sum(unit * one for unit, one in zip(units, literals, strict=True)))
            chosen.append(literals)
            shared.append(each)
        level = tuple(each * width for each, width in zip(shared, widths, strict=True))
        return CpVariables(tuple(chosen), tuple(index), level), widths, shared

    def _product(self, powers: Powers) -> cp_model.IntVar:
        """The product of widths, in units; shared by all capacities."""
        if powers == ((powers[0][0], 1),):
            return self.widths[powers[0][0]]
        if powers not in self.products:
            ends = [self._units(powers, [0 if end == 0 else -1] * len(self.widths)) for end in (0, 1)]
            self.products[powers] = self.model.new_int_var(ends[0], ends[1], "")
            factors = [self.widths[g] for g, power in powers for _ in range(power)]
            self.model.add_multiplication_equality(self.products[powers], factors)
        return self.products[powers]

    def _units(self, powers: Powers, choice: Sequence[int] | IntArray) -> int:
        """Value of a product of widths, in units, at a choice."""
        groups = self.problem.groups
        return math.prod((int(groups[g].levels[choice[g]]) // self.shared[g]) ** power for g, power in powers)

    def _entry(self, groups: tuple[int, ...], entries: IntArray) -> cp_model.IntVar:
        """The entry of an integer table at the chosen levels."""
        place: cp_model.LinearExprT = 0
        for size, g in zip(entries.shape, groups, strict=True):
            place = place * size + self.variables.index[g]
        made = self.model.new_int_var(int(entries.min()), int(entries.max()), "")
        self.model.add_element(place, entries.ravel().tolist(), made)
        self.entries.append((groups, entries, made))
        return made

    def _capacity(self, place: int) -> None:
        merged, capacity = self.problem.polynomials[place], self.problem.capacities[place]
        scaled = [
            (coefficient * math.prod(self.shared[g] ** power for g, power in powers), powers)
            for coefficient, powers in merged.products
        ]
        tables = [table for table in merged.tables if table.entries.any()]
        # Amounts are whole multiples of what all costs share, and so may be the limit, rounded down.
        common = math.gcd(*(c for c, _ in scaled), *(int(np.gcd.reduce(t.entries, axis=None)) for t in tables)) or 1
        top = [-1] * len(self.widths)
        largest = sum(c * self._units(powers, top) for c, powers in scaled) // common
        largest += sum(int(table.entries.max()) // common for table in tables)
        if largest > _LARGEST:
            raise ValueError(
                f"Expected amounts of {capacity.resource!r} up to 2^60. Got {largest}. "
                "Count the resource in larger units, or use Allocation."
            )
        amounts = [coefficient // common * self._product(powers) for coefficient, powers in scaled]
        amounts += [self._entry(table.groups, self._divided(table, common)) for table in tables]
        limit = (capacity.limit - merged.constant) // common
        self.model.add(cp_model.LinearExpr.sum(amounts) <= min(limit, largest))

    @staticmethod
    def _divided(table: Table, common: int) -> IntArray:
        return table.entries // common

    def _local_limits(self) -> None:
        for local in self.problem.local_limits:
            if any(c * int(self.problem.groups[g].levels[-1]) > _LARGEST for g, c in local.terms):
                raise ValueError(
                    f"Expected amounts of local limit {local.label!r} up to 2^60. Got more. "
                    "Count them in larger units, or use Allocation."
                )
            amounts = [c * self.variables.level[g] for g, c in local.terms]
            self.model.add(cp_model.LinearExpr.sum(amounts) <= min(max(local.limit, -1), 4 * _LARGEST))

    def _links(self) -> None:
        for link in self.problem.links:
            first, *others = link.groups
            linked = self.variables.index if link.by_index else self.variables.level
            for other in others:
                self.model.add(linked[first] == linked[other])

    def _unit(self) -> float:
        """Integers per unit of value, a power of two."""
        largest = sum(float(np.abs(group.values).max()) for group in self.problem.groups)
        for table in self.problem.value_tables:
            largest += float(np.abs(table.entries[np.isfinite(table.entries)]).max(initial=0.0))
        return 2.0 ** math.floor(math.log2(_UNITS / largest)) if largest > 0.0 else 1.0

    def _whole(self, values: np.ndarray) -> IntArray:
        """Values in integer units; counts tables that rounding changed."""
        units = np.rint(values * self.unit)
        self.rounded += bool(np.any(units != values * self.unit))
        return units.astype(np.int64)

    def _objective(self) -> None:
        parts: list[cp_model.LinearExprT] = []
        for group, literals in zip(self.problem.groups, self.variables.chosen, strict=True):
            parts += [worth * one for worth, one in zip(self._whole(group.values).tolist(), literals, strict=True)]
        for table in self.problem.value_tables:
            finite = np.isfinite(table.entries)
            index = [self.variables.index[g] for g in table.groups]
            if not finite.all():
                self.model.add_forbidden_assignments(index, np.argwhere(~finite).tolist())
            if np.any(table.entries[finite] != 0.0):
                parts.append(self._entry(table.groups, self._whole(np.where(finite, table.entries, 0.0))))
        self.model.maximize(cp_model.LinearExpr.sum(parts))

    def value_of(self, units: float) -> float:
        """A bound in units of value: each rounded part hides half a unit at most."""
        return (units + 0.5 * self.rounded) / self.unit

    def hint(self, choice: IntArray) -> None:
        """Hint every variable at a choice, products and entries included."""
        for g, chosen in enumerate(choice.tolist()):
            for i, one in enumerate(self.variables.chosen[g]):
                self.model.add_hint(one, i == chosen)
            self.model.add_hint(self.variables.index[g], chosen)
            self.model.add_hint(self.widths[g], self._units(((g, 1),), choice))
        for powers, made in self.products.items():
            self.model.add_hint(made, self._units(powers, choice))
        for groups, entries, made in self.entries:
            self.model.add_hint(made, int(entries[tuple(choice[g] for g in groups)]))
