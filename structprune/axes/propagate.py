"""Carry labels through a recorded network, one operator at a time.

:func:`propagate` walks the graph once. Each operator's rule makes the labels of its outputs out of the labels of
its inputs, ties what must vanish together, pins what cannot vanish, and notes two things for later: contractions
(what the operator multiplies, for the costs and the layer reconstruction) and resizes (which of its arguments are
sizes, for the compiler).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.axes.graph import Graph, module_of
from structprune.axes.labels import Ids, Label, empty_label

__all__ = ["Call", "Contraction", "Keep", "LabelledGraph", "Propagation", "Resize", "Value", "propagate"]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: one label per dimension, and where it is zero when it is masked.

    ``zero[d]`` tells if the masked network holds exact zeros at every position that is removed along dimension
    ``d``; so it does, for want of such positions, where ``d`` is the batch or cannot shrink. It is lost by functions
    with f(0) != 0, and needed where two activations are contracted.
    """

    labels: tuple[Label, ...]
    zero: tuple[bool, ...]

    @classmethod
    def of(cls, labels: Sequence[Label], zero: bool | Sequence[bool] = True) -> Value:
        """A value with the same flag in every dimension, or one flag for each."""
        flags = (zero,) * len(labels) if isinstance(zero, bool) else tuple(zero)
        return cls(tuple(labels), flags)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension in the dense network."""
        return tuple(len(label) for label in self.labels)

    def zero_in(self, shape: Sequence[int]) -> list[bool]:
        """The flags after broadcasting to ``shape``: a dimension that is repeated masks nothing."""
        new = len(shape) - len(self.labels)
        flags = zip(self.zero, self.labels, shape[new:], strict=True)
        own = [flag and len(label) == size for flag, label, size in flags]
        return [size == 1 for size in shape[:new]] + own


@dataclass(frozen=True)
class Contraction:
    """Multiplications of one operator: ``factor`` times the product of the kept sizes of ``dims``.

    ``dims`` are those of one example's batch included; the costs take the batch as one.
    """

    node: fx.Node
    dims: tuple[Label, ...]
    factor: int = 1


class Keep(Protocol):
    """What the compiler tells a resize: how much of a label is kept."""

    def rows(self, label: Label) -> np.ndarray:
        """Boolean mask of the kept positions, ``(size,)``."""
        ...

    def size(self, label: Label, *, infer: bool = False) -> Any:
        """Kept size; where the label holds the batch, -1 if ``infer`` else a node that computes it."""
        ...

    def constant(self, tensor: Tensor) -> fx.Node:
        """A node that yields ``tensor``."""
        ...


class Call(NamedTuple):
    """An operator with its arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Resize = Callable[[Keep], Call]
Rule = Callable[..., Any]


@dataclass
class Propagation:
    """State of one walk; rules call :meth:`unify`, :meth:`pin`, :meth:`contract` and :meth:`resize`."""

    ids: Ids
    node: fx.Node
    batch: Label | None = None
    contractions: list[Contraction] = field(default_factory=list)
    resizes: dict[fx.Node, Resize] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def where(self) -> str:
        """'operator in module', for messages."""
        name = str(getattr(self.node.target, "_opname", None) or self.node.target)
        name = name.removeprefix("native_").strip("_")
        module = module_of(self.node)
        return f"{name} in {module!r}" if module else name

    def unify(self, first: Label, second: Label) -> None:
        """Tie two dimensions of equal size."""
        self.ids.unify(first, second, self.where())

    def split(self, label: Label, sizes: Sequence[int]) -> list[Label]:
        """Labels of the dimensions that ``label`` is viewed as."""
        return self.ids.split(label, sizes, self.where())

    def pin(self, label: Label, why: str) -> None:
        """Forbid removal along ``label``; ``why`` is a phrase such as 'is normalised over'."""
        self.ids.pin(label, f"{why} by {self.where()}")

    def fix(self, label: Label) -> None:
        """Forbid removal along a dimension that nobody looks for among the axes, such as the taps of a kernel."""
        self.ids.pin(label, "")

    def removable(self, label: Label) -> bool:
        """Whether some position may still go, the examples of the batch aside."""
        rows = self.ids.norm(label)
        if not rows.shape[1] or self.batch is None:
            return bool(rows.shape[1])
        return bool((~np.isin(rows, [0, *self.ids.norm(self.batch).ravel()])).any())

    def settled(self, value: Value) -> Value:
        """The value with the flag set along every dimension of which nothing is removable."""
        flags = zip(value.zero, value.labels, strict=True)
        return Value.of(value.labels, [flag or not self.removable(label) for flag, label in flags])

    def contract(self, *dims: Label, factor: int = 1) -> None:
        """Note that the operator multiplies once per combination of ``dims``, ``factor`` times."""
        self.contractions.append(Contraction(self.node, dims, factor))

    def resize(self, rewrite: Resize) -> None:
        """Note how the operator's size arguments follow the kept widths."""
        self.resizes[self.node] = rewrite

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operator's outputs as recorded."""
        values = self.node.meta["val"]
        values = values if isinstance(values, (tuple, list)) else [values]
        return [tuple(int(size) for size in value.shape) for value in values if isinstance(value, Tensor)]

    def empty(self) -> Value:
        """The operator's output with no removable position."""
        return Value.of([empty_label(size) for size in self.shapes()[0]])


