"""Training as in the published experiments: SGD on cross-entropy + penalty * |w|_1, crops and flips; resumable.

The settings are those of the published configuration files. Two of their traits are kept and named: the learning-rate
schedule steps by batch (see :class:`Schedule`), and the penalty's gradient is the sign, so that no weight is exactly
zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from benchmarks.limits.datasets import Pixels
from structprune.files import write_atomically
from structprune.progress import track

__all__ = ["Recipe", "Schedule", "augmented", "train"]

PADDING = 4  # pixels on every side before a random crop
SHAPES = ("constant", "multistep", "cosine")
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    rate, momentum, weight_decay, batch, epochs
        Of SGD.
    penalty
        lambda of ``lambda |w|_1``, over all parameters, biases and normalisation included.
    warm_up
        Epochs over which the rate rises, by batch, from 0.
    shape
        'constant', 'multistep' or 'cosine', after or under the warm-up.
    milestones, gamma
        Of 'multistep'.
    by_batch
        Whether the schedule advances with every batch, as in the published code, or with every epoch, as its settings
        read.
    augment
        Random crops of images padded by 4 pixels, and horizontal flips.

    Raises
    ------
    ValueError
        If the shape is not known.
    """

    rate: float
    penalty: float
    warm_up: int = 0
    shape: str = "constant"
    milestones: tuple[int, ...] = (60, 120, 160)
    gamma: float = 0.5
    by_batch: bool = True
    epochs: int = 200
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Expected a shape out of {', '.join(SHAPES)}. Got {self.shape!r}. Pass one of them.")


class Schedule:
    """The learning rate, batch by batch.

    By epoch, the rate of batch b in epoch e is ``rate * warm * shape(e)``, where warm rises linearly from 0 to 1 over
    the warm-up's batches.

    By batch, as published: the schedule's clock counts batches although its milestones (60, 120, 160) and its period
    (T_max = number of epochs) are meant in epochs, and during the warm-up the warm-up overwrites the rate after every
    batch. With 391 batches per epoch the milestones pass within the first epoch and the warm-up's end undoes them:
    'multistep' is a constant rate. 'cosine' swings between the full rate and 0 with a period of 2 T_max batches, about
    once an epoch, instead of falling once.

    Parameters
    ----------
    optimiser
        Its rate is changed.
    recipe
        Shape, warm-up and clock.
    batches
        Number of batches per epoch.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, recipe: Recipe, batches: int) -> None:
        self.recipe = recipe
        warm_up = recipe.warm_up * batches
        if not recipe.by_batch:

            def factor(step: int) -> float:
                return _shape(recipe, step // batches) * (min(step / warm_up, 1.0) if warm_up else 1.0)

            self.parts: list[LRScheduler] = [LambdaLR(optimiser, factor)]
            return
        # The published order: the shape is made first, so that the warm-up's start, a rate of 0, holds.
        self.parts = []
        if recipe.shape == "multistep":
            self.parts.append(MultiStepLR(optimiser, list(recipe.milestones), recipe.gamma))
        elif recipe.shape == "cosine":
            self.parts.append(CosineAnnealingLR(optimiser, T_max=recipe.epochs))
        if warm_up:
            self.parts.insert(0, LambdaLR(optimiser, lambda step: step / warm_up))

    def advance(self, epoch: int) -> None:
        """Count a batch of an epoch, after the optimiser's step."""
        for part in self.parts:
            ended = self.recipe.by_batch and isinstance(part, LambdaLR) and epoch >= self.recipe.warm_up
            if not ended:
                part.step()

    def state(self) -> list[dict[str, Any]]:
        """Return what it takes to go on."""
        return [part.state_dict() for part in self.parts]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from a state."""
        for part, content in zip(self.parts, state, strict=True):
            part.load_state_dict(content)


def _shape(recipe: Recipe, epoch: int) -> float:
    if recipe.shape == "multistep":
        return recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    return 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs)) if recipe.shape == "cosine" else 1.0


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crop images at random after padding them with black by 4 pixels, and flip half of them; ``(B, C, H, W)``."""
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (PADDING,) * 4)
    shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator).bool()
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.where(flips, torch.arange(width).flip(0), torch.arange(width))
    images, rows, columns = (index.to(pixels.device) for index in (torch.arange(count), rows, columns))
    # Advanced indices around a slice put the indexed dimensions first: (B, H, W, C).
    cropped = padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def train(
    model: nn.Module,
    pixels: Pixels,
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    seed: int,
    batches_per_epoch: int | None = None,
) -> nn.Module:
    """Train `model` in place, or go on where a checkpoint in `folder` stands; one is written after every epoch.

    Crops and order of an epoch are drawn by the seed and the epoch's number, so that resumed and uninterrupted runs
    agree (on a GPU as far as its kernels are deterministic).

    Parameters
    ----------
    batches_per_epoch
        Stop each epoch early; for trials.

    Returns
    -------
    Module
        The network, in evaluation mode.

    Raises
    ------
    ValueError
        If the checkpoint belongs to other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    model.to(device).train()
    full = -(-len(pixels) // recipe.batch)
    count = min(full, batches_per_epoch or full)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = Schedule(optimiser, recipe, count)
    about = {**asdict(recipe), "examples": len(pixels), "seed": seed, "count": count, "model": type(model).__name__}
    done = 0
    if path.exists():
        stored = torch.load(path, map_location=device, weights_only=True)
        if stored["about"] != about:
            raise ValueError(
                f"Expected a checkpoint of these settings in {path}. Got others. Remove it or name another folder."
            )
        model.load_state_dict(stored["model"])
        optimiser.load_state_dict(stored["optimiser"])
        schedule.restore(stored["schedule"])
        done = stored["epoch"]
    for epoch in range(done, recipe.epochs):
        generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
        _epoch(model, pixels, recipe, optimiser, schedule, epoch, count, generator)
        content = {
            "about": about,
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state(),
        }
        write_atomically(path, lambda temporary, content=content: torch.save(content, temporary))  # type: ignore[misc]
    return model.eval()


def _epoch(
    model: nn.Module,
    pixels: Pixels,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    count: int,
    generator: torch.Generator,
) -> None:
    device = next(model.parameters()).device
    order = torch.randperm(len(pixels), generator=generator).split(recipe.batch)[:count]
    for chosen in track(order, f"epoch {epoch + 1} of {recipe.epochs}"):
        images = pixels.pixels[chosen]
        images = augmented(images, generator) if recipe.augment else images
        inputs, targets = pixels.scaled(images.to(device)), pixels.targets[chosen].to(device)
        penalty = sum((parameter.abs().sum() for parameter in model.parameters()), torch.zeros((), device=device))
        optimiser.zero_grad()
        (F.cross_entropy(model(inputs), targets) + recipe.penalty * penalty).backward()
        optimiser.step()
        schedule.advance(epoch)
