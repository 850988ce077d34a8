"""Selection problems as mixed-integer linear programs for HiGHS, through scipy.

One binary per level. What couples groups is linearised exactly:

* a product of two groups' widths takes one copy ``y_k`` of the second width per level ``k`` of the first, with
  ``low b_k <= y_k <= high b_k`` and ``sum_k y_k = width``, so that ``y_k`` is the width where ``b_k = 1`` and else 0;
* a table takes one variable per combination of levels, whose sums over the other groups are the binaries.

Floating-point amounts cannot be compared as integers, so every answer is evaluated exactly; one that exceeds a limit by
rounding is cut off, alone, and the program solved again. After some of these the limits are lowered a little instead;
the bound of the exact limits stays.

References
----------
Huangfu, Hall, "Parallelizing the dual revised simplex method", Mathematical Programming Computation 10 (2018).
Glover, "Improved linear integer programming formulations of nonlinear integer problems", Management Science 22 (1975).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from solvers.external import Answer, interrupts_noted, quiet, to_result, without_room
from solvers.problem import FloatArray, IntArray, SelectionProblem
from solvers.result import Limit, Result
from solvers.terms import Powers

__all__ = ["Highs", "program_size"]

#: Sizes of the limits and of the objective in the program: HiGHS compares with absolute tolerances of 1e-6.
_SCALE = 2.0**20
_WORTH = 2.0**24

#: Choices beyond a limit by rounding that are cut off one by one, and the fraction by which limits are lowered then.
_CUTS = 10
_LOWERED = 1e-6


@dataclass(frozen=True)
class Highs:
    """Solves a `SelectionProblem` by HiGHS.

    Parameters
    ----------
    time_limit
        Wall seconds; None for no limit. HiGHS cannot be interrupted before: Ctrl-C is heeded when it returns.
    max_nodes
        Most nodes of its search; None for no limit. This limit is deterministic.
    max_size
        Most variables of the program, see `program_size`.
    seed
        Recorded in the result; scipy gives HiGHS no seed, and equal problems give equal results.

    Raises
    ------
    ValueError
        Limits below 0.
    """

    time_limit: float | None = 60.0
    max_nodes: int | None = None
    max_size: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("time_limit", "max_nodes", "max_size"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use None for no limit.")

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem.

        Raises
        ------
        ValueError
            A program of more than ``max_size`` variables.
        """
        started = time.perf_counter()
        if not problem.groups:
            nothing = problem.minimum_choice
            feasible = problem.evaluate(nothing).feasible
            answer = Answer(nothing if feasible else None, 0.0, not feasible, None)
            return to_result(problem, answer, "HiGHS", self.seed, time.perf_counter() - started)
        program = _Program(problem, self.max_size)
        bound = problem.total_value
        for attempt in range(_CUTS + 1):
            left = None if self.time_limit is None else max(0.0, self.time_limit - (time.perf_counter() - started))
            exact = attempt < _CUTS
            answer = program.solve(0.0 if exact else _LOWERED, left, self.max_nodes)
            if exact and answer.bound is not None:
                bound = answer.bound
            if answer.choice is None or problem.evaluate(answer.choice).feasible:
                break
            program.cut_off(answer.choice)
            answer = Answer(None, bound, False, answer.limit)
            if answer.limit is not None:
                break
        # With lowered limits "infeasible" proves nothing.
        answer = replace(answer, bound=bound, infeasible=answer.infeasible and exact)
        answer = without_room(problem, answer)
        return to_result(problem, answer, "HiGHS", self.seed, time.perf_counter() - started)


def program_size(problem: SelectionProblem) -> int:
    """Number of variables of the program: levels, copies of widths, and combinations of levels."""
    sizes = [len(group) for group in problem.groups]
    scopes = {table.groups for table in problem.value_tables}
    pairs: set[Powers] = set()
    for merged in problem.polynomials:
        scopes |= {table.groups for table in merged.tables if len(table.groups) > 1}
        scopes |= {tuple(g for g, _ in powers) for _, powers in merged.products if len(powers) > 2}
        pairs |= {powers for _, powers in merged.products if len(powers) == 2}
    copies = sum(min(sizes[g] for g, _ in powers) for powers in pairs)
    return sum(sizes) + copies + sum(math.prod(sizes[g] for g in scope) for scope in scopes)


