"""One network, one kind of structures: its limits by every estimator, and what retraining reaches beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.limits.row import Retrained
from benchmarks.limits.tasks import Prepared
from benchmarks.limits.truth import Retraining, Truth
from structprune.limit import Limit, Path, pruning_limit, removal_path
from structprune.progress import track
from structprune.structures import Structures, blocks, channels, kernels

__all__ = ["Falling", "Measured", "Settings", "measure", "structures_of"]

#: Sizes that every truth is measured at, for its curve; the bisections add theirs.
GRID = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.06, 0.04)
#: The grid ends where the loss has risen by so many times the largest epsilon.
HOPELESS = 30.0


@dataclass(frozen=True)
class Settings:
    """How limits are estimated.

    Attributes
    ----------
    curvature, probes, steps, estimators, tau, seed
        As in `structprune.limit.pruning_limit`.
    truth
        Whether supports are retrained.
    grid
        Keep fractions at which they are.
    resolution
        Of the bisection, as a fraction of all parameters.
    """

    curvature: str
    probes: int
    steps: int
    estimators: tuple[str, ...]
    tau: tuple[float, ...]
    seed: int
    truth: bool
    grid: tuple[float, ...] = GRID
    resolution: float = 0.005


@dataclass(frozen=True)
class Falling:
    """A path of `structprune.limit` from the whole network down, as the truth wants it."""

    path: Path

    @property
    def kept(self) -> np.ndarray:
        """Kept parameters at every position, the largest first."""
        return self.path.counts()[::-1].astype(np.int64)

    @property
    def total(self) -> int:
        """All parameters."""
        return self.path.layout.size

    def kept_mask(self, position: int) -> Mapping[str, Tensor]:
        """Boolean masks by parameter."""
        return self.path.kept_mask(self.path.last - position)


@dataclass(frozen=True)
class Measured:
    """What was found for one epsilon.

    Attributes
    ----------
    limit
        The estimates.
    truths
        What each way of retraining reaches.
    """

    limit: Limit
    truths: tuple[Retrained, ...]


def structures_of(kind: str, model: nn.Module, example: Tensor, block: tuple[int, int]) -> Structures | None:
    """Return the structures of a kind; None for single weights.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind == "weights":
        return None
    if kind == "blocks":
        return blocks(model, block)
    if kind == "kernels":
        return kernels(model)
    if kind == "channels":
        return channels(model, example)
    raise ValueError(f"Expected weights, blocks, kernels or channels. Got {kind!r}. Pass one of them.")


def measure(
    prepared: Prepared, structures: Structures | None, epsilons: Sequence[float | str], settings: Settings
) -> list[Measured]:
    """Estimate and retrain; epsilons share the retrained supports."""
    model, data = prepared.model, prepared.data
    limits = [
        pruning_limit(
            model,
            data,
            F.cross_entropy,
            structures=structures,
            epsilon=epsilon,
            curvature=settings.curvature,
            probes=settings.probes,
            steps=settings.steps,
            tau=settings.tau,
            estimators=settings.estimators,
            seed=settings.seed,
            progress=False,
        )
        for epsilon in track(list(epsilons), "limits")
    ]
    if not settings.truth:
        return [Measured(limit, ()) for limit in limits]
    supports = Falling(removal_path(model, structures))
    by_retraining = [_retrained(prepared, supports, limits, settings, one) for one in prepared.retrainings]
    return [Measured(limit, tuple(ways[number] for ways in by_retraining)) for number, limit in enumerate(limits)]


def _retrained(
    prepared: Prepared, supports: Falling, limits: Sequence[Limit], settings: Settings, retraining: Retraining
) -> list[Retrained]:
    """Retrain in one way; one answer for each limit's epsilon, which share their points."""
    truth = Truth(
        prepared.model, supports, prepared.data, F.cross_entropy, held_out=prepared.held_out, retraining=retraining
    )
    start = perf_counter()
    own, most = limits[0].loss, max(limit.epsilon.value for limit in limits)
    # Where the constructive estimate built a network, retraining has something to beat.
    built = {one.keep_fraction.value for limit in limits for one in limit.estimates if one.is_upper_bound}
    for keep_fraction in track(sorted({*settings.grid, *built}, reverse=True), f"retraining, {retraining.label}"):
        if truth.measure(truth.at(keep_fraction)).loss > own + HOPELESS * most:
            break
    seen = 0
    while seen < len(truth.points):  # a support measured for one epsilon may work for another
        seen = len(truth.points)
        reached = [truth.limit(own + limit.epsilon.value, settings.resolution) for limit in limits]
    seconds = perf_counter() - start
    points = tuple(sorted(truth.points.values(), key=lambda point: point.position))
    return [
        Retrained(
            retraining.label, points, one.point.position, None if one.failed is None else one.failed.position, seconds
        )
        for one in reached
    ]
