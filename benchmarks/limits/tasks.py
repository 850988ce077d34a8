"""The tasks: small ones that a CPU answers in minutes, and the eight of Zhang et al. (2024) as configurations.

A task makes a trained network, the data that epsilon refers to and held-out data. It says nothing about limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar import data_folder, images, trained_resnet
from benchmarks.limits.datasets import Pixels, Split, cifar10, cifar100, digits, fashion, tiny_imagenet
from benchmarks.limits.networks import FC5, FC12, VGG16, AlexNet, Perceptron, initialise, resnet18, resnet50
from benchmarks.limits.proximal import Converged, ProximalAdam
from benchmarks.limits.recipe import Recipe, train
from benchmarks.limits.truth import Retraining
from structprune.files import write_atomically

__all__ = ["TASKS", "MissingSettingError", "Options", "Prepared", "Task"]

BATCH = 128  # examples per batch: what "the standard deviation over batches" means
OWN_DATA = "not an experiment of Zhang et al. (2024)"


class MissingSettingError(ValueError):
    """A setting that a task needs and nobody published."""


@dataclass(frozen=True)
class Options:
    """What the command line says about training and data; None leaves it to the task.

    Attributes
    ----------
    data
        Folder of data.
    work
        Folder of trained networks and checkpoints.
    quick
        Train little: shows that all works, measures nothing.
    examples, held_out
        How many training examples the loss is measured on; and held-out ones.
    penalty, rate, epochs
        Of training.
    by_batch
        Clock of the published schedule.
    batches_per_epoch
        End epochs early.
    """

    data: Path | None
    work: Path
    quick: bool = False
    seed: int = 0
    device: str = "cpu"
    examples: int | None = None
    held_out: int | None = None
    penalty: float | None = None
    rate: float | None = None
    epochs: int | None = None
    by_batch: bool = True
    batches_per_epoch: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A trained network with its data.

    Attributes
    ----------
    model
        In evaluation mode.
    data, held_out
        Batches without augmentation.
    retrainings
        How survivors are trained, in several ways: what they reach depends on it.
    curvature
        What the limits use unless the command line says otherwise.
    notes
        What a reader must know.
    """

    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    held_out: list[tuple[Tensor, Tensor]]
    retrainings: tuple[Retraining, ...]
    curvature: str
    notes: tuple[str, ...]


