"""Soft top-k: every structure has a fractional place among the k, which sharpens while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.methods.harness import Harness, Setting
from structprune.methods.masked import Masked
from structprune.methods.method import Probe, TrainingMethod
from structprune.methods.phases import Kind, Linear, Plan, Segment
from structprune.methods.selection import Keep
from structprune.structures import Structures

__all__ = ["SoftMasked", "SoftTopK", "soft_top_k"]


def soft_top_k(values: Tensor, count: int, sharpness: float) -> Tensor:
    """The entropic relaxation of top-k:

        argmax_m  sum_i values_i m_i + H(m) / sharpness,   0 <= m <= 1,   sum_i m_i = count,

    with ``H`` the sum of binary entropies; ``m_i = sigmoid(sharpness (values_i - mu))``. The threshold ``mu`` is found
    by bisection; the gradient is that of the implicit function. Spartan (Tai, Tian and Lim 2022) solves the same
    problem by Sinkhorn steps.

    Parameters
    ----------
    values
        ``(n,)``.
    count
        Between 0 and n.
    sharpness
        More than 0; towards infinity ``m`` becomes the indicator of the k largest.
    """
    if count >= len(values):
        return torch.ones_like(values)
    if count <= 0:
        return torch.zeros_like(values)
    exact = values.detach().double()
    # At the low end all places are filled to one, at the high end to nothing, up to e^-40.
    low, high = exact.min() - 40 / sharpness, exact.max() + 40 / sharpness
    for _ in range(64):
        middle = (low + high) / 2
        above = torch.sigmoid(sharpness * (exact - middle)).sum() > count
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    threshold = ((low + high) / 2).to(values.dtype)
    with torch.no_grad():
        places = torch.sigmoid(sharpness * (values - threshold))
        slopes = places * (1 - places)
        weights = slopes / slopes.sum().clamp(min=1e-30)
    # d mu = sum_i w_i d values_i keeps the sum of places; the value added here is zero.
    threshold = threshold + (weights * (values - values.detach())).sum()
    return torch.sigmoid(sharpness * (values - threshold))


class SoftMasked(Masked):
    """A masked network whose kept weights are scaled by their soft places while ``soft`` holds.

    Forward, the network is sparse. Backward, the gradient reaches every weight through its soft place, as if nothing
    had been removed, so that removed structures grow until they return.
    """

    def __init__(self, model: nn.Module, structures: Structures) -> None:
        super().__init__(model, structures)
        self.soft = False
        self.counts = [group.size for group in self.groups]
        self.sharpness = 1.0
        self.entries = torch.from_numpy(structures.count.astype(np.float32))

    def scores(self) -> Tensor:
        """Mean absolute weight of each structure over that of its layer, ``(n,)`` with its graph."""
        named = dict(self.inner.named_parameters())
        sizes = {place.tensor: named[place.tensor].abs() for place in self.places if place.gated}
        means = self.sums(sizes) / self.entries.to(self.mask.device)
        layers = [means[group.entries] for group in self.groups]
        return torch.cat([own / own.detach().mean().clamp(min=1e-30) for own in layers])

    def gates(self) -> Tensor | None:
        """Soft places, ``(n,)``."""
        if not self.soft:
            return None
        scores = self.scores()
        places = [
            soft_top_k(scores[group.entries], count, self.sharpness)
            for group, count in zip(self.groups, self.counts, strict=True)
        ]
        return torch.cat(places)

    def effective(self) -> dict[str, Tensor]:
        """Softly scaled weights, masked in their values and not in their gradients."""
        gates = self.gates()
        if gates is None:
            return super().effective()
        named = dict(self.inner.named_parameters())
        soft: dict[str, Tensor] = {}
        hard: dict[str, Tensor] = {}
        for place in self.places:
            weight = soft.get(place.tensor, named[place.tensor])
            if place.gated:
                own = gates[place.group.entries].to(weight.dtype)
                weight = self.part(place, weight.device).scale(weight, own)
            soft[place.tensor] = weight
        with torch.no_grad():
            for place in self.places:
                weight = hard.get(place.tensor, soft[place.tensor])
                own = self.mask[place.group.entries].to(weight.dtype)
                hard[place.tensor] = self.part(place, weight.device).scale(weight, own)
        return {name: weight + (hard[name] - weight).detach() for name, weight in soft.items()}


class SoftHarness(Harness):
    """Top-k anew at every step until the mask stands."""

    model: SoftMasked

    def __init__(self, setting: Setting, sharpness: float) -> None:
        super().__init__(setting)
        self.sharpest = sharpness

    def before_forward(self, step: int) -> None:
        """Sharpen and choose; at the first step of a sparse phase the soft places go into the weights."""
        phase = self.setting.timeline.at(step)
        if phase.kind not in (Kind.SPARSIFY, Kind.SWAP):
            self._harden()
            super().before_forward(step)
            return
        passed = step / max(1, self.setting.timeline.steps - 1)
        self.model.soft, self.model.sharpness = True, 1 + (self.sharpest - 1) * passed
        chosen = self.selection(np.ones(self.model.size, dtype=bool), phase.done)
        self.model.keep(chosen)
        self.model.counts = [int(chosen[group.entries].sum()) for group in self.model.groups]
        self.phase = phase

    def values(self) -> np.ndarray:
        """Mean absolute weights, relative to the layer."""
        with torch.no_grad():
            return self.model.scores().double().cpu().numpy()

    @torch.no_grad()
    def _harden(self) -> None:
        if not self.model.soft:
            return
        for name, weight in self.model.effective().items():
            self.parameter(name).copy_(weight)
        self.model.soft = False
        self.masks, self.waiting = {}, {}
        self._hold(self.model.kept)

    def state_dict(self) -> dict[str, Any]:
        """With where the softness stands."""
        soft = {"soft": self.model.soft, "sharpness": self.model.sharpness, "counts": list(self.model.counts)}
        return {**super().state_dict(), **soft}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        super().load_state_dict(state)
        self.model.soft, self.model.sharpness = state["soft"], state["sharpness"]
        self.model.counts = list(state["counts"])
        if self.model.soft:
            self.masks, self.waiting = {}, {}  # nothing stands still while places are soft


@dataclass(frozen=True, kw_only=True)
class SoftTopK(TrainingMethod):
    """Soft top-k masking after Spartan (Tai, Tian and Lim, NeurIPS 2022), on structures with exact counts.

    Attributes
    ----------
    sharpness
        Of the soft places at the end, where scores are relative to the layer's mean; it grows linearly from 1.
    """

    sharpness: float = 20.0

    def own_schedule(self) -> Plan:
        """20 % removal, 60 % at the kept number with a mask that moves, 20 % sparse."""
        return Plan((Segment(Kind.SPARSIFY, 1, Linear()), Segment(Kind.SWAP, 3), Segment(Kind.SPARSE, 1)))

    def wrap(self, model: nn.Module, structures: Structures, keep: Keep) -> Masked:
        """The network with soft places."""
        return SoftMasked(model, structures)

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """Selection by soft places."""
        return SoftHarness(setting, self.sharpness)
