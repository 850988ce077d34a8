"""Every method on a small task, and the plainest training loop, against which what the engine does can be told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.methods import (
    ACDC,
    BlockSwaps,
    DenseTraining,
    GradualMagnitude,
    GroupLassoProx,
    GroupPowerpropagation,
    OneShotMagnitude,
    RandomMask,
    SequentialAttentionPP,
    SoftTopK,
    Swaps,
    TrainingMethod,
)
from structprune.methods.harness import Harness
from structprune.methods.masked import Masked
from structprune.methods.method import Probe
from structprune.methods.selection import Keep
from structprune.structures import Structures, blocks

STEPS = 120

METHODS: dict[str, TrainingMethod] = {
    "sequential attention": SequentialAttentionPP(cycles=3),
    "sequential attention, not gradual": SequentialAttentionPP(cycles=3, sparsify=False),
    "sequential attention times norms": SequentialAttentionPP(cycles=3, times_norm=True),
    "acdc": ACDC(cycles=3),
    "acdc with removals": ACDC(cycles=3, sparsify=True),
    "powerpropagation": GroupPowerpropagation(),
    "gradual": GradualMagnitude(),
    "one shot": OneShotMagnitude(),
    "group lasso": GroupLassoProx(),
    "soft top-k": SoftTopK(),
    "swaps": BlockSwaps(swaps=Swaps(rounds=8, batches=3)),
    "tested swaps": BlockSwaps(swaps=Swaps(rounds=8, batches=3, whiten=True, accept=True)),
    "random": RandomMask(),
    "dense": DenseTraining(),
}


@dataclass(frozen=True)
class Small:
    """A small convolutional network with batch norm, its blocks, and data."""

    model: nn.Module
    structures: Structures
    data: list[tuple[Tensor, Tensor]]

    def probe(self, model: nn.Module) -> float:
        """Loss on the last two batches."""
        with torch.no_grad():
            model.eval()
            value = sum(float(F.cross_entropy(model(x), y)) for x, y in self.data[-2:])
            model.train()
        return value


def small() -> Small:
    """Blocks of 4 x 4 of sizes that they do not divide; six batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(40, 18), nn.ReLU(), nn.Linear(18, 5)),
        )
        inputs = torch.randn(8, 16, 3, 4, 4)
        targets = (inputs.flatten(2) @ torch.randn(48, 5)).argmax(2)
    data = list(zip(inputs, targets, strict=True))
    return Small(model, blocks(model, (4, 4), keep_whole=["7"]), data)


@dataclass
class Run:
    """A run of the plain loop that can be stopped, saved and taken up."""

    method: TrainingMethod
    task: Small
    model: Masked
    hooks: Harness
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def begin(
        cls,
        method: TrainingMethod,
        keep: Keep,
        task: Small | None = None,
        adam: bool = False,
        seed: int = 0,
        epoch: int = 6,
        probe: Probe | None = None,
    ) -> Run:
        """Wrap the network and meet the optimiser; 20 epochs of 6 steps."""
        task = task or small()
        method = replace(method, epochs=STEPS // epoch)
        model, hooks = method.prepare(
            task.model, task.structures, epoch=epoch, keep=keep, seed=seed, probe=probe or task.probe
        )
        groups = method.parameter_groups(model, method.settings) or [{"params": list(model.parameters())}]
        for group in groups:
            group.pop("lr", None), group.pop("weight_decay", None)
        optimizer: torch.optim.Optimizer
        if adam:
            optimizer = torch.optim.AdamW(groups, lr=3e-3, weight_decay=1e-2)
        else:
            optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-2)
        hooks.start(model, optimizer)
        return cls(method, task, model.train(), hooks, optimizer)

    def advance(self, to: int, watch: Callable[[Run], Any] | None = None) -> Run:
        """Train up to a step; ``watch`` is called before the forward pass of every step, its masks set."""
        while self.step < to:
            inputs, targets = self.task.data[self.step % 6]
            self.hooks.before_forward(self.step)
            if watch is not None:
                watch(self)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            extra = self.hooks.penalty()
            (loss if extra is None else loss + extra).backward()
            self.hooks.after_backward(self.step)
            self.optimizer.step()
            self.hooks.after_step(self.step)
            self.step += 1
        return self

    def state(self) -> dict[str, Any]:
        """Everything, as it would be read from a file."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "hooks": self.hooks.state_dict(),
                "step": self.step,
            }
        )

    def take_up(self, state: dict[str, Any]) -> Run:
        """Go on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hooks.load_state_dict(state["hooks"])
        self.step = state["step"]
        return self
