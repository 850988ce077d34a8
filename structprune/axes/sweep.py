"""Run a recorded network operator by operator over many batches, with weights that may change on the way.

Layer-wise methods look at an operator's input, change its weights, and go on: one pass through the network serves
all layers. Several networks of the same graph (the dense one and the pruned one) can be swept side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from structprune.axes.propagate import LabelledGraph
from structprune.axes.rewrite import rewrite

__all__ = ["Sweep", "affordable", "leaves_of", "sweep"]

MOST_BYTES = 6e9
"""Memory for the activations of all networks that are swept side by side."""


class Sweep:
    """One network's state while it is swept.

    Parameters
    ----------
    labelled
        The traced network.
    weights
        Value of every parameter and buffer by name; entries replaced during the sweep are used from then on.
    inputs
        Per batch, the arguments of the forward call (a tensor, a tuple or a dict).
    """

    def __init__(self, labelled: LabelledGraph, weights: MutableMapping[str, Tensor], inputs: Sequence[Any]) -> None:
        self.labelled = labelled
        self.weights = weights
        self.flat, self.new = rewrite(labelled, np.zeros(0, dtype=np.int64))
        self._inputs = [leaves_of(batch) for batch in inputs]
        self._values: dict[fx.Node, list[Any]] = {}
        self._fixed = _fixed_nodes(self.flat, labelled)
        self._last_use = {}
        for node in self.flat.graph.nodes:
            for source in node.all_input_nodes:
                self._last_use[source] = node

    def batches(self, node: fx.Node) -> list[Any]:
        """Value of ``node`` (of the original graph) on every batch."""
        node = self.new[node]
        return [self._fixed_value(node)] * len(self._inputs) if node in self._fixed else self._values[node]

    def advance(self, node: fx.Node) -> None:
        """Compute ``node`` (of the rewritten graph) and drop what nobody needs any more."""
        if node.op == "output" or node in self._fixed:
            return
        if node.op == "placeholder":
            index = self.labelled.graph.inputs.index(node.meta["source"])
            self._values[node] = [leaves[index] for leaves in self._inputs]
            return
        fixed = {source: self._fixed_value(source) for source in node.all_input_nodes if source in self._fixed}
        results = []
        for batch in range(len(self._inputs)):

            def value(source: fx.Node, batch: int = batch) -> Any:
                return fixed[source] if source in fixed else self._values[source][batch]

            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            results.append(node.target(*args, **kwargs))  # type: ignore[operator]
        self._values[node] = results
        for source in node.all_input_nodes:
            if self._last_use[source] is node:
                self._values.pop(source, None)

    def _fixed_value(self, node: fx.Node) -> Any:
        """Value of a node that depends on weights and constants only, from the weights as they are now."""
        if node.op == "placeholder":
            graph = self.labelled.graph
            source = node.meta["source"]
            name = graph.tensors.get(source)
            return self.weights[name] if name is not None else graph.constants[source]
        if node.op == "get_attr":
            return getattr(self.flat, str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._fixed_value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


@torch.no_grad()
def sweep(
    sweeps: Sequence[Sweep],
    before: Mapping[fx.Node, Callable[[], None]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Advance all ``sweeps`` in step; ``before[node]`` runs when the inputs of ``node`` are known and it is next."""
    first = sweeps[0]
    hooks = {first.new[node]: hook for node, hook in before.items()}
    orders = [list(one.flat.graph.nodes) for one in sweeps]
    for number, nodes in enumerate(zip(*orders, strict=True)):
        if nodes[0] in hooks:
            hooks[nodes[0]]()
        for one, node in zip(sweeps, nodes, strict=True):
            one.advance(node)
        if progress is not None:
            progress(number + 1, len(orders[0]))


def affordable(labelled: LabelledGraph, inputs: Sequence[Any], copies: int) -> Sequence[Any]:
    """As many of the first batches as ``copies`` networks can be swept over within ``MOST_BYTES``, one at least."""
    nodes = [node for node in labelled.graph.module.graph.nodes if node.op == "call_function"]
    last_use = {source: node for node in nodes for source in node.all_input_nodes}
    live = peak = 0
    for node in nodes:
        live += _bytes(node)
        peak = max(peak, live)
        live -= sum(_bytes(source) for source in node.all_input_nodes if last_use[source] is node)
    per_example = copies * peak / max(len(labelled.batch), 1)
    sizes = np.cumsum([max(len(leaf) for leaf in leaves_of(batch) if isinstance(leaf, Tensor)) for batch in inputs])
    return inputs[: max(int((sizes * per_example <= MOST_BYTES).sum()), 1)]


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) and node.op == "call_function" else 0


def leaves_of(batch: Any) -> list[Any]:
    """The tensors of one batch in the order in which the graph takes them."""
    if isinstance(batch, Mapping):
        return pytree.tree_leaves(((), dict(batch)))
    return pytree.tree_leaves((tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {}))


def _fixed_nodes(flat: fx.GraphModule, labelled: LabelledGraph) -> set[fx.Node]:
    fixed: set[fx.Node] = set()
    inputs = set(labelled.graph.inputs)
    for node in flat.graph.nodes:
        if node.op == "placeholder":
            if node.meta["source"] not in inputs:
                fixed.add(node)
        elif node.op == "get_attr" or (node.op == "call_function" and set(node.all_input_nodes) <= fixed):
            fixed.add(node)
    return fixed
