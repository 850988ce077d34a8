"""How the smaller network is built, and what the proof refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.compile import compile, masked
from structprune.errors import CompileError
from structprune.structures import blocks, channels, kernels, nm
from tests.agreement import compiled_equals_masked
from tests.cases import BY_NAME
from tests.generated import random_selection
from tests.laws import channels_of


class Shuffled(nn.Module):
    """Channels shuffled with a hard-coded 2 and 6: they run with 3 of 6 channels per group, and are wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        return self.last(x.view(b, c // 6, 6, h, w).transpose(1, 2).reshape(b, c, h, w)).mean((2, 3))


def keep(structures, *removed: int) -> np.ndarray:
    """All structures but some."""
    selection = np.ones(structures.n, dtype=bool)
    selection[list(removed)] = False
    return selection


def test_code_that_runs_but_is_wrong_falls_back_to_the_graph():
    """With half of the sixes gone the module runs and permutes other channels; the proof sees it."""
    model, example = Shuffled(), torch.randn(2, 3, 4, 4)
    structures = channels(model, example)
    six = next(axis for axis in structures.axes if axis.size == 6)
    compiled = compiled_equals_masked(model, example, structures, keep(structures, *range(six.start, six.start + 3)))
    assert compiled.built_as == "graph"
    assert "differ from the masked network's" in compiled.notes[0]


def test_weights_that_hide_a_wrong_rebuild_do_not_help_it():
    """A last layer that starts at zero makes every rebuild equal; with shaken weights it is not."""
    model = Shuffled()
    nn.init.zeros_(model.last.weight)
    structures = channels(model, torch.randn(2, 3, 4, 4))
    six = next(axis for axis in structures.axes if axis.size == 6)
    selection = keep(structures, *range(six.start, six.start + 3))
    assert compile(model, structures, selection, torch.randn(2, 3, 4, 4)).built_as == "graph"


def test_an_example_of_zeros_does_not_hide_a_wrong_rebuild():
    """Zeros in, and the same number out of every channel: the shaken example tells channels apart."""
    model, zeros = Shuffled(), torch.zeros(2, 3, 4, 4)
    nn.init.constant_(model.get_parameter("first.bias"), 0.5)
    nn.init.constant_(model.last.weight, 0.1)
    structures = channels(model, zeros)
    six = next(axis for axis in structures.axes if axis.size == 6)
    selection = keep(structures, *range(six.start, six.start + 3))
    assert compile(model, structures, selection, zeros).built_as == "graph"


class OwnIntegers(nn.Module):
    """Keeps its sizes as integers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.first, self.last = 6, nn.Linear(4, 6), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(x.view(-1, 4 * self.width))


def test_integers_of_the_users_module_are_repaired():
    """self.width follows the axis, and the result is still the user's class."""
    model, example = OwnIntegers(), torch.randn(2, 4, 4)
    structures = channels(model, example)
    compiled = compiled_equals_masked(model, example, structures, keep(structures, 1, 4))
    assert isinstance(compiled.model, OwnIntegers)
    assert compiled.model.width == 4
    assert (compiled.model.first.out_features, compiled.model.last.in_features) == (4, 16)


class Remembers(nn.Module):
    """Computes with the number of features that it had when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() * self.first.weight.shape[0] ** -0.5)


def test_constants_made_of_sizes_keep_their_dense_value():
    """A scale of 1 / sqrt(width) changes in the module, and is written down in the graph."""
    model, example = Remembers(), torch.randn(2, 4)
    structures = channels(model, example)
    compiled = compiled_equals_masked(model, example, structures, keep(structures, 1, 4))
    assert compiled.built_as == "graph"


class Statistics(nn.Module):
    """Multiplies by a number that Python computes from the weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.first.weight.detach().numpy().std()
        return self.last(self.first(x).relu() * float(scale))


def test_when_nothing_equals_the_masked_network_the_error_says_what_was_tried():
    """No smaller network is returned."""
    model, example = Statistics(), torch.randn(2, 4)
    structures = channels(model, example)
    selection = keep(structures, 1, 3)
    with pytest.raises(CompileError, match=r"its own modules.*the recorded graph.*keep_whole"):
        compile(model, structures, selection, example)


@pytest.mark.parametrize("name", ["torch_encoder", "fused_attention", "unet", "channel_shuffle", "gru"])
def test_compiled_networks_take_any_batch(name: str):
    """Graphs too, though they were recorded on two examples."""
    model, example = BY_NAME[name].make()
    structures = channels_of(BY_NAME[name])
    selection = random_selection(structures, 0.5, 0)
    compiled = compile(model, structures, selection, example)
    reference = masked(model, structures, selection)
    for batch in (1, 5):
        inputs = torch.cat([example] * 3)[:batch]
        with torch.no_grad():
            torch.testing.assert_close(compiled.model(inputs), reference(inputs), rtol=1e-4, atol=1e-5)


def test_large_batches_are_proved_on_few_examples():
    """The float64 run takes two examples; the run in the network's own precision takes all."""
    seen: list[tuple[int, torch.dtype]] = []
    model, example = BY_NAME["plain"].make()
    structures = channels_of(BY_NAME["plain"])
    layer = model.get_submodule("conv1")
    layer.register_forward_pre_hook(lambda module, inputs: seen.append((len(inputs[0]), inputs[0].dtype)))
    compile(model, structures, random_selection(structures, 0.5, 0), example.repeat(8, 1, 1, 1))
    assert set(seen) == {(16, torch.float32), (2, torch.float64)}


def test_all_kept_gives_an_equal_copy():
    """And the copy is not the model itself."""
    model, example = BY_NAME["mlp"].make()
    structures = channels_of(BY_NAME["mlp"])
    compiled = compile(model, structures, keep(structures), example)
    assert compiled.model is not model
    with torch.no_grad():
        assert torch.equal(compiled.model(example), model(example))


def test_refit_weights_are_written_before_masking():
    """The compiled network holds the kept rows of the new weights."""
    model, example = BY_NAME["mlp"].make()
    structures = channels_of(BY_NAME["mlp"])
    selection = keep(structures, 0, 3, 20)
    weight = torch.randn(12, 16)
    compiled = compile(model, structures, selection, example, refit={"fc2.weight": weight})
    assert torch.equal(compiled.model.get_parameter("fc2.weight"), weight[selection[16:]][:, selection[:16]])
    assert compiled.rounding <= 1e-5


def test_modes_of_training_and_gradients():
    """The result is in evaluation mode and can be trained; the original keeps its mode."""
    model, example = BY_NAME["plain"].make()
    model.train()
    structures = channels_of(BY_NAME["plain"])
    compiled = compile(model, structures, random_selection(structures, 0.5, 0), example)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in compiled.model.modules())
    compiled.model(example).sum().backward()
    assert all(parameter.grad is not None for parameter in compiled.model.parameters())


def test_tied_weights_stay_tied():
    """The smaller decoder's output layer is still its embedding."""
    model, example = BY_NAME["tied_embeddings"].make()
    structures = channels_of(BY_NAME["tied_embeddings"])
    compiled = compile(model, structures, random_selection(structures, 0.5, 0), example)
    state = dict(compiled.model.named_parameters(remove_duplicate=False))
    assert state["lm_head.weight"] is state["tokens.weight"]


@pytest.mark.parametrize("make", [blocks, kernels, nm])
def test_structures_inside_weights_compile_to_dense_layers_that_hold_zeros(make):
    """And say so."""
    model, example = BY_NAME["plain" if make is kernels else "mlp"].make()
    structures = make(model, example=example)
    selection = np.arange(structures.n) % 2 == 0
    compiled = compile(model, structures, selection, example)
    assert compiled.built_as == "masked"
    assert "dense layers that hold zeros" in compiled.notes[0]
    assert compiled.effect > 1e-3
    for name, mask in structures.masks(selection).items():
        assert not compiled.model.get_parameter(name)[~mask].any()
        assert torch.equal(compiled.model.get_parameter(name)[mask], model.get_parameter(name)[mask])


def test_selections_of_another_shape_are_refused():
    """With both shapes in the message."""
    model, example = BY_NAME["mlp"].make()
    with pytest.raises(ValueError, match=r"shape \(28,\). Got bool of shape \(27,\)"):
        compile(model, channels_of(BY_NAME["mlp"]), np.ones(27, dtype=bool), example)