class Task(Protocol):
    """Something to prune.

    Attributes
    ----------
    name, about
        On the command line, and in a sentence.
    epsilons
        Allowed rises of the loss: nats, or 'batch_std'.
    structures
        Kinds of what is removed.
    block
        Shape of blocks.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def epsilons(self) -> tuple[float | str, ...]: ...

    @property
    def structures(self) -> tuple[str, ...]: ...

    @property
    def block(self) -> tuple[int, int]: ...

    def prepare(self, options: Options) -> Prepared:
        """Read the data and make the trained network."""
        ...


@dataclass(frozen=True)
class Sparse:
    """A perceptron trained to a stationary point of cross-entropy + penalty * |w|_1, on few enough data for a CPU.

    Attributes
    ----------
    widths
        Of the layers.
    training
        How it is trained; the seed is the command line's.
    quick_steps
        Steps of the first cycle in a quick run.
    examples, held_out
        How many are used by default; None for all.
    """

    name: str
    about: str
    widths: tuple[int, ...]
    read: Callable[[Options], Split]
    training: ProximalAdam
    epsilons: tuple[float | str, ...]
    retrainings: tuple[Retraining, ...]
    block: tuple[int, int] = (1, 8)
    structures: tuple[str, ...] = ("weights", "blocks", "channels")
    quick_steps: int = 400

    def prepare(self, options: Options) -> Prepared:
        """Train, or read what was trained before with the same settings."""
        split = self.read(options)
        data, held_out = split.train.first(options.examples), split.held_out.first(options.held_out)
        steps = (self.training.steps, self.training.settle)
        if options.quick:
            steps = (self.quick_steps, self.quick_steps // 4)
        training = replace(
            self.training,
            seed=options.seed,
            steps=steps[0],
            settle=steps[1],
            penalty=self.training.penalty if options.penalty is None else options.penalty,
            rate=self.training.rate if options.rate is None else options.rate,
        )
        model = initialise(Perceptron(self.widths), options.seed)
        about = {**asdict(training), "widths": list(self.widths), "examples": len(data)}
        reached = self._trained(model, data, training, options.work / self.name, about)
        retrainings = tuple(replace(one, seed=options.seed) for one in self.retrainings)
        if options.quick:
            retrainings = (replace(retrainings[0], epochs=max(1, retrainings[0].epochs // 4)),)
        note = (
            f"Trained by proximal Adam on cross-entropy + {training.penalty:g} |w|_1: loss {reached.loss:.4g} nats, "
            f"{100 * reached.nonzero:.1f} % of the penalised weights not zero; a slow last cycle on all data lowered "
            f"the penalised objective by {reached.settled:.2g} nats (root mean square subgradient "
            f"{reached.subgradient:.1g})"
        )
        plain = "epsilon and retraining refer to cross-entropy alone, of which the network is no stationary point"
        return Prepared(
            model.eval().to(options.device),
            data.batches(BATCH),
            held_out.batches(1000),
            retrainings,
            "ggn" if model.get_parameter("layers.0.weight").numel() < 50_000 else "auto",
            (note, plain, OWN_DATA),
        )

    def _trained(
        self, model: nn.Module, data: Pixels, training: ProximalAdam, folder: Path, about: dict[str, object]
    ) -> Converged:
        path = folder / "network.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            if stored["about"] == about:
                model.load_state_dict(stored["model"])
                return Converged(**stored["reached"])
        reached = training.fit(model, data.inputs(), data.targets, F.cross_entropy)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"about": about, "model": model.state_dict(), "reached": asdict(reached)}
        write_atomically(path, lambda temporary: torch.save(content, temporary))
        return reached


@dataclass(frozen=True)
class TrainedResNet:
    """ResNet-20 with its published weights, on some of CIFAR-10's training images."""

    name: str = "resnet20"
    about: str = "ResNet-20 on CIFAR-10 with its trained weights, on some training images"
    epsilons: tuple[float | str, ...] = ("batch_std",)
    structures: tuple[str, ...] = ("weights", "channels")
    block: tuple[int, int] = (8, 8)
    examples: int = 1000
    held_out: int = 1000

    def prepare(self, options: Options) -> Prepared:
        """Read weights and images."""
        folder = data_folder(options.data)
        examples = options.examples or (256 if options.quick else self.examples)
        held_out = options.held_out or (256 if options.quick else self.held_out)
        model = trained_resnet(folder, "resnet20").to(options.device)
        note = (
            f"Weights trained elsewhere with augmentation on all 50,000 images; loss, epsilon and retraining refer to "
            f"the first {examples:,} without augmentation. Batch norm keeps its statistics"
        )
        return Prepared(
            model,
            images(folder, "train_0").first(examples).batches(BATCH),
            images(folder, "test").first(held_out).batches(500),
            (
                Retraining(epochs=2, batch=50, rate=1e-3, checks=2, chained=False, seed=options.seed),
                *([] if options.quick else [Retraining(epochs=4, batch=50, rate=1e-3, checks=2, seed=options.seed)]),
            ),
            "layerwise",
            (note, OWN_DATA),
        )


@dataclass(frozen=True)
class Published:
    """One of the eight experiments of Zhang et al. (2024).

    Attributes
    ----------
    make
        Builds the network.
    read
        Reads the data from a folder.
    recipe
        The published settings.
    unknown
        Settings that are not in the published configuration files: 'penalty' and 'rate' of the TinyImageNet ones,
        whose other settings are taken to be those of the CIFAR-100 ones.

    References
    ----------
    Zhang, Xue, Li, Gong, "How sparse can we prune a deep network: a fundamental limit perspective", NeurIPS 2024,
    arXiv 2306.05857; settings from the configuration files of the published code.
    """

    name: str
    about: str
    make: Callable[[], nn.Module]
    read: Callable[[Path], Split]
    recipe: Recipe
    unknown: tuple[str, ...] = ()
    epsilons: tuple[float | str, ...] = ("batch_std",)
    structures: tuple[str, ...] = ("weights",)
    block: tuple[int, int] = (16, 16)

    def prepare(self, options: Options) -> Prepared:
        """Train by the recipe, or go on where a checkpoint stands.

        Raises
        ------
        MissingSettingError
            If a setting that is not published is not given.
        """
        missing = [name for name in self.unknown if getattr(options, name) is None]
        if missing:
            raise MissingSettingError(
                f"Expected {' and '.join('--' + name for name in missing)} for {self.name}. Got none. The published "
                "configuration files do not hold them, and a value made up here would not be the paper's: pass yours."
            )
        changes = {name: getattr(options, name) for name in ("penalty", "rate", "epochs")}
        recipe = replace(
            self.recipe,
            by_batch=options.by_batch,
            **{name: value for name, value in changes.items() if value is not None},
        )
        split = self.read(data_folder(options.data))
        folder = options.work / self.name
        model = initialise(self.make(), options.seed)
        device = torch.device(options.device)
        train(
            model,
            split.train,
            recipe,
            folder,
            device=device,
            seed=options.seed,
            batches_per_epoch=options.batches_per_epoch,
        )
        return Prepared(
            model,
            split.train.first(options.examples).batches(BATCH),
            split.held_out.first(options.held_out).batches(BATCH),
            (Retraining(epochs=5, batch=BATCH, rate=3e-4, checks=5, seed=options.seed),),
            "ggn" if device.type == "cuda" else "layerwise",
            self._notes(recipe, options),
        )

    def _notes(self, recipe: Recipe, options: Options) -> tuple[str, ...]:
        clock = "by batch, as in the published code" if recipe.by_batch else "by epoch, as its settings read"
        settings = (
            f"SGD, rate {recipe.rate:g}, momentum {recipe.momentum:g}, batch {recipe.batch}, {recipe.epochs} epochs, "
            f"cross-entropy + {recipe.penalty:g} |w|_1; schedule {recipe.shape}, {clock}; "
            "evaluated without augmentation"
        )
        default = replace(self.recipe, **{name: getattr(recipe, name) for name in self.unknown})
        shortened = recipe != default or options.batches_per_epoch or options.examples or options.held_out
        verdict = "settings of Zhang et al. (2024) as published; data and seeds are this run's"
        if self.unknown:
            verdict = f"{' and '.join(self.unknown)} given by the user: not published"
        if shortened:
            verdict = "training, data or settings differ from the published ones: not the paper's experiment"
        return settings, verdict


