"""The recorded graph with fewer rows: every size in its arguments follows what is kept.

The rewritten graph also runs on any batch size, wherever the batch could be told from the other dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from structprune.axes.labels import Label
from structprune.axes.propagate import Call, LabelledGraph

__all__ = ["GraphModel", "flat_arguments", "rewrite"]


ASSERTIONS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_async.msg,
)


class _Rewriter:
    """Answers the resizes' questions (see :class:`structprune.axes.propagate.Keep`) for one set of removed ids."""

    def __init__(self, labelled: LabelledGraph, removed: np.ndarray) -> None:
        self.labelled = labelled
        self.removed = removed
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._batch_size: fx.Node | None = None

    def rows(self, label: Label) -> np.ndarray:
        rows = self.labelled.norm(label)
        kept = np.asarray(~np.isin(rows, self.removed).any(axis=1), dtype=bool)
        return kept

    def size(self, label: Label, *, infer: bool = False) -> Any:
        kept = int(self.rows(label).sum())
        if not self.labelled.has_batch(label):
            return kept
        if infer:
            return -1
        per_example = kept // len(self.labelled.batch)
        batch = self._batch()
        return batch if per_example == 1 else self.graph.call_function(torch.mul, (batch, per_example))

    def constant(self, tensor: Tensor) -> fx.Node:
        name = f"kept_rows_{len(self.constants)}"
        self.constants[name] = tensor
        return self.graph.get_attr(name)

    def _batch(self) -> fx.Node:
        if self._batch_size is None:
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            values = {node.name: value for node, value in self.labelled.values.items() if node.op == "placeholder"}
            names = [name for name in self.labelled.graph.inputs if getattr(values[name], "labels", ())]
            first = next(node for node in inputs if node.name == names[0])
            with self.graph.inserting_after(inputs[-1]):
                self._batch_size = self.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
        return self._batch_size


def rewrite(labelled: LabelledGraph, removed: np.ndarray) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """Copy the graph with the ids in ``removed`` gone.

    Returns the flat graph, whose placeholders take tensors of the kept sizes, and the map from old nodes to new.
    """
    state = _Rewriter(labelled, removed)
    source = labelled.graph.module
    new: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        if node.target in ASSERTIONS:  # they state the recorded shapes and types
            continue
        if node.op == "output":
            state.graph.output(fx.map_arg(node.args[0], lambda n: new[n]))
        elif node in labelled.resizes:
            call: Call = labelled.resizes[node](state)
            args, kwargs = fx.map_arg((call.args, call.kwargs), lambda n: new.get(n, n))
            new[node] = state.graph.call_function(call.target, args, kwargs)
            new[node].meta = {"nn_module_stack": node.meta.get("nn_module_stack")}
        else:
            new[node] = state.graph.node_copy(node, lambda n: new[n])
            new[node].meta["source"] = node.name  # a copy may be renamed
    root: dict[str, Any] = dict(state.constants)
    for node in source.graph.nodes:
        if node.op == "get_attr":
            root[str(node.target)] = getattr(source, str(node.target))
    holder = nn.Module()
    for name, tensor in root.items():
        holder.register_buffer(name, tensor, persistent=False)
    return fx.GraphModule(holder, state.graph), new


def flat_arguments(
    flat: fx.GraphModule, labelled: LabelledGraph, weights: Mapping[str, Any], leaves: Sequence[Any]
) -> list[Any]:
    """Arguments of a rewritten graph, in order: ``weights`` by name, constants, and the flattened inputs."""
    graph = labelled.graph
    arguments = []
    for node in flat.graph.nodes:
        if node.op == "placeholder":
            source = node.meta["source"]
            if source in graph.tensors:
                arguments.append(weights[graph.tensors[source]])
            elif source in graph.constants:
                arguments.append(graph.constants[source])
            else:
                arguments.append(leaves[graph.inputs.index(source)])
    return arguments


class GraphModel(nn.Module):
    """A network that runs a flat graph; its parameters and buffers keep the names they had in the original.

    It computes what the original computes in evaluation mode, whatever mode it is in: the recorded operators are
    those of evaluation.
    """

    def __init__(self, flat: fx.GraphModule, labelled: LabelledGraph, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        graph = labelled.graph
        self._sources: list[tuple[str, Any]] = []
        for node in flat.graph.nodes:
            if node.op != "placeholder":
                continue
            source = node.meta["source"]
            if source in graph.tensors:
                self._sources.append(("tensor", graph.tensors[source]))
            elif source in graph.constants:
                name = f"constant_{source}"
                self.register_buffer(name, graph.constants[source], persistent=False)
                self._sources.append(("tensor", name))
            else:
                self._sources.append(("input", graph.inputs.index(source)))
        self._out_spec = graph.out_spec
        placed: dict[int, nn.Parameter | Tensor] = {}
        for name in dict.fromkeys(graph.tensors.values()):
            placed.setdefault(id(state[name]), state[name])
            _place(self, name, placed[id(state[name])])
        self.graph_module = flat

    @property
    def casts(self) -> bool:
        """Whether a float type is written down in the graph, so that another precision is not computed throughout."""
        floats = (torch.float32, torch.float16, torch.bfloat16)
        return any(node.kwargs.get("dtype") in floats for node in self.graph_module.graph.nodes)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs shaped like the example, with any batch size where the batch was recognised."""
        inputs = pytree.tree_leaves((args, kwargs))
        values = [_get(self, key) if kind == "tensor" else inputs[key] for kind, key in self._sources]
        return pytree.tree_unflatten(list(self.graph_module(*values)), self._out_spec)


def _place(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Register ``tensor`` under its dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


def _get(root: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(root.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor
