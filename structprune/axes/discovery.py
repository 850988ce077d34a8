"""From labels to axes: which ids of the parameters form one prunable dimension of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from structprune.axes.labels import Label
from structprune.axes.polynomial import Polynomial
from structprune.axes.propagate import LabelledGraph, Value

__all__ = ["FoundAxis", "Pinned", "find_axes", "size_polynomial"]


@dataclass(frozen=True, eq=False)
class FoundAxis:
    """An axis before it is numbered: ids ``(size,)`` and members ``(tensor, dim, positions (size, m))``."""

    name: str
    size: int
    ids: np.ndarray
    members: tuple[tuple[str, int, np.ndarray], ...]


@dataclass(frozen=True)
class Pinned:
    """A dimension that cannot be pruned, and why."""

    tensor: str
    dim: int
    size: int
    reason: str


def find_axes(
    labelled: LabelledGraph, model: nn.Module, keep_whole: Callable[[str], bool], multiple_of: int = 1
) -> tuple[list[FoundAxis], list[Pinned], dict[str, tuple[int, ...]]]:
    """Group the ids of all parameters and float buffers into axes.

    Ids belong to one axis if they occur equally often in the same columns of the same dimensions. So the two parts
    of a concatenation are two axes, and heads and head dimensions of one projection are two axes. What cannot go is
    pinned on the way: dimensions named by ``keep_whole``, axes that no multiplication runs over, axes that would not
    leave a regular grid, and axes that ``multiple_of`` or a single entry leaves no smaller width.
    """
    tensors = _labelled_tensors(labelled, model)
    for name, (labels, _) in tensors.items():
        if keep_whole(name):
            for label in labels:
                labelled.ids.pin(label, "is kept whole as asked")
    while True:
        axes = _group(labelled, tensors)
        idle = "takes part in no product on the example (unused, or rows of a longer table?)"
        pins = [(axis.ids, idle) for axis in _idle(labelled, axes)]
        pins += [(axis.ids, _too_small(axis.size, multiple_of)) for axis in axes if axis.size <= multiple_of]
        irregular = None if pins else _irregular(labelled, axes)
        if irregular is not None:
            pins = [(irregular, "would not leave a regular grid behind")]
        for ids, reason in pins:
            labelled.ids.pin(ids.reshape(-1, 1), reason)
        if not pins:
            break
    pinned = []
    for name, (labels, tensor) in tensors.items():
        for dim, label in enumerate(labels if tensor.is_floating_point() else ()):
            why = labelled.ids.reason(label)
            if len(label) > 1 and why != "" and not labelled.norm(label).size:
                pinned.append(Pinned(name, dim, len(label), why or "is tied to the examples of the batch"))
    shapes = {name: tuple(tensor.shape) for name, (_, tensor) in tensors.items() if tensor.is_floating_point()}
    return axes, pinned, shapes


def _too_small(size: int, multiple_of: int) -> str:
    if size == 1:
        return "has a single free entry, and one of every axis stays"
    return f"has {size} entries, and widths are multiples of {multiple_of}"


def _labelled_tensors(labelled: LabelledGraph, model: nn.Module) -> dict[str, tuple[tuple[Label, ...], Tensor]]:
    """Every distinct tensor of the model in graph order, under the first of its names."""
    named: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first_name = {id(tensor): name for name, tensor in reversed(list(named.items()))}
    found: dict[str, tuple[tuple[Label, ...], Tensor]] = {}
    for node, value in labelled.values.items():
        if node.op == "placeholder" and node.name in labelled.graph.tensors and isinstance(value, Value):
            tensor = named[labelled.graph.tensors[node.name]]
            found.setdefault(first_name[id(tensor)], (value.labels, tensor))
    return found


def _group(labelled: LabelledGraph, tensors: Mapping[str, tuple[tuple[Label, ...], Tensor]]) -> list[FoundAxis]:
    occurrences: dict[int, list[tuple[int, int, int, int]]] = {}
    normed: dict[tuple[str, int], Label] = {}
    for number, (name, (labels, _)) in enumerate(tensors.items()):
        for dim, label in enumerate(labels):
            rows = normed[name, dim] = labelled.norm(label)
            for column in range(rows.shape[1]):
                ids, counts = np.unique(rows[:, column], return_counts=True)
                for i, count in zip(ids.tolist(), counts.tolist(), strict=True):
                    if i:
                        occurrences.setdefault(i, []).append((number, dim, column, count))
    groups: dict[tuple[tuple[int, int, int, int], ...], list[int]] = {}
    for i, where in occurrences.items():
        groups.setdefault(tuple(where), []).append(i)
    names = list(tensors)
    axes: list[FoundAxis] = []
    for places, members_ids in groups.items():
        ids = np.array(members_ids, dtype=np.int64)
        touched = dict.fromkeys((names[number], dim) for number, dim, _, _ in places)
        members = tuple((name, dim, _positions(normed[name, dim], ids)) for name, dim in touched)
        axes.append(FoundAxis("", len(ids), ids, members))
    return _named(axes, {name: len(labels) for name, (labels, _) in tensors.items()})


def _positions(rows: Label, ids: np.ndarray) -> np.ndarray:
    """Rows that hold each id, ``(len(ids), m)``."""
    order = np.argsort(ids)
    where, columns = np.nonzero(np.isin(rows, ids))
    owner = order[np.searchsorted(ids[order], rows[where, columns])]
    by_owner = np.argsort(owner, kind="stable")
    return where[by_owner].reshape(len(ids), -1)


def _named(axes: list[FoundAxis], ranks: Mapping[str, int]) -> list[FoundAxis]:
    """Name each axis by the module that makes it; where a module makes several, by the rows they start at too.

    In a projection of 4 heads with 8 features, 'q[0:32:8]' are the heads and 'q[0:8]' the features.
    """
    producers = [_producer(axis, ranks) for axis in axes]
    modules = [name.rpartition(".")[0] or name for name, _ in producers]
    named: list[FoundAxis] = []
    taken: dict[str, int] = {}
    for axis, module, (_, rows) in zip(axes, modules, producers, strict=True):
        name = module + (_as_slice(rows[:, 0]) if modules.count(module) > 1 else "")
        taken[name] = taken.get(name, 0) + 1
        named.append(replace(axis, name=name if taken[name] == 1 else f"{name}#{taken[name]}"))
    return named


def _producer(axis: FoundAxis, ranks: Mapping[str, int]) -> tuple[str, np.ndarray]:
    """The tensor that makes the axis, and its rows: a weight that has it as its leading dimension, else any tensor."""
    leading = [(name, rows) for name, dim, rows in axis.members if dim == 0]
    weights = [(name, rows) for name, rows in leading if ranks[name] > 1]
    name, _, rows = axis.members[0]
    return (*weights, *leading, (name, rows))[0]


def _as_slice(rows: np.ndarray) -> str:
    steps = np.unique(np.diff(rows))
    if len(rows) == 1:
        return f"[{rows[0]}]"
    if len(steps) != 1 or steps[0] < 1:
        return ""
    return f"[{rows[0]}:{rows[-1] + steps[0]}" + (f":{steps[0]}]" if steps[0] > 1 else "]")


def _idle(labelled: LabelledGraph, axes: list[FoundAxis]) -> list[FoundAxis]:
    """Axes that no multiplication runs over, such as the positions beyond the example's length."""
    used = [labelled.norm(label).ravel() for c in labelled.contractions for label in c.dims if label.shape[1]]
    ids = np.unique(np.concatenate(used)) if used else np.zeros(0, dtype=np.int64)
    return [axis for axis in axes if not np.isin(axis.ids, ids).any()]


