"""What a layer may apply to its outputs while they are still in registers."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Activation", "activate", "activation_of", "as_activation"]

Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def as_activation(name: str) -> Activation:
    """Return the name if it is an activation's."""
    for known in ACTIVATIONS:
        if name == known:
            return known
    raise ValueError(f"Expected an activation in {ACTIVATIONS}. Got {name!r}. Put others behind the layer.")


def activate(y: Tensor, activation: Activation) -> Tensor:
    """Return the activation of ``y``; gelu is the exact one, with the error function."""
    if activation == "relu":
        return F.relu(y)
    return F.gelu(y) if activation == "gelu" else y


def activation_of(module: nn.Module) -> Activation:
    """Return the activation that a module computes, "none" for one of another class or another gelu."""
    if type(module) is nn.ReLU:
        return "relu"
    return "gelu" if type(module) is nn.GELU and module.approximate == "none" else "none"
