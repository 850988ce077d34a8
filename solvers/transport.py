"""Choosing entries of a table with lower and upper counts per row and column: an exact minimum-cost flow.

    maximise   sum_ij values_ij x_ij,   x_ij in {0, 1}
    subject to row_low_i <= sum_j x_ij <= row_high_i,   column_low_j <= sum_i x_ij <= column_high_j,
               and, when a count k is given, sum_ij x_ij = k.

The constraint matrix is that of a network, so it is totally unimodular and the flow with integer capacities is the
optimum among 0/1 masks. The flow's costs are integers: values are multiplied by a power of two and rounded, which moves
the value of a mask of at most ``k`` entries by at most ``k / 2`` units; the bound carries that slack.

References
----------
Ahuja, Magnanti, Orlin, "Network Flows" (1993), section 1.2 and chapter 10. The solver is OR-Tools' SimpleMinCostFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ortools.graph.python import min_cost_flow

from solvers.problem import BoolArray, FloatArray, IntArray

__all__ = ["Transport", "maximum_transport"]

#: Largest rounded value times the number of nodes: cost scaling multiplies costs by about the number of nodes.
_COST_ROOM = 2.0**58

#: Largest sum of rounded values: the cost of a flow is a 64-bit integer.
_TOTAL_ROOM = 2.0**61


@dataclass(frozen=True, eq=False)
class Transport:
    """The best mask and a bound on every mask's value; ``bound`` exceeds the optimum by rounding at most."""

    selection: BoolArray
    bound: float


def maximum_transport(
    values: FloatArray,
    row_low: IntArray,
    row_high: IntArray,
    column_low: IntArray,
    column_high: IntArray,
    count: int | None = None,
) -> Transport | None:
    """Best mask within the counts, or None when there is none.

    Parameters
    ----------
    values
        ``(R, C)``, finite or ``-inf`` for entries that must not be kept.
    row_low, row_high
        Least and most kept entries of each row, ``(R,)``.
    column_low, column_high
        Least and most kept entries of each column, ``(C,)``.
    count
        Kept entries in all; None leaves it free.
    """
    rows, columns = values.shape
    if np.any(row_low > row_high) or np.any(column_low > column_high):
        return None
    supply = int(row_high.sum() if count is None else count)
    spare, rest = supply - int(row_low.sum()), supply - int(column_low.sum())
    if spare < 0 or rest < 0:
        return None
    # Nodes: rows, columns, a source that feeds rows beyond their least count, a sink for columns beyond theirs.
    source, sink = rows + columns, rows + columns + 1
    row_of, column_of = np.nonzero(~np.isneginf(values))
    unit = _unit(values[row_of, column_of], rows + columns + 2)
    costs = -np.rint(values[row_of, column_of] * unit).astype(np.int64)
    flow = min_cost_flow.SimpleMinCostFlow()
    entries = flow.add_arcs_with_capacity_and_unit_cost(row_of, rows + column_of, np.ones(len(costs), np.int64), costs)
    each_row, each_column = np.arange(rows), rows + np.arange(columns)
    free = np.zeros(max(rows, columns), dtype=np.int64)
    flow.add_arcs_with_capacity_and_unit_cost(np.full(rows, source), each_row, row_high - row_low, free[:rows])
    flow.add_arcs_with_capacity_and_unit_cost(
        each_column, np.full(columns, sink), column_high - column_low, free[:columns]
    )
    if count is None:
        flow.add_arc_with_capacity_and_unit_cost(source, sink, supply, 0)
    nodes = np.concatenate([each_row, each_column, [source, sink]])
    flow.set_nodes_supplies(nodes, np.concatenate([row_low, -column_low, [spare, -rest]]).astype(np.int64))
    status = flow.solve()
    if status == flow.INFEASIBLE:
        return None
    if status != flow.OPTIMAL:
        raise RuntimeError(f"Expected a flow that is optimal or infeasible. Got status {status}. Report the values.")
    kept = flow.flows(entries) > 0
    selection = np.zeros(values.shape, dtype=bool)
    selection[row_of[kept], column_of[kept]] = True
    # Only values that are no whole number of units move by rounding, each by half a unit at most.
    rounded = int(np.sum(-costs != values[row_of, column_of] * unit))
    slack = 0.5 * min(supply, int(column_high.sum()), rounded)
    reached = sum((-costs[kept]).tolist())
    return Transport(selection, math.nextafter((reached + slack) / unit, math.inf) if slack else reached / unit)


def _unit(values: FloatArray, nodes: int) -> float:
    """Integers per unit of value, a power of two: as fine as 64-bit arithmetic of the flow allows."""
    magnitudes = np.abs(values)
    largest, together = float(magnitudes.max(initial=0.0)), float(magnitudes.sum())
    if largest == 0.0:
        return 1.0
    room = min(_COST_ROOM / nodes / largest, _TOTAL_ROOM / together)
    return 2.0 ** min(max(math.floor(math.log2(room)), -1000), 1000)
