"""Facts of the retrained truth: on convex problems it is what least squares says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.limits.truth import Retraining, Truth

INPUTS = 12


@dataclass(frozen=True)
class FirstInputs:
    """Supports of one linear layer that keep the first inputs and lose one after the other."""

    @property
    def kept(self) -> np.ndarray:
        return np.arange(INPUTS, -1, -1)

    @property
    def total(self) -> int:
        return INPUTS

    def kept_mask(self, position: int) -> Mapping[str, Tensor]:
        return {"weight": torch.arange(INPUTS).unsqueeze(0) < INPUTS - position}


@pytest.fixture
def regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a linear network at its least-squares solution, whose later inputs matter less, and its data."""
    inputs = torch.randn(80, INPUTS)
    weights = 0.7 ** torch.arange(INPUTS)
    targets = inputs @ weights.unsqueeze(1) + 0.1 * torch.randn(80, 1)
    model = nn.Linear(INPUTS, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    return model, [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])]


def least_loss(data: list[tuple[Tensor, Tensor]], kept: int) -> float:
    """Return the least mean squared error with the first `kept` inputs."""
    inputs, targets = (torch.cat([batch[index] for batch in data]).double() for index in (0, 1))
    if not kept:
        return float(targets.square().mean())
    fitted = inputs[:, :kept] @ torch.linalg.lstsq(inputs[:, :kept], targets).solution
    return float((fitted - targets).square().mean())


def truth_of(model: nn.Module, data: list[tuple[Tensor, Tensor]], **settings: object) -> Truth:
    """Return the truth of the regression, trained long enough to be exact."""
    return Truth(model, FirstInputs(), data, F.mse_loss, retraining=Retraining(epochs=600, rate=0.05), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [0, 4, 9, 12])
def test_retraining_a_convex_loss_reaches_least_squares(
    regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]], position: int
) -> None:
    """The survivors' retrained loss is the least one of their support."""
    model, data = regression
    point = truth_of(model, data).measure(position)
    assert point.loss == pytest.approx(least_loss(data, INPUTS - position), rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.003, 0.03, 0.3])
def test_bisection_finds_the_least_size_of_a_convex_problem(
    regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]], epsilon: float
) -> None:
    """Where the least loss is known for every size, the limit is the smallest size within epsilon."""
    model, data = regression
    most = least_loss(data, INPUTS) + epsilon
    expected = min(kept for kept in range(INPUTS + 1) if least_loss(data, kept) <= most)
    found = truth_of(model, data).limit(most, resolution=0.0)
    assert found.point.kept == expected
    assert found.failed is not None and found.failed.kept == expected - 1


def test_the_limit_falls_with_epsilon(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """A larger allowance never needs more weights, with points shared between the two."""
    model, data = regression
    truth = truth_of(model, data)
    own = least_loss(data, INPUTS)
    sizes = [truth.limit(own + epsilon).point.kept for epsilon in (0.3, 0.003, 0.03)]
    assert sizes[1] >= sizes[2] >= sizes[0]


def test_what_is_removed_stays_zero(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """Training writes exactly zero to every removed entry."""
    model, data = regression
    Retraining(epochs=7, batch=16).run(model, FirstInputs().kept_mask(5), data, F.mse_loss)
    weight = model.get_parameter("weight")
    assert int(weight[0, -5:].count_nonzero()) == 0 and int(weight.count_nonzero()) == INPUTS - 5


def test_retraining_never_ends_above_its_start(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """A rate that diverges leaves the start, which counts among the weights seen."""
    model, data = regression
    own = least_loss(data, INPUTS)
    assert Retraining(epochs=5, rate=1e3).run(model, {}, data, F.mse_loss) == pytest.approx(own, rel=1e-5)


def test_the_model_is_left_alone(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """Measuring works on copies."""
    model, data = regression
    before = model.get_parameter("weight").clone()
    truth_of(model, data).measure(6)
    assert torch.equal(model.get_parameter("weight"), before)


def test_equal_seeds_give_equal_points(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """Mini-batches are drawn by the seed alone."""
    model, data = regression

    def once() -> float:
        return Truth(model, FirstInputs(), data, F.mse_loss, retraining=Retraining(3, batch=8)).measure(5).loss

    assert once() == once()


def test_a_given_start_is_used_where_it_is_better(regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    """With no training at all, the better start decides, and its name is told."""
    model, data = regression
    inputs, targets = (torch.cat([batch[index] for batch in data]) for index in (0, 1))
    best = torch.zeros(1, INPUTS)
    best[:, :3] = torch.linalg.lstsq(inputs[:, :3], targets).solution.T
    truth = Truth(model, FirstInputs(), data, F.mse_loss, retraining=Retraining(epochs=0), starts=[{"weight": best}])
    point = truth.measure(INPUTS - 3)
    assert point.start == "given 1"
    assert point.loss == pytest.approx(least_loss(data, 3), rel=1e-4)


def test_an_allowance_below_the_own_loss_is_refused(
    regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    """No size keeps a loss that the network itself does not have."""
    model, data = regression
    with pytest.raises(ValueError, match="Expected a loss of at most"):
        truth_of(model, data).limit(least_loss(data, INPUTS) / 2)


def test_held_out_data_are_measured_and_not_trained_on(
    regression: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    """The held-out loss stands beside the loss that was trained."""
    model, data = regression
    truth = Truth(model, FirstInputs(), data[:1], F.mse_loss, held_out=data[1:], retraining=Retraining(epochs=50))
    point = truth.measure(0)
    assert point.held_out_loss is not None and math.isfinite(point.held_out_loss)
    assert point.held_out_loss != point.loss
