"""One cell: train a classifier by a method, and measure it on validation images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.loading import EpochLoader
from benchmarks.grid.methods import method_of
from benchmarks.grid.run import Measured
from benchmarks.imagenet.augment import Crops
from benchmarks.imagenet.loading import Images, evaluation_loader, training_loader
from benchmarks.imagenet.networks.choice import Network, load_weights
from benchmarks.imagenet.quality import quality, throughput
from benchmarks.imagenet.sources.find import ImageData
from benchmarks.imagenet.sparsity import FEWEST, left_dense, weight_shapes
from benchmarks.imagenet.training import Recipe, classification_loss
from structprune.budget import Budget
from structprune.compile import compile
from structprune.counting import count_macs
from structprune.solve import solve
from structprune.structures import Structures, blocks, channels

__all__ = ["ImageBenchmark"]

DENSE_BLOCK = 16  # of the dense network, which keeps all blocks whatever their size


@dataclass(frozen=True)
class ImageBenchmark:
    """What all cells share.

    Attributes
    ----------
    data
        The images.
    networks, recipes
        By the name that stands in a cell.
    weights
        File to start from; None for untrained networks.
    side
        Of the images, in pixels.
    crops
        Who cuts images.
    min_phase_steps
        Refuse runs with shorter phases.
    device
        Where it trains.
    workers
        Processes that load images.
    fewest
        Fewest blocks of a layer that is pruned.
    batch
        Images at once for the throughput of the compiled network; 0 to leave that out.
    progress
        Show a bar.
    """

    data: ImageData
    networks: dict[str, Network]
    recipes: dict[str, Recipe]
    weights: Path | None
    side: int
    crops: Crops
    min_phase_steps: int
    device: torch.device
    workers: int = 0
    fewest: int = FEWEST
    batch: int = 0
    progress: bool = False

    def measure(self, cell: Cell, folder: Path) -> Measured:
        """Train and measure a cell; checkpoints go to ``folder``."""
        model = self.network(cell)
        if cell.method != DENSE and not cell.block:
            return self.channels(cell, model, folder)
        recipe = self.recipes[cell.network]
        method = method_of(
            cell,
            recipe.training,
            None,
            folder=folder,
            min_phase_steps=self.min_phase_steps,
            trained=self.weights is not None,
        )
        structures = self.structures(model, cell.block)
        start = perf_counter()
        found = method.fit(
            *(model, structures, self.training(cell)),
            classification_loss(recipe.smoothing),
            seed=cell.seed,
            progress=self.progress,
        )
        seconds = perf_counter() - start
        values = self.values(cell, found.model, seconds)
        values |= {
            "training loss": found.history[-1].loss,
            **real_sparsity(found.model, structures, found.selection),
        }
        if cell.method != DENSE:
            values["kept blocks"] = float(found.selection.sum())
            values |= self.speed(found.model, structures, found.selection) if self.batch else {}
        best = quality(found.model, self.validation(cell.network))
        values |= {"top-1": best.top1, "top-5": best.top5, "validation loss": best.loss}
        notes = tuple(found.notes) if cell.method != DENSE else ()
        return Measured(values, notes, {"test": best.recalls})

    def channels(self, cell: Cell, model: nn.Module, folder: Path) -> Measured:
        """Train and measure a cell of channel pruning: of the multiplications, 1 - sparsity may stay."""
        recipe = self.recipes[cell.network]
        trained = self.weights is not None
        method = method_of(
            *(cell, recipe.training, None),
            folder=folder,
            min_phase_steps=self.min_phase_steps,
            trained=trained,
            by_budget=True,
        )
        example = self.example(2)
        start = perf_counter()
        pruned = solve(
            model,
            Budget(macs=1 - cell.sparsity),
            structures=channels(model, example),
            method=method,
            data=self.training(cell),
            loss=classification_loss(recipe.smoothing),
            validation=[next(iter(self.validation(cell.network)))],
            seed=cell.seed,
            progress=False,
        )
        values = self.values(cell, pruned.model, perf_counter() - start)
        dense, left = (sum(p.numel() for p in one.parameters()) for one in (model, pruned.model))
        values |= {
            "real sparsity": 1 - left / dense,
            "removed multiplications": 1 - count_macs(pruned.model, example) / count_macs(model, example),
            "kept blocks": float(pruned.selection.sum()),
        }
        if self.batch:
            values |= throughput({"dense": model.eval(), "pruned": pruned.model}, self.example(self.batch))
        best = quality(pruned.model, self.validation(cell.network))
        values |= {"top-1": best.top1, "top-5": best.top5, "validation loss": best.loss}
        return Measured(values, tuple(pruned.report.notes), {"test": best.recalls})

    def values(self, cell: Cell, model: nn.Module, seconds: float) -> dict[str, float | None]:
        """Return what does not depend on how it was pruned."""
        assert self.data.train is not None
        images = len(self.data.train.labels) * self.recipes[cell.network].training.epochs
        return {
            "images per second": images / seconds,
            "parameters": float(sum(p.numel() for p in model.parameters())),
            "validation images": float(len(self.data.validation.labels)),
        }

    def network(self, cell: Cell) -> nn.Module:
        """Return the network that a cell begins with: drawn by its seed, or with the user's weights."""
        chosen = self.networks[cell.network]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell.seed)
            model = chosen.make(len(self.data.classes), self.side)
        if self.weights is not None:
            load_weights(model, self.weights, chosen)
        return model.to(self.device)

    def structures(self, model: nn.Module, block: int) -> Structures:
        """Return the blocks that may go: of layers with enough of them, grouped convolutions left out."""
        side = block or DENSE_BLOCK
        return blocks(model, (side, side), keep_whole=left_dense(model, side, self.fewest))

    def training(self, cell: Cell) -> EpochLoader:
        """Return the training images of a cell's seed, augmented."""
        assert self.data.train is not None
        pixels = self.networks[cell.network].pixels
        images = Images(self.data.train, self.side, self.crops, pixels, cell.seed)
        return training_loader(images, self.recipes[cell.network].batch_size, self.workers, cell.seed)

    def validation(self, network: str) -> DataLoader:
        """Return the validation images."""
        images = Images(self.data.validation, self.side, self.crops, self.networks[network].pixels, 0)
        return evaluation_loader(images, 128, self.workers)

    def example(self, images: int) -> Tensor:
        """Return zeros in the shape of a batch."""
        return torch.zeros(images, 3, self.side, self.side, device=self.device)

    def speed(self, model: nn.Module, structures: Structures, selection: np.ndarray) -> dict[str, float | None]:
        """Return images per second of the dense network, of whose weights some are zero, and of the compiled one."""
        example = self.example(self.batch)
        compiled = compile(model, structures, selection, self.example(2), timing=example)
        return throughput({"dense": model, "pruned": compiled.model}, example)


def real_sparsity(model: nn.Module, structures: Structures, selection: np.ndarray) -> dict[str, float | None]:
    """Return removed weights as fractions of all convolution and linear weights, and of all parameters."""
    removed = sum(float((~mask).sum()) for mask in structures.masks(selection).values())
    layers = sum(int(np.prod(shape)) for shape in weight_shapes(model).values())
    return {
        "real sparsity": removed / layers,
        "real sparsity of the model": removed / sum(p.numel() for p in model.parameters()),
    }
