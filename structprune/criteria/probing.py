"""Measure what one axis costs at a few widths, and scale its estimated loss curve to agree."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.elimination import Elimination, QuadraticMap
from structprune.axes.linear_maps import LinearMap
from structprune.axes.rewrite import flat_arguments, rewrite
from structprune.axes.sweep import leaves_of
from structprune.criteria.gradients import batches
from structprune.criteria.moments import convolution_arguments
from structprune.criteria.scores import Data
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Consumer", "Probe", "matrices"]

MOST_MACS = 1e13
"""Multiplications spent on all probes together; decides on how many examples they run."""

MOST_EXAMPLES = 64
"""More would sharpen the scale of a curve, not its shape."""

LEAST_FACTOR = 1e-3
"""A measured rise below this share of the estimate, or a fall, is chance: it must not make an axis free to cut."""


@dataclass(frozen=True)
class Consumer:
    """A linear map (one group of it) whose inputs an axis is.

    Attributes
    ----------
    matrix, moment, groups
        As in :class:`solvers.elimination.QuadraticMap`, rows not scaled.
    cost
        What a squared error in each output costs, ``(m,)``, nats.
    """

    one: LinearMap
    part: int
    matrix: np.ndarray
    moment: np.ndarray
    groups: np.ndarray
    cost: np.ndarray

    def costed(self) -> QuadraticMap:
        """The map with its rows scaled, so that errors add up in nats."""
        return QuadraticMap(self.matrix * np.sqrt(self.cost)[:, None], self.moment, self.groups)

    def fitted(self, kept: np.ndarray) -> np.ndarray:
        """The matrix that keeps only the structures ``kept`` and gives the same outputs best, zeros elsewhere."""
        columns = np.sort(self.groups[kept].ravel())
        others = np.setdiff1d(np.arange(self.matrix.shape[1]), self.groups.ravel())
        columns = np.union1d(columns, others)
        target = self.matrix @ self.moment[:, columns]
        result = np.zeros_like(self.matrix)
        result[:, columns] = np.linalg.solve(self.moment[np.ix_(columns, columns)], target.T).T
        return result


def matrices(one: LinearMap, weights: dict[str, Tensor]) -> list[np.ndarray]:
    """The map's weight as (outputs, inputs x taps) matrices, one per convolution group."""
    weight = weights[one.weight].double().cpu()
    if one.kind == "linear":
        return [(weight.T if one.transposed else weight).numpy()]
    groups = convolution_arguments(one)[3]
    return list(weight.reshape(groups, weight.shape[0] // groups, -1).numpy())


class Probe:
    """Runs the network with a few weights replaced and compares its outputs with the dense ones."""

    def __init__(
        self,
        structures: Structures,
        model: nn.Module,
        weights: dict[str, Tensor],
        data: Data,
        loss: Loss,
        widths: int,
        examples: int,
    ) -> None:
        assert structures.labelled is not None
        self._labelled = structures.labelled
        self._weights = weights
        self._loss = loss
        self._widths = widths
        self._flat, _ = rewrite(structures.labelled, np.zeros(0, dtype=np.int64))
        multiplications = [c.factor * prod(len(label) for label in c.dims) for c in self._labelled.contractions]
        per_example = sum(multiplications) / max(len(self._labelled.batch), 1)
        affordable = int(MOST_MACS / (max(per_example, 1) * max(len(structures.axes), 1) * widths))
        some = min(max(affordable, 16), examples, MOST_EXAMPLES)
        self._batches = [(leaves_of(inputs), targets) for inputs, targets, _ in batches(data, model, some)]
        self._dense = [self._outputs(leaves, weights) for leaves, _ in self._batches]

    def calibrated(self, found: Elimination, consumers: list[Consumer]) -> np.ndarray:
        """The loss curve ``(size + 1,)`` scaled through the measured widths, made non-increasing in the width."""
        size = len(found.order)
        widths = np.unique(np.round(size * np.linspace(0.1, 0.85, self._widths)).astype(int).clip(0, size - 1))
        factors = []
        for width in widths:
            measured = self._measure(consumers, found.order[:width])
            factors.append(max(measured / max(found.loss[width], 1e-12), LEAST_FACTOR))
        scale = np.exp(np.interp(np.arange(size + 1), widths, np.log(factors)))
        return np.maximum.accumulate((found.loss * scale)[::-1])[::-1]

    @torch.no_grad()
    def _measure(self, consumers: list[Consumer], kept: np.ndarray) -> float:
        weights = dict(self._weights)
        for consumer in consumers:
            name = consumer.one.weight
            old = weights[name]
            parts = [part.copy() for part in matrices(consumer.one, weights)]
            parts[consumer.part] = consumer.fitted(kept)
            whole = np.concatenate(parts)
            whole = whole.T if consumer.one.kind == "linear" and consumer.one.transposed else whole
            weights[name] = torch.from_numpy(np.ascontiguousarray(whole)).reshape(old.shape).to(old)
        total, count = 0.0, 0
        for (leaves, targets), dense in zip(self._batches, self._dense, strict=True):
            size = len(leaves[0])
            total += self._divergence(dense, self._outputs(leaves, weights), targets) * size
            count += size
        return total / count

    @torch.no_grad()
    def _outputs(self, leaves: list[Any], weights: dict[str, Tensor]) -> Any:
        outputs = self._flat(*flat_arguments(self._flat, self._labelled, weights, leaves))
        return torch.utils._pytree.tree_unflatten(list(outputs), self._labelled.graph.out_spec)

    def _divergence(self, dense: Any, pruned: Any, targets: Any) -> float:
        """Kullback-Leibler divergence from the dense predictions where there are classes, else the rise of the loss."""
        classes = isinstance(dense, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point()
        if classes and dense.ndim == targets.ndim + 1:
            before, after = dense.float().log_softmax(1), pruned.float().log_softmax(1)
            return float((before.exp() * (before - after)).sum(1).mean())
        return float(self._loss(pruned, targets) - self._loss(dense, targets))
