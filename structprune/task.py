"""What a run is given, checked before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from structprune.axes import Example, as_example
from structprune.budget import Budget
from structprune.data import Batches, Loss, batch_to, call, check_data, device_of, eval_mode, infer_loss
from structprune.example import find_example
from structprune.structures import Structures
from structprune.tensors import named_tensors

__all__ = ["Task", "checked_task"]


@dataclass(frozen=True)
class Task:
    """A network with what is known about its use.

    Attributes
    ----------
    example
        Arguments of one forward call, for tracing and for checking what is built.
    timing
        The batch that latency is measured on: the first of the data, or the example.
    data, loss
        None where the caller gave no data.
    """

    model: nn.Module
    example: Example
    timing: Example
    data: Batches | None
    loss: Loss | None


def checked_task(
    model: nn.Module, budget: Budget, structures: Structures | None, data: Any, loss: Loss | None, example: Any
) -> Task:
    """Check types, finite weights, data and example, and complete what can be inferred.

    Raises
    ------
    TypeError, ValueError
        "Expected ... Got ... Do ...", before any work is done.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be a torch.nn.Module. Got {type(model).__name__}. Pass the network itself.")
    if not isinstance(budget, Budget):
        raise TypeError(f"Expected a Budget. Got {budget!r}. Pass for instance Budget(macs=0.5).")
    _check_finite(model)
    if structures is not None:
        _check_structures(model, structures)
    batches = None if data is None else check_data(data)
    found = find_example(model, example, batches)
    timing = found
    if batches is not None:
        inputs, targets = batch_to(next(iter(batches)), device_of(model))
        timing = as_example(inputs)
        if loss is None:
            with eval_mode(model), torch.no_grad():
                loss = infer_loss(call(model, inputs), targets)
    return Task(model, found, timing, batches, loss)


def _check_finite(model: nn.Module) -> None:
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"Expected finite weights. Got NaN or infinite numbers in {name!r}. Load sound weights before pruning."
            )


def _check_structures(model: nn.Module, structures: Structures) -> None:
    have = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    wrong = [name for name, shape in structures.shapes.items() if have.get(name) != tuple(shape)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"Expected structures of this {type(model).__name__}. Got some of another network: {wrong[0]!r}{more} "
            "do not match. Make them anew with channels(model, example)."
        )