def _irregular(labelled: LabelledGraph, axes: list[FoundAxis]) -> Label | None:
    """Ids whose combinations in some dimension are not a full grid, so that no polynomial counts them."""
    axis_of = axis_table(axes)
    sizes = [axis.size for axis in axes]
    labels = [label for value in labelled.values.values() if isinstance(value, Value) for label in value.labels]
    seen: set[int] = set()
    for label in labels:
        if id(label) in seen or not label.shape[1]:
            continue
        seen.add(id(label))
        rows = labelled.norm(label)
        if not rows.shape[1]:
            continue
        for combination, ids in _combinations(rows, axis_of):
            unique, counts = np.unique(ids, axis=0, return_counts=True)
            full = int(np.prod([sizes[axis] for axis in combination], dtype=np.int64))
            if combination and (len(unique) != full or (counts != counts[0]).any()):
                return ids
    return None


def axis_table(axes: list[FoundAxis]) -> np.ndarray:
    """Axis number by id; -1 for ids that no parameter has."""
    table = np.full(max((int(axis.ids.max()) for axis in axes), default=0) + 1, -1, dtype=np.int64)
    for number, axis in enumerate(axes):
        table[axis.ids] = number
    return table


def _combinations(rows: Label, axis_of: np.ndarray) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Rows sorted by which axes they belong to: ``[(axes, ids (rows, len(axes)))]``."""
    known = np.where(rows < len(axis_of), axis_of[np.minimum(rows, len(axis_of) - 1)], -1)
    known = np.where(rows == 0, -1, known)
    order = np.argsort(known, axis=1, kind="stable")
    known, ids = np.take_along_axis(known, order, axis=1), np.take_along_axis(rows, order, axis=1)
    kinds, inverse = np.unique(known, axis=0, return_inverse=True)
    result = []
    for number, kind in enumerate(kinds):
        used = kind >= 0
        result.append((tuple(kind[used].tolist()), ids[inverse.ravel() == number][:, used]))
    return result


def size_polynomial(labelled: LabelledGraph, axis_of: np.ndarray, label: Label) -> Polynomial:
    """Kept size of a dimension as a polynomial of the axes' widths, for a batch of one."""
    rows = labelled.norm(label)
    batch = len(labelled.batch) if labelled.has_batch(label) else 1
    if not rows.shape[1]:
        return Polynomial.constant(len(label) // batch)
    sizes = np.bincount(axis_of[axis_of >= 0])
    total = Polynomial.constant(0)
    for combination, ids in _combinations(rows, axis_of):
        full = int(np.prod([sizes[axis] for axis in combination], dtype=np.int64))
        total = total + Polynomial({combination: len(ids) // full // batch})
    return total
