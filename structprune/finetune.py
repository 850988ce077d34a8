"""A short fine-tune: plain training of a copy, with a validation split, keeping the best epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from structprune.data import (
    Batches,
    Evaluation,
    Loss,
    batch_size,
    batch_to,
    call,
    check_data,
    cut,
    device_of,
    evaluate,
)

__all__ = ["Epoch", "FineTune", "FineTuned"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
WARM_UP = 0.05  # fraction of the run over which the learning rate rises


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data did; number 0 is the network before training.

    Attributes
    ----------
    number
        Counts from 1; 0 before training.
    train_loss
        Mean over the examples, each measured before the step it causes; None for epoch 0.
    validation_loss, validation_accuracy
        On the held-out data after the epoch; the accuracy is None where targets are no class indices.
    """

    number: int
    train_loss: float | None
    validation_loss: float
    validation_accuracy: float | None


@dataclass(frozen=True)
class FineTuned:
    """A trained copy in evaluation mode, with the weights of its best epoch.

    Attributes
    ----------
    model
        The copy.
    history
        Epochs 0 (before training), 1, ...
    best_epoch
        The one with the least validation loss, the earliest of equals.
    notes
        What a reader of the figures must know, such as that nothing could be held out.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FineTune:
    """Plain training: cosine schedule after a short warm-up, best epoch kept.

    Attributes
    ----------
    epochs
        Passes over the training data; 0 only validates.
    lr
        Peak learning rate.
    momentum, weight_decay
        As in torch.optim. The momentum is SGD's (with Nesterov's look-ahead) and the first beta of AdamW.
    batch_size
        Most examples per step; larger batches of the data are shuffled and cut into equal pieces, smaller ones are
        not merged. None takes the batches as they come.
    validation
        Fraction of the data to hold out, in [0, 1). Single examples are held out of a DataLoader over a dataset with
        an index, whole batches of anything else, which must then come in the same order each time.
    optimizer
        "sgd", "adamw", or a function from the parameters to an optimizer, whose learning rates then replace `lr`.
    seed
        Decides the split, the order of the data and what is drawn inside the network (dropout).

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    epochs: int = 2
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int | None = None
    validation: float = 0.1
    optimizer: str | OptimizerFactory = "sgd"
    seed: int = 0

    def __post_init__(self) -> None:
        expect(isinstance(self.epochs, int) and self.epochs >= 0, "a whole number of epochs >= 0", self.epochs)
        expect(math.isfinite(self.lr) and self.lr > 0, "a learning rate lr > 0", self.lr)
        expect(0 <= self.momentum < 1, "a momentum in [0, 1)", self.momentum)
        expect(0 <= self.weight_decay < math.inf, "a weight_decay >= 0", self.weight_decay)
        expect(self.batch_size is None or self.batch_size >= 1, "a batch_size >= 1 or None", self.batch_size)
        expect(0 <= self.validation < 1, "a validation fraction in [0, 1)", self.validation)
        named = self.optimizer in ("sgd", "adamw") or callable(self.optimizer)
        expect(named, "'sgd', 'adamw' or a function as optimizer", self.optimizer)

    def run(
        self,
        model: nn.Module,
        data: Any,
        loss: Loss,
        *,
        masks: Mapping[str, Tensor] | None = None,
        progress: bool = True,
    ) -> FineTuned:
        """Train a copy of `model`; the original is untouched, also when this is interrupted.

        Parameters
        ----------
        model
            The network. Parameters that require no gradient stay as they are.
        data
            Re-iterable batches of (inputs, targets).
        loss
            Function of (output, targets), the mean over the batch.
        masks
            Boolean tensors by parameter or buffer name, of the tensor's shape. Where False the entry is zero before,
            during and after training, exactly.
        progress
            Show a progress bar on the error stream.

        Raises
        ------
        FloatingPointError
            If the training loss is not finite.
        ValueError
            If nothing can be trained, or the masks do not fit the network.
        """
        trained = copy.deepcopy(model)
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError(
                "Expected parameters that require a gradient. Got none. "
                "Call requires_grad_() on those that are to be trained."
            )
        removed = removed_entries(trained, masks or {})
        clear(removed)
        split = split_data(check_data(data), self.validation, self.seed)
        optimizer = self.make_optimizer(parameters)
        device = device_of(trained)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), bar(progress) as shown:
            torch.manual_seed(self.seed)
            task = shown.add_task("fine-tune", total=self.epochs * split.steps, text="")
            history = [epoch_row(0, None, evaluate(trained, split.held_out, loss))]
            best, weights = 0, snapshot(trained)
            notes = split.notes + start_training(trained)
            for number in range(1, self.epochs + 1):
                train_loss = math.nan
                for train_loss in self.train_epoch(trained, split, loss, optimizer, removed, number):
                    shown.update(task, advance=1, text=f"epoch {number}/{self.epochs}  loss {train_loss:.4f}")
                history.append(epoch_row(number, train_loss, evaluate(trained, split.held_out, loss)))
                if rank(history[-1]) < rank(history[best]):
                    best, weights = number, snapshot(trained)
        trained.load_state_dict(weights)
        for module in trained.modules():
            module.training = False
        trained.zero_grad(set_to_none=True)
        return FineTuned(trained, tuple(history), best, notes)

    def train_epoch(
        self,
        model: nn.Module,
        split: Split,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        removed: Sequence[tuple[Tensor, Tensor]],
        number: int,
    ) -> Iterator[float]:
        """Train for one epoch; yields, batch after batch, the mean loss of the epoch so far."""
        device = device_of(model)
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        total, examples = 0.0, 0
        for index, batch in enumerate(split.training(number)):
            pieces = cut(batch, self.batch_size, generator)
            for inner, piece in enumerate(pieces):
                # Midpoints: a run of few steps neither starts at a rate of zero nor ends there.
                within = min((index + (inner + 0.5) / len(pieces)) / split.steps, 1.0)
                set_schedule(optimizer, (number - 1 + within) / self.epochs)
                inputs, targets = batch_to(piece, device)
                optimizer.zero_grad(set_to_none=True)
                value = loss(call(model, inputs), targets)
                mean, size = float(value.detach()), batch_size((targets, inputs))
                if not math.isfinite(mean):
                    raise FloatingPointError(diverged(mean, optimizer, number))
                value.backward()
                optimizer.step()
                # Momentum and BatchNorm's statistics may have moved removed entries: back to exactly zero.
                clear(removed)
                total, examples = total + size * mean, examples + size
            yield total / examples

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer; each group remembers its peak learning rate for the schedule."""
        if callable(self.optimizer):
            optimizer = self.optimizer(parameters)
        elif self.optimizer == "adamw":
            optimizer = torch.optim.AdamW(
                parameters, lr=self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay
            )
        else:
            nesterov = self.momentum > 0
            optimizer = torch.optim.SGD(
                parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=nesterov
            )
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return optimizer


def expect(holds: bool, what: str, got: object) -> None:
    """Raise ValueError unless a setting of FineTune is what it must be."""
    if not holds:
        raise ValueError(f"Expected {what}. Got {got!r}. Pass one to FineTune.")


# ---------------------------------------------------------------- one step


def diverged(value: float, optimizer: torch.optim.Optimizer, epoch: int) -> str:
    """Return the message for a loss that is not finite, which tells a bad start from a rate that is too large."""
    if not optimizer.state:
        return (
            f"Expected a finite training loss. Got {value} before the first step. "
            "Check the data, the loss and the network's weights for values that are not finite."
        )
    peak = optimizer.param_groups[0]["peak_lr"]
    return (
        f"Expected a finite training loss. Got {value} in epoch {epoch} at a peak learning rate of {peak:g}. "
        f"Pass a smaller one, as in FineTune(lr={peak / 10:g})."
    )


def set_schedule(optimizer: torch.optim.Optimizer, done: float) -> None:
    """Set the learning rates for a fraction `done` of the run: a linear rise, then half a cosine down to zero."""
    if done < WARM_UP:
        factor = done / WARM_UP
    else:
        factor = (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


# ---------------------------------------------------------------- masks


def removed_entries(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (tensor, where to write zeros) for the masks, after checking that they fit."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    pairs = []
    for name, mask in masks.items():
        if name not in tensors:
            raise ValueError(f"Expected masks for the network's tensors. Got {name}. Pass masks made for this network.")
        if mask.dtype != torch.bool or mask.shape != tensors[name].shape:
            raise ValueError(
                f"Expected a boolean mask of shape {tuple(tensors[name].shape)} for {name}. "
                f"Got {mask.dtype} of shape {tuple(mask.shape)}. Pass masks made for this network."
            )
        pairs.append((tensors[name], ~mask.to(tensors[name].device)))
    return pairs


@torch.no_grad()
def clear(removed: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write zeros where entries are removed."""
    for tensor, where in removed:
        tensor.masked_fill_(where, 0)


