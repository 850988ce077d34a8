"""The training loop of all methods, on HuggingFace Accelerate: CPU, one GPU, or several processes with one mask.

The loop knows nothing of masks: a method's hooks are called around each step. Under ``accelerate launch`` or
``torchrun`` each process trains on its part of every batch, so that the gradient is that of the whole batch however
many there are.
"""

from __future__ import annotations

import atexit
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

from structprune.data import Batch, Batches, Loss, batch_size, batch_to, call, cut, device_of
from structprune.methods.checkpoint import Checkpoints
from structprune.methods.hooks import Hooks
from structprune.methods.ranks import leave, part_of_batch, rank, ranks, sum_over_ranks

__all__ = ["Row", "Trained", "Training", "repeatable", "steps_per_epoch", "train"]

Network = TypeVar("Network", bound=nn.Module)
Groups = list[dict[str, Any]]
OptimizerFactory = Callable[[Groups], torch.optim.Optimizer]

SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("float32", "bfloat16")
LOOK = 20  # steps between two looks at the loss: each makes a GPU wait
BETWEEN_TEXTS = 0.5  # seconds between two texts of the bar


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained; the same for every method, so that they can be compared.

    Attributes
    ----------
    epochs
        Passes over the data.
    lr
        Peak learning rate.
    momentum
        SGD's, with Nesterov's look-ahead, and the first beta of Adam.
    weight_decay
        As in torch.optim.
    schedule
        'cosine' down to 0, or 'constant'; over the whole run and never started again.
    warm_up
        Fraction of the run over which the learning rate rises.
    optimizer
        'sgd', 'adam', 'adamw', or a function from parameter groups to an optimiser, whose learning rates replace `lr`.
    clip
        Largest norm of the gradient; None for no limit.
    precision
        'float32', or 'bfloat16' for autocast of the forward pass; weights stay as they are.
    batch_size
        Most examples per step: larger batches of the data are shuffled and cut. None takes them as they come.
    checkpoint_every
        Epochs between two checkpoints, where they are asked for; one is always written at the end.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    epochs: int = 8
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warm_up: float = 0.05
    optimizer: str | OptimizerFactory = "sgd"
    clip: float | None = None
    precision: str = "float32"
    batch_size: int | None = None
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        _expect(isinstance(self.epochs, int) and self.epochs >= 1, "a whole number of epochs >= 1", self.epochs)
        _expect(math.isfinite(self.lr) and self.lr > 0, "a learning rate lr > 0", self.lr)
        _expect(0 <= self.momentum < 1, "a momentum in [0, 1)", self.momentum)
        _expect(0 <= self.weight_decay < math.inf, "a weight_decay >= 0", self.weight_decay)
        _expect(self.schedule in SCHEDULES, f"a schedule out of {SCHEDULES}", self.schedule)
        _expect(0 <= self.warm_up < 1, "a warm_up in [0, 1)", self.warm_up)
        named = self.optimizer in OPTIMIZERS or callable(self.optimizer)
        _expect(named, f"an optimizer out of {OPTIMIZERS} or a function", self.optimizer)
        _expect(self.clip is None or self.clip > 0, "a norm to clip at > 0 or None", self.clip)
        _expect(self.precision in PRECISIONS, f"a precision out of {PRECISIONS}", self.precision)
        _expect(self.batch_size is None or self.batch_size >= 1, "a batch_size >= 1 or None", self.batch_size)
        _expect(self.checkpoint_every >= 1, "a checkpoint_every >= 1", self.checkpoint_every)

    def make_optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """Return the optimiser of these parameter groups."""
        if callable(self.optimizer):
            return self.optimizer(groups)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                groups, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""
        rising = math.ceil(self.warm_up * steps)
        if step < rising:
            return (step + 1) / rising
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _expect(holds: bool, what: str, got: object) -> None:
    if not holds:
        raise ValueError(f"Expected {what}. Got {got!r}. Change it in Training.")


@dataclass(frozen=True)
class Row:
    """What one epoch did.

    Attributes
    ----------
    epoch
        From 1.
    steps
        Steps of the optimiser up to its end.
    loss
        Mean over the examples, each measured before the step it causes, without the method's penalty.
    status
        What the method said at its end, such as the phase.
    """

    epoch: int
    steps: int
    loss: float
    status: Mapping[str, str | float]


@dataclass(frozen=True, eq=False)
class Trained:
    """The network that was given, trained, and the rows of its epochs."""

    model: nn.Module
    history: tuple[Row, ...]


