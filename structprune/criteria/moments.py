"""What layer-wise methods need to know of a linear map: rows of its input, and what an error in its output costs."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from structprune.axes.linear_maps import LinearMap
from structprune.axes.propagate import LabelledGraph
from structprune.axes.rewrite import flat_arguments, rewrite
from structprune.axes.sweep import Sweep, leaves_of, sweep
from structprune.criteria.gradients import batches, differentiable
from structprune.criteria.scores import Data
from structprune.data import Loss
from structprune.progress import track
from structprune.tensors import named_tensors

__all__ = ["Gather", "convolution_arguments", "input_moments", "output_sensitivity"]


def convolution_arguments(one: LinearMap) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a convolution in the graph."""
    stride, padding, dilation = (list(one.node.args[i]) for i in (3, 4, 5))  # type: ignore[arg-type]
    return stride, padding, dilation, int(one.node.args[8])  # type: ignore[arg-type, return-value]


class Gather:
    """Read a map's input as rows, ``(examples * positions, inputs * taps)``, one array per convolution group.

    Convolutions are read at randomly drawn output positions, the same for every example of a batch: enough for
    ``per_column`` rows per column in all, if there are so many. Equal seeds draw equal positions.
    """

    def __init__(self, one: LinearMap, weight: Tensor, seed: int, per_column: int = 24, examples: int = 512) -> None:
        self._one = one
        self._weight = weight
        columns = weight[0].numel() if one.kind == "conv" else 1
        self._wanted = max(-(-per_column * columns // examples), 16)
        self._generator = np.random.default_rng(seed)
        self._picked: np.ndarray | None = None

    def __call__(self, value: Tensor) -> tuple[list[Tensor], float]:
        """Rows per group, and how many positions each sampled row stands for."""
        if self._one.kind == "linear":
            return [value.reshape(-1, value.shape[-1])], 1.0
        stride, padding, dilation, groups = convolution_arguments(self._one)
        taps = self._weight.shape[2:]
        value = F.pad(value, [p for size in reversed(padding) for p in (size, size)])
        spatial = value.shape[2:]
        outputs = [
            (size - d * (k - 1) - 1) // s + 1 for size, d, k, s in zip(spatial, dilation, taps, stride, strict=True)
        ]
        total = prod(outputs)
        picked = np.arange(total)
        if total > self._wanted:
            picked = np.sort(self._generator.choice(total, self._wanted, replace=False))
        self._picked = picked
        corner = np.stack(np.unravel_index(picked, outputs), axis=1) * np.array(stride)
        offsets = np.stack(np.unravel_index(np.arange(prod(taps)), taps), axis=1) * np.array(dilation)
        place = corner[:, None, :] + offsets[None, :, :]
        index = torch.from_numpy(np.ravel_multi_index(tuple(np.moveaxis(place, 2, 0)), tuple(spatial))).to(value.device)
        patches = value.flatten(2)[:, :, index]  # (examples, channels, positions, taps)
        parts = patches.chunk(groups, dim=1)
        rows = [part.permute(0, 2, 1, 3).flatten(0, 1).flatten(1) for part in parts]
        return rows, total / len(picked)

    def outputs(self, value: Tensor) -> Tensor:
        """A tensor of the shape of the map's outputs at the rows that were read last, ``(rows, outputs)``."""
        if self._one.kind == "linear":
            return value.reshape(-1, value.shape[-1])
        assert self._picked is not None
        return value.flatten(2)[:, :, torch.from_numpy(self._picked).to(value.device)].transpose(1, 2).flatten(0, 1)


def input_moments(
    labelled: LabelledGraph,
    weights: dict[str, Tensor],
    inputs: list[Any],
    examples: int,
    maps: list[LinearMap],
    seed: int,
) -> dict[fx.Node, np.ndarray]:
    """E[sum over positions of x x'] of every map's input for one example: ``(groups, columns, columns)`` each."""
    gathers = {one.node: Gather(one, weights[one.weight], seed) for one in maps}
    found: dict[fx.Node, np.ndarray] = {}

    def look(state: Sweep, one: LinearMap) -> None:
        for value in state.batches(one.source):
            rows, scale = gathers[one.node](value)
            gram = np.stack([(part.T @ part).double().cpu().numpy() * (scale / examples) for part in rows])
            found[one.node] = found[one.node] + gram if one.node in found else gram

    for batch in track(inputs, "reading layer inputs"):
        state = Sweep(labelled, weights, [batch])
        sweep([state], {one.node: partial(look, state, one) for one in maps})
    return found


def output_sensitivity(
    labelled: LabelledGraph, model: nn.Module, maps: list[LinearMap], data: Data, loss: Loss, examples: int, seed: int
) -> dict[fx.Node, np.ndarray]:
    """E[g_o^2] per output of every map: mean over examples and positions of the squared gradient of one example's loss.

    For class outputs the labels are drawn from the network's own predictions, and for squared errors the targets from
    the Gaussian around them that the loss assumes. That makes it the Fisher information rather than the gradients at
    the given targets, small on a network that fits them and zero where the targets are its own outputs.
    """
    flat, new = rewrite(labelled, np.zeros(0, dtype=np.int64))
    wanted = {new[one.node]: one for one in maps}
    named = named_tensors(model)
    generator = torch.Generator().manual_seed(seed)
    totals: dict[fx.Node, Any] = {}
    count = 0
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    with differentiable(model, parameters):
        for inputs, targets, size in batches(data, model, min(examples, 512)):
            recorder = _Recorder(flat, wanted)
            outputs = recorder.run(*flat_arguments(flat, labelled, named, leaves_of(inputs)))
            output = torch.utils._pytree.tree_unflatten(list(outputs), labelled.graph.out_spec)
            value = loss(output, _drawn(output, targets, loss, generator)) * size
            reached = {node: out for node, out in recorder.seen.items() if out.requires_grad}
            gradients = torch.autograd.grad(value, list(reached.values()), allow_unused=True)
            for node, gradient in zip(reached, gradients, strict=True):
                if gradient is None:
                    continue
                one = wanted[node]
                channels = gradient.transpose(0, 1).flatten(1) if one.kind == "conv" else gradient.flatten(0, -2).T
                mean = channels.double().square().mean(1).cpu().numpy() * size
                totals[one.node] = totals.get(one.node, 0.0) + mean
            count += size
    return {node: total / count for node, total in totals.items()}


class _Recorder(fx.Interpreter):
    """Run a graph and keep the outputs of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: dict[fx.Node, LinearMap]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._wanted:
            self.seen[n] = result
        return result


def _drawn(output: Any, targets: Any, loss: Loss, generator: torch.Generator) -> Any:
    """Targets drawn from the predictions for class scores and for squared errors, else the targets as given."""
    if not isinstance(output, Tensor) or not isinstance(targets, Tensor):
        return targets
    if targets.is_floating_point():
        curvature = _curvature(output, targets, loss)
        if curvature is None:
            return targets
        noise = torch.randn(targets.shape, generator=generator).to(targets)
        return output.detach() + noise / curvature.sqrt()
    if output.ndim != targets.ndim + 1 or output.shape[0] != targets.shape[0] or output.ndim != 2:
        return targets
    chances = output.detach().float().softmax(1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(targets)


def _curvature(output: Tensor, targets: Tensor, loss: Loss) -> Tensor | None:
    """Second derivative of one example's loss with respect to its outputs if the loss is a squared error, else None."""
    if targets.shape != output.shape or not output.is_floating_point():
        return None
    at = output.detach().requires_grad_()

    def slope(distance: float) -> Tensor | None:
        value = loss(at, at.detach() - distance) * len(output)
        return torch.autograd.grad(value, at, allow_unused=True)[0] if value.requires_grad else None

    none, one, two = slope(0.0), slope(1.0), slope(2.0)
    if none is None or one is None or two is None or not bool((one > 0).all()):
        return None
    squared = bool((none.abs() <= 1e-3 * one).all()) and torch.allclose(two, 2 * one, rtol=1e-2)
    return one if squared else None
