"""Laws that hold for every part of a kind, whoever wrote it; the tests call them on the lists of tests/cases.py."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from structprune.criteria import Criterion, Scores
from structprune.structures import ChannelAxis, Structures, channels
from tests.cases import Case


def double(value: Any) -> Any:
    """The floating tensors of an input in float64."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value
    )


@cache
def channels_of(case: Case, in_double: bool = False) -> Structures:
    """The channels of a case; traced once, because tracing takes longer than what is tested.

    A graph keeps the type of the constants that it was traced with (LSTM's first state), hence ``in_double``.
    """
    model, example = case.make()
    return channels(model.double(), double(example)) if in_double else channels(model, example)


def toy_loss(output: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared distance of every output from its example's target."""
    return (output - target.view(-1, *[1] * (output.ndim - 1))).square().mean() / 2


def toy_data(example: Any) -> list[tuple[Any, Tensor]]:
    """Two batches of two examples: the same inputs with other targets."""
    floats = [leaf for leaf in pytree.tree_leaves(example) if leaf.is_floating_point()]
    dtype = floats[0].dtype if floats else torch.get_default_dtype()
    return [(example, torch.tensor(targets, dtype=dtype)) for targets in ([1.0, -0.5], [0.3, 2.0])]


def outputs(model: nn.Module, example: Any) -> Tensor:
    """What the network computes, without a gradient."""
    with torch.no_grad():
        return model(*example) if isinstance(example, tuple) else model(example)


# Criteria


def scores_are_one_finite_number_per_structure(
    criterion: Criterion, model: nn.Module, structures: Structures, data: Any
) -> Scores:
    """Values are float64 of shape (n,), finite and read-only, with a unit; curves belong to axes."""
    scores = criterion(model, structures, data, toy_loss)
    assert scores.values.shape == (structures.n,)
    assert scores.values.dtype == np.float64
    assert np.isfinite(scores.values).all()
    assert not scores.values.flags.writeable
    assert scores.unit
    assert scores.check(structures) is scores
    return scores


def scores_repeat(criterion: Criterion, model: nn.Module, structures: Structures, data: Any) -> None:
    """Equal arguments give equal scores, whatever the global random state is."""
    first = criterion(model, structures, data, toy_loss)
    torch.manual_seed(12345)
    second = criterion(model, structures, data, toy_loss)
    assert np.array_equal(first.values, second.values)
    assert first.notes == second.notes


def criterion_leaves_model_untouched(criterion: Criterion, model: nn.Module, structures: Structures, data: Any) -> None:
    """Weights, buffers, gradients, requires_grad, modes and the random state are the same bits as before."""
    parameters = dict(model.named_parameters())
    for i, (module, parameter) in enumerate(zip(model.modules(), parameters.values(), strict=False)):
        module.training = i % 2 == 0
        parameter.requires_grad_(i % 3 != 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    before = copy.deepcopy(model)
    gradients = {name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in parameters.items()}
    state = torch.get_rng_state()
    criterion(model, structures, data, toy_loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad == before.get_parameter(name).requires_grad
        assert torch.equal(parameter, before.get_parameter(name))
        kept = gradients[name]
        assert parameter.grad is (None if kept is None else kept[0])
        assert kept is None or torch.equal(*kept)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name))


@torch.no_grad()
def permuted(model: nn.Module, axis: ChannelAxis, order: np.ndarray) -> nn.Module:
    """A copy in which structure i of the axis has the weights that structure ``order[i]`` had."""
    model = copy.deepcopy(model)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for member in axis.members:
        tensor = named[member.tensor]
        rows = np.arange(tensor.shape[member.dim])
        rows[member.positions] = member.positions[order]
        tensor.copy_(tensor.index_select(member.dim, torch.from_numpy(rows)))
    return model


def permuting_structures_permutes_scores(
    criterion: Criterion, model: nn.Module, structures: Structures, example: Any, seed: int = 0
) -> None:
    """Reordering an axis changes nothing that the network computes, and the scores follow their weights (float64)."""
    model, example = model.double(), double(example)
    data = toy_data(example)
    scores = criterion(model, structures, data, toy_loss).values
    expected = outputs(model, example)
    rng = np.random.default_rng(seed)
    for axis in structures.axes:
        assert isinstance(axis, ChannelAxis)
        order = rng.permutation(axis.size)
        other = permuted(model, axis, order)
        torch.testing.assert_close(outputs(other, example), expected, rtol=1e-9, atol=1e-9)
        moved = scores.copy()
        moved[axis.entries] = scores[axis.entries][order]
        found = criterion(other, structures, data, toy_loss).values
        np.testing.assert_allclose(found, moved, rtol=1e-7, atol=1e-12 + 1e-9 * abs(scores).max())
