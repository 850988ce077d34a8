"""What the optimiser remembers, and when it should forget: at phase boundaries, and of weights that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

__all__ = ["Reset", "chosen_reset", "forget_entries", "reset"]

FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


class Reset(Enum):
    """What of the optimiser's memory is cleared when a phase begins.

    Clearing everything is called crucial in SequentialAttention++ (appendix C.1), for long phases of SGD. Adam's second
    moments take 1 / (1 - beta2) steps to build up: cleared at short phases they do harm.
    """

    AUTO = "auto"  # ALL for SGD and MOMENTUM for Adam where phases are long against the memory, else NONE
    NONE = "none"
    MOMENTUM = "momentum"
    ALL = "all"


def chosen_reset(policy: Reset, optimizer: torch.optim.Optimizer, shortest: int, epoch: int) -> Reset:
    """Return the policy that AUTO stands for.

    Parameters
    ----------
    shortest
        Steps of the shortest phase.
    epoch
        Steps of one pass over the data; SGD is reset where every phase is at least as long.
    """
    if policy is not Reset.AUTO:
        return policy
    betas = [group["betas"][-1] for group in optimizer.param_groups if "betas" in group]
    if betas:
        return Reset.MOMENTUM if shortest * (1 - max(betas)) >= 1 else Reset.NONE
    return Reset.ALL if shortest >= epoch else Reset.NONE


@torch.no_grad()
def reset(optimizer: torch.optim.Optimizer, policy: Reset) -> None:
    """Clear what the policy says; step counts stay with MOMENTUM and go with ALL."""
    for state in optimizer.state.values():
        if policy is Reset.ALL:
            state.clear()
        elif policy is Reset.MOMENTUM:
            for name in FIRST_MOMENTS:
                if isinstance(state.get(name), Tensor):
                    state[name].zero_()


@torch.no_grad()
def forget_entries(optimizer: torch.optim.Optimizer, where: Mapping[Tensor, Tensor]) -> None:
    """Zero every moment of the entries where a boolean tensor of a parameter's shape is True."""
    for parameter, entries in where.items():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.masked_fill_(entries.to(value.device), 0)
