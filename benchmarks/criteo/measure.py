"""One cell: train the click-rate network by a method, and measure what it is worth on validation and test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.criteo.arrays import Prepared
from benchmarks.criteo.loading import training_loader
from benchmarks.criteo.network import FIELDS, FIRST_LAYER, WIDTH, ClickNetwork, click_loss
from benchmarks.criteo.quality import quality
from benchmarks.criteo.reference import best_fields, fields_of
from benchmarks.criteo.training import Recipe
from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.methods import method_of
from benchmarks.grid.run import Measured
from structprune.methods import Fitted
from structprune.structures import Structures, blocks

__all__ = ["ClickBenchmark", "fields_alive"]


@dataclass(frozen=True)
class ClickBenchmark:
    """What all cells share.

    Attributes
    ----------
    prepared
        The rows.
    recipes
        By the name that stands in a cell.
    whole_network
        Whether all dense layers are pruned; in the paper the first alone.
    min_phase_steps
        Refuse runs with shorter phases.
    device
        Where it trains.
    workers
        Processes that load rows.
    progress
        Show a bar.
    """

    prepared: Prepared
    recipes: Mapping[str, Recipe]
    whole_network: bool
    min_phase_steps: int
    device: torch.device
    workers: int = 0
    progress: bool = False

    def measure(self, cell: Cell, folder: Path) -> Measured:
        """Train and measure a cell; checkpoints go to ``folder``."""
        count = fields_of(cell.method)
        if count is None:
            return self.trained(cell, folder, None)
        dense = replace(cell, method=DENSE)
        whole = self.fitted(dense, folder / "all fields", None)[0].model
        return self.trained(dense, folder / "best fields", best_fields(whole, self.prepared, count, cell.seed))

    def fitted(self, cell: Cell, folder: Path, fields: np.ndarray | None) -> tuple[Fitted, Structures, float]:
        """Train a cell's network on the fields it may see; also returns the structures and the seconds."""
        folder.mkdir(parents=True, exist_ok=True)
        recipe = self.recipes[cell.network]
        model = self.network(cell.seed, recipe.dropout, fields)
        structures = self.structures(model, cell.block or WIDTH)
        method = method_of(cell, recipe.training, recipe.phases, folder=folder, min_phase_steps=self.min_phase_steps)
        rows = self.prepared.parts["train"]
        data = training_loader(rows, recipe.batch_size, cell.seed, self.workers)
        start = perf_counter()
        found = method.fit(model, structures, data, click_loss, seed=cell.seed, progress=self.progress)
        return found, structures, perf_counter() - start

    def trained(self, cell: Cell, folder: Path, fields: np.ndarray | None) -> Measured:
        """Train and measure a network on the fields it may see."""
        found, structures, seconds = self.fitted(cell, folder, fields)
        recipe, rows = self.recipes[cell.network], self.prepared.parts
        kept = structures.masks(found.selection)
        seen = fields_alive(found.model) & (True if fields is None else fields)
        values: dict[str, float | None] = {
            "kept blocks": float(found.selection.sum()),
            "training loss": found.history[-1].loss,
            "rows per second": len(rows["train"]) * recipe.training.epochs / seconds,
            **sparsities(found.model, kept),
            "fields alive": float(seen.sum()),
            "units alive": float((dict(found.model.named_parameters())[FIRST_LAYER] != 0).any(1).sum()),
        }
        recalls: dict[str, tuple[float, ...]] = {}
        for part in ("validation", "test"):
            one = quality(found.model, rows[part])
            values |= {f"{part} log-loss": one.log_loss, f"{part} AUC": one.auc}
            recalls[part] = one.recalls
        notes = tuple(found.notes) if cell.method != DENSE else ()
        if fields is not None:
            names = (name for name, own in zip(self.prepared.fields, fields, strict=True) if own)
            notes = (f"sees {', '.join(names)}",)
        return Measured(values, notes, recalls)

    def network(self, seed: int, dropout: float, fields: np.ndarray | None = None) -> ClickNetwork:
        """Return the untrained network of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = ClickNetwork(self.prepared.numeric, self.prepared.sizes, dropout=dropout, fields=fields)
        return made.to(self.device)

    def structures(self, model: ClickNetwork, block: int) -> Structures:
        """Return the blocks that may go."""
        every = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        whole = () if self.whole_network else tuple(name for name in every if f"{name}.weight" != FIRST_LAYER)
        return blocks(model, (block, block), keep_whole=whole)


def fields_alive(model: ClickNetwork | torch.nn.Module) -> np.ndarray:
    """Return which fields the first layer reads, boolean ``(39,)``."""
    weight = dict(model.named_parameters())[FIRST_LAYER].detach()
    return (weight != 0).any(0).view(FIELDS, WIDTH).any(1).cpu().numpy()


def sparsities(model: torch.nn.Module, kept: Mapping[str, Any]) -> dict[str, float | None]:
    """Return removed weights as fractions of the first layer, of the dense layers, and of all parameters."""
    removed = {name: float((~mask).sum()) for name, mask in kept.items()}
    named = dict(model.named_parameters())
    dense = sum(p.numel() for name, p in named.items() if name.startswith(("hidden", "last")) and p.dim() == 2)
    gone = sum(removed.values())
    return {
        "real sparsity of the first layer": removed.get(FIRST_LAYER, 0.0) / named[FIRST_LAYER].numel(),
        "real sparsity of the dense layers": gone / dense,
        "real sparsity of the model": gone / sum(p.numel() for p in named.values()),
    }
