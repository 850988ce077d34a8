"""An example input is taken from what the caller gave or what the model tells, and asked for otherwise."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from structprune.axes import Example
from structprune.example import find_example


class Reshaped(nn.Module):
    """Takes what no layer of it tells: twelve numbers in two rows of six."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (2, 6)
        return self.fc(x.flatten(1))


class Named(nn.Module):
    """Takes keyword arguments, and tells them the way transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(10, 6), nn.Linear(6, 3)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[1, 2, 3]]), "shift": torch.ones(1, 3, 6)}

    def forward(self, input_ids: Tensor, shift: Tensor) -> Tensor:
        return self.fc(self.embed(input_ids) + shift)


def shapes(example: Example) -> list[tuple[int, ...]]:
    """Shapes of the tensors of an example."""
    return [tuple(leaf.shape) for leaf in example.flat() if isinstance(leaf, Tensor)]


def test_what_is_given_is_taken() -> None:
    """The caller's example comes before data and guesses."""
    x = torch.randn(3, 2, 6)
    found = find_example(Reshaped(), x, [(torch.randn(4, 2, 6), torch.zeros(4))])
    assert torch.equal(found.args[0], x)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.randn(8, 2, 6), [(2, 2, 6)]),
        ((torch.randn(8, 4), torch.randn(8, 3)), [(2, 4), (2, 3)]),
        ({"x": torch.randn(8, 4), "mask": torch.ones(4)}, [(4,), (2, 4)]),
        (torch.randn(1, 4), [(1, 4)]),
    ],
    ids=["tensor", "tuple", "dict with a part that all examples share", "one example"],
)
def test_two_examples_of_the_data_are_taken(inputs, expected) -> None:
    """A long batch is cut to what tracing needs."""
    found = find_example(Reshaped(), None, [(inputs, torch.zeros(8))])
    assert sorted(shapes(found)) == sorted(expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 2)), (2, 7)),
        (nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(8)), (2, 8, 7)),
        (nn.Sequential(nn.Conv1d(3, 4, 5), nn.ReLU()), (2, 3, 64)),
        (nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), (2, 3, 64, 64)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)), (2, 1, 28, 28)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)), (2, 3, 32, 32)),
        (nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU()), (2, 2, 16, 64, 64)),
    ],
    ids=["linear", "linear over a sequence", "conv1d", "conv2d", "28 pixels", "32 pixels", "conv3d"],
)
def test_the_first_layer_tells(model: nn.Module, expected: tuple[int, ...]) -> None:
    """A first layer that is linear or a convolution tells the shape; the model must run on it."""
    assert shapes(find_example(model, None, None)) == [expected]


def test_an_embedding_tells_that_tokens_go_in() -> None:
    """Token indices are integers that every vocabulary has."""
    tokens = find_example(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), None, None).args[0]
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) == 0


def test_dummy_inputs_are_passed_by_name() -> None:
    """A dictionary of transformers' kind becomes keyword arguments."""
    assert set(find_example(Named(), None, None).kwargs) == {"input_ids", "shift"}


def test_the_default_config_tells_the_image_size() -> None:
    """A timm network's ``default_cfg`` comes before what its first layer lets guess."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.default_cfg = {"input_size": (3, 40, 24)}  # type: ignore[assignment]
    assert shapes(find_example(model, None, None)) == [(2, 3, 40, 24)]
    model.default_cfg = SimpleNamespace(input_size=(3, 40, 24))  # type: ignore[assignment]
    assert shapes(find_example(model, None, None)) == [(2, 3, 64, 64)]


def test_the_example_has_the_type_of_the_weights() -> None:
    """A network in float64 gets float64."""
    assert find_example(nn.Sequential(nn.Linear(3, 2)).double(), None, None).args[0].dtype == torch.float64


@pytest.mark.parametrize("model", [Reshaped(), nn.Sequential(nn.ReLU()), nn.Bilinear(3, 4, 2)], ids=repr)
def test_a_model_that_does_not_tell_is_asked_about(model: nn.Module) -> None:
    """Where nothing fits, the error says what to pass."""
    with pytest.raises(ValueError, match=rf"Expected an example input for {type(model).__name__}\. Got none.*example="):
        find_example(model, None, None)


def test_guessing_leaves_the_model_untouched() -> None:
    """Batch norm's statistics and the modes of a network in training stay, and nothing is drawn from the caller."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_example(model, None, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
