"""Auxiliary heads: small classifiers at some depths of a network that tell how much is known of the answer there.

A head looks at one activation through which everything flows: batch norm, ReLU, mean over positions (pixels or
tokens), one linear layer (Zhuang et al. 2018, section 3.2). Where such activations are is read off the recorded graph,
so that any network that can be traced can have heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from structprune.axes.linear_maps import LinearMap
from structprune.axes.propagate import LabelledGraph, Value
from structprune.data import Loss

__all__ = ["AuxiliaryHead", "Objective", "Place", "bottlenecks", "final_objective", "head_objective", "spread"]


@dataclass(frozen=True, eq=False)
class Place:
    """An activation through which everything flows that the inputs say.

    Attributes
    ----------
    node
        The recorded node.
    position
        Its number in the recorded graph.
    done
        How many linear maps have run by then.
    dim
        The dimension of its features: 1 behind convolutions, the last one behind other linear maps.
    """

    node: fx.Node
    position: int
    done: int
    dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As recorded, the batch first."""
        return tuple(int(size) for size in self.node.meta["val"].shape)


def bottlenecks(labelled: LabelledGraph, maps: Sequence[LinearMap]) -> list[Place]:
    """Every place behind some and before other linear maps, in the order of execution.

    Activations that no weight has touched (a mask that all layers read) may pass by.
    """
    nodes = list(labelled.graph.module.graph.nodes)
    order = {node: position for position, node in enumerate(nodes)}
    mapped = {one.node: one for one in maps}
    moved: set[fx.Node] = set()
    computed: set[fx.Node] = set()  # depend on the inputs and on some weight
    last = {source: order[node] for node in nodes for source in node.all_input_nodes}
    found: list[Place] = []
    live: set[fx.Node] = set()
    done, latest = 0, None
    for position, node in enumerate(nodes):
        if node.op == "placeholder":
            if node.name in labelled.graph.inputs:
                moved.add(node)
            continue
        if not any(source in moved for source in node.all_input_nodes):
            continue
        moved.add(node)
        done, latest = (done + 1, mapped[node]) if node in mapped else (done, latest)
        weighted = any(source in computed or source not in moved for source in node.all_input_nodes)
        if weighted:
            computed.add(node)
            live.add(node)
        live = {one for one in live if last.get(one, -1) > position}
        if live == {node} and latest is not None and done < len(maps) and _usable(labelled, node):
            ndim = node.meta["val"].ndim
            found.append(Place(node, position, done, 1 if latest.kind == "conv" else ndim - 1))
    return found


def _usable(labelled: LabelledGraph, node: fx.Node) -> bool:
    """Whether it is a float tensor of features per example."""
    value, known = node.meta.get("val"), labelled.values.get(node)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return False
    return isinstance(known, Value) and labelled.has_batch(known.labels[0])


def spread(places: Sequence[Place], count: int, total: int) -> list[Place]:
    """``count`` places that cut ``total`` linear maps into parts as equal as can be; of equals the latest.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    chosen: dict[int, Place] = {}
    for number in range(1, count + 1):
        wanted = total * number / (count + 1)
        left = [place for place in places if place.done not in chosen]
        if not left:
            raise ValueError(
                f"Expected a network with {count} places for auxiliary heads. Got {number - 1}: everything has to flow "
                f"through one activation there. Use heads={number - 1}."
            )
        best = min(left, key=lambda place: (abs(place.done - wanted), -place.position))
        chosen[best.done] = best
    return sorted(chosen.values(), key=lambda place: place.position)


class AuxiliaryHead(nn.Module):
    """Batch norm, ReLU, mean over positions, linear: features ``(N, C, ...)`` in, answers ``(N, *outputs)`` out.

    Parameters
    ----------
    width
        C.
    dim
        Dimension of the features.
    outputs
        Shape of an answer.
    pooled
        Whether to take the mean over positions; without, each position has an answer of its own.
    """

    def __init__(self, width: int, dim: int, outputs: tuple[int, ...], pooled: bool) -> None:
        super().__init__()
        self.dim, self.outputs, self.pooled = dim, outputs, pooled
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, prod(outputs) if pooled else outputs[-1])

    @classmethod
    def at(cls, place: Place, answer: tuple[int, ...]) -> AuxiliaryHead:
        """A head at a place of a network whose answers have the shape ``answer``, batch first.

        Raises
        ------
        ValueError
            If answers are neither one per example nor one per position of the place.
        """
        shape = place.shape
        positions = tuple(size for dim, size in enumerate(shape) if dim not in (0, place.dim))
        by_position = len(answer) == len(shape) > 2 and place.dim == len(shape) - 1 and answer[1:-1] == positions
        if not by_position and len(answer) > 2:
            raise ValueError(
                f"Expected answers of shape (N, K), or one for each token. Got {answer} with activations of {shape}. "
                "Use heads=0: the network's own loss then judges every layer."
            )
        return cls(shape[place.dim], place.dim, answer[1:], not by_position)

    def forward(self, x: Tensor) -> Tensor:
        """Answer, per example or per position."""
        features = x.movedim(self.dim, 1)
        positions = features.shape[2:]
        hidden = F.relu(self.norm(features.flatten(2) if positions else features))
        if self.pooled:
            pooled = hidden.mean(2) if positions else hidden
            return self.linear(pooled).reshape(len(x), *self.outputs)
        return self.linear(hidden.transpose(1, 2)).reshape(len(x), *positions, -1)


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss that looks at some nodes of the network: a head's, or the network's own.

    Attributes
    ----------
    nodes
        Recorded nodes it needs.
    value
        ``value(values of the nodes, targets)``: mean over the examples.
    """

    nodes: tuple[fx.Node, ...]
    value: Callable[[list[Any], Any], Tensor]


def head_objective(place: Place, head: AuxiliaryHead, loss: Loss) -> Objective:
    """The loss of a head."""
    return Objective((place.node,), lambda values, targets: loss(head(values[0]), targets))


def final_objective(labelled: LabelledGraph, loss: Loss) -> Objective:
    """The network's own loss."""
    leaves = labelled.graph.outputs
    nodes = tuple(leaf for leaf in leaves if isinstance(leaf, fx.Node))

    def value(values: list[Any], targets: Any) -> Tensor:
        known = iter(values)
        outputs = [next(known) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        return loss(torch.utils._pytree.tree_unflatten(outputs, labelled.graph.out_spec), targets)

    return Objective(nodes, value)
