"""Recalibrated batch norm statistics are what the masked network's own batch norm would measure."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.batch_norm import recalibrate
from structprune.compile import compile, masked
from structprune.structures import Structures, blocks
from tests import laws
from tests.cases import BY_NAME, CASES

WITH_NORM = [
    case for case in CASES if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in case.make()[0].modules())
]


def half(structures: Structures) -> np.ndarray:
    """Every axis keeps about half of its structures, at random."""
    rng = np.random.default_rng(0)
    selection = np.ones(structures.n, dtype=bool)
    for axis in structures.axes:
        level = axis.levels[len(axis.levels) // 2 - 1]
        gone = rng.permutation(axis.size)[level:]
        selection[axis.start + gone] = False
    return selection


@torch.no_grad()
def by_torch(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Statistics by torch's own layers, one after the other: the one in question in training mode, momentum None."""
    order: list[tuple[str, nn.Module]] = []
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [m.register_forward_hook(lambda *_, pair=(n, m): order.append(pair)) for n, m in layers]
    model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, layer in order:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        layer.momentum = None
        layer.reset_running_stats()
        layer.train()
        model(inputs)
        layer.eval()
        for statistic in ("running_mean", "running_var"):
            found[f"{name}.{statistic}"] = getattr(layer, statistic).clone()
    return found


@pytest.mark.parametrize("case", WITH_NORM, ids=str)
def test_statistics_are_those_of_torch(case) -> None:
    """Layer after layer they equal what BatchNorm in training mode with momentum=None measures, masked entries zero."""
    model, _ = case.make()
    structures = laws.channels_of(case)
    selection = half(structures)
    size = case.inputs().shape[-1]
    inputs = torch.randn(24, case.inputs().shape[1], size, size)
    found = recalibrate(model, structures, selection, list(inputs.split(7)))
    expected = by_torch(masked(model, structures, selection), inputs)
    assert found.keys() == expected.keys()
    masks = structures.masks(selection)
    for name, value in expected.items():
        keep = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        torch.testing.assert_close(found[name][keep], value[keep], atol=1e-5, rtol=1e-4)
        assert not found[name][~keep].any()


def test_a_whole_network_measures_itself() -> None:
    """With everything kept the statistics are the data's, whatever the network held before, and it is untouched."""
    model, _ = BY_NAME["residual"].make()
    before = copy.deepcopy(model.state_dict())
    structures, inputs = laws.channels_of(BY_NAME["residual"]), torch.randn(16, 3, 8, 8)
    found = recalibrate(model, structures, np.ones(structures.n, dtype=bool), [inputs])
    first = model.get_submodule("stem.0")(inputs)
    torch.testing.assert_close(found["stem.1.running_mean"], first.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["stem.1.running_var"], first.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_batches_do_not_matter() -> None:
    """The mean is over all inputs, however they are cut into batches."""
    case = BY_NAME["plain"]
    model, _ = case.make()
    structures, inputs = laws.channels_of(case), torch.randn(16, 3, 8, 8)
    whole = recalibrate(model, structures, half(structures), [inputs])
    pieces = recalibrate(model, structures, half(structures), list(inputs.split([1, 10, 5])))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, atol=1e-5, rtol=1e-4)


def test_statistics_go_into_the_compiled_network() -> None:
    """Written as a refit, they are the compiled network's statistics of the channels that stay."""
    case = BY_NAME["plain"]
    model, example = case.make()
    structures = laws.channels_of(case)
    selection = half(structures)
    found = recalibrate(model, structures, selection, [torch.randn(16, 3, 8, 8)])
    compiled = compile(model, structures, selection, example, refit=found).model
    kept = structures.masks(selection)["bn1.running_mean"]
    assert torch.equal(compiled.get_buffer("bn1.running_mean"), found["bn1.running_mean"][kept])


def test_a_network_without_batch_norm_has_none() -> None:
    """Nothing is changed where there is nothing to measure, or where the network's graph is not known."""
    model, example = BY_NAME["mlp"].make()
    structures = laws.channels_of(BY_NAME["mlp"])
    assert recalibrate(model, structures, half(structures), [example]) == {}
    model, example = BY_NAME["plain"].make()
    tiles = blocks(model, (2, 2))
    assert recalibrate(model, tiles, np.ones(tiles.n, dtype=bool), [example]) == {}
