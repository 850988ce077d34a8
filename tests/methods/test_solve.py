"""Training methods in the one call: budgets kept exactly, masks that survive it, block-sparse and smaller networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.budget import Budget
from structprune.layers import BlockSparseLinear
from structprune.methods import BlockSwaps, ByValue, SequentialAttentionPP, Training, Uniform
from structprune.solve import solve
from structprune.structures import blocks, channels
from tests.methods.loop import METHODS

TRAINING = Training(lr=0.05)


def classes(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of 32 with classes by a linear rule on the inputs' means."""
    features = inputs.flatten(2).mean(2) if inputs.ndim > 2 else inputs
    targets = (features @ torch.randn(features.shape[1], 4)).argmax(1)
    return list(zip(inputs.split(32), targets.split(32), strict=True))


def dense_network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two hidden layers of 256, and 1280 examples."""
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    return model, classes(torch.randn(1280, 128))


def small_cnn() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two convolutions with batch norm, and 640 images."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )
    return model, classes(torch.randn(640, 3, 8, 8))


def test_attention_over_blocks_ends_in_block_sparse_layers() -> None:
    """solve trains, keeps the mask of the training, compiles it, and the report says how the mask came about."""
    model, data = dense_network()
    structures = blocks(model, (16, 16), example=data[0][0], keep_whole=["4"])
    method = SequentialAttentionPP(epochs=2, cycles=2, training=TRAINING)
    found = solve(
        model, Budget(params=0.2), structures=structures, method=method, data=data, loss=F.cross_entropy, progress=False
    )
    assert any(isinstance(module, BlockSparseLinear) for module in found.model.modules())
    text = str(found.report)
    for fact in ("mask changed between sparse phases by", "coverage:", "(nominal)", "% of prunable weights"):
        assert fact in " ".join(text.split())
    dense, *_, pruned = [row.loss for row in found.report.quality]
    assert dense is not None and pruned is not None and pruned < dense - 0.1


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dense", "tested swaps")])
def test_every_method_prunes_channels_to_a_smaller_network(name: str) -> None:
    """Within a budget of multiplications, and the network that comes out is the same module with fewer channels."""
    model, data = small_cnn()
    structures = channels(model, data[0][0])
    method = replace(METHODS[name], epochs=4)
    found = solve(
        *(model, Budget(macs=0.4)),
        structures=structures,
        method=method,
        data=data,
        loss=F.cross_entropy,
        validation=data[:4],
        progress=False,
    )
    first, second = found.model.get_submodule("0"), found.model.get_submodule("3")
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    assert first.out_channels < 16 and second.out_channels < 24
    assert 27 * first.out_channels + 9 * first.out_channels * second.out_channels < 0.4 * (27 * 16 + 9 * 16 * 24 + 4)


def test_a_rule_beyond_the_budget_is_refused() -> None:
    """A uniform half of every layer does not fit into a fifth of the parameters."""
    model, data = dense_network()
    structures = blocks(model, (16, 16), example=data[0][0], keep_whole=["4"])
    method = BlockSwaps(epochs=1, keep=Uniform(0.5, min_structures=1), training=TRAINING)
    with pytest.raises(ValueError, match=r"Expected a mask within the budget. Got \d+ of 192 kept structures too many"):
        solve(model, Budget(params=0.2), structures=structures, method=method, data=data, progress=False)


def test_a_rule_within_the_budget_keeps_its_numbers() -> None:
    """Where the budget leaves room, it is not filled with structures that are zeros."""
    model, data = dense_network()
    structures = blocks(model, (16, 16), example=data[0][0], keep_whole=["4"])
    method = BlockSwaps(epochs=1, keep=Uniform(0.9, min_structures=1), training=TRAINING)
    found = solve(model, Budget(params=0.2), structures=structures, method=method, data=data, progress=False)
    assert found.selection[:128].sum() == 13 and found.selection[128:].sum() == 26


def test_layers_can_share_a_budget_by_value() -> None:
    """ByValue lets the solver decide between layers, and none is emptied."""
    model, data = dense_network()
    structures = blocks(model, (16, 16), example=data[0][0], keep_whole=["4"])
    method = BlockSwaps(epochs=1, keep=ByValue(floor=0.05), training=TRAINING)
    found = solve(model, Budget(params=0.2), structures=structures, method=method, data=data, progress=False)
    widths = structures.widths(found.selection)
    assert min(widths) >= 7 and widths[0] / 128 != widths[1] / 256


def test_equal_calls_give_equal_networks() -> None:
    """Two calls with one seed agree bit for bit."""
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model, data = dense_network()
        structures = blocks(model, (16, 16), example=data[0][0], keep_whole=["4"])
        method = SequentialAttentionPP(epochs=1, cycles=1, training=TRAINING)
        found = solve(
            model, Budget(params=0.2), structures=structures, method=method, data=data, seed=5, progress=False
        )
        results.append(found.model.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_phases_too_short_for_the_data_are_refused() -> None:
    """A few steps cannot hold seven cycles; the message says how many steps would."""
    model, data = dense_network()
    method = SequentialAttentionPP(epochs=1, training=TRAINING)
    with pytest.raises(ValueError, match=r"Expected phases of at least 4 steps.*Train for about \d+ steps"):
        solve(model, Budget(params=0.2), structures=blocks(model), method=method, data=data, progress=False)
