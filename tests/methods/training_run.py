"""A small training run as a program of its own, to be killed, taken up and spread over processes.

    python -m tests.methods.training_run OUT [--folder DIR] [--kill-at STEP] [--method NAME] [--norm]

Writes what came out to OUT: the weights, the mask, and the losses of the epochs.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.files import write_atomically
from structprune.methods import ACDC, GradualMagnitude, SequentialAttentionPP, Training, TrainingMethod, Uniform
from structprune.methods.ranks import rank
from structprune.structures import blocks

EPOCHS, BATCHES = 12, 6
METHODS: dict[str, Callable[[Training, Path | None], TrainingMethod]] = {
    "sequential attention": lambda training, folder: SequentialAttentionPP(training=training, folder=folder, cycles=3),
    "acdc": lambda training, folder: ACDC(training=training, folder=folder, cycles=3),
    "gradual": lambda training, folder: GradualMagnitude(training=training, folder=folder),
}


def network(norm: bool) -> nn.Module:
    """A network with dropout, and with batch norm if wished; the same in each process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norms = [nn.BatchNorm1d(24)] if norm else []
        noise = [nn.Dropout(0.2)] if norm else []
        return nn.Sequential(
            nn.Linear(20, 24), *norms, nn.ReLU(), *noise, nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)
        )


def batches() -> list[tuple[Tensor, Tensor]]:
    """Batches of 16 examples with four classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES, 16, 20, generator=generator)
    targets = (inputs @ torch.randn(20, 4, generator=generator)).argmax(2)
    return list(zip(inputs, targets, strict=True))


@dataclass
class KillingLoss:
    """Cross entropy that kills its own process at a step, as no clean-up can notice."""

    at: int | None
    calls: int = 0

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.at is not None and self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return F.cross_entropy(output, targets)


def main() -> None:
    """Train and write the outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--method", default="acdc", choices=METHODS)
    parser.add_argument("--norm", action="store_true")
    parser.add_argument("--lr", type=float, default=0.05)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = network(given.norm)
    method = METHODS[given.method](Training(epochs=EPOCHS, lr=given.lr), given.folder)
    found = method.fit(
        model, blocks(model, (4, 4)), batches(), KillingLoss(given.kill_at), keep=Uniform(0.5, min_structures=1), seed=3
    )
    if rank() == 0:
        outcome = {
            "model": found.model.state_dict(),
            "selection": torch.from_numpy(found.selection),
            "losses": [row.loss for row in found.history],
        }
        write_atomically(given.out, lambda path: torch.save(outcome, path))


if __name__ == "__main__":
    main()
