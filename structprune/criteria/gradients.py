"""Gradients of the loss on given data, with the network left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from structprune.criteria.scores import Data
from structprune.data import Loss, batch_size, batch_to, call, check_data, device_of, eval_mode

__all__ = ["batches", "differentiable", "examples_of", "gradients", "needed", "valid_examples"]


def needed(criterion: str, data: Data | None, loss: Loss | None) -> tuple[Data, Loss]:
    """``data`` and ``loss`` if both are given.

    Raises
    ------
    ValueError
        If one is None.
    """
    if data is None:
        raise ValueError(
            f"Expected data for {criterion}, which needs the gradients of the loss. Got None. "
            "Pass data=, batches of (inputs, targets), or choose a criterion without data, such as Magnitude()."
        )
    if loss is None:
        raise ValueError(
            f"Expected loss for {criterion}, which needs the gradients of the loss. Got None. "
            "Pass loss=, a function of (output, target) that gives mean nats, such as F.cross_entropy."
        )
    return data, loss


def valid_examples(examples: int | None) -> None:
    """Raise ValueError unless ``examples`` is a positive count or None."""
    if examples is not None and (isinstance(examples, bool) or not isinstance(examples, int) or examples < 1):
        raise ValueError(f"Expected examples to be an integer >= 1, or None for all. Got {examples!r}. Pass e.g. 256.")


@contextmanager
def differentiable(model: nn.Module, tensors: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode with gradients for ``tensors`` alone, from a fixed random state; all is put back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(tensor) for tensor in tensors.values()}
    devices = sorted({parameter.device.index for parameter, _ in flags if parameter.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Shuffled loaders and networks that sample give the same numbers every time, and the caller's state is kept.
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            # cuDNN's recurrent layers have no backward pass in evaluation mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(eval_mode(model))
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(id(parameter) in wanted)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def batches(data: Data, model: nn.Module, examples: int | None) -> Iterator[tuple[Any, Any, int]]:
    """Yield (inputs, targets, number of examples) on the model's device, ``examples`` in all or as many as there are.

    Raises
    ------
    ValueError, TypeError
        If the data is empty or of another form, see :func:`structprune.data.check_data`.
    """
    device = device_of(model)
    left, seen = examples, 0
    for batch in check_data(data):
        count = batch_size(batch)
        if left is not None and count > left:
            batch, count = _rows(batch, slice(0, left), count), left
        if count:
            inputs, targets = batch_to(batch, device)
            yield inputs, targets, count
        seen += count
        if left is not None:
            left -= count
            if not left:
                return
    if not seen:
        raise ValueError("Expected data with at least one example. Got empty batches. Pass batches that have examples.")


def examples_of(inputs: Any, targets: Any, count: int) -> Iterator[tuple[Any, Any]]:
    """Yield the examples of a batch as batches of one."""
    for i in range(count):
        yield _rows((inputs, targets), slice(i, i + 1), count)


def _rows(batch: Any, rows: slice, count: int) -> Any:
    """``rows`` of every tensor that runs over the examples; what all examples share is kept."""

    def cut(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == count else leaf

    return pytree.tree_map(cut, batch)


def gradients(
    model: Callable[..., Any], tensors: Mapping[str, nn.Parameter], loss: Loss, inputs: Any, targets: Any
) -> dict[str, Tensor]:
    """Gradient of the loss on one batch for each of ``tensors``; zero where the loss does not depend on it.

    Raises
    ------
    ValueError
        If the loss is no scalar, or depends on none of the tensors.
    """
    if not tensors:
        return {}
    value = loss(call(model, inputs), targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"Expected loss(output, target) to be one number, the mean over examples. Got {got}. Reduce it."
        )
    if not value.requires_grad:
        raise ValueError(
            "Expected a loss that depends on the weights. Got one without a gradient. "
            "Look for detach() or no_grad() in the network or the loss."
        )
    found = torch.autograd.grad(value.reshape(()), list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
    }
