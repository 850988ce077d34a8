"""A small network trained on real data: 64-1024-512-10 with ReLU on scikit-learn's digits, shifted by up to a pixel."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

__all__ = ["held_out", "shifted_digits", "trained_network", "training_part"]

#: Images of the held-out part, the last ones of a fixed shuffle.
_HELD_OUT = 397


@cache
def _split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16.0, dtype=torch.float32)
    labels = torch.tensor(data.target[order])
    return images[:-_HELD_OUT], labels[:-_HELD_OUT], images[-_HELD_OUT:], labels[-_HELD_OUT:]


def shifted_digits(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All nine shifts of ``(N, 8, 8)`` images by at most one pixel, empty beyond the edge, flat: ``(9 N, 64)``."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    shifts = [padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i in range(3) for j in range(3)]
    return torch.cat(shifts), labels.repeat(9)


def training_part() -> tuple[torch.Tensor, torch.Tensor]:
    """Shifted images ``(n, 64)`` and labels ``(n,)`` of the training part."""
    return shifted_digits(*_split()[:2])


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """Shifted images ``(n, 64)`` and labels ``(n,)`` that training never saw."""
    return shifted_digits(*_split()[2:])


@cache
def trained_network(seed: int = 0, epochs: int = 6) -> nn.Sequential:
    """The network after ``epochs`` over the shifted training digits; equal seeds give equal networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(*(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)))
        images, labels = shifted_digits(*_split()[:2])
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels)).split(128):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimiser.step()
    return network.eval()
