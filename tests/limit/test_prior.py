"""Curves of the generic law as scores: shapes, laws, and a use in `solve`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from structprune import Budget, blocks, channels, kernels, nm, solve
from structprune.limit import LimitPrior
from structprune.limit.layerwise import layerwise
from structprune.structures import Structures


@pytest.fixture
def network() -> nn.Module:
    """A small convolutional network in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ).eval()


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four batches of noise."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator))
        for _ in range(4)
    ]


def every_kind(network: nn.Module) -> list[Structures]:
    """Channels, blocks, kernels and N:M of the network."""
    example = torch.randn(2, 3, 8, 8)
    return [
        channels(network, example),
        blocks(network, (4, 4), example=example),
        kernels(network, example=example),
        nm(network, 2, 4, example=example),
    ]


def test_every_axis_gets_a_curve_that_falls_to_zero(network: nn.Module, data: list) -> None:
    """Whatever the structures; the values are its steps."""
    for structures in every_kind(network):
        scores = LimitPrior()(network, structures, data, F.cross_entropy)
        assert set(scores.curves) == set(range(len(structures.axes)))
        for number, curve in scores.curves.items():
            assert curve.loss[-1] == 0.0
            assert (np.diff(curve.loss) <= 1e-15).all()
            # A remainder of a layer that is smaller than its directions to spare may cost nothing.
            assert curve.loss[0] > 0 or "(4 weights)" in structures.axes[number].name
            own = scores.values[structures.axes[number].entries]
            assert own.sum() == pytest.approx(curve.loss[0])


def test_the_largest_structures_stay_longest(network: nn.Module, data: list) -> None:
    """The order is that of the energy of the weights that later layers read a channel by."""
    structures = channels(network, data[0][0])
    curve = LimitPrior()(network, structures, data, F.cross_entropy).curves[0]
    energy = network.get_parameter("3.weight").detach().double().square().sum(dim=(0, 2, 3)).numpy()
    assert np.array_equal(curve.order, np.argsort(-energy, kind="stable"))


def test_an_empty_layer_loses_half_its_energy_times_its_mean_curvature(network: nn.Module, data: list) -> None:
    """At width 0 the law is 1/2 R^2 tr(H) / d: nothing is left to be updated."""
    structures = channels(network, data[0][0])
    assert structures.labelled is not None
    scores = LimitPrior()(network, structures, data, F.cross_entropy)
    found = layerwise(network, structures.labelled, [inputs for inputs, _ in data], data, F.cross_entropy)
    layer = next(one for one in found.layers if one.name == "3.weight")
    energy = float(network.get_parameter("3.weight").detach().double().square().sum())
    assert scores.curves[0].loss[0] == pytest.approx(0.5 * energy * layer.eigenvalues.mean())


def test_the_solver_takes_it(network: nn.Module, data: list) -> None:
    """`solve` allocates by it, within budget and with a certificate."""
    pruned = solve(network, Budget(macs=0.5), data=data, criterion=LimitPrior(), progress=False)
    assert pruned.certificate is not None
    assert all(row.predicted <= (row.allowed or np.inf) for row in pruned.report.costs)


def test_it_needs_data(network: nn.Module) -> None:
    """And says so."""
    with pytest.raises(ValueError, match="Expected data for LimitPrior"):
        LimitPrior()(network, channels(network, torch.randn(2, 3, 8, 8)))
