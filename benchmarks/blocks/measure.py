"""One cell: train by a method, and measure the result on validation and test examples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.blocks.data import Examples
from benchmarks.blocks.tasks import Parts, Task
from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.methods import method_of
from benchmarks.grid.run import Measured
from structprune.data import batch_to, call, check_data, eval_mode
from structprune.methods import DenseTraining, Uniform
from structprune.methods.shape import coverage, real_sparsity

__all__ = ["BlockBenchmark", "quality"]

AT_ONCE = 500  # examples of one forward pass
TIMED_STEPS = 12
#: What masks, attention and selections add to a plain step, as a factor: for the estimate before a start.
OVERHEAD = 1.5


@dataclass(frozen=True)
class BlockBenchmark:
    """What all cells share.

    Attributes
    ----------
    tasks
        By the name that stands in a cell.
    folder
        Of data.
    device
        Where it trains.
    min_phase_steps
        Refuse runs with shorter phases.
    progress
        Show a bar.
    """

    tasks: Mapping[str, Task]
    folder: Path
    device: torch.device
    min_phase_steps: int = 4
    progress: bool = False
    _read: dict[str, Parts] = field(default_factory=dict, init=False, repr=False)

    def parts(self, name: str) -> Parts:
        """The data and network of a task; read when first asked for."""
        if name not in self._read:
            found = self.tasks[name].prepare(self.folder)
            self._read[name] = replace(
                found,
                train=found.train.to(self.device),
                validation=found.validation.to(self.device),
                test=found.test.to(self.device),
            )
        return self._read[name]

    def measure(self, cell: Cell, folder: Path) -> Measured:
        """Train and measure a cell; checkpoints go to ``folder``."""
        task, parts = self.tasks[cell.network], self.parts(cell.network)
        model = parts.network(cell.seed).to(self.device)
        structures = task.structures(model, cell.block or 8)
        method = method_of(
            *(cell, task.training, None),
            folder=folder,
            min_phase_steps=self.min_phase_steps,
            trained=task.trained,
            min_structures=task.min_structures,
        )
        found = method.fit(model, structures, task.data(parts.train), task.loss, seed=cell.seed, progress=self.progress)
        values: dict[str, float | None] = {"kept blocks": float(found.selection.sum())}
        values["training loss"] = found.history[-1].loss
        if cell.method != DENSE:
            removed = {name: float((~mask).sum()) for name, mask in structures.masks(found.selection).items()}
            sizes = {name: weight.numel() for name, weight in found.model.named_parameters()}
            values["real sparsity of the model"] = real_sparsity(sizes, removed)
            layers = coverage(structures, found.selection).values()
            values["inputs alive"] = sum(one.rows for one in layers) / sum(one.all_rows for one in layers)
            values["outputs alive"] = sum(one.columns for one in layers) / sum(one.all_columns for one in layers)
        recalls = {}
        for part in ("validation", "test"):
            figures, recalls[part] = quality(found.model, task, getattr(parts, part))
            values |= {f"{part} {name}": value for name, value in figures.items()}
        return Measured(values, tuple(found.notes) if cell.method != DENSE else (), recalls)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Estimate the time of cells from a few steps of each task's dense network."""
        counts = Counter(cell.network for cell in cells)
        return sum(count * self._seconds_of_one(name) for name, count in counts.items())

    def _seconds_of_one(self, name: str) -> float:
        task, parts = self.tasks[name], self.parts(name)
        model = parts.network(0).to(self.device)
        data = task.data(parts.train[: TIMED_STEPS * task.batch_size])
        method = DenseTraining(training=task.training, epochs=1, min_phase_steps=1)
        start = time.perf_counter()
        method.fit(model, task.structures(model, 8), data, task.loss, keep=Uniform(0.0))
        per_step = (time.perf_counter() - start) / len(data)
        return OVERHEAD * per_step * len(task.data(parts.train)) * task.training.epochs


@torch.no_grad()
def quality(model: nn.Module, task: Task, examples: Examples) -> tuple[dict[str, float], tuple[float, ...]]:
    """Return loss in nats with accuracy or AUC, and the recall of each class."""
    outputs = []
    with eval_mode(model):
        for inputs, _ in check_data(examples.batches(AT_ONCE)):
            outputs.append(call(model, batch_to(inputs, examples.targets.device)))
    output = torch.cat(outputs).float()
    loss = float(task.loss(output, examples.targets))
    truth = examples.targets.cpu().numpy()
    if task.measure == "AUC":
        logits = output.cpu().numpy()
        guess, classes = (logits > np.log(truth.mean() / (1 - truth.mean()))).astype(int), 2
        figures = {"loss": loss, "AUC": float(roc_auc_score(truth, logits))}
    else:
        guess, classes = output.argmax(1).cpu().numpy(), output.shape[1]
        figures = {"loss": loss, "accuracy": float((guess == truth).mean())}
    recalls = tuple(float((guess[truth == one] == one).mean()) for one in range(classes))
    return figures, recalls