@dataclass(frozen=True)
class LabelledGraph:
    """A graph with a label on every dimension of every tensor in it.

    Attributes
    ----------
    graph, ids
        The recorded network, and what is known about the ids in its labels.
    values
        Node -> :class:`Value`, or a list of values for an operator with several outputs.
    contractions
        Every multiplication, in the order of execution.
    resizes
        How the size arguments of an operator follow the kept widths.
    batch
        Ids of the examples of the batch; none where the batch could not be told from other dimensions.
    unknown
        Operators without a rule, each with the first module that ran it.
    """

    graph: Graph
    ids: Ids
    values: dict[fx.Node, Any]
    contractions: tuple[Contraction, ...]
    resizes: dict[fx.Node, Resize]
    batch: np.ndarray
    unknown: dict[str, str]

    def norm(self, label: Label) -> Label:
        """The final rows of ``label`` without the ids of the batch."""
        rows = self.ids.norm(label)
        rows = np.where(np.isin(rows, self.batch), 0, rows)
        return rows[:, rows.any(axis=0)]

    def has_batch(self, label: Label) -> bool:
        """Whether the dimension runs over the examples of the batch."""
        return bool(np.isin(self.ids.norm(label), self.batch).any())


def propagate(graph: Graph, model: nn.Module, rules: Mapping[Any, Rule]) -> LabelledGraph:
    """Label every tensor of ``graph``.

    An operator without a rule pins everything that flows through it and is listed in ``unknown`` with its module.
    """
    ids = Ids()
    values: dict[fx.Node, Any] = {}
    batch_label = _batch_label(graph, ids)
    state = Propagation(ids, next(iter(graph.module.graph.nodes)), batch_label)
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    shared: dict[Any, Value] = {}
    for node in graph.module.graph.nodes:
        state.node = node
        if node.op == "placeholder" and node.name in graph.tensors:
            tensor = named[graph.tensors[node.name]]
            key = _storage(tensor)
            if key not in shared:
                shared[key] = _fresh_value(ids, tensor)
            values[node] = shared[key]
        elif node.op in ("placeholder", "get_attr"):
            values[node] = _input_value(node, graph, ids, batch_label)
        elif node.op == "call_function":
            values[node] = _apply(state, rules, values)
        elif node.op == "output":
            for out in graph.outputs:
                if isinstance(out, fx.Node) and isinstance(values[out], Value):
                    _pin_output(ids, values[out], batch_label)
    _pin_partial_shares(ids, named, shared)
    batch = np.unique(ids.norm(batch_label)) if batch_label is not None else np.zeros(0, dtype=np.int64)
    batch = batch[batch != 0]
    if batch_label is not None and len(batch) != len(batch_label):
        batch = batch[:0]
    return LabelledGraph(graph, ids, values, tuple(state.contractions), state.resizes, batch, state.unknown)


