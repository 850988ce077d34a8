"""What retraining reaches: the smallest support on a path whose retrained loss rises by no more than epsilon.

An upper estimate of the least size, never the least size itself: other supports and longer training may do better.
Every size that it names was measured, on the loss and the data that epsilon refers to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from structprune.data import Loss, batch_to, device_of, evaluate

__all__ = ["Point", "Retraining", "Supports", "Truth", "TruthLimit"]

CHUNK = 2500  # examples in memory at once where a step sees all of them

Batches = Sequence[tuple[Tensor, Tensor]]
Weights = Mapping[str, Tensor]


class Supports(Protocol):
    """Nested supports, the largest first.

    Attributes
    ----------
    kept
        Number of kept parameters at every position, never rising, ``(P,)``.
    total
        Number of all parameters.
    """

    @property
    def kept(self) -> np.ndarray: ...

    @property
    def total(self) -> int: ...

    def kept_mask(self, position: int) -> Mapping[str, Tensor]:
        """Per parameter that loses entries, a boolean mask of its shape, True = kept."""
        ...


@dataclass(frozen=True)
class Retraining:
    """Adam on the plain loss with a cosine schedule, the network in evaluation mode, what is removed held at zero.

    Attributes
    ----------
    epochs
        Passes over the data.
    batch
        Examples per step; None for all.
    rate
        Peak step size.
    checks
        How often, evenly spread, the loss on all the data is measured, to keep the best weights seen.
    chained
        Whether the retrained weights of the next larger support measured before are a second start. With them, small
        supports have been trained several times over.
    seed
        Decides the order of the examples.
    """

    epochs: int = 400
    batch: int | None = None
    rate: float = 0.003
    checks: int = 20
    chained: bool = True
    seed: int = 0

    @property
    def label(self) -> str:
        """How long survivors are trained, in words."""
        unit = "steps" if self.batch is None else "epochs"
        return f"{self.epochs:,} {unit if self.epochs != 1 else unit[:-1]}{', chained' if self.chained else ''}"

    def run(self, model: nn.Module, masks: Mapping[str, Tensor], data: Batches, loss: Loss) -> float:
        """Train `model` in place from the weights it has; it is left with the best ones seen, whose loss is returned.

        The start counts among those seen. Batch norm keeps its statistics: the loss that epsilon refers to is
        measured in evaluation mode too.
        """
        model.eval()
        inputs, targets = (torch.cat([batch[index] for batch in data]) for index in (0, 1))
        named = dict(model.named_parameters())
        device = device_of(model)
        kept = {name: mask.to(device) for name, mask in masks.items()}
        clip(model, kept)
        optimiser = torch.optim.Adam(named.values(), lr=self.rate)
        per_epoch = 1 if self.batch is None else -(-len(targets) // self.batch)
        steps = self.epochs * per_epoch
        every = max(1, steps // self.checks)
        best, weights = evaluate(model, data, loss).loss, copies(model)
        for number, pieces in enumerate(self._picks(len(targets)), start=1):
            optimiser.param_groups[0]["lr"] = 0.5 * self.rate * (1 + math.cos(math.pi * (number - 1) / steps))
            optimiser.zero_grad()
            for chosen in pieces:
                batch = batch_to((inputs[chosen], targets[chosen]), device)
                (loss(model(batch[0]), batch[1]) * (len(chosen) / sum(map(len, pieces)))).backward()
            for name, mask in kept.items():
                gradient = named[name].grad
                if gradient is not None:  # zero gradients leave zero weights where they are, moments and all
                    gradient.masked_fill_(~mask, 0)
            optimiser.step()
            if number % every == 0 or number == steps:
                value = evaluate(model, data, loss).loss
                if value < best:
                    best, weights = value, copies(model)
        write(model, weights)
        return best

    def _picks(self, count: int) -> Iterator[list[Tensor]]:
        """Yield the examples of every step, in pieces that fit into memory."""
        order = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            if self.batch is None:
                yield list(torch.arange(count).split(CHUNK))
            else:
                yield from ([chosen] for chosen in torch.randperm(count, generator=order).split(self.batch))


@dataclass(frozen=True)
class Point:
    """One retrained support.

    Attributes
    ----------
    position
        On the path.
    kept, keep_fraction
        Kept parameters; and divided by all.
    loss, accuracy
        After retraining, on the data that it saw.
    held_out_loss, held_out_accuracy
        On data that it did not see; None without.
    start
        Which start the best weights came from: 'own' (what the support keeps of the trained weights), 'larger' (the
        retrained weights of the next larger support measured before), 'given 1' ... (the caller's).
    """

    position: int
    kept: int
    keep_fraction: float
    loss: float
    accuracy: float | None
    held_out_loss: float | None
    held_out_accuracy: float | None
    start: str


@dataclass(frozen=True)
class TruthLimit:
    """The smallest retrained support whose loss stays within the allowance; an upper estimate of the least size.

    Attributes
    ----------
    point
        The support.
    failed
        The largest smaller one that was measured and failed; None if the smallest support of the path still works.
    """

    point: Point
    failed: Point | None


class Truth:
    """Retrains supports of a path when asked and remembers them.

    Parameters
    ----------
    model
        The trained network; left as it is.
    supports
        The path.
    data, loss
        What the allowed rise refers to.
    held_out
        Batches that nothing is trained on.
    retraining
        How survivors are trained.
    starts
        Further weights to start from, whole state by parameter name.
    """

    def __init__(
        self,
        model: nn.Module,
        supports: Supports,
        data: Batches,
        loss: Loss,
        *,
        held_out: Batches = (),
        retraining: Retraining | None = None,
        starts: Sequence[Weights] = (),
    ) -> None:
        self.model = model
        self.supports = supports
        self.data = data
        self.loss = loss
        self.held_out = held_out
        self.retraining = Retraining() if retraining is None else retraining
        self.starts = starts
        self.points: dict[int, Point] = {}
        self._weights: dict[int, Weights] = {}

    def at(self, keep_fraction: float) -> int:
        """The first position that keeps no more than a fraction of all parameters; the last one if all keep more."""
        kept = np.asarray(self.supports.kept)
        within = np.flatnonzero(kept <= keep_fraction * self.supports.total + 1e-9)
        return int(within[0]) if len(within) else len(kept) - 1

    def measure(self, position: int) -> Point:
        """Retrain the support at a position of the path from every start, the best kept."""
        if position in self.points:
            return self.points[position]
        masks = self.supports.kept_mask(position)
        best, weights, name = math.inf, copies(self.model), "own"
        for label, start in self._starts(position):
            trial = copy.deepcopy(self.model)
            write(trial, start)
            value = self.retraining.run(trial, masks, self.data, self.loss)
            if value < best:
                best, weights, name = value, copies(trial), label
        final = copy.deepcopy(self.model)
        write(final, weights)
        seen = evaluate(final, self.data, self.loss)
        unseen = evaluate(final, self.held_out, self.loss) if self.held_out else None
        kept = int(self.supports.kept[position])
        self._weights[position] = weights
        self.points[position] = Point(
            position,
            kept,
            kept / self.supports.total,
            seen.loss,
            seen.accuracy,
            None if unseen is None else unseen.loss,
            None if unseen is None else unseen.accuracy,
            name,
        )
        return self.points[position]

    def limit(self, most: float, resolution: float = 0.005) -> TruthLimit:
        """Bisect for the smallest support whose retrained loss is at most `most`.

        Real losses are not monotone in the size, so the answer is the smallest size *seen* to work, and the bisection
        narrows the interval below it: between it and the largest smaller size seen to fail.

        Parameters
        ----------
        most
            Loss of the network + epsilon.
        resolution
            Stop when no more than this fraction of all parameters lies between.

        Raises
        ------
        ValueError
            If the network itself exceeds `most`.
        """
        own = self.measure(0)
        if own.loss > most:
            raise ValueError(
                f"Expected a loss of at most {most:.6g} with everything kept. Got {own.loss:.6g}. "
                "Pass the network's own loss plus an allowed rise of at least 0."
            )
        if not any(point.loss > most for point in self.points.values()):
            self.measure(len(self.supports.kept) - 1)
        while True:
            works = min((one for one in self.points.values() if one.loss <= most), key=lambda one: one.kept)
            smaller = [one for one in self.points.values() if one.kept < works.kept]
            if not smaller:
                return TruthLimit(works, None)
            failed = max(smaller, key=lambda one: one.kept)
            between = self._between(works, failed, resolution)
            if between is None:
                return TruthLimit(works, failed)
            self.measure(between)

    def _between(self, works: Point, failed: Point, resolution: float) -> int | None:
        """The position halfway, in the logarithm of the size; None where the two are close enough."""
        kept = np.asarray(self.supports.kept)
        if works.kept - failed.kept <= max(1, resolution * self.supports.total):
            return None
        inside = np.flatnonzero((kept < works.kept) & (kept > failed.kept))
        if not len(inside):
            return None
        middle = math.sqrt(works.kept * max(failed.kept, 1))
        return int(inside[np.argmin(np.abs(kept[inside] - middle))])

    def _starts(self, position: int) -> Iterator[tuple[str, Weights]]:
        yield "own", copies(self.model)
        larger = [other for other in self._weights if self.supports.kept[other] > self.supports.kept[position]]
        if larger and self.retraining.chained:
            yield "larger", self._weights[max(larger, key=lambda other: (-self.supports.kept[other], other))]
        for number, start in enumerate(self.starts, start=1):
            yield f"given {number}", start


@torch.no_grad()
def clip(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what is not kept to zero, in place."""
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        named[name].masked_fill_(~mask.to(named[name].device), 0)


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def write(model: nn.Module, weights: Weights) -> None:
    """Write parameters by name, in place."""
    named = dict(model.named_parameters())
    for name, value in weights.items():
        named[name].copy_(value)