def train(
    model: Network,
    data: Batches,
    loss: Loss,
    hooks: Hooks,
    settings: Training,
    *,
    seed: int,
    progress: bool = True,
    folder: Path | None = None,
    parameters: Callable[[Network], Groups | None] | None = None,
    identity: Mapping[str, str] | None = None,
) -> Trained:
    """Train ``model`` in place.

    Parameters
    ----------
    model
        The network. It stays on its device; of several processes each takes its own.
    data
        Batches. Lists are taken in a new order in each epoch. A DataLoader's order is its own: torch's, numpy's and
        Python's generators, and the loader's own, are seeded for each epoch, and ``set_epoch`` is called where there
        is one, so that any epoch can be repeated.
    loss
        ``loss(output, target)``, mean over a batch.
    hooks
        The method.
    settings
        How to train.
    seed
        For the order of the data and everything that is drawn. The caller's generators are put back.
    progress
        Show a bar on standard error.
    folder
        Where checkpoints go. A run that finds its own there goes on from it and ends as if it had never stopped.
    parameters
        Parameter groups of the optimiser; None, or a function that returns None, for all parameters alike.
    identity
        What decides the run besides ``settings``: checkpoints of a run that differs in it are refused.

    Raises
    ------
    ModuleNotFoundError
        If accelerate is not installed.
    CheckpointError
        If the folder holds the checkpoints of another run, or only damaged ones.
    FloatingPointError
        If the loss becomes infinite or not a number.
    """
    loop = _Loop(model, data, loss, hooks, settings, seed, parameters, folder, identity or {})
    with _generators_put_back(loop.device), _bar(progress and rank() == 0) as bar:
        rows = loop.run(bar)
    loop.release()
    return Trained(model, rows)


