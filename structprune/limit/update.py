"""The best update of the survivors inside a trust region, on the way along a path.

With w_p the removed weights and d the change of the survivors T,

    E(tau) = min over ||d|| <= tau ||w_T|| of 1/2 (d - w_p)' H (d - w_p).

All that a channel takes along counts in w_p, as in the paper: what it writes and what is read of it. For a network that
is to be built, the part that is read is enough, and tells the survivors better what to make up for (``noticed``).

tau = 0 leaves the survivors as they are. tau = infinity is the exact second-order update (Hassibi and Stork 1993),
which for real networks often moves the survivors so far that the quadratic model means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from solvers.trust_region import trust_region
from structprune.limit.curvature import Curvature
from structprune.limit.lanczos import Lanczos
from structprune.limit.path import Path

__all__ = ["Update", "Updates"]

#: A run ends when eight more steps lower the loss by less than this fraction of it.
SETTLED = 1e-3
CHUNK = 8


@dataclass(frozen=True, eq=False)
class Update:
    """Updates of every size at one position.

    Attributes
    ----------
    base
        Loss without update, in nats, in the quadratic model.
    length
        ||w_T||.
    """

    base: float
    length: float
    run: Lanczos
    mask: Tensor

    def _solved(self, tau: float) -> tuple[np.ndarray, float]:
        if not self.run.alpha:
            return np.zeros(0), 0.0
        radius = tau * self.length if self.length else 0.0  # survivors that are all zero have no scale, even for inf
        return trust_region(self.run.alpha, self.run.beta[:-1], self.run.norm, radius)

    def loss(self, tau: float) -> float:
        """E(tau), in nats."""
        return max(self.base - self._solved(tau)[1], 0.0)

    def step(self, tau: float) -> Tensor:
        """The change of the survivors, ``(D,)``, zero elsewhere."""
        coefficients, _ = self._solved(tau)
        return self.run.combine(coefficients) * self.mask if len(coefficients) else torch.zeros_like(self.mask)

    def movement(self, tau: float = float("inf")) -> float:
        """Length of the change relative to the survivors."""
        return float(np.linalg.norm(self._solved(tau)[0])) / max(self.length, 1e-300)


@dataclass(frozen=True, eq=False)
class Updates:
    """Updates at every position of a path; what was computed is kept without its basis.

    Attributes
    ----------
    curvature, weights, path
        H, w ``(D,)`` and the supports.
    steps
        Dimensions of the Krylov space, at most.
    tau
        Radii whose losses are remembered.
    noticed
        Whether w_p is only what the loss notices of the removed weights (:meth:`Path.cut`).
    """

    curvature: Curvature
    weights: Tensor
    path: Path
    steps: int
    tau: Sequence[float]
    noticed: bool = False
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def at(self, position: int) -> Update:
        """Build the Krylov space at a position."""
        device = self.weights.device
        kept = self.path.kept(position).to(device, self.weights.dtype)
        gone = self.path.cut(position) if self.noticed else ~self.path.kept(position)
        removed = self.weights * gone.to(device)
        image = self.curvature(removed)
        base = 0.5 * float(removed.double() @ image.double())
        run = Lanczos(lambda vector: self.curvature(vector * kept) * kept, image * kept)
        update = Update(base, float((self.weights * kept).double().norm()), run, kept)
        # Nothing is gained from what is known to be lost already at rounding level.
        largest = max(self.tau, default=0.0)
        before = base
        for steps in range(CHUNK, self.steps + CHUNK, CHUNK):
            run.extend(min(steps, self.steps))
            now = update.loss(largest)
            if run.exhausted or before - now <= SETTLED * now:
                break
            before = now
        self.seen[position] = tuple(update.loss(tau) for tau in self.tau)
        return update

    def losses(self, position: int) -> tuple[float, ...]:
        """E at every radius."""
        if position not in self.seen:
            self.at(position)
        return self.seen[position]
