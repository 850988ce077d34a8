"""Allocation problems of trained networks: traced structures, scores on real data, exact costs, saved as files.

    python -m benchmarks.solvers.real_scores          # writes benchmarks/instances/; needs the folder of data

The scores are the empirical Fisher loss on training examples (one row: layer reconstruction's curves). Files hold the
numbers alone, so that solvers are compared on them without torch, networks or data.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from benchmarks.cifar import MissingDataError, data_folder, images, trained_resnet
from benchmarks.mobilenets import imagenet_sample, trained_mobilenet
from benchmarks.provenance import commit, versions
from benchmarks.solvers.real_instances import FOLDER
from benchmarks.texts import Similarity, sentence_pairs, stories, trained_llama, trained_minilm
from solvers.problem import SelectionProblem
from structprune.budget import Budget
from structprune.costs import costs
from structprune.criteria import Fisher, LayerReconstruction
from structprune.criteria.scores import Criterion
from structprune.data import Loss
from structprune.files import write_atomically
from structprune.problem import selection_problem
from structprune.structures import channels

SEED = 0
HEADINGS = ("file", "network", "scores", "widths", "groups", "structures", "budgets", "fingerprint")


@dataclass(frozen=True)
class Task:
    """A trained network with training data and a loss.

    Attributes
    ----------
    batch
        Inputs and targets.
    data
        In words, for the table.
    """

    model: nn.Module
    batch: tuple[Any, Any]
    loss: Loss
    data: str


@dataclass(frozen=True)
class Instance:
    """A problem to be made.

    Attributes
    ----------
    name
        Of the file.
    network
        For the table.
    step
        Widths are multiples of this, or whole.
    """

    name: str
    network: str
    task: Callable[[Path], Task]
    criterion: Criterion
    budget: Budget
    step: int = 1

    def made(self, folder: Path) -> tuple[SelectionProblem, Task]:
        """Trace, score, count and put together."""
        task = self.task(folder)
        inputs, targets = task.batch
        example = inputs if isinstance(inputs, tuple) else (inputs,)
        structures = channels(task.model, tuple(part[:2] for part in example), multiple_of=self.step)
        terms = {resource: costs(structures, task.model, resource) for resource in self.budget.resources}
        dense = selection_problem(structures, self.scored(structures, task), terms, dict.fromkeys(terms, 0))
        amounts = dense.used([len(group) - 1 for group in dense.groups])
        limits = self.budget.limits(dict(zip(terms, amounts, strict=True)))
        return dense.with_limits(limits), task

    def scored(self, structures: Any, task: Task) -> Any:
        """The criterion's scores on the task's examples."""
        return self.criterion(task.model, structures, [task.batch], task.loss)


def resnet(name: str, count: int) -> Callable[[Path], Task]:
    """CIFAR-10 images for a ResNet."""

    def task(folder: Path) -> Task:
        sample = images(folder, "train_0").sample(count, SEED)
        return Task(trained_resnet(folder, name), (sample.inputs, sample.targets), F.cross_entropy, f"{count} images")

    return task


def mobilenet(version: int, count: int) -> Callable[[Path], Task]:
    """ImageNet's training images for a MobileNet."""

    def task(folder: Path) -> Task:
        sample = imagenet_sample(folder, count, SEED)
        batch = sample.inputs, sample.targets
        return Task(trained_mobilenet(folder, version), batch, F.cross_entropy, f"{count} images")

    return task


def minilm(folder: Path) -> Task:
    """Sentence pairs of STS-B for MiniLM, squared error of the similarity."""
    pairs = sentence_pairs(folder, 256, SEED)
    return Task(Similarity(trained_minilm(folder)), (pairs.inputs, pairs.targets), F.mse_loss, "256 sentence pairs")


def llama(folder: Path) -> Task:
    """Short stories for the small Llama."""

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten())

    return Task(trained_llama(folder), stories(folder, 256, 64), loss, "256 pieces of 64 tokens")


HALF = Budget(macs=0.5)
INSTANCES: tuple[Instance, ...] = (
    Instance("resnet20_fisher", "ResNet-20, CIFAR-10", resnet("resnet20", 512), Fisher(None), HALF),
    Instance("resnet56_fisher", "ResNet-56, CIFAR-10", resnet("resnet56", 256), Fisher(None), HALF),
    Instance("resnet56_reconstruction", "ResNet-56, CIFAR-10", resnet("resnet56", 1024), LayerReconstruction(), HALF),
    Instance(
        "resnet56_two_budgets",
        "ResNet-56, CIFAR-10",
        resnet("resnet56", 256),
        Fisher(None),
        Budget(macs=0.5, params=0.4),
    ),
    Instance("mobilenet_v1_fisher", "MobileNetV1, ImageNet", mobilenet(1, 128), Fisher(None), HALF, step=8),
    Instance("mobilenet_v2_fisher", "MobileNetV2, ImageNet", mobilenet(2, 128), Fisher(None), HALF, step=8),
    Instance("mobilenet_v2_single", "MobileNetV2, ImageNet", mobilenet(2, 128), Fisher(None), HALF),
    Instance("minilm_fisher", "MiniLM, STS-B", minilm, Fisher(None), HALF),
    Instance("llama_fisher", "Llama of 260 k weights, TinyStories", llama, Fisher(None), HALF),
)


def row_of(one: Instance, task: Task, problem: SelectionProblem) -> str:
    """Return an instance's line of the table."""
    widths = "every" if one.step == 1 else f"multiples of {one.step}"
    scores = f"{type(one.criterion).__name__}, {task.data}"
    used = problem.used([len(group) - 1 for group in problem.groups])
    budgets = ", ".join(f"{c.resource} {c.limit} of {a}" for c, a in zip(problem.capacities, used, strict=True))
    cells = (
        one.name,
        one.network,
        scores,
        widths,
        len(problem.groups),
        problem.size,
        budgets,
        problem.fingerprint[:12],
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page(rows: Sequence[str], command: str) -> str:
    """Return the README of the folder."""
    made = ", ".join(f"{name} {version}" for name, version in sorted(versions(("torch", "numpy")).items()))
    lines = [
        "# Allocation problems of trained networks",
        "",
        "Each file is a `SelectionProblem` (`SelectionProblem.load(path)`): groups of structures, values that real "
        f"scores on training data (seed {SEED}) give to each width, exact integer costs, budgets. They hold no weights "
        "and no data.",
        "",
        f"Command: `{command}`, commit {commit(('structprune', 'solvers', 'benchmarks'))}; {made}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files; returns the exit status: 0, or 2 without data."""
    names = [one.name for one in INSTANCES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers.real_scores", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"where to write (default: {FOLDER})")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.solvers.real_scores", *(arguments or sys.argv[1:])])
    console = Console()
    try:
        folder = data_folder(options.data)
        options.out.mkdir(parents=True, exist_ok=True)
        rows = []
        for one in INSTANCES:
            if one.name not in options.only:
                continue
            torch.manual_seed(SEED)
            problem, task = one.made(folder)
            problem.save(options.out / f"{one.name}.npz")
            rows.append(row_of(one, task, problem))
            console.print(rows[-1], markup=False, soft_wrap=True)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    if options.only == names:
        write_atomically(options.out / "README.md", page(rows, command).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