def steps_per_epoch(data: Batches, settings: Training) -> int:
    """Return how many steps of the optimiser one pass over the data makes."""
    size = settings.batch_size
    if size is None:
        return len(data)
    return sum(-(-batch_size((targets, inputs)) // size) for inputs, targets in data)


class _Loop:
    """One run: what it needs, where it is."""

    def __init__(
        self,
        model: Any,
        data: Batches,
        loss: Loss,
        hooks: Hooks,
        settings: Training,
        seed: int,
        parameters: Callable[[Any], Groups | None] | None,
        folder: Path | None,
        identity: Mapping[str, str],
    ) -> None:
        self.data, self.loss, self.hooks, self.settings, self.seed = data, loss, hooks, settings, seed
        self.engine = _accelerator(model)
        self.device = self.engine.device if ranks() > 1 else device_of(model)
        self.model = model.to(self.device)
        self.groups = (parameters(model) if parameters is not None else None) or [{"params": _trainable(model)}]
        self.optimizer = settings.make_optimizer(self.groups)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.trained = self.engine.prepare_model(model) if ranks() > 1 else model
        self.steps = steps_per_epoch(data, settings) * settings.epochs
        self.checkpoints = None if folder is None else Checkpoints(folder, {**identity, **_identity(self)})
        self.step, self.epoch, self.within = 0, 0, 0
        self.rows: list[Row] = []
        self.shown_at = 0.0
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def run(self, bar: Progress) -> tuple[Row, ...]:
        """Train to the end, from the last checkpoint where there is one."""
        self.model.train()
        self.hooks.start(self.model, self.optimizer)
        self._take_up()
        shown = bar.add_task("training", total=self.steps, completed=self.step)
        while self.epoch < self.settings.epochs:
            for batch in self._rest_of_epoch():
                self._one_step(batch)
                self._show(bar, shown)
            self._end_epoch()
        return tuple(self.rows)

    def release(self) -> None:
        """Let go of the ranks' wrapper: while it lives, so do threads that abort a process which ends before them."""
        if ranks() > 1:
            self.trained = self.model
            self.engine.free_memory()

    def _show(self, bar: Progress, shown: TaskID) -> None:
        """Move the bar now and then: what it tells comes from the device, which a look at every step would hold up."""
        if not bar.disable and perf_counter() - self.shown_at > BETWEEN_TEXTS:
            bar.update(shown, completed=self.step, description=self._told())
            self.shown_at = perf_counter()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch that are still to come."""
        _seed_epoch(self.data.source, self.seed, self.epoch)
        yield from _pieces(self.data, self.settings.batch_size, self.seed, self.epoch)

    def _one_step(self, batch: Batch) -> None:
        settings, step = self.settings, self.step
        (inputs, targets), weight = part_of_batch(batch)
        self.hooks.before_forward(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.rate(step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            value = self.loss(call(self.trained, batch_to(inputs, self.device)), batch_to(targets, self.device))
        penalty = self.hooks.penalty()
        self.engine.backward(value * weight if penalty is None else value * weight + penalty)
        self.hooks.after_backward(step)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], settings.clip)
        self.optimizer.step()
        self.hooks.after_step(step)
        examples = batch_size((targets, inputs))
        self.sums += torch.stack([value.detach().double() * examples, self.sums.new_tensor(float(examples))])
        self.step, self.within = step + 1, self.within + 1
        if self.step % LOOK == 0:
            self._refuse_divergence()

    def _refuse_divergence(self) -> None:
        total = float(self.sums[0])
        if not math.isfinite(total):
            raise FloatingPointError(
                f"Expected a finite loss. Got {total} up to step {self.step} of {self.steps} ({self._told()}). "
                f"Lower the learning rate, {self.settings.lr:g} at its peak, or clip the gradient with clip=1.0."
            )

    def _end_epoch(self) -> None:
        expected = self.steps // self.settings.epochs
        if self.within != expected:
            raise ValueError(
                f"Expected {expected} steps in each epoch. Got {self.within} in epoch {self.epoch + 1}. Pass data of "
                "one length."
            )
        self._refuse_divergence()
        total, examples = sum_over_ranks(self.sums).tolist()
        self.rows.append(Row(self.epoch + 1, self.step, total / examples, dict(self.hooks.status())))
        self.sums.zero_()
        self.epoch, self.within = self.epoch + 1, 0
        last = self.epoch == self.settings.epochs
        if self.checkpoints is not None and (last or self.epoch % self.settings.checkpoint_every == 0):
            self._save()

    def _save(self) -> None:
        assert self.checkpoints is not None
        if rank() == 0:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "hooks": self.hooks.state_dict(),
                "rows": [(row.epoch, row.steps, row.loss, dict(row.status)) for row in self.rows],
            }
            self.checkpoints.save(self.step, state)
        self.engine.wait_for_everyone()

    def _take_up(self) -> None:
        found = None if self.checkpoints is None else self.checkpoints.load(self.device)
        if found is None:
            return
        self.step, state = found
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hooks.load_state_dict(state["hooks"])
        self.rows = [Row(*row) for row in state["rows"]]
        self.epoch = len(self.rows)

    def _told(self) -> str:
        said = (f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in self._status())
        return " · ".join(said)

    def _status(self) -> list[tuple[str, str | float]]:
        loss: list[tuple[str, str | float]] = []
        if self.device.type == "cpu" and float(self.sums[1]):
            loss = [("loss", float(self.sums[0] / self.sums[1]))]
        elif self.rows:
            loss = [("loss", self.rows[-1].loss)]
        return [*loss, *self.hooks.status().items()]


def _accelerator(model: nn.Module) -> Any:
    if find_spec("accelerate") is None:
        raise ModuleNotFoundError(
            "Expected accelerate, which training methods run on. Got none. Install structprune[train]."
        )
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A phase may leave attention logits unread.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_cpu = device_of(model).type == "cpu" and not torch.cuda.is_available()
    made = Accelerator(cpu=on_cpu, device_placement=False, kwargs_handlers=[ddp])
    if ranks() > 1:
        atexit.register(leave)
    return made


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _identity(loop: _Loop) -> dict[str, str]:
    """What decides a run, as texts: settings, network, optimiser, method, length and seed."""
    named = {field.name: getattr(loop.settings, field.name) for field in fields(loop.settings)}
    factory = named["optimizer"]
    named["optimizer"] = getattr(factory, "__qualname__", factory)
    del named["checkpoint_every"]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in loop.optimizer.param_groups]
    shapes = {name: tuple(value.shape) for name, value in loop.model.state_dict().items()}
    return {
        **{name: str(value) for name, value in named.items()},
        "network": str(shapes),
        "parameter groups": str(groups),
        "hooks": type(loop.hooks).__name__,
        "steps": str(loop.steps),
        "seed": str(loop.seed),
    }


def _pieces(data: Batches, size: int | None, seed: int, epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    source = data.source
    if isinstance(source, Sequence):
        order = torch.randperm(len(source), generator=generator).tolist()
        data = Batches([source[place] for place in order])
    for batch in data:
        yield from cut(batch, size, generator)


@contextmanager
def repeatable(data: Batches, seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Within, one pass over the data comes out the same whatever was drawn before; the caller's generators stay."""
    with _generators_put_back(device):
        _seed_epoch(data.source, seed, epoch)
        yield


def _seed_epoch(source: Any, seed: int, epoch: int) -> None:
    """Make everything that an epoch draws a function of seed and epoch."""
    mixed = _mixed(seed, epoch)
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - augmentations draw from it
    random.seed(mixed)
    if isinstance(source, DataLoader):
        for generator in (source.generator, getattr(source.sampler, "generator", None)):
            if generator is not None:
                generator.manual_seed(mixed)
    for part in (source, getattr(source, "sampler", None), getattr(source, "dataset", None)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)  # type: ignore[union-attr]


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _generators_put_back(device: torch.device) -> Iterator[None]:
    """The caller's generators are afterwards where they were."""
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002 - loaders draw from it
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)


def _bar(shown: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
