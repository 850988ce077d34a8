"""Channels that batch norm scales down are worth little (Liu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from structprune.criteria.scores import Criterion, Data, Scores, finite_scores
from structprune.criteria.weights import weights
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["BNScale"]


@dataclass(frozen=True)
class BNScale:
    """Mean magnitude of the batch norm scales that a structure takes with it.

    v_g = mean of |gamma_i| over the weights i of batch norm layers in g. It says something only for networks
    trained with a penalty on these scales.

    Attributes
    ----------
    otherwise
        Criterion for the axes that no batch norm scales, brought to the mean of the others; None refuses such axes.

    Raises
    ------
    ValueError
        If axes have no batch norm and ``otherwise`` is None.

    References
    ----------
    Liu, Li, Shen, Huang, Yan, Zhang, "Learning efficient convolutional networks through network slimming",
    ICCV 2017, section 3.
    """

    otherwise: Criterion | None = None

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        norms = {id(m.weight) for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None}
        scales = {
            name: weight.detach().abs() for name, weight in weights(model, structures).items() if id(weight) in norms
        }
        count = structures.sum({name: torch.ones_like(scale) for name, scale in scales.items()})
        values = structures.sum(scales) / np.maximum(count, 1)
        missing = [axis for axis in structures.axes if not count[axis.entries].all()]
        if not missing:
            return finite_scores(values, structures, model, "mean |gamma|")
        if self.otherwise is None:
            names = ", ".join(axis.name for axis in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"Expected a batch norm on every axis. Got {len(missing)} of {len(structures.axes)} axes without: "
                f"{names}. Leave them out with keep_whole=, pass BNScale(otherwise=Magnitude()), or choose another "
                "criterion."
            )
        others = self.otherwise(model, structures, data, loss)
        without = np.concatenate([np.arange(axis.start, axis.start + axis.size) for axis in missing])
        scaled = np.delete(np.arange(structures.n), without)
        mean = others.values[without].mean()
        factor = values[scaled].mean() / mean if scaled.size and mean > 0 else 1.0
        values[without] = factor * others.values[without]
        note = f"{len(missing)} axes without batch norm: scores of {self.otherwise}, times {factor:.3g}."
        return finite_scores(values, structures, model, "mean |gamma|", note, *others.notes)
