"""What a run is given, checked before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from structprune.axes import Example, as_example
from structprune.budget import Budget
from structprune.data import Batches, Loss, batch_to, call, check_data, device_of, eval_mode, infer_loss, tensors_in
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
    data, validation
        What to learn from and what to measure quality on; None where the caller gave none.
    loss
        None where the caller gave none and no batch tells it.
    notes
        What was inferred and a reader should know.
    """

    model: nn.Module
    example: Example
    timing: Example
    data: Batches | None
    loss: Loss | None
    validation: Batches | None = None
    notes: tuple[str, ...] = ()


def checked_task(
    model: nn.Module,
    budget: Budget,
    structures: Structures | None,
    data: Any,
    loss: Loss | None,
    example: Any,
    validation: Any = None,
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
    if loss is not None and not callable(loss):
        raise TypeError(f"Expected loss to be a function of (output, target). Got {loss!r}. Pass F.cross_entropy.")
    batches = None if data is None else check_data(data)
    held_out = None if validation is None else check_data(validation)
    source = batches if batches is not None else held_out
    found = find_example(model, example, source)
    if source is None:
        notes = () if example is not None else (_inferred(found),)
        return Task(model, found, found, None, loss, None, notes)
    inputs, targets = batch_to(next(iter(source)), device_of(model))
    output = _forward(model, inputs)
    return Task(model, found, as_example(inputs), batches, loss or infer_loss(output, targets), held_out)


def _inferred(example: Example) -> str:
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in example.flat() if isinstance(leaf, Tensor))
    return f"the example input was inferred from the model: {shapes}; pass example= if it is used on others"


@torch.no_grad()
def _forward(model: nn.Module, inputs: Any) -> Any:
    try:
        with eval_mode(model):
            return call(model, inputs)
    except Exception as error:
        shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
        raise ValueError(
            f"Expected data that {type(model).__name__} can run. Got inputs of shapes {shapes}, on which its forward "
            f"raised {type(error).__name__}: {error}. Pass batches of (inputs, targets)."
        ) from error


def _check_finite(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in named_tensors(model, every_name=False).items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        # Buffers may hold infinite numbers: attention masks do.
        if not bool(torch.isfinite(tensor).all() if name in parameters else ~torch.isnan(tensor).any()):
            raise ValueError(
                f"Expected finite weights. Got NaN or infinite numbers in {name!r}. Load sound weights before pruning."
            )


def _check_structures(model: nn.Module, structures: Structures) -> None:
    if not isinstance(structures, Structures):
        raise TypeError(
            f"Expected Structures. Got {type(structures).__name__}. Make them with channels(model, example)."
        )
    have = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    wrong = [name for name, shape in structures.shapes.items() if have.get(name) != tuple(shape)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"Expected structures of this {type(model).__name__}. Got some of another network: {wrong[0]!r}{more} "
            "do not match. Make them anew with channels(model, example)."
        )
