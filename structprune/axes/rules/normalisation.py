"""Normalisation layers in evaluation mode."""

from __future__ import annotations

from typing import Any

import torch

from structprune.axes.labels import empty_label
from structprune.axes.propagate import Call, Keep, Propagation, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def batch_norm(
    state: Propagation, value: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, *args: Any
) -> list[Value]:
    """Batch norm with running statistics: one affine map per channel; masked channels give the masked bias, zero."""
    for vector in (weight, bias, mean, var):
        if vector is not None:
            state.unify(value.labels[1], vector.labels[0])
    zero = list(value.zero)
    zero[1] = bias is not None or zero[1]  # the running mean is masked too
    return [Value.of(value.labels, zero), Value.of((empty_label(0),)), Value.of((empty_label(0),))]


def instance_norm(
    state: Propagation, value: Value, weight: Value | None, bias: Value | None, *args: Any
) -> list[Value]:
    """Normalisation of each channel by its own statistics, over the examples and the pixels."""
    for vector in (weight, bias):
        if vector is not None:
            state.unify(value.labels[1], vector.labels[0])
    for label in (value.labels[0], *value.labels[2:]):
        state.pin(label, "is normalised over")
    zero = [False] * len(value.labels)
    zero[1] = bias is not None or value.zero[1]
    return [Value.of(value.labels, zero), *(Value.of((value.labels[1],), zero=False) for _ in range(2))]


def layer_norm(
    state: Propagation, value: Value, shape: list[int], weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Layer norm: its statistics run over the axis, which therefore stays whole."""
    for offset, label in enumerate(value.labels[len(value.labels) - len(shape) :]):
        state.pin(label, "is normalised over")
        for vector in (weight, bias):
            if isinstance(vector, Value):
                state.pin(vector.labels[offset], "is normalised over")
    out = Value.of(value.labels, zero=False)
    if not isinstance(state.node.meta["val"], (tuple, list)):
        return out
    rest = [Value.of([empty_label(size) for size in item]) for item in state.shapes()[1:]]
    return [out, *rest]


def group_norm(
    state: Propagation,
    value: Value,
    weight: Value | None,
    bias: Value | None,
    batch: Any,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> list[Value]:
    """Group norm: statistics run inside a group, so only whole groups go."""
    per_group = channels // groups
    group, inside = state.split(value.labels[1], [groups, per_group])
    state.pin(inside, "is normalised over")
    for vector in (weight, bias):
        if vector is not None:
            state.unify(value.labels[1], vector.labels[0])
    node = state.node

    def rewrite(keep: Keep) -> Call:
        kept = keep.size(value.labels[1])
        sizes = (keep.size(value.labels[0]), kept, pixels, kept // per_group)
        return Call(node.target, (*node.args[:3], *sizes, eps), node.kwargs)

    state.resize(rewrite)
    statistics = Value.of((value.labels[0], group), zero=False)
    zero = [False] * len(value.labels)
    zero[1] = bias is not None
    return [Value.of(value.labels, zero), statistics, statistics]


RULES = {
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten._native_batch_norm_legit.no_stats: instance_norm,
    aten.native_layer_norm: layer_norm,
    aten.layer_norm: layer_norm,
    aten.rms_norm: layer_norm,
    aten.native_group_norm: group_norm,
}
