"""The estimators: where along the path each says that the loss must rise by more than epsilon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solvers.effective_dimension import Dimension, Spectrum
from solvers.pruning_threshold import first_true, generic_loss, generic_threshold, paper_loss, paper_threshold
from structprune.limit.curvature import Curvature, LossAt
from structprune.limit.path import Path
from structprune.limit.update import Update, Updates
from structprune.limit.value import Interval, LimitEstimate

__all__ = ["ESTIMATORS", "Estimating"]

ESTIMATORS = ("paper", "generic", "trust", "constructive")
#: Radii at which networks are built: from the first one on upwards as long as that helps, else downwards.
RADII = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
FIRST = 3
CURVE_POINTS = 24
#: Positions that are searched: so many evenly, and by ratio, over keep fractions.
RESOLUTION = 256

MEANING = {
    "paper": "the published formula, for comparison; bounds nothing",
    "generic": "best update, curvature without preferred directions; usually too small",
    "trust": "survivors may move by {tau:g} of their length; an estimate",
    "constructive": "built and measured at this size: an upper bound on these data",
}


@dataclass(frozen=True, eq=False)
class Estimating:
    """One network, path and curvature.

    Attributes
    ----------
    at, here
        The loss and the weights ``(D,)``.
    alive
        Boolean ``(D,)``: weights that are not zero or have curvature.
    """

    at: LossAt
    here: Tensor
    path: Path
    curvature: Curvature
    spectrum: Spectrum
    alive: np.ndarray
    epsilon: Interval
    tau: tuple[float, ...]
    steps: int
    rises: dict[int, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def fractions(self) -> np.ndarray:
        """Keep fraction at every position."""
        return self.path.counts() / len(self.here)

    @cached_property
    def energy(self) -> np.ndarray:
        """R^2 at every position."""
        return self.path.energy(self.here)

    @cached_property
    def living(self) -> np.ndarray:
        """Kept weights at every position, dead ones apart."""
        return self.path.counts(self.alive)

    @cached_property
    def updates(self) -> Updates:
        """Second-order updates along the path, for everything that is removed."""
        return Updates(self.curvature, self.here, self.path, self.steps, self.tau)

    @cached_property
    def building(self) -> Updates:
        """The same for what the loss notices of it: the changes of networks that are built."""
        if self.path.active is self.path.birth:
            return self.updates
        return Updates(self.curvature, self.here, self.path, self.steps, self.tau, noticed=True)

    @cached_property
    def base_loss(self) -> float:
        """Mean loss of the network as it is, in nats."""
        return self.at(self.here)

    def estimates(self, name: str) -> list[LimitEstimate]:
        """What one estimator says: one estimate, or one per radius of the trust region."""
        if name == "paper":
            return [self._law(name, self._paper, lambda j: self._paper_loss(j))]
        if name == "generic":
            return [self._law(name, self._generic, lambda j: self._generic_loss(j))]
        if name == "trust":
            return [self._trust(index) for index in range(len(self.tau))]
        return [self._constructive()]

    # -------------------------------------------------------------- laws of random supports

    def _paper(self, epsilon: float, of: Callable[[Dimension], float]) -> int:
        return paper_threshold(self.living, self.energy, self.spectrum, epsilon, of)

    def _paper_loss(self, position: int) -> float:
        return paper_loss(float(self.living[position]), float(self.energy[position]), self.spectrum)

    def _generic(self, epsilon: float, of: Callable[[Dimension], float]) -> int:
        return generic_threshold(self.living, self.energy, self.spectrum, int(self.living[-1]), epsilon, of)

    def _generic_loss(self, position: int) -> float:
        size = int(self.living[-1])
        return generic_loss(float(self.living[position]), float(self.energy[position]), self.spectrum, size)

    def _law(
        self, name: str, threshold: Callable[[float, Callable[[Dimension], float]], int], loss: Callable[[int], float]
    ) -> LimitEstimate:
        # k rises with N and falls with epsilon: the corners of both intervals are its ends.
        value = threshold(self.epsilon.value, lambda found: found.value)
        low = threshold(self.epsilon.high, lambda found: found.low)
        high = threshold(self.epsilon.low, lambda found: found.high)
        return self._made(name, (low, value, high), [(j, loss(j)) for j in self._spread()], MEANING[name])

    @cached_property
    def paper_position(self) -> int:
        """Position at the paper's fixed point."""
        return self._paper(self.epsilon.value, lambda found: found.value)

    @property
    def paper_scale(self) -> float:
        """The mu = 2 epsilon / R^2 of the paper's fixed point, in nats per squared weight."""
        return 2 * self.epsilon.value / max(float(self.energy[self.paper_position]), 1e-300)

    def position_of(self, estimate: LimitEstimate) -> int:
        """Where on the path an estimate lies."""
        return min(int(np.searchsorted(self.fractions, estimate.keep_fraction.value - 1e-12)), self.path.last)

    # -------------------------------------------------------------- updates of these weights

    @cached_property
    def grid(self) -> np.ndarray:
        """Positions that searches go through, from the smallest support to the whole network."""
        least = float(self.fractions[0])
        wanted = np.concatenate(
            [np.linspace(least, 1, RESOLUTION), np.geomspace(max(least, 1 / len(self.here)), 1, RESOLUTION // 2)]
        )
        found = np.searchsorted(self.fractions, wanted - 1e-12)
        return np.unique(np.append(np.minimum(found, self.path.last), self.path.last))

    def _search(self, rise: Callable[[int], float], epsilon: float) -> int:
        """The first position of the grid whose rise is within epsilon, by bisection; the last one always is."""
        index = first_true(len(self.grid) - 1, lambda number: rise(int(self.grid[number])) <= epsilon)
        return int(self.grid[index])

    def _trust(self, index: int) -> LimitEstimate:
        tau = self.tau[index]

        def rise(position: int) -> float:
            return 0.0 if position == self.path.last else self.updates.losses(position)[index]

        found = [self._search(rise, epsilon) for epsilon in self._epsilons()]
        curve = [(position, losses[index]) for position, losses in sorted(self.updates.seen.items())]
        return self._made(f"trust {tau:g}", found, curve, MEANING["trust"].format(tau=tau))

    def _constructive(self) -> LimitEstimate:
        found = [self._search(self._rise, epsilon) for epsilon in self._epsilons()]
        curve = [(position, rise) for position, (rise, _) in sorted(self.rises.items())]
        return self._made("constructive", found, curve, MEANING["constructive"], is_upper_bound=True)

    def _epsilons(self) -> tuple[float, float, float]:
        """For the low, the middle and the high end of the limit."""
        return self.epsilon.high, self.epsilon.value, self.epsilon.low

    @torch.no_grad()
    def _rise(self, position: int) -> float:
        """The measured rise of the loss of the best network built at a position."""
        if position == self.path.last:
            return 0.0
        if position not in self.rises:
            with torch.enable_grad():
                update = self.building.at(position)
            self.rises[position] = self._built(update, self.here * self.path.kept(position).to(self.here.device))
        return self.rises[position][0]

    def _built(self, update: Update, support: Tensor) -> tuple[float, float]:
        """Measured and predicted rise of the best network found by walking along the radii."""

        def rise(tau: float) -> tuple[float, float]:
            measured = self.at(support + update.step(tau)) - self.base_loss
            return (measured if np.isfinite(measured) else float("inf")), update.loss(tau)

        best = rise(RADII[FIRST])
        for walk in (RADII[FIRST + 1 :], RADII[FIRST - 1 :: -1]):
            improved = False
            for tau in walk:
                if best[0] <= self.epsilon.low:
                    return best  # good enough for every question that is asked
                found = rise(tau)
                if found[0] >= best[0]:
                    break
                best, improved = found, True
            if improved:
                break
        return best

    def movement(self, position: int) -> float:
        """Length of the unbounded update at a position, relative to the survivors."""
        return self.updates.at(position).movement()

    def model_error(self, position: int) -> float | None:
        """|measured - predicted rise| / epsilon of the network built at a position."""
        if position not in self.rises or not np.isfinite(self.rises[position][0]):
            return None
        measured, predicted = self.rises[position]
        return abs(measured - predicted) / self.epsilon.value

    def _spread(self) -> list[int]:
        """A few positions over the whole path."""
        return [int(j) for j in np.unique(self.grid[np.linspace(0, len(self.grid) - 1, CURVE_POINTS).astype(int)])]

    def _made(
        self,
        name: str,
        found: Sequence[int],
        curve: Sequence[tuple[int, float]],
        meaning: str,
        is_upper_bound: bool = False,
    ) -> LimitEstimate:
        value = found[1]
        low, high = min(found), max(found)
        ends = (float(self.fractions[j]) for j in (low, value, high))
        return LimitEstimate(
            name=name,
            keep_fraction=Interval(*ends),
            kept=int(round(float(self.fractions[value]) * len(self.here))),
            structures=int(self.path.structures[value]),
            is_upper_bound=is_upper_bound,
            meaning=meaning,
            curve=tuple((float(self.fractions[j]), float(rise)) for j, rise in curve if np.isfinite(rise)),
        )
