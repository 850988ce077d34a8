"""How classifiers are trained: the paper's recipe for convolutional networks, and one for transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from structprune.methods import Training

__all__ = ["CONVOLUTIONAL", "TRANSFORMER", "Recipe", "classification_loss"]


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes
    ----------
    about
        A sentence.
    batch_size
        Images of a step.
    smoothing
        Of labels.
    training
        Settings of the engine.
    """

    about: str
    batch_size: int
    smoothing: float
    training: Training

    def changed(self, epochs: int | None, batch_size: int | None, lr: float | None, precision: str) -> Recipe:
        """The same with what the user asks for; a peak learning rate that is not named falls with the batch."""
        size = batch_size or self.batch_size
        peak = self.training.lr * size / self.batch_size if lr is None else lr
        training = replace(
            self.training, epochs=epochs or self.training.epochs, lr=peak, precision=precision, clip=self.training.clip
        )
        return replace(self, training=training, batch_size=size)


CONVOLUTIONAL = Recipe(
    "90 epochs of batches of 2,048, SGD with cosine and a peak of 0.8 as in the paper; momentum 0.9, weight decay "
    "5e-5, 5 epochs of warm-up and smoothing 0.1, which the paper does not give",
    2048,
    0.1,
    Training(epochs=90, lr=0.8, momentum=0.9, weight_decay=5e-5, warm_up=5 / 90),
)
TRANSFORMER = Recipe(
    "300 epochs of batches of 1,024, AdamW with cosine and a peak of 1e-3, weight decay 0.05, 5 epochs of warm-up, "
    "smoothing 0.1, gradients clipped at 1, after DeiT without its stronger augmentation",
    1024,
    0.1,
    Training(epochs=300, lr=1e-3, optimizer="adamw", weight_decay=0.05, warm_up=5 / 300, clip=1.0),
)


def classification_loss(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean cross-entropy in nats with smoothed labels."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    return loss
