"""Small parts of training: what optimisers forget, batch norm measured anew, soft places, whitened blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from structprune.data import Batches
from structprune.methods import Reset
from structprune.methods.batch_statistics import refresh_batch_norm
from structprune.methods.input_moments import InputMoments
from structprune.methods.masked import Masked
from structprune.methods.optimizer_state import chosen_reset, forget_entries, reset
from structprune.methods.soft_top_k import soft_top_k
from structprune.structures import blocks, channels


def stepped(kind: str) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter after three steps, and its optimiser."""
    parameter = nn.Parameter(torch.ones(4))
    optimizer = _optimizer(kind, parameter)
    for _ in range(3):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    return parameter, optimizer


def _optimizer(kind: str, parameter: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter], 0.1, 0.9) if kind == "sgd" else torch.optim.AdamW([parameter], 0.1)


def test_momentum_alone_is_cleared_where_that_is_asked() -> None:
    """Adam's second moments and step count stay."""
    parameter, optimizer = stepped("adam")
    reset(optimizer, Reset.MOMENTUM)
    state = optimizer.state[parameter]
    assert not state["exp_avg"].any() and state["exp_avg_sq"].all() and float(state["step"]) == 3


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_full_reset_is_a_new_optimiser(kind: str) -> None:
    """After it, a step is the first step of a fresh optimiser."""
    parameter, optimizer = stepped(kind)
    reset(optimizer, Reset.ALL)
    fresh = nn.Parameter(parameter.detach().clone())
    other = _optimizer(kind, fresh)
    for one, by in ((parameter, optimizer), (fresh, other)):
        one.grad = torch.tensor([1.0, -2.0, 3.0, 0.5])
        by.step()
    assert torch.equal(parameter, fresh)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_single_entries_are_forgotten(kind: str) -> None:
    """Every moment of them is zero, and of the others none."""
    parameter, optimizer = stepped(kind)
    forget_entries(optimizer, {parameter: torch.tensor([True, False, False, True])})
    for value in optimizer.state[parameter].values():
        if isinstance(value, Tensor) and value.shape == (4,):
            assert (value != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("kind", "shortest", "policy"),
    [("sgd", 100, Reset.ALL), ("sgd", 99, Reset.NONE), ("adam", 1000, Reset.MOMENTUM), ("adam", 999, Reset.NONE)],
)
def test_resets_are_left_out_where_phases_are_short(kind: str, shortest: int, policy: Reset) -> None:
    """SGD is reset from phases of an epoch (100 steps) on, Adam from 1 / (1 - beta2) steps on."""
    _, optimizer = stepped(kind)
    assert chosen_reset(Reset.AUTO, optimizer, shortest, epoch=100) is policy


