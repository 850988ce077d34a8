"""Operators that only move, merge, repeat or make entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from structprune.axes.labels import Label, empty_label, merge_labels, stack_rows
from structprune.axes.propagate import Call, Keep, Propagation, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def view(state: Propagation, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Reshape: match the shortest runs of equal product, merge each run, then split it."""
    shape = state.shapes()[0]
    labels, zero = _reshape(state, value, shape)
    source = state.node.args[0]
    state.resize(lambda keep: Call(aten.reshape.default, (source, _view_sizes(keep, labels)), {}))
    return Value.of(labels, zero)


def _view_sizes(keep: Keep, labels: Sequence[Label]) -> list[Any]:
    """Sizes of a view; at most one may be inferred, which serves the batch."""
    sizes: list[Any] = []
    for label in labels:
        sizes.append(keep.size(label, infer=-1 not in sizes))
    return sizes


def _reshape(state: Propagation, value: Value, shape: Sequence[int]) -> tuple[list[Label], list[bool]]:
    labels = value.labels
    out: list[Label] = []
    zero: list[bool] = []
    i = j = 0
    while i < len(labels) or j < len(shape):
        run_in, run_out = [i], [j]
        size_in = len(labels[i]) if i < len(labels) else 1
        size_out = shape[j] if j < len(shape) else 1
        i, j = i + 1, j + 1
        while size_in != size_out:
            if size_in < size_out:
                size_in *= len(labels[i])
                run_in.append(i)
                i += 1
            else:
                size_out *= shape[j]
                run_out.append(j)
                j += 1
        sizes = [shape[k] for k in run_out if k < len(shape)]
        taken = [labels[k] for k in run_in if k < len(labels)]
        if sizes == [len(label) for label in taken]:
            out.extend(taken)
        elif not sizes:
            _drop(state, taken)
        else:
            out.extend(state.split(merge_labels(taken), sizes))
        zero.extend([all(value.zero[k] for k in run_in if k < len(labels))] * len(sizes))
    return out, zero


def _drop(state: Propagation, labels: Sequence[Label]) -> None:
    """Dimensions of size 1 that vanish: their one position must stay."""
    for label in labels:
        state.pin(label, "is taken out as a single entry")


def permute(state: Propagation, value: Value, order: Sequence[int]) -> Value:
    """Reorder the dimensions."""
    return Value.of([value.labels[d] for d in order], [value.zero[d] for d in order])


def transpose(state: Propagation, value: Value, first: int = 0, second: int = 1) -> Value:
    """Swap two dimensions."""
    order = list(range(len(value.labels)))
    if len(order) > 1:
        order[first], order[second] = order[second], order[first]
    return permute(state, value, order)


def unsqueeze(state: Propagation, value: Value, dim: int) -> Value:
    """Insert a dimension of size 1."""
    labels, zero = list(value.labels), list(value.zero)
    dim = dim if dim >= 0 else dim + len(labels) + 1
    labels.insert(dim, empty_label(1))
    zero.insert(dim, True)
    return Value.of(labels, zero)


def squeeze(state: Propagation, value: Value, dims: Any = None) -> Value:
    """Drop dimensions of size 1."""
    rank = len(value.labels)
    if dims is None:
        dropped = set(range(rank))
    else:
        dropped = {d % rank for d in ([dims] if isinstance(dims, int) else dims)}
    kept = [d for d, label in enumerate(value.labels) if d not in dropped or len(label) != 1]
    _drop(state, [label for d, label in enumerate(value.labels) if d not in kept])
    return permute(state, value, kept)


def expand(state: Propagation, value: Value, sizes: Sequence[Any], **kwargs: Any) -> Value:
    """Broadcast: dimensions that grow get ids of their own, free to be tied later."""
    shape = state.shapes()[0]
    new = len(shape) - len(value.labels)
    labels = []
    grown = []
    for d, size in enumerate(shape):
        old = value.labels[d - new] if d >= new else None
        grows = old is None or (len(old) == 1 and size > 1)
        grown.append(grows)
        if grows and old is not None:
            _drop(state, [old])
        labels.append(state.ids.fresh(size) if grows and size > 1 else (empty_label(size) if old is None else old))
    source = state.node.args[0]

    def rewrite(keep: Keep) -> Call:
        wanted = [keep.size(label) if grows else -1 for label, grows in zip(labels, grown, strict=True)]
        return Call(aten.expand.default, (source, wanted), {})

    state.resize(rewrite)
    return Value.of(labels, value.zero_in(shape))


