"""Curvature of the loss as an operator on one long vector of weights: never a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from structprune.data import Batches, Loss, batch_size, batch_to, call, device_of
from structprune.limit.layout import Layout

__all__ = ["Curvature", "GaussNewton", "Hessian", "LossAt"]


class Curvature(Protocol):
    """A symmetric operator on weights, in nats per squared weight."""

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector ``(D,)``."""
        ...


@dataclass(frozen=True, eq=False)
class LossAt:
    """The loss of a network on given batches as a function of its weights.

    Attributes
    ----------
    batches
        Pairs (inputs, targets) with the number of their examples, on the network's device, in a fixed order.
    """

    model: nn.Module
    layout: Layout
    loss: Loss
    batches: tuple[tuple[Any, Any, int], ...]

    @classmethod
    def of(cls, model: nn.Module, data: Batches, loss: Loss) -> LossAt:
        """Read the data once."""
        device = device_of(model)
        read = []
        for batch in data:
            inputs, targets = batch_to(batch, device)
            read.append((inputs, targets, batch_size((targets, inputs))))
        return cls(model, Layout.of(model), loss, tuple(read))

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(count for _, _, count in self.batches)

    def output(self, weights: dict[str, Tensor], inputs: Any) -> Any:
        """The network's output with other weights."""
        args, kwargs = _arguments(inputs)
        return torch.func.functional_call(self.model, weights, args, kwargs)

    @torch.no_grad()
    def by_batch(self, vector: Tensor) -> list[float]:
        """Mean loss of every batch."""
        weights = self.layout.split(vector)
        return [float(self.loss(self.output(weights, inputs), targets)) for inputs, targets, _ in self.batches]

    def __call__(self, vector: Tensor) -> float:
        """Mean loss per example, in nats."""
        sizes = [count for _, _, count in self.batches]
        return sum(loss * count for loss, count in zip(self.by_batch(vector), sizes, strict=True)) / sum(sizes)

    def gradient(self, vector: Tensor) -> Tensor:
        """Of the mean loss, ``(D,)``."""
        total = torch.zeros_like(vector)
        for inputs, targets, count in self.batches:
            weights = {name: part.detach().requires_grad_() for name, part in self.layout.split(vector).items()}
            value = self.loss(self.output(weights, inputs), targets)
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            total += _filled(found, weights, self.layout) * (count / self.examples)
        return total


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, by the rule of :func:`structprune.data.call`."""
    taken: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    call(lambda *args, **kwargs: taken.append((args, kwargs)), inputs)
    return taken[0]


def _filled(found: Any, weights: dict[str, Tensor], layout: Layout) -> Tensor:
    return layout.flat(
        [torch.zeros_like(w) if g is None else g.detach() for g, w in zip(found, weights.values(), strict=True)]
    )


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """``E[J' (d^2 loss / d output^2) J]``, J the derivatives of the outputs by the weights (Schraudolph 2002).

    Positive semidefinite where the loss is convex in the outputs. Each product runs forward and backward through all
    batches; they are weighted by their size.
    """

    at: LossAt
    weights: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(self.weights)
        for inputs, targets, count in self.at.batches:
            total += self._one(vector, inputs, targets) * (count / self.at.examples)
        return total

    def _one(self, vector: Tensor, inputs: Any, targets: Any) -> Tensor:
        layout = self.at.layout
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivatives
            weights = {name: part.detach().requires_grad_() for name, part in layout.split(self.weights).items()}
            leaves, spec = pytree.tree_flatten(self.at.output(weights, inputs))
            used = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
            outputs = [leaves[i] for i in used]

            def loss_of(*values: Tensor) -> Tensor:
                filled = list(leaves)
                for i, value in zip(used, values, strict=True):
                    filled[i] = value
                return self.at.loss(pytree.tree_unflatten(filled, spec), targets)

            # J v by the derivative of u -> J'u, which is linear in u (the "double backward trick").
            dual = [torch.zeros_like(output).requires_grad_() for output in outputs]
            pulled = torch.autograd.grad(outputs, list(weights.values()), dual, create_graph=True, allow_unused=True)
            directions = layout.split(vector)
            pairs = [(g, directions[n]) for g, n in zip(pulled, weights, strict=True) if g is not None]
            pushed = torch.autograd.grad(
                *([g for g, _ in pairs], dual, [d for _, d in pairs]), retain_graph=True, materialize_grads=True
            )
            fixed = tuple(output.detach() for output in outputs)
            curved = _curved(loss_of, fixed, tuple(p.detach() for p in pushed))
            found = torch.autograd.grad(outputs, list(weights.values()), curved, allow_unused=True)
        return _filled(found, weights, layout)


def _curved(
    loss_of: Callable[..., Tensor], outputs: tuple[Tensor, ...], directions: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The loss' second derivative by the outputs, times directions."""
    at = tuple(output.requires_grad_() for output in outputs)
    slopes = torch.autograd.grad(loss_of(*at), at, create_graph=True, allow_unused=True)
    known = [(s, d) for s, d in zip(slopes, directions, strict=True) if s is not None and s.requires_grad]
    if not known:
        return tuple(torch.zeros_like(output) for output in outputs)
    found = torch.autograd.grad([s for s, _ in known], at, [d for _, d in known], allow_unused=True)
    return tuple(torch.zeros_like(o) if f is None else f for f, o in zip(found, outputs, strict=True))


@dataclass(frozen=True, eq=False)
class Hessian:
    """The loss' second derivative; has negative eigenvalues, which whoever uses it must clip."""

    at: LossAt
    weights: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(self.weights)
        layout = self.at.layout
        directions = layout.split(vector)
        for inputs, targets, count in self.at.batches:
            with sdpa_kernel(SDPBackend.MATH):
                weights = {name: part.detach().requires_grad_() for name, part in layout.split(self.weights).items()}
                value = self.at.loss(self.at.output(weights, inputs), targets)
                slopes = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
                known = [
                    (s, directions[n])
                    for s, n in zip(slopes, weights, strict=True)
                    if s is not None and s.requires_grad
                ]
                found: Any = [None] * len(weights)
                if known:
                    found = torch.autograd.grad(
                        [s for s, _ in known], list(weights.values()), [d for _, d in known], allow_unused=True
                    )
            total += _filled(found, weights, layout) * (count / self.at.examples)
        return total
