"""Examples in memory: shuffled batches whose order an epoch's seed decides, and images that are moved and mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Examples", "Shuffled", "moved_and_mirrored"]

PADDING = 4


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, the first dimension counting examples.

    Attributes
    ----------
    inputs
        One tensor for each argument of the network.
    targets
        Classes or labels.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, which: slice) -> Examples:
        return Examples(tuple(one[which] for one in self.inputs), self.targets[which])

    def to(self, device: torch.device) -> Examples:
        """The same on a device."""
        return Examples(tuple(one.to(device) for one in self.inputs), self.targets.to(device))

    def batches(self, size: int) -> list[tuple[Any, Tensor]]:
        """In order."""
        parts = zip(*(one.split(size) for one in self.inputs), strict=True)
        return list(zip(map(_arguments, parts), self.targets.split(size), strict=True))


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Batches in an order drawn from torch's generator; examples that fill no batch wait for another epoch.

    Attributes
    ----------
    examples
        All examples.
    size
        Of a batch.
    change
        What becomes of the first input of each batch, for instance :func:`moved_and_mirrored`.
    """

    examples: Examples
    size: int
    change: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.examples) // self.size

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        examples = self.examples
        order = torch.randperm(len(examples)).to(examples.targets.device)
        for which in order[: len(self) * self.size].split(self.size):
            first, *others = (one[which] for one in examples.inputs)
            if self.change is not None:
                first = self.change(first)
            yield _arguments((first, *others)), examples.targets[which]


def _arguments(inputs: tuple[Tensor, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs


def moved_and_mirrored(images: Tensor) -> Tensor:
    """Return images ``(N, C, H, W)`` moved by up to 4 pixels each way, half of them mirrored (He et al. 2016)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    down, right = torch.randint(0, 2 * PADDING + 1, (2, count, 1)).to(images.device)
    mirrored = (torch.rand(count, 1) < 0.5).to(images.device)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + right
    columns = torch.where(mirrored, columns.flip(1), columns)
    example = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
