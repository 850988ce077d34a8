"""Structures with small weights are worth little (Li et al. 2017; Wen et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from structprune.criteria.scores import Data, Scores, finite_scores
from structprune.criteria.weights import distinct, weights
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """Norm of all weights that a structure takes with it.

    v_g = (sum_{i in g} |w_i|^p)^(1/p), divided by its mean over the axis with ``normalise='group'``, so that the
    structures of axes of other sizes and scales compare. An axis whose weights are all zero is worth zero.

    Attributes
    ----------
    p
        1 or 2.
    normalise
        'group' for the mean over the axis, 'none' for the plain norm.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets", ICLR 2017, section 3.1 (p = 1).
    Wen, Wu, Wang, Chen, Li, "Learning structured sparsity in deep neural networks", NeurIPS 2016, section 3.1 (p = 2).
    """

    p: Literal[1, 2] = 2
    normalise: Literal["group", "none"] = "group"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Expected p to be 1 or 2. Got {self.p!r}. Use 2 for the Euclidean norm.")
        if self.normalise not in ("group", "none"):
            raise ValueError(f"Expected normalise to be 'group' or 'none'. Got {self.normalise!r}. Use 'group'.")

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        powers = {
            name: weight.double().abs().pow(self.p) for name, weight in distinct(weights(model, structures)).items()
        }
        # Entries in two rows of a structure are counted once by subtraction, which may leave -1e-17 for a zero.
        values = np.maximum(structures.sum(powers), 0) ** (1 / self.p)
        if self.normalise == "group":
            for axis in structures.axes:
                mean = values[axis.entries].mean()
                values[axis.entries] /= mean if mean > 0 else 1
        unit = f"L{self.p} norm" + (" relative to the axis' mean" if self.normalise == "group" else "")
        return finite_scores(values, structures, model, unit)