def test_batch_norm_is_measured_as_the_mean_over_batches() -> None:
    """The running mean becomes that of the data, whatever it was, and the mode and momentum stay."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    data = [(3 + 2 * torch.randn(50, 3), torch.zeros(50)) for _ in range(4)]
    (note,) = refresh_batch_norm(model, Batches(data))
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([inputs.mean(0) for inputs, _ in data]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([inputs.var(0) for inputs, _ in data]).mean(0))
    assert not norm.training and norm.momentum == 0.1 and "4 batches" in note


def test_networks_without_batch_norm_need_no_measuring() -> None:
    """No forward pass, no note."""
    assert refresh_batch_norm(nn.Linear(3, 2), Batches([("not", "used")])) == ()


@given(
    values=st.lists(st.floats(-5, 5), min_size=2, max_size=20),
    share=st.floats(0.05, 0.95),
    sharpness=st.floats(0.5, 50),
)
def test_soft_places_sum_to_the_number_kept(values: list[float], share: float, sharpness: float) -> None:
    """k places are given, each between 0 and 1, more to larger values."""
    scores = torch.tensor(values, dtype=torch.float64)
    count = max(1, int(share * len(values)))
    places = soft_top_k(scores, count, sharpness)
    assert float(places.sum()) == pytest.approx(count, abs=1e-6)
    assert bool(((places >= 0) & (places <= 1)).all())
    assert bool((places[scores.argsort()].diff() >= -1e-12).all())


def test_soft_places_have_the_gradient_of_the_implicit_function() -> None:
    """Automatic and numerical derivatives agree, and the sum of places has none."""
    scores = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 3, 2.0), (scores,))
    (slope,) = torch.autograd.grad(soft_top_k(scores, 3, 2.0).sum(), scores)
    assert float(slope.abs().max()) < 1e-12


def test_sharp_places_are_the_top_k() -> None:
    """In the limit the largest have a place and the others none."""
    places = soft_top_k(torch.tensor([0.1, 0.9, 0.5, 0.7]), 2, 1e3)
    assert places.round(decimals=4).tolist() == [0, 1, 0, 1]


def watched(layer: nn.Module, inputs: Tensor, side: int) -> InputMoments:
    """Moments after one forward pass in training."""
    model = nn.Sequential(layer).train()
    wrapped = Masked(model, blocks(model, (side, side)))
    moments = InputMoments(wrapped, damping=1e-9)
    moments.watching = True
    selection = np.ones(wrapped.size, dtype=bool)
    selection[0] = False  # behind a mask a layer runs with a weight that is computed
    wrapped.keep(selection)
    wrapped(inputs)
    return moments


def test_moments_are_those_of_each_run_of_inputs() -> None:
    """C = X^T X / n for the inputs of each block, and whitening twice undoes the powers."""
    inputs = torch.randn(500, 8) @ torch.randn(8, 8)
    moments = watched(nn.Linear(8, 4), inputs, 4)
    for run in range(2):
        own = inputs[:, 4 * run : 4 * run + 4]
        torch.testing.assert_close(moments.moments["0.weight"][run], own.T @ own / 500, rtol=1e-4, atol=1e-4)
    weight = torch.randn(4, 8)
    back = moments.powered("0.weight", moments.powered("0.weight", weight, 0.5), -0.5)
    torch.testing.assert_close(back, weight, rtol=1e-4, atol=1e-4)


def test_half_power_measures_what_a_block_adds_to_outputs() -> None:
    """||W C^(1/2)||^2 is the mean square of the block's contribution, summed over its outputs."""
    inputs = torch.randn(400, 6) @ torch.randn(6, 6)  # the last run of inputs is a short one
    layer = nn.Linear(6, 4)
    turned = watched(layer, inputs, 4).powered("0.weight", layer.weight.detach(), 0.5)
    for columns in (slice(0, 4), slice(4, 6)):
        added = inputs[:, columns] @ layer.weight.detach()[:, columns].T
        assert float(turned[:, columns].square().sum()) == pytest.approx(float(added.square().sum(1).mean()), rel=1e-3)


def test_moments_of_convolutions_run_over_pixels() -> None:
    """Channels are what is read, pixels and examples are what is averaged over."""
    inputs = torch.randn(5, 4, 6, 6)
    moments = watched(nn.Conv2d(4, 4, 3), inputs, 2)
    rows = inputs.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(moments.moments["0.weight"][0], rows[:, :2].T @ rows[:, :2] / len(rows))


def test_the_watches_can_be_taken_away() -> None:
    """No hook is left on the network."""
    moments = watched(nn.Linear(8, 4), torch.randn(5, 8), 4)
    assert moments.handles
    moments.remove()
    assert not moments.handles


def test_channels_cannot_be_whitened() -> None:
    """They have no runs of inputs of their own, which is said."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="Expected blocks of linear and convolution weights for whitening"):
        InputMoments(Masked(model, channels(model, torch.randn(2, 8))))


def test_masks_are_numbers_in_the_networks_state() -> None:
    """A saved wrapped network brings its mask along."""
    model = nn.Sequential(nn.Linear(8, 8))
    first, second = (Masked(model, blocks(model, (4, 4))) for _ in range(2))
    first.keep(np.array([True, False, True, False]))
    second.load_state_dict(first.state_dict())
    assert second.kept.tolist() == [True, False, True, False]
