"""Operators that reduce, normalise or scan along a dimension: what they run over stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from structprune.axes.labels import empty_label
from structprune.axes.propagate import Propagation, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def reduce(state: Propagation, value: Value, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Sum, mean, maximum and the like: the reduced dimensions are pinned, the others flow on."""
    rank = len(value.labels)
    if dims is None or isinstance(dims, bool) or (isinstance(dims, Sequence) and not dims):
        reduced = set(range(rank))
    else:
        reduced = {d % rank for d in ([dims] if isinstance(dims, int) else dims)} if rank else set()
    for d in reduced:
        state.pin(value.labels[d], "is reduced over")
    kept = [d for d in range(rank) if d not in reduced]
    results = []
    for shape in state.shapes():
        if len(shape) == rank:
            labels = [empty_label(shape[d]) if d in reduced else value.labels[d] for d in range(rank)]
            zero = list(value.zero)
        else:
            labels = [value.labels[d] for d in kept]
            zero = [value.zero[d] for d in kept]
        results.append(Value.of(labels, zero if _of_zeros_is_zero(state) else False))
    return results if isinstance(state.node.meta["val"], (tuple, list)) else results[0]


def _of_zeros_is_zero(state: Propagation) -> bool:
    packet = getattr(state.node.target, "overloadpacket", None)
    return packet in (aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.linalg_vector_norm, aten.var)


def vector_norm(state: Propagation, value: Value, order: Any = 2, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A norm: the reduced dimensions stay whole."""
    return reduce(state, value, dims)


def var(state: Propagation, value: Value, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Variance, or variance and mean together."""
    return reduce(state, value, dims)


def softmax(state: Propagation, value: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Softmax: its own dimension stays whole, and a masked row is not zero but uniform."""
    state.pin(value.labels[dim], "is normalised over")
    return Value.of(value.labels, zero=False)


def scan(state: Propagation, value: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    """Cumulative operators: their own dimension stays whole."""
    state.pin(value.labels[dim], "is accumulated over")
    return value


def pool(state: Propagation, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Pooling and resizing: channels flow on, the spatial dimensions stay whole."""
    shapes = state.shapes()
    rank = len(value.labels)
    spatial = max(rank - 2, 1)
    for label in value.labels[rank - spatial :]:
        state.pin(label, "is pooled or resized")
    kept = value.labels[: rank - spatial]
    results = [Value.of((*kept, *map(empty_label, shape[rank - spatial :])), value.zero) for shape in shapes]
    return results if isinstance(state.node.meta["val"], (tuple, list)) else results[0]


POOLS = (
    *(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten.max_pool2d, aten.max_pool2d_with_indices),
    *(aten.max_pool3d_with_indices, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.adaptive_avg_pool1d),
    *(aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.upsample_nearest1d, aten.upsample_nearest2d),
    *(aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_linear1d, aten.upsample_trilinear3d),
    *(aten._upsample_bilinear2d_aa, aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad2d),
)

RULES = {
    **dict.fromkeys(
        [aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.any, aten.all, aten.argmax, aten.argmin],
        reduce,
    ),
    **dict.fromkeys([aten.prod, aten.logsumexp], reduce),
    aten.linalg_vector_norm: vector_norm,
    **dict.fromkeys([aten.var, aten.var_mean, aten.std], var),
    **dict.fromkeys([aten._softmax, aten.softmax, aten._log_softmax, aten.log_softmax, aten._safe_softmax], softmax),
    **dict.fromkeys([aten.cumsum, aten.cumprod], scan),
    **dict.fromkeys(POOLS, pool),
}
