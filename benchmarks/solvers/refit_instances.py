"""Linear maps of trained networks with the second moments of their real inputs."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar import images, trained_resnet
from benchmarks.solvers.digits import trained_network, training_part
from solvers.quadratic import FloatArray, QuadraticMap, damped, single_inputs

__all__ = ["convolutions", "drawn", "hidden_layer", "wide_layer"]


@cache
def _activations() -> tuple[FloatArray, FloatArray]:
    """Second moments of the two hidden layers' outputs, ``(1024, 1024)`` and ``(512, 512)``."""
    lower, middle, _ = _layers()
    with torch.no_grad():
        first = F.relu(lower(training_part()[0])).double()
        second = F.relu(middle(first.float())).double()
    return (first.T @ first / len(first)).numpy(), (second.T @ second / len(second)).numpy()


def _layers() -> list[nn.Linear]:
    return [module for module in trained_network() if isinstance(module, nn.Linear)]


def hidden_layer(number: int, damping: float) -> QuadraticMap:
    """The map that reads hidden layer 1 (1024 -> 512) or 2 (512 -> 10) of the digits network."""
    weight = _layers()[number].weight.detach().double().numpy()
    return QuadraticMap(weight, damped(_activations()[number - 1], damping), single_inputs(weight.shape[1]))


def drawn(one: QuadraticMap, count: int, seed: int) -> QuadraticMap:
    """The same map with ``count`` of its inputs, drawn at random."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(one.moment))[:count])
    return QuadraticMap(one.weight[:, chosen], one.moment[np.ix_(chosen, chosen)], single_inputs(count))


def wide_layer(inputs: int, outputs: int, damping: float, seed: int = 0) -> QuadraticMap:
    """Synthetic weights on random ReLU features of the digits: an instance of a large layer's size."""
    rng = np.random.default_rng(seed)
    digits = training_part()[0].double().numpy()
    features = np.maximum(digits @ rng.standard_normal((64, inputs)) / 4 + 0.3 * rng.standard_normal(inputs), 0.0)
    weight = rng.standard_normal((outputs, inputs)) * np.exp(rng.standard_normal(inputs))
    return QuadraticMap(weight, damped(features.T @ features / len(features), damping), single_inputs(inputs))


def convolutions(
    folder: Path, name: str, count: int, damping: float, positions: int = 32, seed: int = 0
) -> dict[str, QuadraticMap]:
    """The second convolutions of all blocks of a CIFAR ResNet, groups of 9 taps per input channel.

    Moments over ``count`` training images, at ``positions`` output positions of each batch drawn at random.
    """
    model = trained_resnet(folder, name)
    moments: dict[str, FloatArray] = {}
    generator = np.random.default_rng(seed)

    def look(label: str, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        patches = F.unfold(inputs[0], 3, padding=1, stride=module.stride[0])
        chosen = generator.permutation(patches.shape[2])[:positions]
        rows = patches[:, :, torch.from_numpy(chosen)].transpose(1, 2).flatten(0, 1)
        moments[label] = moments.get(label, 0.0) + (rows.T @ rows).double().numpy()

    found = {label: module for label, module in model.named_modules() if label.endswith("conv2")}
    handles = [
        module.register_forward_hook(partial(look, label))  # type: ignore[arg-type]
        for label, module in found.items()
    ]
    with torch.no_grad():
        for batch, _ in images(folder, "train_0").first(count).batches(250):
            model(batch)
    for handle in handles:
        handle.remove()
    maps = {}
    for label, module in found.items():
        assert isinstance(module, nn.Conv2d)
        weight = module.weight.detach().double().flatten(1).numpy()
        groups = np.arange(weight.shape[1]).reshape(-1, 9)
        maps[label] = QuadraticMap(weight, damped(moments[label] / count, damping), groups)
    return maps
