"""Put block-sparse layers where the kept blocks allow it and a measurement says that it pays.

A linear layer or convolution can be replaced if its own class computes it (no subclass or parametrisation does), its
weight is nobody else's, and its blocks are tall: a multiple of 16 outputs, down to one input. Each such layer is timed
on the inputs that it gets, beside the best dense layer; the others stay dense and hold zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from structprune.axes.graph import Example, run
from structprune.layers import Backend, BlockSparseConv2d, BlockSparseLinear
from structprune.layers.layer import BlockSparseLayer
from structprune.layers.pattern import HEIGHTS, WIDTHS
from structprune.layers.rowloop import ROWLOOP
from structprune.layers.tune import Call, Tuned, tune
from structprune.structures import EntryAxis, Structures
from structprune.tensors import named_tensors

__all__ = ["SparsePlan", "channels_innermost", "plan_sparse", "replaced", "sparse_layers"]

# A layer of fewer multiplications per call takes less time than calling an operator of our own does.
LEAST_MULTIPLICATIONS = 200_000


@dataclass(frozen=True)
class Candidate:
    """A layer that can be block-sparse.

    Attributes
    ----------
    name
        Of the module in its network.
    mask
        Kept entries, of the weight's shape.
    height, width
        The pattern's blocks; each block of the structures is made of whole ones.
    order
        Output in each stored row, ``(outputs,)``, where blocks hold other than neighbouring outputs; else None.
    """

    name: str
    mask: Tensor
    height: int
    width: int
    order: Tensor | None = None

    def build(self, module: nn.Module, backend: Backend) -> BlockSparseLinear | BlockSparseConv2d:
        """Return the block-sparse layer with the weights of the dense module."""
        size = (self.mask, self.height, self.width)
        if isinstance(module, nn.Conv2d):
            return BlockSparseConv2d.from_dense(module, *size, order=self.order, backend=backend)
        assert isinstance(module, nn.Linear)
        return BlockSparseLinear.from_dense(module, *size, order=self.order, backend=backend)


@dataclass(frozen=True)
class SparsePlan:
    """Which layers become block-sparse, and what was measured.

    Attributes
    ----------
    layers
        Those that pay, each with its backend.
    tuned
        The measurements of all layers that were timed.
    dense
        Layers that were not timed, with the reason.
    """

    layers: tuple[tuple[Candidate, Backend], ...]
    tuned: tuple[Tuned, ...]
    dense: Mapping[str, str]

    def build(self, reference: nn.Module) -> nn.Module:
        """Return a copy of the masked network with its layers replaced.

        In float64, which a proof asks for and kernels do not know, plain torch operators compute.
        """
        clone = copy.deepcopy(reference)
        for candidate, backend in self.layers:
            module = clone.get_submodule(candidate.name)
            assert isinstance(module.weight, Tensor)
            able = backend if module.weight.dtype != torch.float64 else ROWLOOP
            clone = replaced(clone, candidate.name, candidate.build(module, able))
        channels_innermost(clone)
        return clone

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the result must know, one text per kind of fact."""
        sparse = [one for one in self.tuned if one.backend is not None]
        slower = [one for one in self.tuned if one.backend is None]
        texts = []
        if sparse:
            listed = ", ".join(f"{one.name} {one.ratio:.2f} ({one.sparse})" for one in sparse)
            texts.append(f"block-sparse, with their time as a share of the best dense layer's: {listed}")
        if slower:
            listed = ", ".join(f"{one.name} {one.ratio:.2f}" for one in slower)
            texts.append(
                f"dense with zeros, since block-sparse layers took this share of the best dense time: {listed}"
            )
        left_out = dict.fromkeys(note for one in self.tuned for note in one.notes)
        texts += [f"a backend for block-sparse layers took no part: {note}" for note in left_out]
        for reason in dict.fromkeys(self.dense.values()):
            names = [name for name, why in self.dense.items() if why == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            texts.append(f"dense with zeros: {', '.join(names[:3])}{more}: {reason}")
        return tuple(texts)


def plan_sparse(
    masked: nn.Module,
    structures: Structures,
    selection: np.ndarray,
    timing: Example,
    *,
    cache: str | Path | Literal[False] | None = None,
) -> SparsePlan:
    """Find the layers of a masked network that block-sparse ones would make faster on this machine.

    Parameters
    ----------
    masked
        The network with zeros where nothing is kept, in evaluation mode.
    structures, selection
        Blocks and those that are kept.
    timing
        Arguments of the forward call to make faster.
    cache
        Folder of measurements; None for the user's cache folder, False for no cache.
    """
    candidates, dense = find_candidates(masked, structures, selection)
    inputs = recorded_inputs(masked, [one.name for one in candidates], timing)
    layers, tuned = [], []
    for candidate in candidates:
        module = masked.get_submodule(candidate.name)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        calls = inputs[candidate.name]
        reason = not_worth_timing(module, calls)
        if reason:
            dense[candidate.name] = reason
            continue
        found = tune(candidate.name, module, partial(candidate.build, module), calls, cache=cache)
        tuned.append(found)
        if found.backend is not None:
            layers.append((candidate, found.backend))
    return SparsePlan(tuple(layers), tuple(tuned), dense)


def replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` in the place of the module of this name; return the network, or the layer where it is all of it."""
    if not name:
        return layer
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)
    return model


def find_candidates(
    model: nn.Module, structures: Structures, selection: np.ndarray
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the layers that lose blocks and can be block-sparse, and why the others cannot."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names_of = owners(model)
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for tensor, mask in structures.masks(selection).items():
        name = tensor.rpartition(".")[0]
        module = modules[name]
        reason = unsuitable(module, len(names_of[tensor]))
        candidate = None if reason else fitting(name, module, mask, blocks_of(structures, tensor, mask.shape))
        if candidate is None:
            refused[name] = reason or f"blocks of {' or '.join(map(str, HEIGHTS))} outputs can be faster, these cannot"
        else:
            found.append(candidate)
    return found, refused


def owners(model: nn.Module) -> dict[str, list[str]]:
    """Return, for every name of every tensor, all names of that tensor."""
    named = named_tensors(model)
    together: dict[int, list[str]] = {}
    for name, tensor in named.items():
        together.setdefault(id(tensor), []).append(name)
    return {name: together[id(tensor)] for name, tensor in named.items()}


def unsuitable(module: nn.Module, names: int) -> str:
    """Return why this module cannot be replaced, '' if it can."""
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"{type(module).__name__} has no block-sparse form, only nn.Linear and nn.Conv2d themselves have"
    if names > 1:
        return "another module has the same weight"
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "hooks are attached to it"
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or tuple(module.dilation) != (1, 1) or module.padding_mode != "zeros"
    ):
        return "block-sparse convolutions have one group, dilation 1 and padding with zeros"
    if isinstance(module, nn.Conv2d) and module.padding == "same" and not all(k % 2 for k in module.kernel_size):
        return "block-sparse convolutions with padding 'same' have odd kernels"
    return ""


def fitting(name: str, module: nn.Module, mask: Tensor, owner: Tensor) -> Candidate | None:
    """Return the block-sparse form that holds exactly the kept entries, None if there is none.

    Parameters
    ----------
    name, module
        The layer.
    mask
        Kept entries, of the weight's shape.
    owner
        Number of the block that holds each entry of the first tap, ``(outputs, inputs)``.
    """
    order = torch.argsort(owner[:, 0], stable=True)  # blocks are numbered from the first stored row to the last
    in_order = bool((order == torch.arange(len(order))).all())
    stored = owner[order]
    tall, wide = run_length(stored[:, 0]), run_length(stored[0])
    heights = [height for height in HEIGHTS if tall % height == 0]
    if tall == mask.shape[0] and not heights:  # one group holds all outputs
        heights = [height for height in HEIGHTS if height >= tall][:1]
    columns = mask.shape[1]
    # No piece of columns may cross from one tap to the next.
    taps = prod(mask.shape[2:])
    widths = [width for width in WIDTHS if wide % width == 0 and (taps == 1 or columns % width == 0)]
    if not heights:
        return None
    candidate = Candidate(name, mask, heights[-1], widths[-1], None if in_order else order)
    return candidate if candidate.build(module, ROWLOOP).pattern.entries == int(mask.sum()) else None


def blocks_of(structures: Structures, tensor: str, shape: torch.Size) -> Tensor:
    """Return the number of the block that holds each entry of the first tap of a weight, ``(outputs, inputs)``."""
    owner = torch.full(shape, -1, dtype=torch.int64)
    for axis in structures.axes:
        if isinstance(axis, EntryAxis) and axis.tensor == tensor:
            owner = torch.where(axis.index >= 0, axis.index + axis.start, owner)
    return owner.flatten(2)[:, :, 0] if owner.ndim > 2 else owner


def run_length(values: Tensor) -> int:
    """Return how many values at the beginning are equal."""
    other = torch.nonzero(values != values[0]).flatten()
    return int(other[0]) if len(other) else len(values)


def recorded_inputs(model: nn.Module, names: list[str], example: Example) -> dict[str, list[Call]]:
    """Return the different inputs that the layers get in one forward pass, without their values."""
    calls: dict[str, list[Call]] = {name: [] for name in names}
    with recording(model, calls):
        run(model, example)
    return {name: list(dict.fromkeys(found)) for name, found in calls.items()}


@contextmanager
def recording(model: nn.Module, calls: Mapping[str, list[Call]]) -> Iterator[None]:
    """Write every call of these layers into ``calls``; the hooks are taken off again."""

    def note(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            calls[name].append(Call.of(given[0]))

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def not_worth_timing(module: nn.Linear | nn.Conv2d, calls: list[Call]) -> str:
    """Return why a layer stays dense without a measurement, '' if it is to be timed."""
    if not calls:
        return "the network reads the weight without calling the layer"
    if any(call.dtype != module.weight.dtype for call in calls):
        return "its input is of another type than its weight"
    if any(len(call.shape) != 4 for call in calls) and isinstance(module, nn.Conv2d):
        return "it is given single images, not batches"
    most = max(multiplications(module, call) for call in calls)
    return "" if most >= LEAST_MULTIPLICATIONS else "too small to be faster in any form"


def multiplications(module: nn.Linear | nn.Conv2d, call: Call) -> int:
    """Return the multiplications of one call of the dense layer."""
    if isinstance(module, nn.Linear):
        return prod(call.shape[:-1]) * module.weight.numel()
    down, right = module.stride
    return call.shape[0] * -(-call.shape[2] // down) * -(-call.shape[3] // right) * module.weight.numel()


def channels_innermost(model: nn.Module) -> None:
    """Lay out the dense convolutions' weights as block-sparse convolutions lay out images, where there are any.

    torch then computes with channels innermost from the first convolution on, and no image is copied on the way.
    """
    if any(isinstance(layer, BlockSparseConv2d) for layer in model.modules()):
        convolutions_innermost(model)


def convolutions_innermost(model: nn.Module) -> None:
    """Lay out the weights of all dense convolutions with channels innermost."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def sparse_layers(model: nn.Module) -> dict[str, BlockSparseLayer]:
    """Return the block-sparse layers of a network, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BlockSparseLayer)}
