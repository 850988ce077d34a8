"""The two ways in which the network is trained: the paper's, and that of BARS, whose dense network is better."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.criteo.network import WIDTH
from benchmarks.grid.methods import Phases
from structprune.methods import Training

__all__ = ["RECIPES", "ClickTraining", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class ClickTraining(Training):
    """Adam with what click-rate networks need besides.

    Attributes
    ----------
    last_lr
        Where the learning rate falls to, exponentially over the run; None for the schedule that is named.
    embedding_decay
        Quadratic penalty on embeddings alone: half of it times the sum of their squares is added to the loss.
    """

    last_lr: float | None = None
    embedding_decay: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""
        if self.last_lr is None:
            return super().rate(step, steps)
        return (self.last_lr / self.lr) ** (step / max(1, steps - 1))

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return Adam with embeddings in groups of their own: they are the only matrices of 10 columns."""
        divided = []
        for group in groups:
            embeddings = [one for one in group["params"] if one.dim() == 2 and one.shape[1] == WIDTH]
            others = [one for one in group["params"] if one.dim() != 2 or one.shape[1] != WIDTH]
            divided += [{**group, "params": others}] if others else []
            divided += [{**group, "params": embeddings, "weight_decay": self.embedding_decay}] if embeddings else []
        return super().make_optimizer(divided)


@dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Attributes
    ----------
    name
        On the command line and in tables.
    about
        A sentence.
    batch_size
        Rows of a step.
    dropout
        After each dense layer.
    training
        Settings of the engine.
    phases
        Of methods that alternate.
    """

    name: str
    about: str
    batch_size: int
    dropout: float
    training: ClickTraining
    phases: Phases

    def changed(self, epochs: int | None, batch_size: int | None, lr: float | None) -> Recipe:
        """The same with what the user asks for."""
        peak = self.training.lr if lr is None else lr
        last = self.training.last_lr
        # The whole curve moves with its peak.
        last = None if last is None else last * peak / self.training.lr
        training = replace(self.training, epochs=epochs or self.training.epochs, lr=peak, last_lr=last)
        return replace(self, training=training, batch_size=batch_size or self.batch_size)


#: 20 % dense, ten cycles of 6 %, 20 % sparse (Yasuda et al. 2024, appendix C).
CRITEO_PHASES = Phases(dense=20, cycles=10, cycle=6, last=0, sparse=20)

RECIPES = (
    Recipe(
        "paper",
        "25 epochs of 32,768 rows, Adam, learning rate falling exponentially from 2e-2 to 3e-4, no dropout",
        32768,
        0.0,
        ClickTraining(epochs=25, lr=2e-2, last_lr=3e-4, optimizer="adam", warm_up=0.0, weight_decay=0.0),
        CRITEO_PHASES,
    ),
    Recipe(
        "bars",
        "batches of 4,096, Adam, learning rate 1e-3, dropout 0.1, penalty on embeddings 1e-5; 10 epochs under a "
        "cosine, because phases need the length beforehand, where BARS lowers the rate on plateaus and stops early",
        4096,
        0.1,
        ClickTraining(epochs=10, lr=1e-3, optimizer="adam", warm_up=0.0, weight_decay=0.0, embedding_decay=1e-5),
        CRITEO_PHASES,
    ),
)