def repeat(state: Propagation, value: Value, repeats: Sequence[int]) -> Value:
    """Tile: repeated entries carry the ids of the entry they repeat, and the copies have ids of their own."""
    new = len(repeats) - len(value.labels)
    padded = [empty_label(1)] * new + list(value.labels)
    copies = [state.ids.fresh(times) if times > 1 else empty_label(times) for times in repeats]
    labels = [merge_labels([copy, label]) for copy, label in zip(copies, padded, strict=True)]
    source = state.node.args[0]
    state.resize(lambda keep: Call(aten.repeat.default, (source, [keep.size(copy) for copy in copies]), {}))
    flags = zip([*[True] * new, *value.zero], repeats, strict=True)
    return Value.of(labels, [flag and times == 1 for flag, times in flags])


def cat(state: Propagation, values: Sequence[Value], dim: int = 0) -> Value:
    """Concatenate: stack the rows, tie the other dimensions."""
    values = [value for value in values if value.shape != (0,)]
    zero = [all(flags) for flags in zip(*(value.zero for value in values), strict=True)]
    rank = len(values[0].labels)
    dim %= rank
    labels = list(values[0].labels)
    for value in values[1:]:
        for d in range(rank):
            if d != dim:
                state.unify(labels[d], value.labels[d])
    labels[dim] = stack_rows([value.labels[dim] for value in values])
    return Value.of(labels, zero)


def stack(state: Propagation, values: Sequence[Value], dim: int = 0) -> Value:
    """Stack: a new dimension of which no position can go; the others are tied."""
    labels = list(values[0].labels)
    for value in values[1:]:
        for first, second in zip(labels, value.labels, strict=True):
            state.unify(first, second)
    zero = [all(flags) for flags in zip(*(value.zero for value in values), strict=True)]
    dim = dim if dim >= 0 else dim + len(labels) + 1
    labels.insert(dim, empty_label(len(values)))
    zero.insert(dim, True)
    return Value.of(labels, zero)


def full(state: Propagation, sizes: Sequence[Any], fill: Any = 0, *args: Any, **kwargs: Any) -> Value:
    """A constant tensor: free ids that whatever it meets ties, its size arguments rewritten."""
    shape = state.shapes()[0]
    labels = tuple(state.ids.fresh(size) if size > 1 else empty_label(size) for size in shape)
    node = state.node
    state.resize(lambda keep: Call(node.target, ([keep.size(label) for label in labels], *node.args[1:]), node.kwargs))
    zero = node.target in (aten.zeros.default,) or (node.target == aten.full.default and fill == 0)
    return Value.of(labels, zero)


def full_like(state: Propagation, value: Value, *args: Any, **kwargs: Any) -> Value:
    """A constant tensor shaped like another."""
    return Value.of(value.labels, zero=getattr(state.node.target, "overloadpacket", None) == aten.zeros_like)


def new_full(state: Propagation, value: Value, sizes: Sequence[Any], *args: Any, **kwargs: Any) -> Value:
    """A constant tensor of the type of another."""
    shape = state.shapes()[0]
    labels = tuple(state.ids.fresh(size) if size > 1 else empty_label(size) for size in shape)
    node = state.node

    def rewrite(keep: Keep) -> Call:
        return Call(node.target, (node.args[0], [keep.size(label) for label in labels], *node.args[2:]), node.kwargs)

    state.resize(rewrite)
    return Value.of(labels, zero=False)


def counted(state: Propagation, *args: Any, **kwargs: Any) -> Value:
    """Tensors whose values depend on the position (arange, eye): no position may go."""
    return state.empty()


def nothing(state: Propagation, *args: Any, **kwargs: Any) -> None:
    """Assertions about shapes and types carry no data."""


RULES = {
    **dict.fromkeys([aten._assert_tensor_metadata, aten._assert_scalar, aten._assert_async], nothing),
    **dict.fromkeys([aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten], view),
    aten.permute: permute,
    aten.transpose: transpose,
    aten.t: transpose,
    aten.unsqueeze: unsqueeze,
    aten.squeeze: squeeze,
    aten.expand: expand,
    aten.repeat: repeat,
    aten.cat: cat,
    aten.stack: stack,
    **dict.fromkeys([aten.full, aten.zeros, aten.ones, aten.empty], full),
    **dict.fromkeys([aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like], full_like),
    **dict.fromkeys([aten.new_full, aten.new_zeros, aten.new_ones, aten.new_empty], new_full),
    **dict.fromkeys([aten.arange, aten.eye, aten.scalar_tensor, aten.linspace], counted),
}
