"""A certified bound inside one layer: how many of its inputs must stay, whatever the other weights become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from solvers.fewest_groups import LARGEST, GroupsBound, fewest_groups
from structprune.data import Loss
from structprune.limit.given import checked_loss
from structprune.limit.layerwise import Layer, layerwise
from structprune.structures import channels

__all__ = ["fewest_inputs"]


def fewest_inputs(
    model: nn.Module,
    data: Any,
    layer: str,
    epsilon: float,
    loss: Loss | None = None,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    example: Any = None,
    seed: int = 0,
) -> GroupsBound:
    """At least so many inputs of a layer must stay for its quadratic loss to rise by at most epsilon.

    The layer's outputs are compared with the dense ones, weighted by what they matter to the loss; the kept weights may
    take any values. The bound is a lower one for that quadratic model, from a dual solution that is checked here, not
    for the network's real loss.

    Parameters
    ----------
    model, data, loss, example
        As in :func:`structprune.limit.pruning_limit`.
    layer
        Name of the layer's weight, such as 'fc2.weight'.
    epsilon
        Allowed rise, in nats.
    groups
        Disjoint lists of columns of the weight (inputs times taps) that stay or go together; by default every input
        channel with its taps.

    Raises
    ------
    ValueError
        If there is no such layer, it is a grouped convolution, or has more columns than the conic program takes.
    """
    at = checked_loss(model, data, loss)
    batches = [(inputs, targets) for inputs, targets, _ in at.batches]
    labelled = channels(model, batches[0][0] if example is None else example).labelled
    assert labelled is not None
    found = layerwise(model, labelled, [inputs for inputs, _ in batches], batches, at.loss, seed)
    named = {one.name: one for one in found.layers}
    if layer not in named:
        raise ValueError(f"Expected one of {sorted(named)[:6]}. Got {layer!r}. Name the weight of a linear map.")
    one = named[layer]
    weight = dict(model.named_parameters())[layer].detach()
    return _bound(one, weight, epsilon, groups)


def _bound(one: Layer, weight: torch.Tensor, epsilon: float, groups: Sequence[Sequence[int]] | None) -> GroupsBound:
    if len(one.moments) > 1:
        raise ValueError(f"Expected a layer with one group of inputs. Got {len(one.moments)}. Bound another layer.")
    matrix = one.matrix(weight)[0].double().cpu().numpy()
    moment = one.moments[0].double().cpu().numpy()
    moment = (moment + moment.T) / 2
    columns = matrix.shape[1]
    if columns > LARGEST:
        raise ValueError(f"Expected at most {LARGEST} columns. Got {columns}. Bound a smaller layer.")
    if groups is None:
        taps = 1 if one.transposed else int(np.prod(weight.shape[2:]))
        groups = [list(range(start, start + taps)) for start in range(0, columns, taps)]
    # Only W' diag(e) W matters: rows may be turned, and the least of them left out, which lowers the loss and so keeps
    # the bound valid.
    scaled = matrix * np.sqrt(one.sensitivity.double().cpu().numpy())[:, None]
    _, sizes, turned = np.linalg.svd(scaled, full_matrices=False)
    rows = min(len(sizes), max(1, LARGEST // columns))
    reduced = sizes[:rows, None] * turned[:rows]
    quadratic = np.kron(np.eye(rows), moment)
    places = [np.concatenate([np.asarray(group) + row * columns for row in range(rows)]) for group in groups]
    return fewest_groups(quadratic, reduced.ravel(), places, epsilon)
