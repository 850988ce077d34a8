"""Torch-Pruning 1.6.1 as a baseline, used as its README says and with the settings that serve it best.

Its budget is a fraction of channels and not of macs, so the fraction that lands at or just below the cap is searched
for, or its own loop of small steps is run until the cap is met.

Its graph does not know what the padded shortcut of the CIFAR ResNets does: it removes channel i of the stem together
with channel i of the wider stages, where the padding has put channel i at i + 8 and i + 24. What remains is shifted
against the weights that read it, so with the classifier alone in ``ignored_layers`` the network is wrecked, without a
warning. (With the operands of the residual sum in the other order it stops with an IndexError instead.) Those rows are
called 'all channels'. The others ignore the layers that write to the residual stream too, the stem and the second
convolution of each block: its best chance here.

References
----------
Fang, Ma, Song, Mi, Wang, "DepGraph: Towards any structural pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import Case, Outcome, count_macs, recalibrated
from benchmarks.cifar import Block, ResNet

__all__ = ["METHODS", "TorchPruning", "gradients", "torch_pruning"]

HALVINGS = 12  # of the ratio: 1/4096 is less than one channel of any network here


def torch_pruning() -> Any:
    """Return the package.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected the package torch-pruning. Got none. Install what the benchmarks compare with: "
            "pip install '.[bench]'."
        ) from error


def magnitude() -> Any:
    """Group L2 norm, averaged over the layers of a group, relative to the group's mean: the package's default."""
    return torch_pruning().importance.GroupMagnitudeImportance()


def taylor() -> Any:
    """First-order Taylor importance with the package's defaults: relative to the group's mean, as above."""
    return torch_pruning().importance.GroupTaylorImportance()


def taylor_raw() -> Any:
    """First-order Taylor importance without the division by the group's mean: in units of loss in every layer."""
    return torch_pruning().importance.GroupTaylorImportance(normalizer=None)


@dataclass(frozen=True)
class TorchPruning:
    """One setting of ``BasePruner``.

    Attributes
    ----------
    importance
        Makes its importance estimator.
    needs_gradients
        Whether the loss' gradients on the calibration images must be in ``.grad`` when it scores.
    global_pruning
        One threshold for all layers ('global'), or the same fraction of each ('uniform').
    steps
        1: all at once, the ratio found by bisection. More: its loop of small steps with scores taken anew in each,
        gradients included, ended by the first that meets the cap.
    all_channels
        Whether the classifier alone is ignored, as its README says, and not the residual stream too.
    recalibrate
        Whether the batch norm statistics are measured anew on the calibration images.
    """

    key: str
    title: str
    importance: Callable[[], Any]
    needs_gradients: bool
    global_pruning: bool
    steps: int = 1
    all_channels: bool = False
    recalibrate: bool = False

    @property
    def name(self) -> str:
        scope = "uniform" if not self.global_pruning else f"steps{self.steps}" if self.steps > 1 else "global"
        return f"tp-{self.key}-{scope}" + "-all" * self.all_channels + "-bn" * self.recalibrate

    @property
    def label(self) -> str:
        scope = "global" if self.global_pruning else "uniform"
        where = "all channels" if self.all_channels else "inner channels"
        return f"{self.title}, {where}, {scope}" + (f", {self.steps} steps" if self.steps > 1 else "")

    @property
    def software(self) -> str:
        return "Torch-Pruning"

    @property
    def batch_norm(self) -> str:
        return "recalibrated" if self.recalibrate else "as trained"

    def prune(self, case: Case) -> Outcome:
        """Return the network with the most macs within the cap that this setting found.

        Raises
        ------
        RuntimeError
            If no ratio that was tried meets the cap.
        """
        start = perf_counter()
        cap = case.macs * count_macs(case.model, case.example)
        found = self._stepwise(case, cap) if self.steps > 1 else self._bisected(case, cap)
        if found is None:
            raise RuntimeError(f"Expected a ratio that gives at most {case.macs} of the macs. Got none. Raise the cap.")
        if self.recalibrate:
            found = recalibrated(found, case.calibration)
        seconds = perf_counter() - start
        own, own_dense = (torch_pruning().utils.count_ops_and_params(m, case.example)[0] for m in (found, case.model))
        return Outcome(found, seconds, own / own_dense)

    def _bisected(self, case: Case, cap: float) -> nn.Module | None:
        grads = gradients(case.model, case.calibration) if self.needs_gradients else {}
        low, high = 0.0, 1.0
        best, most = None, 0
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            for model in self._pruned(case, grads, ratio):
                used = count_macs(model, case.example)
                # Not quite monotone: a layer that would lose all of its channels is left whole.
                if most < used <= cap:
                    best, most = model, used
            low, high = (low, ratio) if used <= cap else (ratio, high)
        return best

    def _stepwise(self, case: Case, cap: float) -> nn.Module | None:
        grads = gradients(case.model, case.calibration) if self.needs_gradients else {}
        for model in self._pruned(case, grads, 1.0):
            if count_macs(model, case.example) <= cap:
                return model
        return None

    def _pruned(self, case: Case, grads: dict[str, Tensor], ratio: float) -> Iterator[nn.Module]:
        """Prune a copy, which is yielded after each step."""
        model = copy.deepcopy(case.model)
        if not isinstance(model, ResNet):
            raise TypeError(f"Expected a ResNet of benchmarks.cifar. Got {type(model).__name__}. Pass one of them.")
        pruner = torch_pruning().pruner.BasePruner(
            model,
            case.example,
            importance=self.importance(),
            pruning_ratio=ratio,
            global_pruning=self.global_pruning,
            iterative_steps=self.steps,
            ignored_layers=[model.linear] if self.all_channels else [model.linear, *residual_writers(model)],
        )
        for step in range(self.steps):
            if self.needs_gradients and step:
                grads = gradients(model, case.calibration)
            for name, parameter in model.named_parameters():
                parameter.grad = grads[name].clone() if self.needs_gradients else None
            pruner.step()
            model.zero_grad()
            yield model


