"""Layer-wise curvature against Kronecker products, unfolded images and dense eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.limit.layerwise import Layerwise, layerwise
from structprune.structures import channels
from tests.limit.small import Data, Wrapped, batches, dense, made


class Transposed(nn.Module):
    """A weight stored as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def squares(output: Any, targets: Tensor) -> Tensor:
    """A squared error of an output in a dictionary, whose targets are taken as they are."""
    return ((output["y"] - F.one_hot(targets, 3)) ** 2).sum(1).mean()


def read(model: nn.Module, data: Data, loss: Any = F.cross_entropy) -> Layerwise:
    """The layer-wise curvature of a network on batches."""
    labelled = channels(model, data[0][0]).labelled
    assert labelled is not None
    return layerwise(model, labelled, [inputs for inputs, _ in data], data, loss)


def test_one_linear_layer_is_a_kronecker_product() -> None:
    """H of a linear layer is diag(E[g^2]) (x) E[x x'], both by their definition, and nothing for the bias."""
    model = made(lambda: Wrapped(nn.Linear(5, 3), lambda y: {"y": y}))
    data = batches(5, sizes=(8, 8, 3))
    found = read(model, data, squares)
    inputs, targets = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    slopes = 2 * (model(inputs)["y"].detach() - F.one_hot(targets, 3))
    weights = torch.kron(slopes.square().mean(0).diag(), inputs.T @ inputs / len(inputs))
    matrix = dense(found, torch.zeros(found.layout.size, dtype=torch.float64))
    place = found.layout.place("inner.weight")
    torch.testing.assert_close(matrix[place, place], weights)
    rest = torch.ones(len(matrix), dtype=torch.bool)
    rest[place] = False
    assert not bool(matrix[rest].any())
    assert not bool(matrix[:, rest].any())


def test_a_transposed_weight_is_the_same_curvature() -> None:
    """A weight stored as (inputs, outputs) has the curvature of its transpose."""
    straight, turned = made(lambda: nn.Linear(5, 3)), made(Transposed)
    with torch.no_grad():
        turned.weight.copy_(straight.weight.T)  # type: ignore[union-attr, operator, arg-type]
        turned.bias.copy_(straight.bias)  # type: ignore[union-attr, operator, arg-type]
    data = batches(5)
    (one,), (other,) = read(straight, data).layers, read(turned, data).layers
    assert other.transposed
    change = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(other.product(change.T).T, one.product(change))
    np.testing.assert_allclose(np.sort(other.eigenvalues), np.sort(one.eigenvalues))
    assert bool((other.seen.reshape(5, 3).T == one.seen.reshape(3, 5)).all())


def test_entries_that_see_nothing_are_known() -> None:
    """Inputs that are always zero have no curvature, in either way of storing a weight."""
    data = [(torch.cat([x[:, :4], torch.zeros_like(x[:, :1])], 1), y) for x, y in batches(5)]
    (straight,), (turned,) = read(made(lambda: nn.Linear(5, 3)), data).layers, read(made(Transposed), data).layers
    expected = torch.tensor([True] * 4 + [False]).expand(3, 5)
    assert bool((straight.seen.reshape(3, 5) == expected).all())
    assert bool((turned.seen.reshape(5, 3) == expected.T).all())


CONVOLUTIONS = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 1, "groups": 2, "stride": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions_sum_over_positions(options: dict[str, Any]) -> None:
    """With all output positions read, E[sum over positions of x x'] is that of the unfolded image, group by group."""
    groups = options.get("groups", 1)
    model = made(
        lambda: nn.Sequential(nn.Conv2d(4, 8, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    )
    data = batches(4, 5, 5)
    layer = read(model, data).layers[0]
    inputs = torch.cat([x for x, _ in data])
    unfolded = F.unfold(inputs, **{key: value for key, value in options.items() if key != "groups"})
    assert unfolded.shape[2] <= 16, "all positions are to be read"
    parts = unfolded.view(len(inputs), groups, -1, unfolded.shape[2])
    expected = torch.einsum("ngcp,ngdp->gcd", parts, parts) / len(inputs)
    torch.testing.assert_close(layer.moments, expected)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_eigenvalues_are_those_of_the_dense_matrix(options: dict[str, Any]) -> None:
    """The spectrum of a network with a convolution and a classifier is that of its dense curvature."""
    model = made(
        lambda: nn.Sequential(nn.Conv2d(4, 4, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    found = read(model, batches(4, 5, 5))
    matrix = dense(found, torch.zeros(found.layout.size, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    values = np.linalg.eigvalsh(matrix)
    spectrum = found.spectrum()
    for mu in (1e-6, 1e-3, 0.1):
        # Eigenvalues at rounding level may be of either sign; none of them counts at these scales.
        assert spectrum.dimension(mu).value == pytest.approx(float((values / (values + mu)).sum()), rel=1e-5)
    assert spectrum.trace == pytest.approx(np.trace(matrix))


def test_a_weight_used_twice_gets_both_inputs() -> None:
    """The second use of a weight adds its inputs to the first one's."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.again(torch.tanh(self.again(x)))))

    model, data = made(Twice), batches(4)
    inputs = torch.cat([x for x, _ in data])
    second = torch.tanh(model.again(inputs)).detach()  # type: ignore[union-attr, operator]
    layers = {layer.name: layer for layer in read(model, data).layers}
    expected = (inputs.T @ inputs + second.T @ second) / len(inputs)
    torch.testing.assert_close(layers["again.weight"].moments[0], expected)


def test_half_precision_is_summed_in_single() -> None:
    """A network in bfloat16 has the products of one in float64, as far as its own digits go."""
    data = batches(5)
    (exact,) = read(made(lambda: nn.Linear(5, 3)), data).layers
    (half,) = read(made(lambda: nn.Linear(5, 3)).bfloat16(), [(x.bfloat16(), y) for x, y in data]).layers
    change = torch.randn(3, 5, dtype=torch.float64)
    image = half.product(change.bfloat16())
    assert image.dtype == torch.bfloat16
    torch.testing.assert_close(half.moments.double(), exact.moments, rtol=0.05, atol=0.05)
    torch.testing.assert_close(
        image.double() / half.sensitivity[:, None], change @ half.moments[0].double(), rtol=0.05, atol=0.05
    )


def test_networks_without_linear_maps_are_refused() -> None:
    """A network that only scales has no layer to look at."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    with pytest.raises(ValueError, match="Pass curvature='ggn'"):
        read(made(Scale), batches(3))
