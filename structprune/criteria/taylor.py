"""First-order loss of removing a structure (Molchanov et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from structprune.criteria.gradients import batches, differentiable, gradients, needed, valid_examples
from structprune.criteria.scores import Data, Scores, finite_scores
from structprune.criteria.weights import weights
from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """Magnitude of the loss' directional derivative towards zeroing the structure.

    v_g = |sum_{i in g} w_i dL/dw_i|, with L the mean loss over the data. With a gate m_g that scales all of the
    structure's weights, the sum is dL/dm_g at m_g = 1, so signs must be summed before the magnitude is taken.

    Attributes
    ----------
    examples
        How many examples to take from the data, None for all.
    absolute
        Take sum_{i in g} |w_i dL/dw_i| instead: an upper bound that no cancellation lowers.

    References
    ----------
    Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance estimation for neural network pruning", CVPR 2019, eq. 8;
    with the magnitude of the mean gradient, as in eq. 1 of Lee, Ajanthan, Torr, "SNIP", ICLR 2019.
    """

    examples: int | None = 1024
    absolute: bool = False

    def __post_init__(self) -> None:
        valid_examples(self.examples)

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        data, loss = needed("Taylor", data, loss)
        tensors = weights(model, structures)
        total: dict[str, Tensor] = {}
        seen = 0
        with differentiable(model, tensors):
            for inputs, targets, count in batches(data, model, self.examples):
                for name, gradient in gradients(model, tensors, loss, inputs, targets).items():
                    # Half precision would lose the later batches of a long sum.
                    step = count * gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                    total[name] = total[name] + step if name in total else step
                seen += count
        change = {name: weight.detach().double() * total[name].double() / seen for name, weight in tensors.items()}
        if self.absolute:
            values = structures.sum({name: product.abs() for name, product in change.items()})
        else:
            values = abs(structures.sum(change))
        return finite_scores(values, structures, model, "nats", f"Gradients of {seen} examples.")
