"""SequentialAttention++: attention over blocks guides which of them go, and phases let them come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structprune.methods.attention import Attentive
from structprune.methods.engine import Training
from structprune.methods.harness import Harness, Setting
from structprune.methods.masked import Masked
from structprune.methods.method import Probe, TrainingMethod
from structprune.methods.phases import Exponential, Plan, alternating
from structprune.methods.selection import Keep
from structprune.structures import Structures

__all__ = ["AttentionHarness", "SequentialAttentionPP"]


class AttentionHarness(Harness):
    """Values are attention; logits of removed structures stand still like their weights.

    Parameters
    ----------
    setting
        See :class:`~structprune.methods.harness.Harness`.
    clip
        Whether attention is clipped by the kept fraction of its layer.
    times_norm
        Whether values are norms of the weights that attention has scaled.
    """

    model: Attentive

    def __init__(self, setting: Setting, clip: bool, times_norm: bool) -> None:
        super().__init__(setting)
        self.clip, self.times_norm = clip, times_norm
        self.waiting_logits: list[Tensor] = []

    def values(self) -> np.ndarray:
        """Attention of every structure, of mean one in each layer, or the norm of what it scales."""
        return self.model.norms() if self.times_norm else self.model.attention()

    def start(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Meet the network, and clip attention by the densities that are aimed at."""
        super().start(model, optimizer)
        if self.clip:
            kept = np.zeros(self.setting.structures.n)
            for group, count in zip(self.setting.groups, self.final, strict=True):
                kept[group.entries] = count / group.size
            self.model.least = [float(kept[entries].mean()) for _, entries in self.model.slices()]

    def before_forward(self, step: int) -> None:
        """Remember the logits of removed structures as they are before the optimiser moves them."""
        super().before_forward(step)
        self.waiting_logits = [logits.detach().clone() for logits, _ in self.model.slices()]

    def after_backward(self, step: int) -> None:
        """Removed structures get no gradient, though their logits have one through the softmax's normaliser."""
        super().after_backward(step)
        for logits, entries in self.model.slices():
            if logits.grad is not None:
                logits.grad.mul_(self.model.mask[entries])

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Put removed weights and their logits back."""
        super().after_step(step)
        for (logits, entries), before in zip(self.model.slices(), self.waiting_logits, strict=True):
            logits.copy_(torch.where(self.model.mask[entries] != 0, logits, before))

    def mask(self, selection: np.ndarray) -> None:
        """Change the mask; the optimiser forgets the logits of who comes or goes, too."""
        changed = torch.from_numpy(selection ^ self.model.kept).to(self.model.mask.device)
        super().mask(selection)
        self.forget({logits: changed[entries] for logits, entries in self.model.slices()})

    def state_dict(self) -> dict[str, Any]:
        """With the limits of the attention."""
        return {**super().state_dict(), "least": list(self.model.least)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        super().load_state_dict(state)
        self.model.least = list(state["least"])


@dataclass(frozen=True, kw_only=True)
class SequentialAttentionPP(TrainingMethod):
    """SequentialAttention++ of Yasuda, Axiotis, Fu, Bateni and Mirrokni (2024), arXiv 2402.17902.

    Every structure gets a trained logit, and its weights are scaled by ``n softmax(logits)`` over its layer. Phases
    alternate: train dense; remove those of least attention, gradually; train sparse; all come back with the weights
    they had. The last removal is long and careful, and a sparse phase ends the run. Attention is then multiplied into
    the weights.

    Attributes
    ----------
    cycles
        Removals, the last long one included.
    exponent
        How early a removal does most of its work; 4 in the paper.
    sparsify
        Whether removals are gradual; without, this is the paper's ablation (its table 3).
    logit_lr, logit_decay
        Learning rate and weight decay of the logits as multiples of the weights'. The paper decays both alike.
    clip
        Whether attention stays within [kept fraction, 1 / kept fraction].
    times_norm
        Whether structures are compared by attention times the norm of their weights, by what the network would lose,
        and not by attention alone as in the paper.
    """

    cycles: int = 7
    exponent: float = 4.0
    sparsify: bool = True
    logit_lr: float = 1.0
    logit_decay: float = 1.0
    clip: bool = True
    times_norm: bool = False

    def own_schedule(self) -> Plan:
        """10 % dense, cycles of 10 %, one removal of 15 %, 15 % sparse, with seven cycles."""
        curve = Exponential(self.exponent)
        return alternating(
            dense=10, cycles=self.cycles, cycle=10, last=5, sparse=15, sparsify=self.sparsify, curve=curve
        )

    def wrap(self, model: torch.nn.Module, structures: Structures, keep: Keep) -> Attentive:
        """The network with attention in its eligible layers."""
        return Attentive(model, structures, keep.eligible(structures))

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> AttentionHarness:
        """Selection by attention."""
        return AttentionHarness(setting, self.clip, self.times_norm)

    def parameter_groups(self, model: Masked, training: Training) -> list[dict[str, Any]] | None:
        """Weights, and logits with rates of their own."""
        assert isinstance(model, Attentive)
        logits = list(model.logits)
        weights = [parameter for parameter in model.inner.parameters() if parameter.requires_grad]
        own = {"lr": training.lr * self.logit_lr, "weight_decay": training.weight_decay * self.logit_decay}
        return [{"params": weights}, {"params": logits, **own}] if logits else [{"params": weights}]
