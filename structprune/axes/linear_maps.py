"""The operators that multiply an activation by a weight: where the reconstruction refits and blocks are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from structprune.axes.labels import Label
from structprune.axes.propagate import LabelledGraph

__all__ = ["BATCH_NORM", "LinearMap", "linear_maps"]

aten = torch.ops.aten
MOVES = (aten.permute.default, aten.t.default, aten.transpose.int, aten.alias.default, aten.clone.default)

#: Batch norm with running statistics: a linear map per channel, whose parameters are its arguments 1 to 4.
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class LinearMap:
    """One use of a weight: ``output = input (*) weight + bias``.

    Attributes
    ----------
    node, source, weight, bias
        The operator, its activation, and the names of its parameters.
    input_label
        Label of the contracted dimension of the activation (all groups side by side).
    transposed
        Whether the weight is stored as (inputs, outputs).
    kind
        'linear' or 'conv'.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    input_label: Label
    transposed: bool
    kind: str


def linear_maps(labelled: LabelledGraph) -> list[LinearMap]:
    """Every use of a parameter as the matrix of a linear map, in the order of execution."""
    found = []
    for node in labelled.graph.module.graph.nodes:
        made = _read(labelled, node) if node.op == "call_function" else None
        if made is not None:
            found.append(made)
    return found


def _read(labelled: LabelledGraph, node: fx.Node) -> LinearMap | None:
    args: Any = node.args
    if node.target == aten.convolution.default:
        source, weight, bias = args[0], args[1], args[2]
        label_dim, kind, transposed = 1, "conv", bool(args[6])
    elif node.target == aten.linear.default:
        source, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
        label_dim, kind, transposed = -1, "linear", False
    elif node.target in (aten.mm.default, aten.matmul.default):
        (source, weight), bias = args[:2], None
        label_dim, kind, transposed = -1, "linear", True
    elif node.target == aten.addmm.default and node.kwargs in ({}, {"beta": 1, "alpha": 1}):
        bias, source, weight = args[:3]
        label_dim, kind, transposed = -1, "linear", True
    else:
        return None
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    name, flips = _parameter(labelled, weight)
    bias_name = _parameter(labelled, bias)[0] if isinstance(bias, fx.Node) else None
    if name is None or (bias is not None and bias_name is None):
        return None
    label = labelled.values[source].labels[label_dim]
    return LinearMap(node, source, name, bias_name, label, transposed ^ flips, kind)


def _parameter(labelled: LabelledGraph, node: fx.Node) -> tuple[str | None, bool]:
    """The parameter that ``node`` is, up to transposition, and whether it is transposed."""
    flips = False
    while node.op == "call_function" and node.target in MOVES:
        if node.target in (aten.permute.default, aten.t.default, aten.transpose.int):
            if len(labelled.values[node].labels) != 2:
                return None, False
            order = list(node.args[1]) if node.target == aten.permute.default else [1, 0]  # type: ignore[arg-type]
            flips ^= order in ([1, 0], [-1, -2])
        node = node.args[0]  # type: ignore[assignment]
    if node.op == "placeholder" and node.name in labelled.graph.tensors:
        return labelled.graph.tensors[node.name], flips
    return None, False
