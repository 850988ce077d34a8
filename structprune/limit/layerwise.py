"""Curvature layer by layer: block diagonal, with every eigenvalue known.

For a linear map with input x and output y the loss of a change D of its weight is taken as

    1/2 sum_o E[g_o^2] E[(D_o x)^2],    so that    H = diag(E[g_o^2]) (x) E[x x']

in nats, with g the gradient of the loss by the outputs (K-FAC, Martens and Grosse 2015, with the outputs' covariance
reduced to its diagonal): the same loss that layer reconstruction allocates by. One eigendecomposition per layer gives
all eigenvalues; a product costs two small matrix products. It does not ask for a stationary point, because the layers'
outputs, not the loss, are compared with those of the dense network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.effective_dimension import Spectrum
from structprune.axes.linear_maps import LinearMap, linear_maps
from structprune.axes.propagate import LabelledGraph
from structprune.criteria.moments import input_moments, output_sensitivity
from structprune.data import Loss, batch_size
from structprune.limit.layout import Layout
from structprune.tensors import first_names, named_tensors

__all__ = ["Layer", "Layerwise", "layerwise"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight and its curvature.

    Attributes
    ----------
    name
        The parameter's name.
    transposed
        Whether it is stored as (inputs, outputs).
    sensitivity
        E[g_o^2] per output, ``(outputs,)``.
    moments
        E[sum over positions of x x'], ``(groups, columns, columns)``, columns = inputs of a group times taps.
    """

    name: str
    transposed: bool
    sensitivity: Tensor
    moments: Tensor

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, outputs of a group, columns)``."""
        rows = weight.T if self.transposed else weight.flatten(1)
        return rows.reshape(len(self.moments), -1, self.moments.shape[1])

    def product(self, weight: Tensor) -> Tensor:
        """Curvature times a change of the weight, in the weight's shape."""
        image = self.matrix(weight).to(self.moments.dtype) @ self.moments  # halves are too coarse to sum in
        image = (image.flatten(0, 1) * self.sensitivity[:, None]).to(weight.dtype)
        return image.T.reshape(weight.shape) if self.transposed else image.reshape(weight.shape)

    @cached_property
    def eigenvalues(self) -> np.ndarray:
        """All of them, one per weight."""
        values = np.maximum(np.linalg.eigvalsh(self.moments.double().cpu().numpy()), 0.0)
        values[values < 1e-12 * values.max(axis=1, keepdims=True)] = 0.0
        outputs = self.sensitivity.double().cpu().numpy().reshape(len(values), -1)
        return np.asarray((outputs[:, :, None] * values[:, None, :]).ravel())

    @property
    def seen(self) -> Tensor:
        """Boolean, flat in the weight's order: entries that have any curvature."""
        inputs = self.moments.diagonal(dim1=1, dim2=2) > 0  # (groups, columns)
        outputs = (self.sensitivity > 0).reshape(len(self.moments), -1)
        grid = (outputs[:, :, None] & inputs[:, None, :]).flatten(0, 1)
        return (grid.T if self.transposed else grid).reshape(-1)


@dataclass(frozen=True, eq=False)
class Layerwise:
    """The operator of all layers; parameters of no layer have no curvature."""

    layout: Layout
    layers: tuple[Layer, ...]

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with ``(D,)``."""
        parts = self.layout.split(vector)
        image = {name: torch.zeros_like(part) for name, part in parts.items()}
        for layer in self.layers:
            image[layer.name] = layer.product(parts[layer.name])
        return self.layout.flat(image)

    def spectrum(self) -> Spectrum:
        """Every eigenvalue."""
        return Spectrum.of_eigenvalues(
            np.concatenate([layer.eigenvalues for layer in self.layers]), size=self.layout.size
        )


def layerwise(
    model: nn.Module,
    labelled: LabelledGraph,
    inputs: Sequence[Any],
    data: Sequence[tuple[Any, Any]],
    loss: Loss,
    seed: int = 0,
) -> Layerwise:
    """Read the layers' inputs and what their outputs matter to the loss.

    Parameters
    ----------
    model, labelled
        The network and its trace.
    inputs, data
        The batches' inputs, and the batches.
    loss
        Mean nats per example.
    seed
        For sampled positions of convolutions and for targets drawn from the predictions.

    Raises
    ------
    ValueError
        If no linear map was found.
    """
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    maps = [one for one in linear_maps(labelled) if not one.transposed or one.kind == "linear"]
    if not maps:
        raise ValueError(
            f"Expected convolutions or matrix products. Got none in {type(model).__name__}. Pass curvature='ggn'."
        )
    examples = sum(_count(batch) for batch in data)
    sensitivity = output_sensitivity(labelled, model, maps, data, loss, examples, seed)
    moments = input_moments(labelled, weights, list(inputs), examples, maps, seed)
    first = first_names(model)
    layout = Layout.of(model)
    found: dict[str, Layer] = {}
    for one in maps:
        name = first[one.weight]
        if one.node in sensitivity and name in layout.names:
            found[name] = _layer(
                name, one, sensitivity[one.node], moments[one.node], weights[one.weight], found.get(name)
            )
    return Layerwise(layout, tuple(found.values()))


def _count(batch: tuple[Any, Any]) -> int:
    return batch_size((batch[1], batch[0]))


def _layer(
    name: str, one: LinearMap, sensitivity: np.ndarray, moments: np.ndarray, weight: Tensor, before: Layer | None
) -> Layer:
    """The layer of one use of a weight; further uses add their inputs, and outputs in proportion to them."""
    kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
    slopes = torch.from_numpy(sensitivity).to(weight.device, kind)
    seconds = torch.from_numpy(moments).to(weight.device, kind)
    if before is not None and before.moments.shape == seconds.shape:
        own, other = float(seconds.diagonal(dim1=1, dim2=2).sum()), float(before.moments.diagonal(dim1=1, dim2=2).sum())
        slopes = (slopes * own + before.sensitivity * other) / max(own + other, 1e-300)
        seconds = seconds + before.moments
    return Layer(name, one.transposed, slopes, seconds)