def _digits(options: Options) -> Split:
    return digits()


def _fashion(options: Options) -> Split:
    return fashion(data_folder(options.data))


def _digits_task(penalty: str, epsilons: Sequence[float]) -> Sparse:
    return Sparse(
        f"digits-{penalty}",
        f"scikit-learn's digits, perceptron 64-24-24-10, l1 penalty {penalty}",
        (64, 24, 24, 10),
        _digits,
        ProximalAdam(float(penalty)),
        tuple(epsilons),
        (Retraining(epochs=400, rate=0.003, chained=False), Retraining(epochs=2000, rate=0.03)),
    )


TASKS: tuple[Task, ...] = (
    _digits_task("5e-4", (0.0023, 0.02)),
    _digits_task("1e-4", (0.005,)),
    Sparse(
        "fashion",
        "Fashion-MNIST, 10,000 training images, perceptron 784-300-100-10, l1 penalty 1e-4",
        (784, 300, 100, 10),
        _fashion,
        ProximalAdam(1e-4, steps=6000, batch=500, settle=300, rate=0.003),
        ("batch_std", 0.05),
        (
            Retraining(epochs=8, batch=250, rate=1e-3, checks=2, chained=False),
            Retraining(epochs=20, batch=250, rate=1e-3, checks=3),
        ),
    ),
    TrainedResNet(),
    Published("fc5", "FC5 on CIFAR-10", lambda: Perceptron(FC5), cifar10, Recipe(0.01, 5e-5)),
    Published("fc12", "FC12 on CIFAR-10", lambda: Perceptron(FC12), cifar10, Recipe(0.01, 5e-5)),
    Published(
        "alexnet", "AlexNet on CIFAR-10", AlexNet, cifar10, Recipe(0.01, 3e-5, warm_up=5, shape="multistep", gamma=0.5)
    ),
    Published("vgg16", "VGG16 on CIFAR-10", VGG16, cifar10, Recipe(0.01, 1e-4, warm_up=5)),
    Published(
        "resnet18-cifar100",
        "ResNet18 on CIFAR-100",
        lambda: resnet18(100),
        cifar100,
        Recipe(0.1, 5e-5, warm_up=5, shape="cosine"),
    ),
    Published(
        "resnet50-cifar100",
        "ResNet50 on CIFAR-100",
        lambda: resnet50(100),
        cifar100,
        Recipe(0.1, 2e-5, warm_up=5, shape="cosine"),
    ),
    Published(
        "resnet18-tinyimagenet",
        "ResNet18 on TinyImageNet",
        lambda: resnet18(200),
        tiny_imagenet,
        Recipe(0.1, 0.0, warm_up=5, shape="cosine"),
        unknown=("penalty", "rate"),
    ),
    Published(
        "resnet50-tinyimagenet",
        "ResNet50 on TinyImageNet",
        lambda: resnet50(200),
        tiny_imagenet,
        Recipe(0.1, 0.0, warm_up=5, shape="cosine"),
        unknown=("penalty", "rate"),
    ),
)
