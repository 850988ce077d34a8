"""Curves by the generic law of the pruning limit, for the allocation solver: what a width costs, without probing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from solvers.effective_dimension import Spectrum
from solvers.pruning_threshold import generic_loss
from structprune.criteria.fisher import Fisher
from structprune.criteria.gradients import batches, needed, valid_examples
from structprune.criteria.scores import Curve, Data, Scores, finite_scores
from structprune.data import Loss
from structprune.limit.layerwise import Layer, layerwise
from structprune.limit.path import input_dimensions
from structprune.structures import Axis, ChannelAxis, EntryAxis, Structures, channels

__all__ = ["LimitPrior"]

WIDTHS = 33


@dataclass(frozen=True)
class LimitPrior:
    """Loss in nats of keeping the largest structures of an axis and updating the rest of the layer, generically.

    E(k) = 1/2 R(k)^2 mu_k k / (d - k), N(mu_k) = k, for every layer that reads the axis, with the exact eigenvalues of
    its layer-wise curvature. Needs one pass through the data and one eigendecomposition per layer; knows nothing of how
    the weights lie to the eigenvectors (layer reconstruction does). Axes that no linear map reads get their Fisher
    loss.

    Parameters
    ----------
    examples
        How many examples of the data are used, at most.
    seed
        For sampled positions and labels.
    """

    examples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        valid_examples(self.examples)

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        """Score structures of any kind.

        Raises
        ------
        ValueError
            If data or loss is missing.
        """
        data, loss = needed("LimitPrior", data, loss)
        drawn = [(inputs, targets) for inputs, targets, _ in batches(data, model, self.examples)]
        labelled = structures.labelled or channels(model, drawn[0][0]).labelled
        assert labelled is not None
        curvature = layerwise(model, labelled, [inputs for inputs, _ in drawn], drawn, loss, self.seed)
        named = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
        layers = {id(named[layer.name]): layer for layer in curvature.layers}
        curves, values, missing = {}, np.zeros(structures.n), []
        for number, axis in enumerate(structures.axes):
            readers = list(_readers(axis, structures, named, layers))
            if not readers:
                missing.append(number)
                continue
            order = axis.order(np.sum([energy for _, _, energy in readers], axis=0))
            losses = np.sum([_losses(layer, size[order], energy[order]) for layer, size, energy in readers], axis=0)
            curves[number] = Curve(order, losses)
            values[axis.start + order] = -np.diff(losses)
        notes = []
        if missing:
            fisher = Fisher(examples=min(self.examples, 256))(model, structures, data, loss).values
            for number in missing:
                values[structures.axes[number].entries] = fisher[structures.axes[number].entries]
            names = [structures.axes[number].name for number in missing]
            notes.append(f"no linear map reads {', '.join(names[:4])}{' ...' if names[4:] else ''}: Fisher loss")
        return Scores(finite_scores(values, structures, model, "nats").values, curves, "nats", tuple(notes))


def _readers(
    axis: Axis, structures: Structures, named: dict[str, Tensor], layers: dict[int, Layer]
) -> Iterator[tuple[Layer, np.ndarray, np.ndarray]]:
    """Every layer that loses weights with the axis' structures: how many, and of what energy, each ``(size,)``."""
    inputs = input_dimensions(structures)
    seen: set[int] = set()
    for name in axis.tensors():
        tensor = named.get(name)
        layer = None if tensor is None else layers.get(id(tensor))
        if tensor is None or layer is None or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        part: Axis | None = axis if isinstance(axis, EntryAxis) else None
        if isinstance(axis, ChannelAxis):
            members = tuple(m for m in axis.members if m.tensor == name and (m.tensor, m.dim) in inputs)
            part = replace(axis, members=members) if members else None
        if part is not None:
            yield layer, part.sum({name: torch.ones_like(tensor)}), part.sum({name: tensor.double().square()})


def _losses(layer: Layer, sizes: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Loss when the first x structures stay, ``(size + 1,)``; between a few widths by straight lines."""
    spectrum = Spectrum.of_eigenvalues(layer.eigenvalues)
    total = spectrum.size
    removed = np.append(np.cumsum(sizes[::-1])[::-1], 0.0)
    lost = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    widths = np.unique(np.linspace(0, len(sizes), min(WIDTHS, len(sizes) + 1)).astype(int))
    found = [generic_loss(float(total - removed[x]), float(lost[x]), spectrum, total) for x in widths]
    # Where the kept part is nearly all, the law has a pole; a larger support never loses more.
    falling = np.minimum.accumulate(np.asarray(found))
    falling[-1] = 0.0
    return np.asarray(np.interp(np.arange(len(sizes) + 1), widths, falling))
