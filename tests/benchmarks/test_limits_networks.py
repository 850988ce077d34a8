"""Facts of the pruning-limit benchmark's networks and of its training with exact zeros."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.limits.networks import FC5, FC12, VGG16, AlexNet, Perceptron, initialise, resnet18, resnet50
from benchmarks.limits.proximal import ProximalAdam, soft_threshold, subgradient


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "side", "classes"),
    [
        (Perceptron(FC5), 32, 10),
        (Perceptron(FC12), 32, 10),
        (VGG16(), 32, 10),
        (resnet18(100), 32, 100),
        (resnet50(200), 64, 200),
    ],
    ids=["fc5", "fc12", "vgg16", "resnet18", "resnet50"],
)
def test_networks_classify_images(model: nn.Module, side: int, classes: int) -> None:
    """Every network takes images of its data set and gives one number per class."""
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, side, side)).shape == (2, classes)


def test_alexnet_enlarges_small_images() -> None:
    """AlexNet takes images of 32 pixels, which it enlarges sevenfold."""
    with torch.device("meta"):
        model, images = AlexNet(), torch.zeros(1, 3, 32, 32)
    assert model(images).shape == (1, 10)


def test_sizes_are_those_of_the_layers() -> None:
    """Parameters counted by hand."""
    assert count(Perceptron(FC5)) == 3_885_010
    assert count(Perceptron((64, 24, 24, 10))) == 2352 + 58


def test_depths_are_those_of_the_names() -> None:
    """The ResNets have 18 and 50 layers on the way from input to output, the shortcuts' apart; VGG16 has 14."""
    for model, layers in ((resnet18(10), 18), (resnet50(10), 50), (VGG16(), 14)):
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
        assert len(names) == layers


def test_initial_weights_have_kaiming_variance_and_follow_the_seed() -> None:
    """Standard deviation sqrt(2 / fan in), biases zero; equal seeds give equal weights."""
    one, same, other = (initialise(Perceptron(FC5), seed) for seed in (0, 0, 1))
    first = one.get_parameter("layers.0.weight")
    assert float(first.detach().std()) == pytest.approx((2 / 3072) ** 0.5, rel=0.01)
    assert not one.get_parameter("layers.0.bias").any()
    assert torch.equal(first, same.get_parameter("layers.0.weight"))
    assert not torch.equal(first, other.get_parameter("layers.0.weight"))


def test_the_soft_threshold_is_the_proximal_operator() -> None:
    """It minimises (x - v)^2 / 2 + t |x|, with exact zeros."""
    values = torch.tensor([-2.0, -0.3, 0.0, 0.1, 0.5, 3.0])
    assert torch.equal(soft_threshold(values, 0.5), torch.tensor([-1.5, 0.0, 0.0, 0.0, 0.0, 2.5]))


def test_the_subgradient_is_zero_at_a_lasso_solution() -> None:
    """Of (x - v)^2 / 2 + t |x| at its minimiser every least subgradient vanishes."""
    values = torch.randn(50)
    solution = soft_threshold(values, 0.4)
    assert float(subgradient(solution, solution - values, 0.4).abs().max()) < 1e-6


@pytest.mark.parametrize("batch", [None, 20])
def test_training_finds_the_lasso_solution_with_exact_zeros(batch: int | None) -> None:
    """On an orthogonal design the answer is known: soft-thresholded least squares."""
    inputs = torch.linalg.qr(torch.randn(60, 8)).Q * 60**0.5  # inputs' inputs / 60 = identity
    wanted = torch.tensor([2.0, -1.5, 1.0, 0.5, 0.2, 0.1, -0.05, 0.0])
    targets = (inputs @ wanted).unsqueeze(1)
    model = nn.Linear(8, 1, bias=False)

    def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(output, target) / 2

    found = ProximalAdam(0.3, steps=800, batch=batch, rate=0.05, settle=800).fit(model, inputs, targets, half_square)
    weights = model.get_parameter("weight").detach().flatten()
    assert torch.allclose(weights, soft_threshold(wanted, 0.3), atol=2e-3)
    assert int((weights == 0).sum()) == 4 and found.nonzero == 0.5
    assert abs(found.settled) < 0.05 and found.subgradient < 0.01


def test_equal_starts_train_to_equal_ends() -> None:
    """Nothing but the start and the seed decides."""
    inputs, targets = torch.randn(30, 4), torch.randint(0, 3, (30,))

    def once() -> torch.Tensor:
        model = initialise(Perceptron((4, 5, 3)), 0)
        ProximalAdam(1e-3, steps=20, batch=7, settle=5).fit(model, inputs, targets, F.cross_entropy)
        return model.get_parameter("layers.0.weight").detach()

    assert torch.equal(once(), once())
