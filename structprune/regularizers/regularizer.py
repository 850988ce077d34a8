"""What a group-sparse penalty is: a value, and a proximal map, both of the groups' norms alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Regularizer", "SeparableRegularizer", "check_strength"]


class Regularizer(Protocol):
    """A penalty on the Euclidean norms of groups of weights."""

    def value(self, norms: Tensor) -> Tensor:
        """The penalty, a scalar, for ``norms`` of shape ``(n,)``.

        Differentiable. Where the slope at a norm of zero is infinite or one-sided, the gradient there is taken as 0,
        so that groups that have vanished stay where they are.
        """
        ...

    def prox_norms(self, norms: Tensor, step: float | Tensor) -> Tensor:
        """A global minimiser ``x >= 0`` of ``||x - norms||^2 / 2 + step * value(x)``; all shapes ``(n,)``.

        Where there are two, the one that keeps less. ``step`` is one number for all groups.
        """
        ...


class SeparableRegularizer(ABC):
    """A sum over groups of one function of each norm; its ``step`` may differ from group to group."""

    @abstractmethod
    def penalty(self, norms: Tensor) -> Tensor:
        """The penalty of each group, in the shape of ``norms``."""

    @abstractmethod
    def minimiser(self, norms: Tensor, step: Tensor) -> Tensor:
        """The proximal map on float64 norms, none negative, with one positive step for each."""

    def value(self, norms: Tensor) -> Tensor:
        """The sum over groups, a scalar."""
        return self.penalty(norms).sum()

    @torch.no_grad()
    def prox_norms(self, norms: Tensor, step: float | Tensor) -> Tensor:
        """The proximal map of ``step * value``, computed in float64; ``step`` a number or one per group ``(n,)``.

        Raises
        ------
        ValueError
            A step that is negative or not finite.
        """
        exact = norms.double()
        steps = checked_step(step, norms).expand_as(exact)
        active = steps > 0
        found = self.minimiser(exact, torch.where(active, steps, torch.ones_like(steps)))
        return torch.where(active, found, exact).to(norms.dtype)


def checked_step(step: float | Tensor, norms: Tensor) -> Tensor:
    """``step`` as a float64 tensor. Raises ValueError when it is negative or not finite."""
    steps = torch.as_tensor(step, dtype=torch.float64, device=norms.device)
    if not bool((torch.isfinite(steps) & (steps >= 0)).all()):
        raise ValueError(f"Expected a finite step of at least 0. Got {step}. Pass the learning rate of the step.")
    return steps


def check_strength(strength: float) -> None:
    """Raise ValueError for a strength that is negative or not finite."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"Expected a finite strength of at least 0. Got {strength}. Use 0 for no penalty.")