# ---------------------------------------------------------------- the split


@dataclass(frozen=True)
class Split:
    """Training data by epoch and held-out data.

    Attributes
    ----------
    training
        From an epoch's number to its batches.
    held_out
        Re-iterable.
    steps
        Number of training batches per epoch.
    notes
        What must be said about the split.
    """

    training: Callable[[int], Iterable[tuple[Any, Any]]]
    held_out: Any
    steps: int
    notes: tuple[str, ...]


def split_data(data: Batches, fraction: float, seed: int) -> Split:
    """Hold out a fraction of the data, the same for equal seeds and at least one batch or example of two."""
    loader = data.source
    if isinstance(loader, DataLoader) and splits_by_example(loader):
        return split_loader(loader, fraction, seed)
    count = len(data)
    held = held_out_indices(count, fraction, seed)
    if not held:
        why = "validation=0" if fraction == 0 else "there is one batch only"
        note = f"Nothing was held out ({why}): the best epoch was chosen on the training data."
        return Split(lambda epoch: ordered(data, held, seed, epoch), data, count, (note,))
    kept = [batch for index, batch in enumerate(data) if index in held]
    return Split(lambda epoch: ordered(data, held, seed, epoch), kept, count - len(held), ())


def held_out_indices(count: int, fraction: float, seed: int) -> frozenset[int]:
    """Return which of `count` things are held out: none if there is only one or the fraction is 0."""
    if count < 2 or fraction == 0:
        return frozenset()
    number = min(max(round(fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return frozenset(order[:number].tolist())


def ordered(data: Batches, held: frozenset[int], seed: int, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches that are not held out: of a list in a new order each epoch, else in the data's own order."""
    if not isinstance(data.source, Sequence):
        yield from (batch for index, batch in enumerate(data) if index not in held)
        return
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    batches = list(data)
    for index in torch.randperm(len(batches), generator=generator).tolist():
        if index not in held:
            yield batches[index]


def splits_by_example(loader: DataLoader) -> bool:
    """Tell whether a loader can be rebuilt on part of its dataset: an index, a plain sampler, a fixed batch size."""
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return False
    if type(sampler) is RandomSampler:
        return not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) is SequentialSampler


def split_loader(loader: DataLoader, fraction: float, seed: int) -> Split:
    """Hold out examples of the dataset, because whole batches would mix with the rest at the loader's next shuffle."""
    count = len(loader.dataset)  # type: ignore[arg-type]
    held = held_out_indices(count, fraction, seed)
    kept = [index for index in range(count) if index not in held]

    def training(epoch: int) -> Batches:
        return Batches(part_of(loader, kept, epoch_seed(seed, epoch)))

    steps = len(training(0))
    if held:
        return Split(training, Batches(part_of(loader, sorted(held), None)), steps, ())
    why = "validation=0" if fraction == 0 else "there is one example only"
    note = f"Nothing was held out ({why}): the best epoch was chosen on the training data."
    return Split(training, Batches(part_of(loader, kept, None)), steps, (note,))


def part_of(loader: DataLoader, indices: Sequence[int], shuffle_seed: int | None) -> DataLoader:
    """Return a loader like `loader` over some examples, shuffled for training, in order without a seed."""
    size = loader.batch_size or 1
    shuffle = shuffle_seed is not None
    # A last batch of one example would stop BatchNorm, which needs two; the next shuffle gives it another chance.
    cut_last = shuffle and len(indices) > size and (loader.drop_last or len(indices) % size == 1)
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=size,
        shuffle=shuffle,
        drop_last=cut_last,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(shuffle_seed or 0),
    )


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's order: epochs differ, and so do they between neighbouring seeds."""
    return seed + 1_000_003 * epoch


# ---------------------------------------------------------------- small parts


def start_training(model: nn.Module) -> tuple[str, ...]:
    """Put the network into training mode; returns a note if it has none."""
    try:
        model.train()
    except NotImplementedError:  # what the graphs of torch.export say, and what their copies forget to say
        recorded = True
    else:
        recorded = any(is_recorded(module) for module in model.modules())
    if recorded:
        return ("A recorded graph has no training mode: dropout is off and BatchNorm statistics stay as they are.",)
    return ()


def is_recorded(module: nn.Module) -> bool:
    """Tell whether a module is a graph of operators, in which the mode it was recorded in is fixed."""
    if not isinstance(module, torch.fx.GraphModule):
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return a copy of the state that later steps do not change."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def epoch_row(number: int, train_loss: float | None, validation: Evaluation) -> Epoch:
    """Return the history's row for an epoch."""
    return Epoch(number, train_loss, validation.loss, validation.accuracy)


def rank(epoch: Epoch) -> float:
    """Return what the best epoch has least of; a loss that is not finite comes last."""
    return epoch.validation_loss if math.isfinite(epoch.validation_loss) else math.inf


def bar(shown: bool) -> Progress:
    """Return a progress bar on the error stream, which leaves nothing behind, or one that shows nothing."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),  # into a file or pipe it would leave blank lines
    )
