"""A part of a recorded network, run forwards and backwards from what has been computed before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from structprune.axes.propagate import LabelledGraph
from structprune.axes.sweep import Sweep

__all__ = ["Span"]


class Span:
    """The operators from ``start`` on that some nodes need.

    Everything that depends on the inputs and comes before ``start`` is given; what depends on weights alone is computed
    from the weights of each run, so that gradients reach them through transpositions and the like.

    Parameters
    ----------
    labelled
        The recorded network.
    flat, new
        Its rewritten graph and the map from recorded to rewritten nodes, see :func:`structprune.axes.rewrite.rewrite`.
    start
        First operator to run, a recorded node; None to begin with the inputs.
    targets
        Recorded nodes whose values are wanted.
    """

    def __init__(
        self,
        labelled: LabelledGraph,
        flat: fx.GraphModule,
        new: Mapping[fx.Node, fx.Node],
        start: fx.Node | None,
        targets: Sequence[fx.Node],
    ) -> None:
        self._graph = labelled.graph
        self._flat = flat
        order = {node: place for place, node in enumerate(flat.graph.nodes)}
        moving = _moving(flat, set(self._graph.inputs))
        begin = 0 if start is None else order[new[start]]
        old = {rewritten: node for node, rewritten in new.items()}
        self._targets = [new[node] for node in targets]
        inside: set[fx.Node] = set()
        given: set[fx.Node] = set()
        waiting = list(self._targets)
        while waiting:
            node = waiting.pop()
            if node in inside or node in given:
                continue
            if node in moving and (node.op == "placeholder" or order[node] < begin):
                given.add(node)
            else:
                inside.add(node)
                waiting += node.all_input_nodes
        self._nodes = sorted(inside, key=order.__getitem__)
        self._given = sorted(given, key=order.__getitem__)
        #: Recorded nodes whose values a run is given, in order.
        self.frontier: tuple[fx.Node, ...] = tuple(old[node] for node in self._given)
        wanted = set(self._targets)
        last = {source: node for node in self._nodes for source in node.all_input_nodes if source not in wanted}
        self._over: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self._over.setdefault(node, []).append(source)

    @classmethod
    def of(cls, state: Sweep, start: fx.Node | None, targets: Sequence[fx.Node]) -> Span:
        """The part of the network that a sweep has before it."""
        return cls(state.labelled, state.flat, state.new, start, targets)

    def given(self, state: Sweep) -> list[list[Any]]:
        """Values of the frontier per batch, from a sweep that stands at ``start``."""
        return [list(values) for values in zip(*(state.batches(node) for node in self.frontier), strict=True)]

    def run(self, weights: Mapping[str, Tensor], given: Sequence[Any]) -> list[Any]:
        """Values of the targets for one batch, with gradients where torch records them."""
        values: dict[fx.Node, Any] = dict(zip(self._given, given, strict=True))
        for node in self._nodes:
            if node.op == "placeholder":
                name = self._graph.tensors.get(node.meta["source"])
                values[node] = self._graph.constants[node.meta["source"]] if name is None else weights[name]
            elif node.op == "get_attr":
                values[node] = getattr(self._flat, str(node.target))
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            for source in self._over.get(node, ()):
                del values[source]
        return [values[node] for node in self._targets]


def _moving(flat: fx.GraphModule, inputs: set[str]) -> set[fx.Node]:
    """Nodes that depend on the network's inputs."""
    moving: set[fx.Node] = set()
    for node in flat.graph.nodes:
        own = node.op == "placeholder" and node.meta["source"] in inputs
        if own or any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    return moving
