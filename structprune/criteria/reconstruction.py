"""Layer reconstruction: what the next layers lose in nats when channels go and their weights are fitted anew.

An axis is consumed by linear maps (convolutions and matrix products). Removing channels changes what these maps
give; the other weights make up for it as well as least squares can. The loss of a change D of a map's weight is
taken as

    1/2 sum_o E[g_o^2]  E[(D_o x)^2],

with g the gradient of the loss with respect to the map's outputs: the Gauss-Newton loss with output covariances
reduced to their diagonal (after K-FAC, Martens and Grosse 2015), so that layers compare in nats. Groups are removed
by second-order elimination with exact updates (Hassibi and Stork 1993).

That is a local estimate. Each curve is then scaled to pass through a few measurements: the network with this one axis
cut and its consumers fitted, compared with the dense network on the data (``probes``).

The re-fit walks through the network once, dense and pruned side by side: every map after the first cut is fitted to
give the dense outputs from the pruned inputs, which also repairs what earlier layers got wrong (:mod:`.refit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from solvers.elimination import eliminate
from structprune.axes.linear_maps import LinearMap, linear_maps
from structprune.axes.sweep import Sweep, affordable, sweep
from structprune.criteria.fisher import Fisher
from structprune.criteria.gradients import batches, differentiable, needed, valid_examples
from structprune.criteria.moments import input_moments, output_sensitivity
from structprune.criteria.probing import Consumer, Probe, matrices
from structprune.criteria.refit import Fitted, fit, fitted_maps
from structprune.criteria.scores import Curve, Data, Scores, finite_scores
from structprune.data import Loss
from structprune.progress import track
from structprune.structures import Structures
from structprune.tensors import first_names, named_tensors, under_every_name

__all__ = ["LayerReconstruction"]


@dataclass(frozen=True)
class LayerReconstruction:
    """Scores and loss curves by layer-wise second-order elimination; re-fits the surviving weights.

    Parameters
    ----------
    examples
        How many examples of the data are used, at most.
    damping
        Added to the second moments' diagonal, as a fraction of its mean.
    probes
        Number of widths per axis at which the loss is measured rather than estimated; 0 for none.
    refit
        Whether to offer new weights.
    seed
        For the sampled positions and labels.
    """

    examples: int = 1024
    damping: float = 1e-2
    probes: int = 4
    refit: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        valid_examples(self.examples)
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 0:
            raise ValueError(f"Expected probes to be an integer >= 0. Got {self.probes!r}. Use 4, or 0 for none.")
        if not 0 < self.damping < 1:
            raise ValueError(f"Expected damping between 0 and 1. Got {self.damping}. Use for instance 0.01.")

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        """Score the channels of ``structures``.

        Axes that no linear map consumes (queries and keys of attention) are scored by their Fisher loss instead.

        Raises
        ------
        ValueError
            If data or loss is missing, or the structures are not channels.
        """
        data, loss = needed("LayerReconstruction", data, loss)
        if structures.kind != "channels" or structures.labelled is None:
            raise ValueError(f"Expected channels. Got {structures.kind}. Use Fisher() or Magnitude() for them.")
        with differentiable(model, {}):  # for its random state: a loader that shuffles gives the same every time
            return self._scores(model, structures, data, loss)

    def _scores(self, model: nn.Module, structures: Structures, data: Data, loss: Loss) -> Scores:
        assert structures.labelled is not None
        weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
        drawn = [(batch, count) for batch, _, count in batches(data, model, self.examples)]
        inputs, examples = [batch for batch, _ in drawn], sum(count for _, count in drawn)
        maps = [one for one in linear_maps(structures.labelled) if not one.transposed or one.kind == "linear"]
        sensitivity = output_sensitivity(structures.labelled, model, maps, data, loss, self.examples, self.seed)
        moments = input_moments(structures.labelled, weights, inputs, examples, maps, self.seed)
        curves: dict[int, Curve] = {}
        values = np.zeros(structures.n)
        missing = []
        probe = Probe(structures, model, weights, data, loss, self.probes, self.examples) if self.probes else None
        for number, axis in track(list(enumerate(structures.axes)), "eliminating channels"):
            ids = structures.found[number].ids
            consumers = _consumers(structures, ids, maps, moments, sensitivity, weights, self.damping)
            if not consumers:
                missing.append(number)
                continue
            found = eliminate([consumer.costed() for consumer in consumers])
            losses = found.loss if probe is None else probe.calibrated(found, consumers)
            curves[number] = Curve(found.order, losses)
            values[axis.start + found.order] = -np.diff(losses)
        notes: tuple[str, ...] = ()
        if missing:
            fisher = Fisher(examples=min(self.examples, 256))(model, structures, data, loss).values
            names = [structures.axes[number].name for number in missing]
            for number in missing:
                values[structures.axes[number].entries] = fisher[structures.axes[number].entries]
            notes = (
                f"no linear map consumes {', '.join(names[:4])}{' ...' if names[4:] else ''}: scored by Fisher loss",
            )
        scores = finite_scores(values, structures, model, "nats", *notes)
        own = fitted_maps(structures, maps, first_names(model))
        refit = partial(self._refit, model, structures, weights, inputs, own) if self.refit else None
        return Scores(scores.values, curves, "nats", notes, refit)

    def _refit(
        self,
        model: nn.Module,
        structures: Structures,
        weights: dict[str, Tensor],
        inputs: list[Any],
        maps: list[Fitted],
        selection: np.ndarray,
    ) -> dict[str, Tensor]:
        """New weights and intercepts, fitted layer by layer in the order of execution."""
        assert structures.labelled is not None
        masks = under_every_name(structures.masks(selection), model)
        pruned = {
            name: tensor * masks[name].to(tensor.device) if name in masks else tensor
            for name, tensor in weights.items()
        }
        inputs = list(affordable(structures.labelled, inputs, copies=2))
        dense_state = Sweep(structures.labelled, weights, inputs)
        state = Sweep(structures.labelled, pruned, inputs)
        changed: dict[str, Tensor] = {}
        hooks: dict[fx.Node, Callable[[], None]] = {}

        def renew(one: Fitted) -> None:
            found = fit(one, dense_state, state, self.damping, self.seed)
            for name, tensor in found.items():
                pruned[name] = changed[name] = tensor * masks[name].to(tensor.device) if name in masks else tensor

        for one in maps:
            hooks[one.map.node] = partial(renew, one)
        sweep([dense_state, state], hooks)
        return changed


def _consumers(
    structures: Structures,
    ids: np.ndarray,
    maps: list[LinearMap],
    moments: dict[fx.Node, np.ndarray],
    sensitivity: dict[fx.Node, np.ndarray],
    weights: dict[str, Tensor],
    damping: float,
) -> list[Consumer]:
    """The linear maps whose inputs the structures with ``ids`` are."""
    assert structures.labelled is not None
    consumers = []
    for one in maps:
        rows = structures.labelled.norm(one.input_label)
        where, columns = np.nonzero(np.isin(rows, ids)) if rows.shape[1] else (np.zeros(0, int), None)
        if not len(where) or one.node not in sensitivity:
            continue
        owner = np.searchsorted(np.sort(ids), rows[where, columns])
        owner = np.argsort(ids, kind="stable")[owner]
        for part, (matrix, moment) in enumerate(zip(matrices(one, weights), moments[one.node], strict=True)):
            taps = matrix.shape[1] * len(moments[one.node]) // len(rows)
            per_part = len(rows) // len(moments[one.node])
            inside = (where >= part * per_part) & (where < (part + 1) * per_part)
            counts = np.bincount(owner[inside], minlength=len(ids))
            if counts.min() == 0 or counts.min() != counts.max():
                continue  # a whole group of a grouped convolution: its outputs go with it
            local = where[inside][np.argsort(owner[inside], kind="stable")].reshape(len(ids), -1) - part * per_part
            groups = (local[:, :, None] * taps + np.arange(taps)).reshape(len(ids), -1)
            outputs = len(matrix)
            cost = sensitivity[one.node][part * outputs : (part + 1) * outputs]
            damped = moment + damping * max(float(np.mean(np.diag(moment))), 1e-12) * np.eye(len(moment))
            consumers.append(Consumer(one, part, matrix, damped, groups, cost))
    return consumers
