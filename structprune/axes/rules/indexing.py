"""Operators that pick entries of a dimension."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from structprune.axes.labels import Label, empty_label, stack_rows
from structprune.axes.propagate import Call, Keep, Propagation, Value

__all__ = ["RULES"]

aten = torch.ops.aten


def _replace(value: Value, dim: int, label: Label) -> Value:
    labels = list(value.labels)
    labels[dim] = label
    return Value.of(labels, value.zero)


def slice_(
    state: Propagation, value: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """Slice: index the rows. After pruning it is a slice again if the wanted rows still lie side by side."""
    picked = np.arange(len(value.labels[dim]))[slice(start, end, step)]
    label = value.labels[dim]
    source = state.node.args[0]
    if len(picked) == len(label):
        state.resize(lambda keep: Call(aten.alias.default, (source,), {}))
        return value
    node = state.node

    def rewrite(keep: Keep) -> Call:
        kept = keep.rows(label)
        if kept.all():
            return Call(node.target, node.args, node.kwargs)
        new = (np.cumsum(kept) - 1)[picked[kept[picked]]]
        if len(new) and (np.diff(new) == 1).all():
            return Call(aten.slice.Tensor, (source, dim, int(new[0]), int(new[-1]) + 1), {})
        return Call(aten.index_select.default, (source, dim, keep.constant(torch.from_numpy(new))), {})

    state.resize(rewrite)
    return _replace(value, dim, label[picked])


def select(state: Propagation, value: Value, dim: int, index: int) -> Value:
    """Select: the dropped dimension stays whole, or the index would mean another entry."""
    state.pin(value.labels[dim], "is indexed by a constant")
    dim %= len(value.labels)
    return Value.of(value.labels[:dim] + value.labels[dim + 1 :], value.zero[:dim] + value.zero[dim + 1 :])


def unbind(state: Propagation, value: Value, dim: int = 0) -> list[Value]:
    """Unbind: as select, for every index."""
    count = len(value.labels[dim])
    return [select(state, value, dim, 0) for _ in range(count)]


def split(state: Propagation, value: Value, sizes: int | Sequence[int], dim: int = 0) -> list[Value]:
    """Split and chunk: consecutive rows, the piece sizes rewritten."""
    label = value.labels[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, len(label) - start) for start in range(0, len(label), sizes)]
    bounds = np.cumsum([0, *sizes])
    parts = [label[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    source = state.node.args[0]

    def rewrite(keep: Keep) -> Call:
        return Call(aten.split_with_sizes.default, (source, [int(keep.rows(part).sum()) for part in parts], dim), {})

    state.resize(rewrite)
    if all(size == 1 for size in sizes):  # what unbind becomes: each piece is squeezed to one entry
        state.pin(label, "is taken apart entry by entry")
    return [_replace(value, dim, part) for part in parts]


def getitem(state: Propagation, values: Any, index: Any) -> Any:
    """One of several outputs."""
    return values[index]


def index(state: Propagation, value: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing by tensors: the indexed dimensions stay whole."""
    given = _indexed(state, indices)
    for d in given:
        state.pin(value.labels[d], "is indexed by a tensor")
    for by in indices:
        for label in by.labels if by is not None else ():
            state.pin(label, "holds indices used")
    shape = state.shapes()[0]
    broadcast = len(shape) - (len(value.labels) - len(given))
    made = [empty_label(size) for size in shape]
    rest = [label for d, label in enumerate(value.labels) if d not in given]
    start = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
    made[:start] = rest[:start]
    made[start + broadcast :] = rest[start:]
    return Value.of(made, zero=False)


def _indexed(state: Propagation, indices: Sequence[Value | None]) -> list[int]:
    """The dimensions that are indexed; a mask of truth values takes as many as it has."""
    given: list[int] = []
    dim = 0
    for by, node in zip(indices, state.node.args[1], strict=True):  # type: ignore[arg-type]
        taken = len(by.labels) if by is not None and _is_mask(node) else 1
        given.extend(range(dim, dim + taken) if by is not None else ())
        dim += taken
    return given


def _is_mask(node: Any) -> bool:
    recorded = node.meta.get("val")
    return isinstance(recorded, torch.Tensor) and recorded.dtype in (torch.bool, torch.uint8)


def index_select(state: Propagation, value: Value, dim: int, by: Value) -> Value:
    """Index one dimension by a tensor."""
    state.pin(value.labels[dim], "is indexed by a tensor")
    return _replace(value, dim, empty_label(state.shapes()[0][dim]))


def gather(state: Propagation, value: Value, dim: int, by: Value, **kwargs: Any) -> Value:
    """Gather: positions along every dimension matter."""
    for label in (*value.labels, *by.labels):
        state.pin(label, "is gathered from")
    return state.empty()


def embedding(state: Propagation, weight: Value, by: Value, *args: Any) -> Value:
    """Embedding: the vocabulary stays whole, the features flow on."""
    state.pin(weight.labels[0], "is the vocabulary looked up")
    return Value.of((*by.labels, weight.labels[1]), (*by.zero, weight.zero[1]))


def pad(state: Propagation, value: Value, pads: Sequence[int], fill: Any = 0) -> Value:
    """Constant padding: new rows that nothing removes; cropping takes rows away."""
    labels = list(value.labels)
    for pair in range(len(pads) // 2):
        d = len(labels) - 1 - pair
        before, after = pads[2 * pair], pads[2 * pair + 1]
        if before < 0 or after < 0:
            state.pin(labels[d], "is cropped")
        inner = labels[d][max(-before, 0) : len(labels[d]) - max(-after, 0)]
        labels[d] = stack_rows([empty_label(max(before, 0)), inner, empty_label(max(after, 0))])
    return Value.of(labels, value.zero)


def shifted(state: Propagation, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Roll and flip: positions matter along the moved dimensions."""
    dims = args[-1] if args else kwargs.get("dims", [])
    for d in dims if isinstance(dims, (list, tuple)) and dims else range(len(value.labels)):
        state.pin(value.labels[d], "is moved by position")
    return value


def sorted_(state: Propagation, value: Value, *args: Any, **kwargs: Any) -> list[Value]:
    """Sort, topk and the like: every dimension stays whole."""
    for label in value.labels:
        state.pin(label, "is sorted")
    return [Value.of([empty_label(size) for size in shape], zero=False) for shape in state.shapes()]


RULES: dict[Any, Any] = {
    aten.slice: slice_,
    aten.select: select,
    aten.unbind: unbind,
    **dict.fromkeys([aten.split, aten.split_with_sizes, aten.chunk], split),
    operator.getitem: getitem,
    aten.index: index,
    aten.index_select: index_select,
    aten.gather: gather,
    aten.embedding: embedding,
    aten.constant_pad_nd: pad,
    aten.roll: shifted,
    aten.flip: shifted,
    **dict.fromkeys([aten.sort, aten.topk], sorted_),
}
