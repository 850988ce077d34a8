"""Structures with small weights are worth little (Li et al. 2017; Wen et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from structprune.criteria.scores import Data, Scores, finite_scores
from structprune.criteria.weights import distinct, weights
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """How much of the weights a structure takes with it.

    By default, summed over the layers that it is part of, the share of the layer's |w|^p:

        v_g = sum_layers  sum_{i in g, layer} |w_i|^p / sum_{i in layer} |w_i|^p.

    So a channel of a residual stream, which every block reads and writes, counts once for each of them. Layers are
    the weights of two dimensions or more; vectors (biases, batch norms) scale what the matrices give and are left
    out. The norm of the whole group, (sum_{i in g} |w_i|^p)^(1/p), is there with 'none', and divided by its mean
    over the axis with 'group'. Structures whose weights are all zero are worth zero.

    Attributes
    ----------
    p
        1 or 2.
    normalise
        'layer' for shares of layers, 'group' for the norm relative to the axis' mean, 'none' for the plain norm.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets", ICLR 2017, section 3.1 (p = 1).
    Wen, Wu, Wang, Chen, Li, "Learning structured sparsity in deep neural networks", NeurIPS 2016, section 3.1 (p = 2).
    """

    p: Literal[1, 2] = 2
    normalise: Literal["layer", "group", "none"] = "layer"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Expected p to be 1 or 2. Got {self.p!r}. Use 2 for the Euclidean norm.")
        if self.normalise not in ("layer", "group", "none"):
            raise ValueError(
                f"Expected normalise to be 'layer', 'group' or 'none'. Got {self.normalise!r}. Use 'layer'."
            )

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        powers = {
            name: weight.double().abs().pow(self.p) for name, weight in distinct(weights(model, structures)).items()
        }
        if self.normalise == "layer":
            shares = {
                # Vectors count nothing, but a NaN in one of them is not to be passed over.
                name: power / power.sum().clamp(min=torch.finfo(torch.float64).tiny) if power.ndim > 1 else power * 0
                for name, power in powers.items()
            }
            return finite_scores(structures.sum(shares), structures, model, f"layers' share of |w|^{self.p}")
        # Entries in two rows of a structure are counted once by subtraction, which may leave -1e-17 for a zero.
        values = np.maximum(structures.sum(powers), 0) ** (1 / self.p)
        if self.normalise == "group":
            for axis in structures.axes:
                mean = values[axis.entries].mean()
                values[axis.entries] /= mean if mean > 0 else 1
        unit = f"L{self.p} norm" + (" relative to the axis' mean" if self.normalise == "group" else "")
        return finite_scores(values, structures, model, unit)
