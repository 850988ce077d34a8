"""A planted task: a teacher whose first layer is a few blocks, over correlated inputs with redundant copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.data import Batches, evaluate
from structprune.structures import Structures, blocks

SIDE = 8  # of a block
INPUTS, HIDDEN = 128, 96
PLANTED = 12  # blocks of the teacher, of 192


def student(seed: int) -> nn.Sequential:
    """An untrained network of the teacher's first layer's shape and one hidden layer more."""
    torch.manual_seed(1000 + seed)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 48), nn.ReLU(), nn.Linear(48, 1))


def logistic(output: Tensor, target: Tensor) -> Tensor:
    """Mean log-loss in nats."""
    return F.binary_cross_entropy_with_logits(output.squeeze(1), target)


@dataclass(frozen=True)
class Planted:
    """One draw of the task.

    Attributes
    ----------
    training, validation, test
        Batches of inputs ``(256, 128)`` and targets ``(256,)`` in {0, 1}.
    truth
        The teacher's blocks, ``(192,)`` boolean, as `structures` counts them.
    structures
        Blocks of the student's first layer.
    """

    training: list[tuple[Tensor, Tensor]]
    validation: list[tuple[Tensor, Tensor]]
    test: list[tuple[Tensor, Tensor]]
    truth: np.ndarray
    structures: Structures

    def loss(self, model: nn.Module) -> float:
        """Log-loss on the test data."""
        return evaluate(model, Batches(self.test), logistic).loss


def planted(seed: int, spread: float = 0.0, examples: int = 51_200) -> Planted:
    """Draw inputs, teacher and targets.

    Sixteen runs of eight inputs each, of low rank and noise; runs 8 ... 11 are noisy copies of runs 0 ... 3. The
    teacher's first layer has 12 blocks, its inputs are standardised; ``spread`` then scales each run by 10 to a number
    in [-spread, spread].
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    held = 6_400
    total = examples + 2 * held
    runs = INPUTS // SIDE
    factors = torch.randn(total, runs, 3, generator=generator)
    mixing = torch.randn(runs, 3, SIDE, generator=generator) / 3**0.5
    inputs = torch.einsum("nrf,rfs->nrs", factors, mixing) + 0.5 * torch.randn(total, runs, SIDE, generator=generator)
    inputs[:, 8:12] = inputs[:, :4] + 0.5 * torch.randn(total, 4, SIDE, generator=generator)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)

    sources = rng.permutation(np.r_[0:8, 12:16])[:7]
    truth = np.zeros((HIDDEN // SIDE, runs), dtype=bool)
    # One block for each of the seven runs, five more among them.
    pairs = [(int(rng.integers(HIDDEN // SIDE)), int(run)) for run in sources]
    while len(set(pairs)) < PLANTED:
        pairs.append((int(rng.integers(HIDDEN // SIDE)), int(rng.choice(sources))))
    for row, run in pairs:
        truth[row, run] = True
    mask = torch.from_numpy(np.repeat(np.repeat(truth, SIDE, 0), SIDE, 1))
    first = torch.randn(HIDDEN, INPUTS, generator=generator) * mask / SIDE**0.5
    second = torch.randn(HIDDEN, generator=generator)
    answers = torch.relu(inputs.reshape(total, INPUTS) @ first.T) @ second
    answers = 3 * (answers - answers.mean()) / answers.std()
    targets = torch.bernoulli(torch.sigmoid(answers), generator=generator)

    scales = 10 ** (spread * (2 * torch.rand(runs, 1, generator=generator) - 1))
    flat = (inputs * scales).reshape(total, INPUTS)
    batches = [(flat[at : at + 256], targets[at : at + 256]) for at in range(0, total, 256)]
    cut, last = examples // 256, (examples + held) // 256
    structures = blocks(student(0), (SIDE, SIDE), keep_whole=["2", "4"])
    return Planted(batches[:cut], batches[cut:last], batches[last:], truth.ravel(), structures)
