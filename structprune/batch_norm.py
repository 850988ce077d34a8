"""Batch norm statistics for what a pruned network now sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.axes.linear_maps import BATCH_NORM
from structprune.axes.sweep import Sweep, sweep
from structprune.structures import Structures
from structprune.tensors import named_tensors, under_every_name

__all__ = ["recalibrate"]


def recalibrate(
    model: nn.Module, structures: Structures, selection: np.ndarray, inputs: list[Any]
) -> dict[str, Tensor]:
    """Running means and variances of the masked network, measured on ``inputs`` layer after layer.

    Returns new values of the statistics by name; empty for a network without batch norm. The mean over all inputs
    replaces the running average, as training mode with ``momentum=None`` would give.
    """
    labelled = structures.labelled
    nodes = [] if labelled is None else [n for n in labelled.graph.module.graph.nodes if n.target == BATCH_NORM]
    if labelled is None or not nodes:
        return {}
    named = named_tensors(model)
    masks = under_every_name(structures.masks(selection), model)
    weights = {
        name: tensor.detach() * masks[name].to(tensor.device) if name in masks else tensor.detach()
        for name, tensor in named.items()
    }
    state = Sweep(labelled, weights, inputs)
    changed: dict[str, Tensor] = {}

    def measure(node: fx.Node) -> None:
        for name, tensor in _statistics(node, labelled.graph.tensors, state).items():
            weights[name] = changed[name] = tensor * masks[name].to(tensor.device) if name in masks else tensor

    hooks: dict[fx.Node, Callable[[], None]] = {node: partial(measure, node) for node in nodes}
    sweep([state], hooks)
    return changed


def _statistics(node: fx.Node, tensors: dict[str, str], state: Sweep) -> dict[str, Tensor]:
    source, mean_node, var_node = node.args[0], node.args[3], node.args[4]
    assert isinstance(source, fx.Node) and isinstance(mean_node, fx.Node) and isinstance(var_node, fx.Node)
    if mean_node.name not in tensors or var_node.name not in tensors:
        return {}
    old = state.weights[tensors[mean_node.name]]
    total = torch.zeros_like(old, dtype=torch.float64)
    square = torch.zeros_like(total)
    count = 0
    for value in state.batches(source):
        flat = value.transpose(0, 1).flatten(1).double()
        count += flat.shape[1]
        total += flat.sum(1)
        square += flat.square().sum(1)
    mean = total / count
    # Unbiased, as batch norm keeps it in training.
    variance = (square / count - mean.square()).clamp(min=0) * (count / max(count - 1, 1))
    return {tensors[mean_node.name]: mean.to(old), tensors[var_node.name]: variance.to(old)}
