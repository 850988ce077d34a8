"""Facts of the baseline: that it is given its best chance, on networks with random weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark.structures import ParameterSet

from benchmarks.case import Case, count_macs
from benchmarks.cifar import ResNet
from benchmarks.torch_pruning_baseline import METHODS, TorchPruning, gradients

tp = pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install '.[bench]'")


QUICK = ("tp-magnitude-global", "tp-magnitude-steps100-bn", "tp-taylor-uniform-bn")  # every way of searching


def case_of(method: TorchPruning) -> ParameterSet:
    """Return the method under its name; all but a few of the quick ones are marked slow."""
    return pytest.param(method, id=method.name, marks=() if method.name in QUICK else pytest.mark.slow)


@pytest.fixture
def case() -> Case:
    """Return ResNet-8 with random weights at 0.6 of its macs."""
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))) for _ in range(2)]
    return Case(ResNet(8).eval(), 0.6, batches, seed=0)


@pytest.mark.parametrize("method", [case_of(method) for method in METHODS])
def test_it_lands_within_the_cap(method: TorchPruning, case: Case) -> None:
    """Each setting stays within the cap by our yardstick, near it, and leaves the network as it was."""
    before = copy.deepcopy(case.model.state_dict())
    outcome = method.prune(case)
    used = count_macs(outcome.model, case.example) / count_macs(case.model, case.example)
    assert 0.5 < used <= 0.6
    assert outcome.model(case.example).shape == (1, 10)
    assert not outcome.model.training
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_the_counters_agree_about(case: Case) -> None:
    """Its own counter, which adds batch norm and pooling, gives nearly the fraction that torch's gives."""
    outcome = METHODS[0].prune(case)
    used = count_macs(outcome.model, case.example) / count_macs(case.model, case.example)
    assert outcome.own_fraction == pytest.approx(used, abs=0.01)


def test_it_misaligns_the_padded_shortcut(case: Case) -> None:
    """Stem channel 0 takes channel 0 of the wider stages along, not 8 and 24: hence rows for inner channels only."""
    model = copy.deepcopy(case.model)
    assert isinstance(model, ResNet)
    graph = tp.DependencyGraph().build_dependency(model, case.example)
    group = graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, idxs=[0])
    modules = dict(model.named_modules())
    removed = {dep.target.module: channels for dep, channels in group}
    assert [removed[modules[f"layer{stage}.0.conv2"]] for stage in (1, 2, 3)] == [[0], [0], [0]]


def test_all_channels_are_more(case: Case) -> None:
    """With the classifier alone ignored the stem is pruned, otherwise it stays whole."""
    everything = next(method for method in METHODS if method.all_channels)
    narrow, whole = (method.prune(case).model for method in (everything, replace(everything, all_channels=False)))
    assert isinstance(narrow, ResNet) and isinstance(whole, ResNet)
    assert narrow.conv1.out_channels < 16 == whole.conv1.out_channels


def test_gradients_are_those_of_the_mean_over_all_images(case: Case) -> None:
    """Accumulated over batches they equal the gradients of one batch of everything."""
    found = gradients(case.model, case.calibration)
    inputs, targets = (torch.cat(part) for part in zip(*case.calibration, strict=True))
    model = copy.deepcopy(case.model)
    F.cross_entropy(model(inputs), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, atol=1e-6)