def residual_writers(model: ResNet) -> list[nn.Module]:
    """Return the layers whose outputs are the residual stream: the stem and the second convolution of each block."""
    return [model.conv1, *(module.conv2 for module in model.modules() if isinstance(module, Block))]


def gradients(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over all images, in evaluation mode, by parameter."""
    clone = copy.deepcopy(model).eval()
    examples = sum(len(targets) for _, targets in batches)
    for inputs, targets in batches:
        (F.cross_entropy(clone(inputs), targets, reduction="sum") / examples).backward()
    return {name: parameter.grad for name, parameter in clone.named_parameters() if parameter.grad is not None}


SETTINGS = (
    TorchPruning("magnitude", "group magnitude", magnitude, needs_gradients=False, global_pruning=True),
    TorchPruning("magnitude", "group magnitude", magnitude, needs_gradients=False, global_pruning=True, steps=100),
    TorchPruning("magnitude", "group magnitude", magnitude, needs_gradients=False, global_pruning=True, steps=400),
    TorchPruning("magnitude", "group magnitude", magnitude, needs_gradients=False, global_pruning=False),
    TorchPruning("taylor", "group Taylor", taylor, needs_gradients=True, global_pruning=True),
    TorchPruning("taylor-raw", "group Taylor, not normalised", taylor_raw, needs_gradients=True, global_pruning=True),
    TorchPruning("taylor", "group Taylor", taylor, needs_gradients=True, global_pruning=False),
    TorchPruning("magnitude", "group magnitude", magnitude, False, global_pruning=True, all_channels=True),
    TorchPruning("taylor", "group Taylor", taylor, True, global_pruning=True, all_channels=True),
)
METHODS = (
    *(replace(one, recalibrate=recalibrate) for one in SETTINGS for recalibrate in (False, True)),
    # Its gradients take minutes, so it is run the better way only.
    replace(SETTINGS[4], steps=40, recalibrate=True),
)
