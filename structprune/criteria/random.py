"""Random scores: what every other criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from structprune.criteria.scores import Data, Scores
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """Independent uniform numbers in [0, 1), whatever the weights are.

    Attributes
    ----------
    seed
        Equal seeds give equal scores.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Expected seed to be an integer >= 0. Got {self.seed!r}. Pass for instance 0.")

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        values = np.random.default_rng(self.seed).random(structures.n)
        return Scores(values, unit=f"random, seed {self.seed}").check(structures)
