"""Certified bounds inside a layer: below exhaustive search, and errors that help."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from structprune import channels
from structprune.limit import fewest_inputs
from structprune.limit.layerwise import layerwise

NETWORK = (6, 7, 5, 3)


@pytest.fixture
def network() -> nn.Module:
    """A perceptron 6-7-5-3."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(NETWORK):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of noise."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator)) for _ in range(2)
    ]


def losses(network: nn.Module, data: list, name: str) -> dict[tuple[int, ...], float]:
    """The quadratic loss of every set of kept inputs, their weights fitted anew."""
    labelled = channels(network, data[0][0]).labelled
    assert labelled is not None
    found = layerwise(network, labelled, [inputs for inputs, _ in data], data, F.cross_entropy)
    layer = next(one for one in found.layers if one.name == name)
    moment, cost = layer.moments[0].double().numpy(), layer.sensitivity.double().numpy()
    weight = dict(network.named_parameters())[name].detach().double().numpy()
    result = {}
    for keep in range(weight.shape[1] + 1):
        for kept in itertools.combinations(range(weight.shape[1]), keep):
            gone = [i for i in range(weight.shape[1]) if i not in kept]
            inner = moment[np.ix_(gone, gone)]
            if kept:
                across = moment[np.ix_(gone, kept)]
                inner = inner - across @ np.linalg.pinv(moment[np.ix_(kept, kept)]) @ across.T
            result[kept] = 0.5 * float(np.einsum("o,oi,ij,oj->", cost, weight[:, gone], inner, weight[:, gone]))
    return result


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "4.weight"])
def test_the_bound_is_never_above_exhaustive_search(network: nn.Module, data: list, name: str) -> None:
    """For many epsilons, and close to it where the layer is well conditioned."""
    found = losses(network, data, name)
    total = found[()]
    slack = []
    for share in (1e-3, 0.05, 0.3, 0.9):
        fewest = min(len(kept) for kept, loss in found.items() if loss <= share * total)
        bound = fewest_inputs(network, data, name, share * total, F.cross_entropy)
        assert bound.at_least <= fewest
        slack.append(fewest - bound.at_least)
    assert np.mean(slack) <= 1.0


def test_the_bound_falls_with_epsilon(network: nn.Module, data: list) -> None:
    """A larger rise allows fewer inputs; a tiny one needs all."""
    bounds = [fewest_inputs(network, data, "2.weight", e, F.cross_entropy).at_least for e in (1e-9, 1e-2, 0.1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == NETWORK[1]


def test_a_layer_that_is_not_there_is_named(network: nn.Module, data: list) -> None:
    """With those that are."""
    with pytest.raises(ValueError, match="Expected one of .*0.weight"):
        fewest_inputs(network, data, "9.weight", 0.1, F.cross_entropy)