def _apply(state: Propagation, rules: Mapping[Any, Rule], values: dict[fx.Node, Any]) -> Any:
    node = state.node
    args = fx.map_arg(node.args, lambda arg: values[arg])
    kwargs = fx.map_arg(node.kwargs, lambda arg: values[arg])
    target = node.target
    rule = rules.get(target) or rules.get(getattr(target, "overloadpacket", None))
    if rule is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        rule = rules[torch.Tag.pointwise]
    if rule is None:
        return _unknown(state, args, kwargs)
    made = rule(state, *args, **kwargs)
    if isinstance(made, list):
        return [state.settled(value) if isinstance(value, Value) else value for value in made]
    return state.settled(made) if isinstance(made, Value) else made


def _unknown(state: Propagation, args: Any, kwargs: Any) -> Any:
    name = str(state.node.target)
    module = module_of(state.node)
    state.unknown.setdefault(name, module)
    unruled = f"{name}, an operator without a rule, in {repr(module) if module else 'the network itself'}"
    touched: list[Value] = []
    torch.utils._pytree.tree_map(
        lambda leaf: touched.append(leaf) if isinstance(leaf, Value) else None,
        (args, kwargs),
        is_leaf=lambda leaf: isinstance(leaf, Value),
    )
    for value in touched:
        for label in value.labels:
            state.ids.pin(label, f"goes into {unruled}")

    def made(recorded: Any) -> Any:
        if not isinstance(recorded, Tensor):
            return recorded
        labels = [state.ids.fixed(int(size), f"comes out of {unruled}") for size in recorded.shape]
        return Value.of(labels, zero=False)

    recorded = state.node.meta.get("val")
    return [made(item) for item in recorded] if isinstance(recorded, (tuple, list)) else made(recorded)


def _storage(tensor: Tensor) -> Any:
    """What two names of one parameter have in common."""
    if tensor.device.type == "meta":
        return id(tensor)
    storage = tensor.untyped_storage().data_ptr()
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _fresh_value(ids: Ids, tensor: Tensor) -> Value:
    """A parameter or a float buffer: an id per position of every dimension above 1."""
    if not tensor.is_floating_point():
        return Value.of([empty_label(size) for size in tensor.shape])
    return Value.of([ids.fresh(size) if size > 1 else empty_label(size) for size in tensor.shape])


def _pin_partial_shares(ids: Ids, named: Mapping[str, Tensor], shared: dict[Any, Value]) -> None:
    """Two parameters that are different views of one storage cannot be cut apart."""
    views: dict[int, list[Any]] = {}
    for key in shared:
        if isinstance(key, tuple) and key[0]:
            views.setdefault(key[0], []).append(key)
    for keys in views.values():
        for key in keys if len(keys) > 1 else ():
            for label in shared[key].labels:
                ids.pin(label, "belongs to one of several views of the same memory")


def _batch_label(graph: Graph, ids: Ids) -> Label | None:
    """Ids for the leading dimension of the first tensor input, if it is above 1; the others may share it."""
    for node in graph.module.graph.nodes:
        recorded = node.meta.get("val")
        if node.op == "placeholder" and node.name in graph.inputs and isinstance(recorded, Tensor) and recorded.ndim:
            return ids.fresh(int(recorded.shape[0])) if recorded.shape[0] > 1 else None
    return None


def _input_value(node: fx.Node, graph: Graph, ids: Ids, batch_label: Label | None) -> Any:
    recorded = node.meta.get("val")
    if recorded is None and node.name in graph.constants:
        recorded = graph.constants[node.name]
    if not isinstance(recorded, Tensor):
        return recorded
    is_input = node.name in graph.inputs
    reason = "is an input of the network" if is_input else "is a constant in the network's code"
    labels = [ids.fixed(int(size), reason) for size in recorded.shape]
    if is_input and labels and batch_label is not None and len(batch_label) == len(labels[0]):
        labels[0] = batch_label
    return Value.of(labels)


def _pin_output(ids: Ids, value: Value, batch_label: Label | None) -> None:
    batch = ids.norm(batch_label) if batch_label is not None else np.zeros((0, 1), dtype=np.int64)
    for label in value.labels:
        rows = ids.norm(label)
        ids.pin(np.where(np.isin(rows, batch), 0, rows), "is an output of the network")
