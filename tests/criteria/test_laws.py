"""Every criterion on every small network keeps the laws of tests/laws.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from structprune.criteria import Criterion, LayerReconstruction, Random, Taylor
from structprune.structures import Structures, blocks, kernels, nm
from tests import laws
from tests.cases import BY_NAME, CASES, CRITERIA, Case

FOLLOWING = [criterion for criterion in CRITERIA if not isinstance(criterion, Random)]
INSIDE_WEIGHTS = [criterion for criterion in CRITERIA if not isinstance(criterion, LayerReconstruction)]
ENTRIES: list[Callable[[nn.Module], Structures]] = [
    lambda model: blocks(model, (3, 4)),
    lambda model: kernels(model),
    lambda model: nm(model, 2, 4),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_valid(case: Case, criterion: Criterion) -> None:
    """On any network there is one finite float64 number per channel."""
    model, example = case.make()
    laws.scores_are_one_finite_number_per_structure(criterion, model, laws.channels_of(case), laws.toy_data(example))


@pytest.mark.parametrize("criterion", INSIDE_WEIGHTS, ids=repr)
@pytest.mark.parametrize("find", ENTRIES, ids=["blocks", "kernels", "nm"])
@pytest.mark.parametrize("name", ["plain", "grouped", "mlp", "torch_encoder"])
def test_scores_are_valid_for_blocks_kernels_and_nm(
    name: str, find: Callable[[nn.Module], Structures], criterion: Criterion
) -> None:
    """Structures inside one weight are scored like channels."""
    model, example = BY_NAME[name].make()
    laws.scores_are_one_finite_number_per_structure(criterion, model, find(model), laws.toy_data(example))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("name", ["residual", "torch_encoder", "lstm"])
def test_scores_repeat(name: str, criterion: Criterion) -> None:
    """Equal arguments give equal scores."""
    model, example = BY_NAME[name].make()
    laws.scores_repeat(criterion, model.train(), laws.channels_of(BY_NAME[name]), laws.toy_data(example))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_model_is_untouched(case: Case, criterion: Criterion) -> None:
    """A criterion leaves no trace in the network, its gradients or the random state."""
    model, example = case.make()
    laws.criterion_leaves_model_untouched(criterion, model, laws.channels_of(case), laws.toy_data(example))


@pytest.mark.parametrize("criterion", FOLLOWING, ids=repr)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_permuting_channels_permutes_scores(case: Case, criterion: Criterion) -> None:
    """A score belongs to the weights, not to their place."""
    model, example = case.make()
    laws.permuting_structures_permutes_scores(criterion, model, laws.channels_of(case, in_double=True), example)


def test_shuffled_data_repeats() -> None:
    """A loader that shuffles gives the same scores every time: the criterion fixes the random state."""
    model, _ = BY_NAME["mlp"].make()
    loader = DataLoader(TensorDataset(torch.randn(32, 10), torch.randn(32)), batch_size=4, shuffle=True)
    laws.scores_repeat(Taylor(examples=8), model, laws.channels_of(BY_NAME["mlp"]), loader)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_gradients_may_be_off_around(criterion: Criterion, around: Callable[[], Any]) -> None:
    """A criterion that is called where gradients are off gives the same scores."""
    case = BY_NAME["plain"]
    model, example = case.make()
    data = laws.toy_data(example)
    expected = criterion(model, laws.channels_of(case), data, laws.toy_loss)
    with around():
        found = criterion(model, laws.channels_of(case), data, laws.toy_loss)
    assert np.array_equal(found.values, expected.values)


@pytest.mark.gpu
@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("name", ["residual", "torch_encoder", "lstm", "recommender"])
def test_data_moves_to_the_device_of_the_model(name: str, criterion: Criterion) -> None:
    """A network on the GPU is scored with data on the CPU, and the scores are those of the CPU."""
    case = BY_NAME[name]
    model, example = case.make()
    model, data = model.double(), laws.toy_data(laws.double(example))
    expected = criterion(model, laws.channels_of(case), data, laws.toy_loss).values
    state = torch.cuda.get_rng_state()
    found = criterion(model.cuda(), laws.channels_of(case), data, laws.toy_loss).values
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)
    assert torch.equal(torch.cuda.get_rng_state(), state)
