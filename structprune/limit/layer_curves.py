"""What cutting each layer alone costs by the generic law, with the exact eigenvalues of layer-wise curvature."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from solvers.effective_dimension import Spectrum
from solvers.pruning_threshold import generic_loss
from structprune.limit.layerwise import Layer, Layerwise
from structprune.limit.value import LayerCurve

__all__ = ["generic_curve", "layer_curves"]

POINTS = 17


def generic_curve(layer: Layer, weight: Tensor, counts: np.ndarray) -> np.ndarray:
    """Loss in nats when the ``counts`` largest weights of a layer stay and are updated, ``(n,)``.

    E(k) = 1/2 R(k)^2 mu_k k / (d - k), d the layer's weights that are not dead.
    """
    values = weight.detach().double().flatten().cpu().numpy()
    alive = layer.seen.cpu().numpy() | (values != 0)
    squares = np.sort(np.square(values))[::-1]
    rest = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    spectrum = Spectrum.of_eigenvalues(layer.eigenvalues)
    size = int(alive.sum())
    found = [generic_loss(float(k), float(rest[k]), spectrum, size) for k in counts]
    # The law has a pole at k = d; a larger support never loses more.
    return np.minimum.accumulate(np.asarray(found))


def layer_curves(curvature: Layerwise, here: Tensor) -> tuple[LayerCurve, ...]:
    """A curve of every layer at a few sizes."""
    found = []
    weights = curvature.layout.split(here)
    for layer in curvature.layers:
        size = weights[layer.name].numel()
        counts = np.unique(np.linspace(0, size, min(POINTS, size + 1)).astype(int))
        losses = generic_curve(layer, weights[layer.name], counts)
        losses[0] = max(losses[0], _emptied(layer, weights[layer.name]))
        pairs = tuple((int(k), float(loss)) for k, loss in zip(counts, losses, strict=True))
        found.append(LayerCurve(layer.name, size, pairs))
    return tuple(found)


def _emptied(layer: Layer, weight: Tensor) -> float:
    """Loss of an empty layer: nothing is left to update."""
    return 0.5 * float((weight.double() * layer.product(weight).double()).sum())
