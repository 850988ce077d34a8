"""Good choices from a narrow core: the options whose reduced cost is least, as a small mixed-integer program.

With several budgets the best choice takes nearly all its options from those that the prices almost choose (Pisinger
1999 speaks of the core). HiGHS solves the program over these few options much better than exchanges do; the bound is
not its business.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from solvers.bounds.multiple_choice import MultipleChoice
from solvers.external import quiet
from solvers.problem import FloatArray, IntArray

__all__ = ["narrow_core"]


def narrow_core(
    classes: MultipleChoice, prices: FloatArray, extra: int, nodes: int, seconds: float | None
) -> IntArray | None:
    """A choice among the best option of each class at the prices and the ``extra`` next best of all.

    Parameters
    ----------
    classes, prices
        The problem, and the value per unit of each budget, ``(m,)``.
    extra
        Options beyond one per class.
    nodes, seconds
        Limits of the program; None for no limit in time.

    Returns
    -------
    Options, ``(G,)``; None where none was found. Rounding in floating point may leave it slightly beyond a budget.
    """
    falls = classes.reduced_costs(prices)
    groups = len(classes.starts) - 1
    count = min(groups + extra, len(falls))
    core = np.sort(np.argpartition(falls, count - 1)[:count])
    used = classes.costs[:, core] / np.maximum(classes.room, 1)[:, None]
    one_each = csr_matrix((np.ones(count), (classes.owner[core], np.arange(count))), shape=(groups, count))
    options = {"node_limit": nodes, "mip_rel_gap": 0.0}
    if seconds is not None:
        options["time_limit"] = max(seconds, 0.01)
    with quiet():
        answer = milp(
            -classes.values[core],
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(used, -np.inf, 1.0)],
            options=options,
        )
    if answer.x is None:
        return None
    chosen = core[answer.x > 0.5]
    complete = len(chosen) == groups and np.array_equal(classes.owner[chosen], np.arange(groups))
    return np.asarray(chosen, dtype=np.int64) if complete else None
