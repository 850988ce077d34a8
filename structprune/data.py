"""Batches in, numbers out: the few things that everything which looks at data agrees on.

Data is any re-iterable of pairs (inputs, targets): a list, a DataLoader. Inputs are a tensor, or a tuple, list or
dictionary of what the network's ``forward`` takes. A loss is a function of (output, targets) that returns the mean
over the batch, in nats where it is a likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Batches",
    "Evaluation",
    "Loss",
    "batch_size",
    "batch_to",
    "call",
    "check_data",
    "cut",
    "device_of",
    "eval_mode",
    "evaluate",
    "infer_loss",
]

Loss = Callable[[Any, Any], Tensor]
Batch = tuple[Any, Any]


class Batches(Iterable[Batch]):
    """Data that is known to be re-iterable; every batch is checked to be a pair when its turn comes.

    Parameters
    ----------
    source
        The caller's data.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.source):
            check_batch(batch, index)
            yield batch[0], batch[1]

    def __len__(self) -> int:
        """Return the number of batches; data without a length is iterated over to count them."""
        return len(self.source) if isinstance(self.source, Sized) else sum(1 for _ in self.source)


def check_data(data: Any) -> Batches:
    """Return `data` as something that can be iterated over again and again.

    Raises
    ------
    TypeError
        If `data` is no iterable, can be iterated over only once, or a batch is not a pair of inputs and targets.
    ValueError
        If there is no batch.
    """
    if isinstance(data, Batches):
        return data
    if isinstance(data, Iterator):
        raise TypeError(
            f"Expected data that can be iterated several times. Got {describe(data)}. Pass a list or a DataLoader."
        )
    # A map-style dataset has no __iter__; Python would iterate over it by index.
    if isinstance(data, str | Tensor | Mapping) or not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            f"Expected batches of (inputs, targets). Got {describe(data)}. "
            "Pass a list of such pairs or a DataLoader, as in data=[(inputs, targets)]."
        )
    batches = Batches(data)
    if next(iter(batches), None) is None:
        raise ValueError("Expected at least one batch. Got none. Pass a list or a DataLoader that has examples.")
    return batches


def check_batch(batch: Any, index: int) -> None:
    """Raise TypeError unless `batch` is a pair with more than one example's worth of structure in it."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            f"Expected pairs (inputs, targets). Got {describe(batch)} as batch {index}. "
            "Pass data=[(inputs, targets)], or make the pairs in a collate_fn."
        )
    if isinstance(batch[1], bool | int | float):
        raise TypeError(
            f"Expected a batch of targets. Got the single number {batch[1]!r} in batch {index}. "
            "Pass the dataset as torch.utils.data.DataLoader(dataset, batch_size=...)."
        )


def describe(value: Any) -> str:
    """Return what a value is, short enough for a message."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def batch_to(batch: Any, device: torch.device | str) -> Any:
    """Return the batch, or any nest of tuples, lists and dictionaries, with its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(batch_to(part, device) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(batch_to(part, device) for part in batch)
    if isinstance(batch, Mapping):
        # A tokenizer's own mapping becomes a dictionary: all that is asked of it is to be passed on by name.
        return {name: batch_to(part, device) for name, part in batch.items()}
    return batch


def batch_size(batch: Any) -> int:
    """Return the length of the first tensor found in the batch.

    Raises
    ------
    TypeError
        If there is no tensor with a dimension.
    """
    for tensor in tensors_in(batch):
        if tensor.ndim:
            return tensor.shape[0]
    raise TypeError(f"Expected a tensor whose first dimension counts examples. Got {describe(batch)}. Pass tensors.")


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nest of tuples, lists and dictionaries, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors_in(part)
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors_in(part)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Return the network's output: a tuple or list of inputs is passed by position, a dictionary by name."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def cut(batch: Batch, size: int | None, generator: torch.Generator) -> list[Batch]:
    """Shuffle a batch that is too large and cut it into pieces of at most `size` examples, as equal as can be.

    Equal pieces leave none with a single example, which BatchNorm could not train on. A batch that is small enough,
    or any batch if `size` is None, is returned as it is.
    """
    if size is None or batch_size((batch[1], batch[0])) <= size:
        return [batch]
    examples = batch_size((batch[1], batch[0]))
    order = torch.randperm(examples, generator=generator)
    return [rows(batch, piece, examples) for piece in order.tensor_split(-(-examples // size))]


def rows(batch: Any, which: Tensor, examples: int) -> Any:
    """Return the given examples of a nest of tensors; tensors of another length belong to every example."""
    if isinstance(batch, Tensor):
        return batch[which.to(batch.device)] if batch.ndim and batch.shape[0] == examples else batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(rows(part, which, examples) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(rows(part, which, examples) for part in batch)
    if isinstance(batch, Mapping):
        return {name: rows(part, which, examples) for name, part in batch.items()}
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer, the CPU for a network without any."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards.

    The flags are set one by one: modules that were frozen inside a training network stay so, and exported graphs,
    whose ``eval`` refuses to be called, are welcome.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def main_output(output: Any) -> Tensor | None:
    """Return the tensor that a loss is about: the output, its ``logits``, or the first of several; None if unclear."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Mapping):
        logits = output.get("logits")
        return logits if isinstance(logits, Tensor) else None
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def is_classification(logits: Tensor | None, targets: Any) -> bool:
    """Tell whether the targets are class indices, shape (N, ...), for logits of shape (N, C, ...)."""
    return (
        logits is not None
        and logits.is_floating_point()
        and isinstance(targets, Tensor)
        and targets.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        and logits.ndim >= 2
        and logits.shape[:1] + logits.shape[2:] == targets.shape
    )


