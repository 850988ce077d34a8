"""Convolutions of any rank: plain, grouped, depthwise and transposed."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from structprune.axes.labels import empty_label, merge_labels
from structprune.axes.propagate import Call, Keep, Propagation, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def convolution(
    state: Propagation,
    value: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """Contract the input channels; group by group where there are several.

    A grouped convolution splits both channel dimensions by its groups and ties the two: a group goes whole, or the
    same entry inside every group goes. Depthwise is the case of one channel per group.
    """
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    taps = weight.labels[2:]
    for label in taps:
        state.fix(label)
    for label in value.labels[2:]:
        state.pin(label, "is convolved over")
    shape = state.shapes()[0]
    if groups == 1:
        state.unify(value.labels[1], weight.labels[in_dim])
        out = weight.labels[out_dim]
        state.contract(value.labels[0], out, weight.labels[in_dim], factor=_pixels(shape, value, taps, transposed))
    else:
        out = _grouped(state, value, weight, groups, transposed, _pixels(shape, value, taps, transposed))
    if bias is not None:
        state.unify(out, bias.labels[0])
    spatial = tuple(empty_label(size) for size in shape[2:])
    return Value.of((value.labels[0], out, *spatial), (False, True, *(False for _ in spatial)))


def _pixels(shape: tuple[int, ...], value: Value, taps: Any, transposed: bool) -> int:
    positions = value.shape[2:] if transposed else shape[2:]
    return prod(positions) * prod(len(tap) for tap in taps)


def _grouped(state: Propagation, value: Value, weight: Value, groups: int, transposed: bool, factor: int) -> Any:
    per_group_in = value.shape[1] // groups
    group, inside = state.split(value.labels[1], [groups, per_group_in])
    if transposed:
        state.unify(value.labels[1], weight.labels[0])
        outside = weight.labels[1]
        out = merge_labels([group, outside])
    else:
        out = weight.labels[0]
        out_group, outside = state.split(out, [groups, len(out) // groups])
        state.unify(group, out_group)
        state.unify(inside, weight.labels[1])
    state.contract(value.labels[0], group, inside, outside, factor=factor)
    node = state.node

    def rewrite(keep: Keep) -> Call:
        return Call(node.target, (*node.args[:8], keep.size(group)), node.kwargs)

    state.resize(rewrite)
    return out


RULES = {aten.convolution: convolution}
