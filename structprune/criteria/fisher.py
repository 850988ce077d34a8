"""Second-order loss of removing a structure, from the spread of per-example gradients (Theis et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from structprune.criteria.gradients import (
    batches,
    differentiable,
    examples_of,
    gradients,
    needed,
    valid_examples,
)
from structprune.criteria.scores import Data, Scores, finite_scores
from structprune.criteria.weights import weights
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher:
    """Loss of zeroing the structure in a quadratic model whose curvature is the empirical Fisher matrix.

    v_g = 1/2 w_g^T F_gg w_g = 1/2 E_n[(sum_{i in g} w_i dL_n/dw_i)^2], with F = E_n[grad L_n grad L_n^T] over the
    examples n and their own labels. The survivors stay as they are and the first-order term is left out. Gradients
    are taken one example at a time, so the time grows with ``examples``.

    Attributes
    ----------
    examples
        How many examples to take from the data, None for all.

    References
    ----------
    Theis, Korshunova, Tejani, Huszar, "Faster gaze prediction with dense networks and Fisher pruning",
    arXiv 1801.05787 (2018), section 2.1.
    """

    examples: int | None = 256

    def __post_init__(self) -> None:
        valid_examples(self.examples)

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        data, loss = needed("Fisher", data, loss)
        tensors = weights(model, structures)
        squares, seen = np.zeros(structures.n), 0
        with differentiable(model, tensors):
            for inputs, targets, count in batches(data, model, self.examples):
                for one_input, one_target in examples_of(inputs, targets, count):
                    found = gradients(model, tensors, loss, one_input, one_target)
                    squares += structures.sum({name: tensors[name].detach() * found[name] for name in tensors}) ** 2
                seen += count
        return finite_scores(squares / (2 * seen), structures, model, "nats", f"Gradients of {seen} examples.")
