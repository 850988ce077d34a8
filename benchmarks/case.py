"""One question to a pruning method, and its answer: the nouns that benchmarks share."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Case", "Method", "Outcome", "count_macs", "recalibrated"]


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network, a cap on its macs, and the training images that every method may look at.

    Attributes
    ----------
    model
        In evaluation mode; methods leave it as it is.
    macs
        Fraction of the dense network's macs that may be used.
    calibration
        Batches of (inputs, targets) from the training set.
    """

    model: nn.Module
    macs: float
    calibration: list[tuple[Tensor, Tensor]]
    seed: int

    @property
    def example(self) -> Tensor:
        """One input, as a batch."""
        return self.calibration[0][0][:1]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The pruned network and what the method says of it.

    Attributes
    ----------
    seconds
        From the trained network to the pruned one, scoring and searching included, evaluation not.
    own_fraction
        Macs used, as a fraction of the dense network's, by the method's own counter.
    gap, predicted_loss
        See :class:`structprune.report.Report`; None for methods that know neither.
    """

    model: nn.Module
    seconds: float
    own_fraction: float
    gap: float | None = None
    predicted_loss: float | None = None


class Method(Protocol):
    """A way to prune.

    ``name`` is short and unique, for the command line; ``label`` is for the table; ``software`` is whose method it is;
    ``batch_norm`` says where the batch norm statistics come from.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def software(self) -> str: ...
    @property
    def batch_norm(self) -> str: ...

    def prune(self, case: Case) -> Outcome:
        """Return a smaller network within the cap."""
        ...


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of a convolutional network by torch's own counter: one yardstick for all methods."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // (2 * len(example))


def recalibrated(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a copy whose batch norm statistics are the mean of those of `batches`; everything else is untouched."""
    clone = copy.deepcopy(model).eval()
    norms = [module for module in clone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches, and not a moving one
        norm.train()
    with torch.no_grad():
        for inputs, _ in batches:
            clone(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return clone.eval()
