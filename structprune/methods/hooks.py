"""What a training method does around each step of the optimiser: the one thing that the engine knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Hooks"]


class Hooks(Protocol):
    """Calls of the engine, in this order at each step; everything a method remembers is in its ``state_dict``.

    Steps count from 0 over the whole run. On several ranks every rank makes the same calls, and whatever a method
    decides must come out the same on all of them.
    """

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Meet the network, unwrapped, and the optimiser, before the first step or before a saved state is loaded."""
        ...

    def before_forward(self, step: int) -> None:
        """Make the network what this step trains: masks, phase, fresh optimiser state where a phase begins."""
        ...

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss, a scalar with its graph, or None for nothing."""
        ...

    def after_backward(self, step: int) -> None:
        """Change gradients, which are final: averaged over ranks, unscaled, not yet clipped."""
        ...

    def after_step(self, step: int) -> None:
        """Change weights that the optimiser has just moved: a proximal step, zeros, exchanges."""
        ...

    def status(self) -> Mapping[str, str | float]:
        """Return what a progress bar shows, for instance the phase and the kept fraction."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps depend on and that neither model nor optimiser hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state, after ``start``; model and optimiser have theirs already."""
        ...
