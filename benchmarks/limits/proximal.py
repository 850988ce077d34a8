"""Training to a stationary point of loss + penalty * |w|_1, with exact zeros.

A limit is a statement about a minimum: of a network that still trains, more steps gain more than the allowed rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from structprune.data import Loss

__all__ = ["Converged", "ProximalAdam", "soft_threshold", "subgradient"]

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8
CHUNK = 2500  # examples in memory at once where the whole data count


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal operator of threshold * |.|: what is smaller becomes exactly zero."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def subgradient(values: Tensor, gradient: Tensor, penalty: float) -> Tensor:
    """The least subgradient of f + penalty * |.|_1, entry by entry; zero exactly where the entry is stationary."""
    return torch.where(values == 0, soft_threshold(gradient, penalty), gradient + penalty * values.sign())


@dataclass(frozen=True)
class Converged:
    """What training reached, on the whole data.

    Attributes
    ----------
    objective
        Loss + penalty, in nats.
    loss
        Loss alone, in nats.
    nonzero
        Weights that are not zero, as a fraction of the penalised ones.
    subgradient
        Root mean square of the least subgradient's entries. Kinks of ReLU keep it from zero.
    settled
        By how much the last, slow cycle of full-batch steps lowered the objective, in nats: what further training
        gains. Beside the allowed rise it should be small.
    """

    objective: float
    loss: float
    nonzero: float
    subgradient: float
    settled: float


@dataclass(frozen=True)
class ProximalAdam:
    """Adam whose metric also weighs the proximal step, with a cosine schedule; then a slow cycle on the whole data.

    With Adam's diagonal metric h = sqrt(v) + tiny, a step is ``w = soft(w - rate m / h, rate penalty / h)``: the
    proximal operator in the same metric, so that fixed points are the stationary points of the penalised loss.
    Weights (two or more dimensions) are penalised; biases are not.

    Attributes
    ----------
    penalty
        Nats per unit of weight.
    steps
        Number of steps of the first cycle.
    batch
        Examples per step of the first cycle; None for all.
    rate
        Peak step size; the second cycle has a tenth of it.
    settle
        Number of full-batch steps of the second cycle.
    seed
        Decides the order of the examples.

    References
    ----------
    Yun, Lozano, Yang, "Adaptive proximal gradient methods for structured neural networks", NeurIPS 2021, section 3.
    """

    penalty: float
    steps: int = 16_000
    batch: int | None = None
    rate: float = 0.01
    settle: int = 1500
    seed: int = 0

    def fit(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> Converged:
        """Train `model` in place, in evaluation mode; equal starts give equal ends."""
        model.eval()
        self._cycle(model, inputs, targets, loss, self.steps, self.rate, self.batch)
        before = self._judged(model, inputs, targets, loss)
        self._cycle(model, inputs, targets, loss, self.settle, self.rate / 10, None)
        after = self._judged(model, inputs, targets, loss)
        return replace(after, settled=before.objective - after.objective)

    def _cycle(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, steps: int, peak: float, batch: int | None
    ) -> None:
        """Run one cycle of Adam from fresh moments."""
        parameters = list(model.parameters())
        first = [torch.zeros_like(parameter) for parameter in parameters]
        second = [torch.zeros_like(parameter) for parameter in parameters]
        order = torch.Generator().manual_seed(self.seed)
        left: list[Tensor] = []
        for step in range(1, steps + 1):
            if batch is not None and batch < len(targets):
                left = left or list(torch.randperm(len(targets), generator=order).split(batch))
                chosen = left.pop(0)
                _, gradients = _gradients(model, inputs[chosen], targets[chosen], loss)
            else:
                _, gradients = _gradients(model, inputs, targets, loss)
            rate = 0.5 * peak * (1 + math.cos(math.pi * (step - 1) / steps))
            with torch.no_grad():
                for weight, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                    m.lerp_(gradient, 1 - BETA1)
                    v.lerp_(gradient.square(), 1 - BETA2)
                    metric = (v / (1 - BETA2**step)).sqrt_() + TINY
                    weight.sub_(rate * (m / (1 - BETA1**step)) / metric)
                    if weight.ndim > 1:
                        weight.copy_(soft_threshold(weight, rate * self.penalty / metric))

    def _judged(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> Converged:
        """Measure how stationary the network is."""
        parameters = [parameter.detach() for parameter in model.parameters()]
        value, gradients = _gradients(model, inputs, targets, loss)
        squares = sum(
            float(subgradient(weight, gradient, self.penalty if weight.ndim > 1 else 0.0).square().sum())
            for weight, gradient in zip(parameters, gradients, strict=True)
        )
        penalised = [weight for weight in parameters if weight.ndim > 1]
        nonzero = sum(int(weight.count_nonzero()) for weight in penalised) / sum(one.numel() for one in penalised)
        objective = value + self.penalty * sum(float(weight.abs().sum()) for weight in penalised)
        rms = math.sqrt(squares / sum(one.numel() for one in parameters))
        return Converged(objective, value, nonzero, rms, 0.0)


def _gradients(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[float, list[Tensor]]:
    """Mean loss over the examples and its gradients, in pieces that fit into memory."""
    parameters = list(model.parameters())
    total = 0.0
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for piece, answers in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
        value = loss(model(piece), answers) * (len(answers) / len(targets))
        for gradient, part in zip(gradients, torch.autograd.grad(value, parameters), strict=True):
            gradient += part
        total += float(value.detach())
    return total, gradients
