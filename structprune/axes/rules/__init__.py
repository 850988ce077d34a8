"""One small rule per ATen operator: how its output labels follow from its inputs' labels.

A rule takes the walk's state and the operator's arguments with every tensor replaced by a
:class:`~structprune.axes.propagate.Value`, and returns the output's value (a list for several outputs).
"""

from __future__ import annotations

from structprune.axes.rules import attention, convolution, indexing, matmul, normalisation, pointwise, reduction, shape

RULES = {
    **pointwise.RULES,
    **shape.RULES,
    **indexing.RULES,
    **reduction.RULES,
    **normalisation.RULES,
    **convolution.RULES,
    **matmul.RULES,
    **attention.RULES,
}

__all__ = ["RULES"]
