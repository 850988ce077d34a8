"""The operators of a traced network at any widths: what is called, with tensors of which shapes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from structprune.axes.discovery import FoundAxis, axis_table, size_polynomial
from structprune.axes.labels import Label
from structprune.axes.polynomial import Polynomial
from structprune.axes.propagate import Call, LabelledGraph, Value
from structprune.latency.signatures import Signature, TensorSpec

__all__ = ["Network"]

aten = torch.ops.aten

FREE = {  # they make a new view of the same memory, or nothing at all
    *(operator.getitem, aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.permute),
    *(aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select, aten.unbind),
    *(aten.split, aten.split_with_sizes, aten.chunk, aten.alias, aten.detach, aten.lift_fresh_copy),
    *(aten._assert_tensor_metadata, aten._assert_scalar, aten._assert_async),
}


class Network:
    """Sizes and operators of a traced network as functions of its axes' widths.

    Parameters
    ----------
    labelled
        The traced network.
    found
        Its axes; widths are given in this order.
    batch
        Examples per forward pass; None for as many as it was traced with.
    device
        Where the operators are to run.
    """

    def __init__(
        self, labelled: LabelledGraph, found: Sequence[FoundAxis], batch: int | None, device: torch.device
    ) -> None:
        self.labelled = labelled
        self.found = tuple(found)
        self.batch = len(labelled.batch) if batch is None else batch
        self.device = device
        self._axis_of = axis_table(list(found))
        self._polynomials: dict[int, tuple[Label, Polynomial]] = {}
        self._contractions: dict[fx.Node, list[Any]] = {}
        for contraction in labelled.contractions:
            self._contractions.setdefault(contraction.node, []).append(contraction)

    @cached_property
    def operators(self) -> list[fx.Node]:
        """The calls that take time, in the order in which they run."""
        return [
            node for node in self.labelled.graph.module.graph.nodes if node.op == "call_function" and not _free(node)
        ]

    def size(self, label: Label) -> Polynomial:
        """Kept size of a dimension, the batch included."""
        if id(label) not in self._polynomials:
            factor = self.batch if self.labelled.has_batch(label) else 1
            polynomial = size_polynomial(self.labelled, self._axis_of, label) * factor
            self._polynomials[id(label)] = (label, polynomial)  # the label is held, so that its id stays its own
        return self._polynomials[id(label)][1]

    def _values(self, node: fx.Node) -> list[Value]:
        """All tensors that an operator reads or writes."""
        found: list[Value] = []
        for item in (*node.all_input_nodes, node):
            value = self.labelled.values.get(item)
            values = value if isinstance(value, (list, tuple)) else [value]
            found.extend(value for value in values if isinstance(value, Value))
        return found

    def axes(self, node: fx.Node) -> tuple[int, ...]:
        """The axes that the operator's tensors run along, in increasing order."""
        labels = [label for value in self._values(node) for label in value.labels]
        return tuple(sorted({axis for label in labels for term in self.size(label).terms for axis in term}))

    def elements(self, node: fx.Node) -> Polynomial:
        """Number of tensor entries that the operator reads and writes."""
        total = Polynomial.constant(0)
        for value in self._values(node):
            total = total + _product(self.size(label) for label in value.labels)
        return total

    def macs(self, node: fx.Node) -> Polynomial | None:
        """Multiply-accumulates of the whole batch; None for an operator that contracts nothing."""
        if node not in self._contractions:
            return None
        total = Polynomial.constant(0)
        for contraction in self._contractions[node]:
            total = total + _product(self.size(label) for label in contraction.dims) * contraction.factor
        return total

    def signature(self, node: fx.Node, widths: Sequence[int]) -> Signature:
        """The operator as it is called at ``widths``, one per axis."""
        call = self._call(node, widths)

        def spec(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                return self._spec(leaf, widths)
            return TensorSpec.like(leaf, leaf.shape) if isinstance(leaf, Tensor) else leaf

        kwargs = {name: map_aggregate(value, spec) for name, value in call.kwargs.items()}
        return Signature(call.target, tuple(map_aggregate(tuple(call.args), spec)), kwargs)

    def forward(self, widths: Sequence[int]) -> Callable[[], Any]:
        """The whole network at ``widths`` on random weights and inputs, as one call."""
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        root: dict[str, Any] = {}
        inputs: list[Any] = []

        def constant(tensor: Tensor) -> fx.Node:
            name = f"_constant_{len(root)}"
            root[name] = tensor.to(self.device)
            return graph.get_attr(name)

        def new(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                return made[leaf]
            return constant(leaf) if isinstance(leaf, Tensor) else leaf

        for node in self.labelled.graph.module.graph.nodes:
            if node.op == "placeholder":
                made[node] = graph.placeholder(node.name)
                inputs.append(self._input(node, widths))
            elif node.op == "get_attr":
                made[node] = constant(getattr(self.labelled.graph.module, str(node.target)))
            elif node.op == "call_function":
                call = self._call(node, widths)
                args, kwargs = map_aggregate(tuple(call.args), new), map_aggregate(dict(call.kwargs), new)
                made[node] = graph.call_function(call.target, args, kwargs)  # type: ignore[arg-type]
            else:
                graph.output(map_aggregate(node.args[0], new))
        module = fx.GraphModule(root, graph)
        return lambda: module(*inputs)

    def _call(self, node: fx.Node, widths: Sequence[int]) -> Call:
        rewrite = self.labelled.resizes.get(node)
        call = rewrite(_Narrow(self, widths)) if rewrite else Call(node.target, node.args, dict(node.kwargs))
        moved = {
            name: self.device if name == "device" and value is not None else value
            for name, value in call.kwargs.items()
        }
        return Call(call.target, call.args, moved)

    def _spec(self, node: fx.Node, widths: Sequence[int]) -> Any:
        value = self.labelled.values[node]
        if not isinstance(value, Value):
            return value
        recorded = node.meta.get("val")
        if recorded is None:
            recorded = self.labelled.graph.constants[node.name]
        return TensorSpec.like(recorded, [self.size(label)(widths) for label in value.labels])

    def _input(self, node: fx.Node, widths: Sequence[int]) -> Any:
        if node.name in self.labelled.graph.constants:
            return self.labelled.graph.constants[node.name].to(self.device)
        spec = self._spec(node, widths)
        if not isinstance(spec, TensorSpec):
            return spec
        if spec.dtype.is_floating_point or spec.dtype.is_complex:
            return spec.arranged(torch.rand(spec.stored, dtype=spec.dtype, device=self.device) + 0.5)
        fill = torch.ones if spec.dtype == torch.bool else torch.zeros  # index 0 exists in every table
        return spec.arranged(fill(spec.stored, dtype=spec.dtype, device=self.device))


class _Narrow:
    """Keeps the first structures of every axis: the sizes that operators take as arguments at given widths."""

    def __init__(self, network: Network, widths: Sequence[int]) -> None:
        self._network = network
        self._widths = widths

    def size(self, label: Label, *, infer: bool = False) -> int:
        return self._network.size(label)(self._widths)

    def rows(self, label: Label) -> np.ndarray:
        rows = self._network.labelled.norm(label)
        removed = np.zeros(len(label), dtype=bool)
        for axis, width in zip(self._network.found, self._widths, strict=True):
            if width < axis.size:
                removed |= np.isin(rows, axis.ids[width:]).any(axis=1)
        return ~removed

    def constant(self, tensor: Tensor) -> Any:
        return tensor


def _free(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", node.target)
    # Export turns a dropout that does nothing into a plain clone; a real copy asks for its memory format.
    return packet in FREE or (packet == aten.clone and not node.kwargs)


def _product(factors: Iterable[Polynomial]) -> Polynomial:
    total = Polynomial.constant(1)
    for factor in factors:
        total = total * factor
    return total
