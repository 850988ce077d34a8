"""Group-sparse penalties by proximal steps: structures shrink to zero while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structprune.methods.harness import Harness, Setting
from structprune.methods.masked import Masked
from structprune.methods.method import Probe, TrainingMethod
from structprune.methods.phases import Kind, Plan, Segment
from structprune.regularizers import GroupLasso, Regularizer

__all__ = ["GroupLassoProx"]

SHRINKING = 1  # index of the phase with proximal steps


class ProximalHarness(Harness):
    """After each step of one phase the norms of structures go through the penalty's proximal map.

    Norms are measured in units of their layer: the norm of the last structure that would stay when the phase begins.
    """

    def __init__(self, setting: Setting, penalty: Regularizer) -> None:
        super().__init__(setting)
        self.regularizer = penalty
        self.units = np.ones(setting.structures.n)

    def values(self) -> np.ndarray:
        """Norms of the entries that the proximal steps scale, ``(n,)``."""
        return self.model.norms(gated_only=True)

    def before_forward(self, step: int) -> None:
        """Measure the units when the shrinking begins."""
        entered = self.setting.timeline.at(step)
        super().before_forward(step)
        if entered.index == SHRINKING and entered.first:
            norms = self.values()
            for group, count in zip(self.setting.groups, self.final.tolist(), strict=True):
                own = np.sort(norms[group.entries])[::-1]
                # A layer that keeps everything shrinks nothing.
                self.units[group.entries] = own[count - 1] if 0 < count < group.size else 0.0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """One proximal step."""
        super().after_step(step)
        timeline = self.setting.timeline
        if timeline.at(step).index != SHRINKING:
            return
        steps = timeline.ends[SHRINKING] - timeline.ends[SHRINKING - 1]
        norms, factors = self.values(), np.ones(self.model.size)
        for group in self.model.groups:
            own, unit = norms[group.entries], self.units[group.entries]
            shrunk = (unit > 0) & (own > 0)
            if shrunk.any():
                relative = torch.from_numpy(own[shrunk] / unit[shrunk])
                moved = self.regularizer.prox_norms(relative, 1 / steps)
                factors[group.entries][shrunk] = (moved / relative).numpy()
        _rescale(self.model, torch.from_numpy(factors))

    def state_dict(self) -> dict[str, Any]:
        """With the units."""
        return {**super().state_dict(), "units": torch.from_numpy(self.units.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        super().load_state_dict(state)
        self.units = state["units"].numpy().copy()


def _rescale(model: Masked, factors: Tensor) -> None:
    for place in model.places:
        if place.gated:
            weight = model.inner.get_parameter(place.tensor)
            own = factors[place.group.entries].to(weight)
            weight.copy_(model.part(place, weight.device).scale(weight, own))


@dataclass(frozen=True, kw_only=True)
class GroupLassoProx(TrainingMethod):
    """Dense training, proximal steps of a group penalty, then the largest structures trained alone.

    The penalty acts on norms in units of each layer's kept margin, once in full over the phase: a group lasso of
    strength 1 takes that margin from every structure that no gradient defends.

    Attributes
    ----------
    penalty
        Any of `structprune.regularizers`: MCP or SCAD leave large structures unshrunk.
    """

    penalty: Regularizer = field(default_factory=lambda: GroupLasso(1.0))

    def own_schedule(self) -> Plan:
        """10 % dense, 50 % with proximal steps, 40 % sparse."""
        return Plan((Segment(Kind.DENSE, 1), Segment(Kind.DENSE, 5), Segment(Kind.SPARSE, 4)))

    def plan(self) -> Plan:
        """The phases of a run.

        Raises
        ------
        ValueError
            If the second one is not dense: it is the one with proximal steps.
        """
        plan = super().plan()
        if len(plan.segments) < 3 or plan.segments[SHRINKING].kind is not Kind.DENSE:
            kinds = [segment.kind.value for segment in plan.segments]
            raise ValueError(f"Expected phases dense, dense, ..., sparse. Got {kinds}. Shrinking needs the second.")
        return plan

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return True

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """Selection by what the proximal steps leave."""
        return ProximalHarness(setting, self.penalty)
