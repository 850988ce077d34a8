"""From structures, scores, costs and limits to the allocation problem that a solver takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from solvers.problem import Capacity, Group, SelectionProblem, Term
from structprune.criteria.scores import Scores
from structprune.structures import Axis, Structures

__all__ = ["selection_problem"]


def selection_problem(
    structures: Structures, scores: Scores, costs: Mapping[str, Sequence[Term]], limits: Mapping[str, int]
) -> SelectionProblem:
    """Maximise kept value within the limits: one group per axis, one level per allowed width.

    Parameters
    ----------
    scores
        Values ``(n,)``, or for some axes a nested order with a loss curve, which then replaces them.
    costs
        Terms over axis indices, by resource.
    limits
        Largest allowed amount, by resource.
    """
    groups = tuple(_group(number, axis, scores) for number, axis in enumerate(structures.axes))
    capacities = tuple(Capacity(resource, limit, tuple(costs[resource])) for resource, limit in limits.items())
    return SelectionProblem(groups, capacities, structures.n)


def _group(number: int, axis: Axis, scores: Scores) -> Group:
    curve = scores.curves.get(number)
    if curve is not None:
        order, kept = curve.order, curve.loss[0] - curve.loss
    else:
        values = scores.values[axis.entries]
        order = axis.order(values)
        kept = np.concatenate([[0.0], np.cumsum(values[order])])
    return Group(f"{axis.name} [{number}]", axis.levels, kept[axis.levels], axis.start + order)
