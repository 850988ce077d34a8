"""General solvers on the whole problem, as a careful user would write it down: CP-SAT and HiGHS.

Both get one binary per level and the exact integer costs. CP-SAT multiplies widths itself; for HiGHS every product of
two widths is linearised exactly, one copy of the second width per level of the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from benchmarks.solvers.trace import Trace
from solvers.external import interrupts_kept, quiet
from solvers.problem import IntArray, SelectionProblem, Table
from solvers.result import relative_gap

__all__ = ["MipAnswer", "cp_sat", "highs", "highs_can"]

SCALE = 10**9  # integer units of CP-SAT's objective in the total value
TOTAL = 1e4  # the total value in HiGHS' objective


@dataclass(frozen=True)
class MipAnswer:
    """What a general solver found: its choice, its own bound in units of value, and its gap over time."""

    choice: IntArray | None
    bound: float | None
    trace: Trace


def _gap(problem: SelectionProblem, objective: float, bound: float) -> float:
    return relative_gap(objective, max(bound, objective), problem.total_value)


# ---------------------------------------------------------------- CP-SAT


def cp_sat(problem: SelectionProblem, time_limit: float, start: IntArray | None = None, workers: int = 1) -> MipAnswer:
    """Solve by OR-Tools' CP-SAT; products by its multiplication constraint, tables by its element constraint.

    ``start`` is hinted for every variable, products included: without, CP-SAT may find no choice at all. It is the
    answer when nothing else is found.
    """
    trace = Trace()
    model = cp_model.CpModel()
    chosen = [[model.new_bool_var("") for _ in range(len(group))] for group in problem.groups]
    index, width = [], []
    for group, at in zip(problem.groups, chosen, strict=True):
        model.add_exactly_one(at)
        index.append(model.new_int_var(0, len(group) - 1, ""))
        width.append(model.new_int_var(int(group.levels[0]), int(group.levels[-1]), ""))
        model.add(index[-1] == sum(i * one for i, one in enumerate(at)))
        model.add(width[-1] == sum(int(level) * one for level, one in zip(group.levels, at, strict=True)))
    products: dict[tuple[int, ...], cp_model.IntVar] = {}
    entries: list[tuple[Table, cp_model.IntVar]] = []
    for capacity, merged in zip(problem.capacities, problem.polynomials, strict=True):
        amounts = []
        for coefficient, powers in merged.products:
            factors = tuple(g for g, power in powers for _ in range(power))
            if factors not in products:
                low, high = (math.prod(int(problem.groups[g].levels[end]) for g in factors) for end in (0, -1))
                products[factors] = model.new_int_var(low, high, "")
                model.add_multiplication_equality(products[factors], [width[g] for g in factors])
            amounts.append(coefficient * products[factors])
        for table in merged.tables:
            entries.append((table, _entry(model, table.entries, [index[g] for g in table.groups])))
            amounts.append(entries[-1][1])
        model.add(sum(amounts) + merged.constant <= capacity.limit)
    unit = max(abs(problem.total_value), 1e-300) / SCALE
    worths = [[round(float(value) / unit) for value in group.values] for group in problem.groups]
    model.maximize(sum(w * one for row, at in zip(worths, chosen, strict=True) for w, one in zip(row, at, strict=True)))
    slack = 0.5 * unit * len(problem.groups)  # values were rounded to units

    if start is not None:
        for group, at, one, wide, c in zip(problem.groups, chosen, index, width, start.tolist(), strict=True):
            for i, each in enumerate(at):
                model.add_hint(each, i == c)
            model.add_hint(one, c)
            model.add_hint(wide, int(group.levels[c]))
        for factors, made in products.items():
            model.add_hint(made, math.prod(int(problem.groups[g].levels[start[g]]) for g in factors))
        for table, made in entries:
            model.add_hint(made, int(table.entries[tuple(start[g] for g in table.groups)]))

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = workers
    known = [-np.inf, np.inf]

    def note() -> None:
        if np.isfinite(known).all():
            trace.add(_gap(problem, known[0] * unit, known[1] * unit + slack))

    class Found(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            known[:] = self.objective_value, min(known[1], self.best_objective_bound)
            note()

    def bounded(bound: float) -> None:
        known[1] = min(known[1], bound)
        note()

    solver.best_bound_callback = bounded
    with interrupts_kept():
        status = solver.solve(model, Found())
    assert status != cp_model.MODEL_INVALID, model.validate()
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return MipAnswer(start, None, trace)  # on large tables the time goes into presolve
    choice = np.array([solver.value(one) for one in index], dtype=np.int64)
    bound = solver.best_objective_bound * unit + slack
    trace.add(_gap(problem, problem.value(choice), bound))
    return MipAnswer(choice, bound, trace)


def _entry(model: cp_model.CpModel, entries: IntArray, index: list[cp_model.IntVar]) -> cp_model.IntVar:
    place: cp_model.LinearExpr | cp_model.IntVar | int = 0
    for size, one in zip(entries.shape, index, strict=True):
        place = place * size + one
    made = model.new_int_var(int(entries.min()), int(entries.max()), "")
    model.add_element(place, entries.ravel().tolist(), made)
    return made


# ---------------------------------------------------------------- HiGHS


def highs_can(problem: SelectionProblem) -> bool:
    """Whether every cost is a product of at most two different widths."""
    return all(
        not merged.tables and all(sum(power for _, power in powers) <= 2 for _, powers in merged.products)
        for merged in problem.polynomials
    ) and not any(power > 1 for merged in problem.polynomials for _, powers in merged.products for _, power in powers)


def highs(problem: SelectionProblem, time_limit: float, gap: float = 0.0) -> MipAnswer:
    """Solve by HiGHS through scipy, on one thread, until the bound is ``gap`` units of value above the choice.

    Raises
    ------
    ValueError
        Tables, squares or products of three widths: see `highs_can`.
    """
    if not highs_can(problem):
        raise ValueError("Expected products of at most two different widths. Got others. Use cp_sat for them.")
    trace = Trace()
    starts = np.concatenate([[0], np.cumsum([len(group) for group in problem.groups])]).tolist()
    rows = _Rows(starts[-1])
    for g, group in enumerate(problem.groups):
        rows.add({starts[g] + i: 1.0 for i in range(len(group))}, 1.0, 1.0)
    pairs = {tuple(g for g, _ in powers) for merged in problem.polynomials for _, powers in merged.products}
    product = {pair: _linearised(problem, rows, starts, pair) for pair in sorted(pairs) if len(pair) == 2}
    for capacity, merged in zip(problem.capacities, problem.polynomials, strict=True):
        row: dict[int, float] = {}
        for coefficient, powers in merged.products:
            scope = tuple(g for g, _ in powers)
            parts = product[scope] if len(scope) == 2 else _levels(problem, starts, scope[0])
            for column, factor in parts.items():
                row[column] = row.get(column, 0.0) + float(coefficient) * factor
        # Budgets are about 1e10 and tolerances absolute: rows are scaled to 1.
        scale = max(float(capacity.limit), 1.0)
        rows.add(
            {column: value / scale for column, value in row.items()},
            -np.inf,
            (capacity.limit - merged.constant) / scale,
        )
    values = np.zeros(rows.columns)
    # HiGHS stops at an absolute gap of 1e-6, whatever the scale of the values: 1e-10 of the total here.
    unit = max(abs(problem.total_value), 1e-300) / TOTAL
    values[: starts[-1]] = -np.concatenate([group.values for group in problem.groups]) / unit
    binary = np.arange(rows.columns) < starts[-1]
    upper = np.where(binary, 1.0, np.inf)
    with quiet():
        found = milp(
            values,
            integrality=binary.astype(np.int64),
            bounds=Bounds(np.zeros(rows.columns), upper),
            constraints=rows.constraint(),
            options={"time_limit": time_limit, "mip_rel_gap": max(1e-9, gap / max(abs(problem.total_value), 1e-300))},
        )
    if found.x is None:
        return MipAnswer(None, None, trace)
    choice = np.array(
        [int(np.argmax(found.x[starts[g] : starts[g + 1]])) for g in range(len(problem.groups))], dtype=np.int64
    )
    if not problem.evaluate(choice).feasible:  # within HiGHS' tolerance, but not within an exact budget
        return MipAnswer(None, None, trace)
    bound = -float(found.mip_dual_bound) * unit
    trace.add(_gap(problem, problem.value(choice), bound))
    return MipAnswer(choice, bound, trace)


class _Rows:
    """Sparse rows of a linear programme, with as many columns as were asked for."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def column(self) -> int:
        self.columns += 1
        return self.columns - 1

    def add(self, row: dict[int, float], low: float, high: float) -> None:
        self.entries += [(len(self.low), column, value) for column, value in row.items()]
        self.low.append(low)
        self.high.append(high)

    def constraint(self) -> LinearConstraint:
        row, column, value = zip(*self.entries, strict=True)
        matrix = coo_array((value, (row, column)), shape=(len(self.low), self.columns)).tocsr()
        return LinearConstraint(matrix, np.array(self.low), np.array(self.high))


def _levels(problem: SelectionProblem, starts: list[int], g: int) -> dict[int, float]:
    """A width as a sum over its binaries."""
    return {starts[g] + i: float(level) for i, level in enumerate(problem.groups[g].levels)}


def _linearised(problem: SelectionProblem, rows: _Rows, starts: list[int], pair: tuple[int, ...]) -> dict[int, float]:
    """``x_u x_v = sum_l level_l y_l`` with y_l = x_v where level l of u is chosen, else 0; u has fewer levels."""
    u, v = sorted(pair, key=lambda g: len(problem.groups[g]))
    other = _levels(problem, starts, v)
    least, most = float(problem.groups[v].levels[0]), float(problem.groups[v].levels[-1])
    copies = [rows.column() for _ in range(len(problem.groups[u]))]
    for i, copy in enumerate(copies):
        rows.add({copy: 1.0, starts[u] + i: -most}, -np.inf, 0.0)
        rows.add({copy: 1.0, starts[u] + i: -least}, 0.0, np.inf)
    rows.add(dict.fromkeys(copies, 1.0) | {column: -level for column, level in other.items()}, 0.0, 0.0)
    return {copy: float(level) for copy, level in zip(copies, problem.groups[u].levels, strict=True)}