class _Program:
    """Columns, rows and costs of the program; rows of capacities apart, because their limits may be lowered."""

    def __init__(self, problem: SelectionProblem, max_size: int) -> None:
        self.problem = problem
        self.columns = 0
        self.lower: list[FloatArray] = []
        self.upper: list[FloatArray] = []
        self.worth: list[FloatArray] = []
        self.rows: list[tuple[IntArray, FloatArray, float, float]] = []
        self.budgets: list[tuple[IntArray, FloatArray]] = []
        self.cells: dict[tuple[int, ...], IntArray] = {}
        self.copies: dict[tuple[int, int, int], IntArray] = {}
        self._check_size(max_size)
        self.levels = [self._new(np.zeros(len(g)), np.ones(len(g)), g.values) for g in problem.groups]
        for binaries in self.levels:
            self._row(binaries, np.ones(len(binaries)), 1.0, 1.0)
        for table in problem.value_tables:
            finite = np.isfinite(table.entries)
            cells = self._cells(table.groups, table.entries.shape)
            worth = np.concatenate(self.worth)
            worth[cells] += np.where(finite, table.entries, 0.0)
            upper = np.concatenate(self.upper)
            upper[cells[~finite]] = 0.0
            self.worth, self.upper = [worth], [upper]
        for place in range(len(problem.capacities)):
            self.budgets.append(self._budget(place))
        for local in problem.local_limits:
            parts = [(self.levels[g], c * problem.groups[g].levels.astype(np.float64)) for g, c in local.terms]
            scale = _SCALE / max(abs(local.limit), 1)
            columns, costs = _joined(parts)
            self._row(columns, costs * scale, -np.inf, local.limit * scale)
        self._links()

    def _check_size(self, most: int) -> None:
        count = program_size(self.problem)
        if count > most:
            raise ValueError(
                f"Expected a program of up to {most} variables. Got {count}, for levels, products and tables. "
                "Use Allocation or CpSat, fewer levels, or raise max_size."
            )

    def _new(self, lower: FloatArray, upper: FloatArray, worth: FloatArray | None = None) -> IntArray:
        """Columns for new variables, in the shape of their bounds."""
        columns = self.columns + np.arange(lower.size).reshape(lower.shape)
        self.columns += lower.size
        self.lower.append(lower.ravel())
        self.upper.append(upper.ravel())
        self.worth.append(np.zeros(lower.size) if worth is None else worth.ravel())
        return columns

    def _row(self, columns: IntArray, factors: FloatArray, low: float, high: float) -> None:
        self.rows.append((columns.ravel(), factors.ravel(), low, high))

    def _cells(self, groups: tuple[int, ...], shape: tuple[int, ...]) -> IntArray:
        """One variable per combination of levels of several groups; their sums per level are the binaries."""
        if groups not in self.cells:
            cells = self._new(np.zeros(shape), np.ones(shape))
            for axis, g in enumerate(groups):
                for level, binary in enumerate(self.levels[g]):
                    members = np.take(cells, level, axis=axis).ravel()
                    factors = np.append(np.ones(members.size), -1.0)
                    self._row(np.append(members, binary), factors, 0.0, 0.0)
            self.cells[groups] = cells
        return self.cells[groups]

    def _copies(self, first: int, second: int, power: int) -> IntArray:
        """Per level of the first group a copy of the second one's width to a power, 0 where the level is not chosen."""
        key = (first, second, power)
        if key not in self.copies:
            binaries, widths = self.levels[first], self.problem.groups[second].levels.astype(np.float64) ** power
            # Widths relative to the largest: HiGHS's tolerances are absolute.
            widths = widths / max(widths[-1], 1.0)
            copies = self._new(np.zeros(len(binaries)), np.full(len(binaries), widths[-1]))
            for copy, binary in zip(copies, binaries, strict=True):
                self._row(np.array([copy, binary]), np.array([1.0, -widths[-1]]), -np.inf, 0.0)
                self._row(np.array([copy, binary]), np.array([1.0, -widths[0]]), 0.0, np.inf)
            self._row(np.append(copies, self.levels[second]), np.append(np.ones(len(copies)), -widths), 0.0, 0.0)
            self.copies[key] = copies
        return self.copies[key]

    def _budget(self, place: int) -> tuple[IntArray, FloatArray]:
        """Columns and costs of a capacity."""
        groups, merged = self.problem.groups, self.problem.polynomials[place]
        parts = [self._product(float(coefficient), powers) for coefficient, powers in merged.products]
        for table in merged.tables:
            columns = self.levels[table.groups[0]]
            if len(table.groups) > 1:
                columns = self._cells(table.groups, tuple(len(groups[g]) for g in table.groups))
            parts.append((columns.ravel(), table.entries.ravel().astype(np.float64)))
        return _joined(parts)

    def _product(self, coefficient: float, powers: Powers) -> tuple[IntArray, FloatArray]:
        groups = self.problem.groups
        widths = [groups[g].levels.astype(np.float64) ** power for g, power in powers]
        if len(powers) == 1:
            return self.levels[powers[0][0]], coefficient * widths[0]
        if len(powers) == 2:
            # The group with fewer levels takes the copies.
            order = sorted(range(2), key=lambda i: len(widths[i]))
            (first, _), (second, power) = powers[order[0]], powers[order[1]]
            largest = max(float(widths[order[1]][-1]), 1.0)
            return self._copies(first, second, power), coefficient * largest * widths[order[0]]
        cells = self._cells(tuple(g for g, _ in powers), tuple(len(w) for w in widths))
        costs = np.array(coefficient)
        for factor in widths:
            costs = costs[..., None] * factor
        return cells.ravel(), costs.ravel()

    def _links(self) -> None:
        for link in self.problem.links:
            first, *others = link.groups
            for other in others:
                pairs = [(first, other), (other, first)]
                for g, h in pairs:
                    for i, level in enumerate(self.problem.groups[g].levels):
                        at = np.flatnonzero(self.problem.groups[h].levels == level) if not link.by_index else [i]
                        columns = np.array([self.levels[g][i], *(self.levels[h][j] for j in at)])
                        self._row(columns, np.array([1.0, *(-1.0 for _ in at)]), 0.0, 0.0)

    def cut_off(self, choice: IntArray) -> None:
        """Forbid one choice and no other."""
        chosen = np.array([binaries[level] for binaries, level in zip(self.levels, choice, strict=True)])
        self._row(chosen, np.ones(len(chosen)), -np.inf, len(chosen) - 1.0)

    def solve(self, lowered: float, time_limit: float | None, max_nodes: int | None) -> Answer:
        """One run of HiGHS, with limits lowered by a fraction."""
        rows, low, high = [(c, f) for c, f, _, _ in self.rows], [r[2] for r in self.rows], [r[3] for r in self.rows]
        for (columns, costs), merged, capacity in zip(
            self.budgets, self.problem.polynomials, self.problem.capacities, strict=True
        ):
            limit = capacity.limit - merged.constant
            scale = _SCALE / max(abs(limit), 1)
            rows.append((columns, costs * scale))
            low.append(-np.inf)
            high.append((limit - lowered * abs(limit)) * scale)
        sizes = np.cumsum([0, *(len(columns) for columns, _ in rows)])
        entries = (np.concatenate([f for _, f in rows]), np.concatenate([c for c, _ in rows]), sizes)
        matrix = csr_array(entries, shape=(len(rows), self.columns))
        matrix.sum_duplicates()
        worth = np.concatenate(self.worth)
        largest = sum(float(np.abs(worth[binaries]).max()) for binaries in [*self.levels, *self.cells.values()])
        scale = _WORTH / largest if largest > 0.0 else 1.0
        integral = np.zeros(self.columns)
        integral[np.concatenate(self.levels)] = 1
        options: dict[str, float | int | bool] = {"mip_rel_gap": 0.0}
        if time_limit is not None:
            options["time_limit"] = max(time_limit, 0.0)
        if max_nodes is not None:
            options["node_limit"] = max_nodes
        with quiet(), interrupts_noted() as interrupts:
            found = milp(
                -worth * scale,
                integrality=integral,
                bounds=Bounds(np.concatenate(self.lower), np.concatenate(self.upper)),
                constraints=LinearConstraint(matrix, np.array(low), np.array(high)),
                options=options,
            )
        stopped = None
        if interrupts:
            stopped = Limit.INTERRUPTED
        elif "Time limit" in found.message:
            stopped = Limit.TIME
        elif max_nodes is not None and found.status not in (0, 2):
            stopped = Limit.NODES
        return self._answer(found.x, getattr(found, "mip_dual_bound", None), scale, found.status == 2, stopped)

    def _answer(
        self, x: FloatArray | None, dual: float | None, scale: float, infeasible: bool, limit: Limit | None
    ) -> Answer:
        """HiGHS's solution and bound in the problem's terms."""
        choice = None
        if x is not None:
            choice = np.array([int(np.argmax(x[binaries])) for binaries in self.levels], dtype=np.int64)
        # Its tolerance on the objective, 1e-6 in the program's units, belongs to the bound.
        known = dual is not None and math.isfinite(dual)
        bound = (-float(dual or 0.0) + 1e-6) / scale if known else self.problem.total_value
        return Answer(choice, bound, infeasible, limit)


def _joined(parts: list[tuple[IntArray, FloatArray]]) -> tuple[IntArray, FloatArray]:
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return np.concatenate([columns for columns, _ in parts]), np.concatenate([costs for _, costs in parts])
