"""What each criterion computes, against the slow obvious version."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.criteria import BNScale, Fisher, Magnitude, Random, Taylor
from structprune.structures import Structures, blocks, channels, kernels
from tests import laws
from tests.cases import BY_NAME, CASES, Case


def weights_of(model: nn.Module, structures: Structures, structure: int) -> dict[str, Tensor]:
    """Per parameter, which of its entries a structure takes; found by removing it alone."""
    selection = np.ones(structures.n, dtype=bool)
    selection[structure] = False
    parameters = dict(model.named_parameters())
    return {name: ~mask for name, mask in structures.masks(selection).items() if name in parameters}


def one_of_each_axis(structures: Structures) -> list[int]:
    """The middle structure of every axis."""
    return [axis.start + axis.size // 2 for axis in structures.axes]


def weight(model: nn.Module, name: str) -> Tensor:
    """The numbers of a parameter in float64, without a gradient."""
    return model.get_parameter(name).detach().double()


def changes(model: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    """All products w dL/dw of the entries of a structure, after a backward pass."""
    named = {name: model.get_parameter(name) for name in masks}
    return torch.cat([(p.detach() * p.grad)[masks[n]] for n, p in named.items() if p.grad is not None])


def mean_loss(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> float:
    """Loss over all examples of batches of one size."""
    return float(np.mean([float(laws.toy_loss(laws.outputs(model, x), y)) for x, y in data]))


DIRECTIONAL = [BY_NAME[name] for name in ("residual", "grouped", "fused_attention", "torch_attention", "called_twice")]


@pytest.mark.parametrize("case", [*DIRECTIONAL, BY_NAME["lstm"], BY_NAME["tied_embeddings"]], ids=str)
def test_taylor_is_the_directional_derivative_of_scaling(case: Case) -> None:
    """The signed sum is d loss / d m of a gate m on all weights of the structure, by central differences."""
    model, example = case.make()
    model, data = model.double(), laws.toy_data(laws.double(example))
    structures = laws.channels_of(case)
    scores = Taylor()(model, structures, data, laws.toy_loss).values
    step = 1e-5
    for structure in one_of_each_axis(structures):
        losses = []
        for gate in (1 + step, 1 - step):
            other = copy.deepcopy(model)
            for name, mine in weights_of(model, structures, structure).items():
                other.get_parameter(name).data[mine] *= gate
            losses.append(mean_loss(other, data))
        assert abs(losses[0] - losses[1]) / (2 * step) == pytest.approx(scores[structure], rel=1e-5, abs=1e-9)


def test_absolute_taylor_bounds_the_signed_one() -> None:
    """Summing magnitudes forgets what cancels: it is never below the signed sum, and mostly above."""
    model, example = BY_NAME["residual"].make()
    structures, data = laws.channels_of(BY_NAME["residual"]), laws.toy_data(example)
    signed = Taylor()(model, structures, data, laws.toy_loss).values
    absolute = Taylor(absolute=True)(model, structures, data, laws.toy_loss).values
    assert (absolute >= signed - 1e-7).all()
    assert (absolute > 1.5 * signed).mean() > 0.5


def test_absolute_taylor_is_the_sum_over_entries() -> None:
    """With magnitudes the score is the sum of |w dL/dw| over the structure's parameters."""
    case = BY_NAME["plain"]
    model, example = case.make()
    structures, data = laws.channels_of(case), laws.toy_data(example)
    found = Taylor(absolute=True)(model, structures, data, laws.toy_loss).values
    for inputs, targets in data:
        (laws.toy_loss(model(inputs), targets) / len(data)).backward()
    for structure in range(structures.n):
        expected = float(changes(model, weights_of(model, structures, structure)).abs().sum())
        assert found[structure] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "find", [None, lambda model: blocks(model, (3, 4)), kernels], ids=["channels", "blocks", "kernels"]
)
def test_fisher_is_the_explicit_loop(find) -> None:
    """Half the mean over examples of the squared sum of w dL_n/dw, one backward pass for each example."""
    case = BY_NAME["residual"]
    model, example = case.make()
    model, data = model.double(), laws.toy_data(laws.double(example))
    structures = find(model) if find else laws.channels_of(case)
    found = Fisher(examples=None)(model, structures, data, laws.toy_loss).values
    chosen = range(0, structures.n, max(1, structures.n // 12))
    entries = {structure: weights_of(model, structures, structure) for structure in chosen}
    squares = dict.fromkeys(chosen, 0.0)
    for inputs, targets in data:
        for i in range(2):
            model.zero_grad()
            laws.toy_loss(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
            for structure, masks in entries.items():
                squares[structure] += float(changes(model, masks).sum()) ** 2
    for structure, square in squares.items():
        assert found[structure] == pytest.approx(square / 8, rel=1e-9, abs=1e-15)


def test_fisher_is_the_curvature_of_a_true_model() -> None:
    """Where the noise is what the loss assumes, Fisher scores are the loss, up to the spread of 4000 examples."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False)).double()
    inputs = torch.randn(4000, 4, dtype=torch.float64)
    targets = laws.outputs(model, inputs)[:, 0] + torch.randn(4000, dtype=torch.float64)
    structures = channels(model, inputs[:2])
    found = Fisher(examples=None)(model, structures, [(inputs, targets)], laws.toy_loss).values
    hidden = inputs @ weight(model, "0.weight").T * weight(model, "1.weight")
    # Each of the two layers moves the output by `hidden` when the gate moves, so the gate's curvature is (2 hidden)^2.
    expected = (2 * hidden).square().mean(0) / 2
    np.testing.assert_allclose(found, expected, rtol=0.15)


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_by_hand(p: Literal[1, 2]) -> None:
    """Norms run over all parameters of the structure, statistics excluded; shares over its matrices, layer by layer."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)).eval()
    with torch.no_grad():
        for parameter, numbers in zip(model.parameters(), ([3, -1], [4, 1], [2, 0], [1, 1], [-2, 3], [9]), strict=True):
            parameter.copy_(torch.tensor(numbers).reshape(parameter.shape))
        model.get_buffer("1.running_var").fill_(100.0)
    structures = channels(model, torch.randn(2, 1, 3, 3))
    parts = np.array([[3, 4, 2, 1, 2], [1, 1, 0, 1, 3]])
    norms = (parts**p).sum(1) ** (1 / p)
    np.testing.assert_allclose(Magnitude(p, normalise="none")(model, structures).values, norms)
    np.testing.assert_allclose(Magnitude(p, normalise="group")(model, structures).values, norms / norms.mean())
    first, last = np.array([3, 1]) ** p, np.array([2, 3]) ** p
    np.testing.assert_allclose(Magnitude(p)(model, structures).values, first / first.sum() + last / last.sum())


def test_magnitude_ignores_buffers() -> None:
    """Batch norm statistics go with a channel but do not add to its worth."""
    case = BY_NAME["plain"]
    model, _ = case.make()
    before = Magnitude()(model, laws.channels_of(case)).values
    for buffer in model.buffers():
        buffer.mul_(7)
    assert np.array_equal(Magnitude()(model, laws.channels_of(case)).values, before)


def test_entries_in_two_dimensions_of_an_axis_count_once() -> None:
    """A layer from an axis to itself gives structure i its row i and its column i, sharing one entry."""
    case = BY_NAME["called_twice"]
    model, _ = case.make()
    structures = laws.channels_of(case)
    square = weight(model, "again.weight").square()
    expected = (
        weight(model, "first.weight").square().sum(1)
        + weight(model, "first.bias").square()
        + (square.sum(0) + square.sum(1) - square.diagonal())
        + weight(model, "again.bias").square()
        + weight(model, "last.weight").square().sum(0)
    ).sqrt()
    np.testing.assert_allclose(Magnitude(normalise="none")(model, structures).values, expected, rtol=1e-6)


def test_residual_convolution_counts_shared_entries_once() -> None:
    """Where a convolution reads and writes one axis, the entries (i, i) count once in every criterion's sum."""
    case = BY_NAME["pixel_shuffle"]
    model, _ = case.make()
    structures = laws.channels_of(case)
    found = Magnitude(p=1, normalise="none")(model, structures).values
    for structure in range(structures.n):
        masks = weights_of(model, structures, structure)
        expected = sum(float(weight(model, name).abs()[mine].sum()) for name, mine in masks.items())
        assert found[structure] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_magnitude_is_the_norm_of_what_masks_remove(case: Case) -> None:
    """On every network the L1 score is the sum of what masking the structure alone sets to zero."""
    model, _ = case.make()
    structures = laws.channels_of(case)
    found = Magnitude(p=1, normalise="none")(model, structures).values
    for structure in one_of_each_axis(structures):
        masks = weights_of(model, structures, structure)
        expected = sum(float(weight(model, name).abs()[mine].sum()) for name, mine in masks.items())
        assert found[structure] == pytest.approx(expected, rel=1e-6)


class Tied(nn.Module):
    """Two layers that share a weight, as one parameter or as two over the same memory."""

    def __init__(self, one_parameter: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight if one_parameter else nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))


@pytest.mark.parametrize("one_parameter", [True, False])
def test_tied_weights_count_once(one_parameter: bool) -> None:
    """The magnitude of a structure has its tied weights in it once."""
    model, example = Tied(one_parameter), torch.randn(2, 3)
    structures = channels(model, example)
    found = Magnitude(p=1, normalise="none")(model, structures).values
    tied, last = weight(model, "a.weight").abs(), weight(model, "last.weight").abs()
    first = weight(model, "first.weight").abs().sum(1) + weight(model, "first.bias").abs()
    expected = first + tied.sum(0) + tied.sum(1) - tied.diagonal() + last.sum(0)
    assert structures.n == 6
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_axis_of_zeros_is_worth_zero() -> None:
    """Where the mean over the axis is zero, nothing is divided by it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(Magnitude()(model, channels(model, torch.randn(2, 3))).values, np.zeros(4))


def test_bn_scale_is_the_mean_scale() -> None:
    """A channel that passes several batch norms has the mean of their scales' magnitudes."""
    case = BY_NAME["depthwise_separable"]
    model, _ = case.make()
    structures = laws.channels_of(case)
    found = BNScale()(model, structures).values
    scales = [weight(model, f"{name}.1.weight").abs() for name in ("expand", "depthwise")]
    expand = next(axis for axis in structures.axes if axis.name == "expand.0")
    np.testing.assert_allclose(found[expand.entries], (scales[0] + scales[1]) / 2, rtol=1e-6)


def test_bn_scale_refuses_axes_without_batch_norm() -> None:
    """An axis that no batch norm scales is named, and what can be done."""
    case = BY_NAME["plain"]
    model, _ = case.make()
    with pytest.raises(ValueError, match=r"1 of 3 axes without: conv3\. .*keep_whole=.*otherwise"):
        BNScale()(model, laws.channels_of(case))


def test_bn_scale_takes_another_criterion_for_the_rest() -> None:
    """Axes without batch norm are scored by the other criterion, brought to the same mean, and a note says so."""
    case = BY_NAME["plain"]
    model, _ = case.make()
    structures = laws.channels_of(case)
    scores = BNScale(otherwise=Magnitude())(model, structures)
    rest = structures.axes[2].entries
    other = Magnitude()(model, structures).values[rest]
    np.testing.assert_allclose(scores.values[rest].mean(), scores.values[: rest.start].mean())
    np.testing.assert_allclose(scores.values[rest] / scores.values[rest].mean(), other / other.mean())
    assert "1 axes without batch norm: scores of Magnitude" in scores.notes[0]


def test_random_depends_on_the_seed_alone() -> None:
    """Equal seeds give equal scores for any weights; other seeds give others."""
    case = BY_NAME["plain"]
    model, _ = case.make()
    structures = laws.channels_of(case)
    first = Random(1)(model, structures).values
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert np.array_equal(Random(1)(model, structures).values, first)
    assert not np.array_equal(Random(2)(model, structures).values, first)


@pytest.mark.parametrize("criterion", [Taylor, Fisher])
def test_examples_caps_the_data(criterion) -> None:
    """With ``examples=3`` two batches of two are worth the same as their first three examples; a note counts them."""
    case = BY_NAME["mlp"]
    model, inputs = case.make()
    model, inputs = model.double(), laws.double(inputs)
    structures, data = laws.channels_of(case), laws.toy_data(inputs)
    capped = criterion(examples=3)(model, structures, data, laws.toy_loss)
    three = [(torch.cat((inputs, inputs))[:3], torch.cat([targets for _, targets in data])[:3])]
    expected = criterion(examples=None)(model, structures, three, laws.toy_loss)
    np.testing.assert_allclose(capped.values, expected.values, rtol=1e-9, atol=1e-12)
    assert capped.notes == expected.notes == ("Gradients of 3 examples.",)


@pytest.mark.parametrize("criterion", [Taylor(), Fisher()])
def test_batching_does_not_matter(criterion) -> None:
    """Batches of unequal size are weighted by their examples."""
    case = BY_NAME["mlp"]
    model = case.make()[0].double()
    inputs, targets = torch.randn(7, 10, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    structures = laws.channels_of(case)
    whole = criterion(model, structures, [(inputs, targets)], laws.toy_loss).values
    pieces = [(inputs[:5], targets[:5]), (inputs[5:6], targets[5:6]), (inputs[6:], targets[6:])]
    np.testing.assert_allclose(criterion(model, structures, pieces, laws.toy_loss).values, whole, rtol=1e-9, atol=1e-12)


def test_dictionaries_are_passed_by_name() -> None:
    """Inputs may be a dictionary of keyword arguments."""
    case = BY_NAME["recommender"]
    model, (dense, sparse) = case.make()
    structures = laws.channels_of(case)
    by_place = laws.toy_data((dense, sparse))
    by_name = [({"sparse": sparse, "dense": dense}, targets) for _, targets in by_place]
    for criterion in (Taylor(), Fisher()):
        found = criterion(model, structures, by_name, laws.toy_loss).values
        assert np.array_equal(found, criterion(model, structures, by_place, laws.toy_loss).values)