def classification_loss(output: Any, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of logits (N, C, ...) and class indices (N, ...)."""
    return F.cross_entropy(tensor_of(output), targets.long())


def regression_loss(output: Any, targets: Tensor) -> Tensor:
    """Return half the mean squared error: nats of a Gaussian of unit variance per value, up to a constant."""
    return F.mse_loss(tensor_of(output), targets) / 2


def tensor_of(output: Any) -> Tensor:
    """Return the tensor that a loss is about, and refuse outputs in which it cannot be told."""
    tensor = main_output(output)
    if tensor is None:
        raise TypeError(f"Expected an output tensor or one with logits. Got {describe(output)}. Pass loss=.")
    return tensor


def infer_loss(model_output: Any, targets: Any) -> Loss:
    """Return the loss that the shapes and types speak for.

    Integer targets of shape (N, ...) with logits of shape (N, C, ...) get the cross-entropy; floating targets of the
    output's shape get half the mean squared error.

    Raises
    ------
    ValueError
        If neither fits.
    """
    tensor = main_output(model_output)
    if is_classification(tensor, targets):
        return classification_loss
    if tensor is not None and isinstance(targets, Tensor):
        if targets.is_floating_point() and tensor.is_floating_point() and targets.shape == tensor.shape:
            return regression_loss
    output_text = describe(model_output if tensor is None else tensor)
    dtype = f" and type {targets.dtype}" if isinstance(targets, Tensor) else ""
    raise ValueError(
        "Expected class indices (N, ...) for outputs (N, C, ...), or floating targets of the output's shape. "
        f"Got {describe(targets)}{dtype} for {output_text}. Pass loss=, a function of (output, targets)."
    )


class Evaluation(NamedTuple):
    """How good a network is on data.

    Attributes
    ----------
    loss
        Mean loss per example.
    accuracy
        Fraction of targets whose class has the largest logit; None where targets are no class indices.
    examples
        Number of examples seen.
    recall
        For each class among the targets the fraction of its targets that were found; None like `accuracy`.
    """

    loss: float
    accuracy: float | None
    examples: int
    recall: dict[int, float] | None


@torch.no_grad()
def evaluate(model: nn.Module, data: Any, loss: Loss) -> Evaluation:
    """Measure a network on data, in evaluation mode, on the device it is on; modes are put back afterwards.

    Negative class indices (cross-entropy's ``ignore_index`` is -100) count for neither accuracy nor recall.
    """
    device = device_of(model)
    total, examples = 0.0, 0
    found: dict[int, list[int]] = {}
    classes_only = True
    with eval_mode(model):
        for batch in check_data(data):
            inputs, targets = batch_to(batch, device)
            output = call(model, inputs)
            size = batch_size((targets, inputs))
            total += size * float(loss(output, targets))
            examples += size
            logits = main_output(output)
            classes_only = classes_only and is_classification(logits, targets)
            if classes_only and logits is not None:
                count_found(logits, targets, found)
    mean = total / examples if examples else math.nan
    if not classes_only or not found:
        return Evaluation(mean, None, examples, None)
    hits = sum(hit for hit, _ in found.values())
    seen = sum(count for _, count in found.values())
    recall = {label: found[label][0] / found[label][1] for label in sorted(found)}
    return Evaluation(mean, hits / seen, examples, recall)


def count_found(logits: Tensor, targets: Tensor, found: dict[int, list[int]]) -> None:
    """Add to `found`, per class, how many targets had the largest logit and how many there were."""
    hit = (logits.argmax(dim=1) == targets)[targets >= 0]
    labels, position = targets[targets >= 0].unique(return_inverse=True)
    counts = torch.bincount(position, minlength=len(labels))
    hits = torch.bincount(position[hit], minlength=len(labels))
    for label, one_hits, one_count in zip(labels.tolist(), hits.tolist(), counts.tolist(), strict=True):
        entry = found.setdefault(label, [0, 0])
        entry[0] += one_hits
        entry[1] += one_count
