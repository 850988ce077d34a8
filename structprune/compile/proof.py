"""Prove by running that a smaller network computes what the masked one computes.

Two runs must agree. One is the network itself on the whole example in its own precision. The other, the *trial*, is
a copy with every weight and input shaken at random, on a few examples in float64, in which rounding hides no mistake.
Shaking matters because weights as they are may hide a wrong rebuild: a last layer that starts at zero, a gate that is
shut, an example of zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from structprune.axes.graph import Example, run
from structprune.axes.rewrite import GraphModel
from structprune.structures import Structures

__all__ = ["Proof", "difference", "tensors"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
SLACK = 10  # rounding of the network's own precision may be this much larger once float64 has agreed
FEW = 2  # examples of a trial
LARGE = 2e10  # multiplications above which float64 takes too long on a CPU

Build = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class _Trial:
    """The masked network with other weights, an input, and what it gives."""

    model: nn.Module
    example: Example
    outputs: Sequence[Tensor]

    @property
    def exact(self) -> bool:
        """Whether everything is computed in float64."""
        floats = [output.dtype for output in self.outputs if output.is_floating_point()]
        return bool(floats) and set(floats) == {torch.float64}


class Proof:
    """What rebuilt networks are compared with.

    Parameters
    ----------
    reference
        The masked network.
    structures, selection
        What is kept of it.
    example
        Arguments of one forward call.
    wanted
        Outputs of ``reference`` on ``example``.
    """

    def __init__(
        self,
        reference: nn.Module,
        structures: Structures,
        selection: np.ndarray,
        example: Example,
        wanted: Sequence[Tensor],
    ) -> None:
        self._reference = reference
        self._structures = structures
        self._selection = selection
        self._example = example
        self._wanted = wanted
        self._trials: dict[bool, _Trial] = {}

    def accept(self, build: Build) -> tuple[nn.Module, float, float]:
        """What ``build`` makes of the masked network, with its relative difference in the trial and on the example.

        Raises
        ------
        ValueError
            If outputs differ in shape or value. Whatever the built network's own Python raises passes through.
        """
        candidate = build(self._reference)
        on_example = difference(tensors(run(candidate, self._example)), self._wanted)
        trial = self._trial(double=not (isinstance(candidate, GraphModel) and candidate.casts))
        in_trial = difference(tensors(run(build(trial.model), trial.example)), trial.outputs, integers=trial.exact)
        _must_be_small(in_trial, trial.outputs, 1, "with shaken weights ")
        _must_be_small(on_example, self._wanted, SLACK if trial.exact else 1, "")
        return candidate, in_trial, on_example

    def _trial(self, double: bool) -> _Trial:
        if double not in self._trials:
            precisions = [True, False] if double and self._multiplications() <= LARGE else [False]
            attempts = [(shaken, exact) for exact in precisions for shaken in (True, False)]
            made = (self._attempt(shaken, exact) for shaken, exact in attempts)
            as_it_is = _Trial(self._reference, self._example, self._wanted)
            self._trials[double] = next((trial for trial in made if trial is not None), as_it_is)
        return self._trials[double]

    def _attempt(self, shaken: bool, exact: bool) -> _Trial | None:
        """A trial that runs and gives finite numbers, in float64 if ``exact``; None if there is none."""
        model, example = copy.deepcopy(self._reference), self._few()
        generator = torch.Generator().manual_seed(0)
        try:
            if shaken:
                shake([*model.parameters(), *model.buffers()], generator)
                self._structures.apply_masks(model, self._selection)
                example = _map(example, lambda leaf: shake([leaf.clone()], generator)[0])
            if exact:
                model, example = model.double(), _map(example, Tensor.double)
            outputs = tensors(run(model, example))
        except (RuntimeError, TypeError, ValueError, IndexError):  # it needs its own weights, or its own precision
            return None
        trial = _Trial(model, example, outputs)
        finite = all(bool(output.isfinite().all()) for output in outputs)
        return trial if finite and trial.exact >= exact else None

    def _few(self) -> Example:
        """The first examples of the batch, where the batch is known."""
        labelled = self._structures.labelled
        leaves = [leaf for leaf in self._example.flat() if isinstance(leaf, Tensor) and leaf.ndim]
        if labelled is None or not len(labelled.batch) or not leaves:
            return self._example
        size = len(leaves[0])
        args, kwargs = pytree.tree_map(
            lambda leaf: leaf[:FEW] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf,
            (self._example.args, dict(self._example.kwargs)),
        )
        return Example(args, kwargs)

    def _multiplications(self) -> float:
        """Of a trial of the dense network."""
        labelled = self._structures.labelled
        if labelled is None:
            return 0.0
        sizes = [one.factor * np.prod([float(len(label)) for label in one.dims]) for one in labelled.contractions]
        return float(sum(sizes)) * FEW / max(len(labelled.batch), FEW)


@torch.no_grad()
def shake(values: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
    """Move every floating tensor at random, in place: by up to a quarter, and a constant one by noise on top."""
    for value in values:
        if value.is_floating_point() and value.numel():
            noise = torch.rand(value.shape, generator=generator).to(value)
            constant = bool((value == value.flatten()[0]).all())
            value.mul_(0.75 + noise / 2)
            if constant:
                value.add_(0.2 * noise)
    return values


def tensors(output: Any) -> list[Tensor]:
    """All tensors that a forward call gave, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(got: Sequence[Tensor], wanted: Sequence[Tensor], *, integers: bool = False) -> float:
    """Largest max abs(got - wanted) / max abs(wanted) over the outputs; infinite where a value is not a number.

    Outputs of whole numbers count, as equal or not, only if ``integers``: rounding may move an argmax.

    Raises
    ------
    ValueError
        If the outputs differ in number or shape.
    """
    shapes, expected = [tuple(t.shape) for t in got], [tuple(t.shape) for t in wanted]
    if shapes != expected:
        raise ValueError(f"output shapes {shapes} instead of {expected}")
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if not b.numel():
            continue
        if not (b.is_floating_point() or b.is_complex()):
            worst = worst if not integers or torch.equal(a, b) else float("inf")
            continue
        scale = b.abs().nan_to_num(0, 0, 0).max().item() or 1.0
        apart = torch.where(a == b, 0, (a - b).abs()).max().item() / scale  # equal infinities are equal
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def _must_be_small(value: float, outputs: Sequence[Tensor], slack: float, where: str) -> None:
    dtype = next((t.dtype for t in outputs if t.is_floating_point()), torch.float32)
    if not value <= slack * TOLERANCE.get(dtype, 1e-5):
        raise ValueError(f"outputs {where}differ from the masked network's by {value:.1e}")


def _map(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    """The example with ``change`` made to its floating tensors."""
    args, kwargs = pytree.tree_map(
        lambda leaf: change(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
        (example.args, dict(example.kwargs)),
    )
    return Example(args, kwargs)
