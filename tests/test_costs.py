"""Costs against closed forms, written out layer by layer."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.compile import compile
from structprune.costs import RESOURCES, costs, evaluate
from structprune.structures import Structures, blocks, channels
from tests.cases import BY_NAME
from tests.generated import random_selection
from tests.laws import channels_of


def dense(model: nn.Module, example: Any, resource: str = "macs") -> int:
    """Cost of the whole network, per example."""
    structures = channels(model, example)
    return evaluate(costs(structures, model, resource), [axis.size for axis in structures.axes])


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(groups: int, stride: int):
    """Output pixels x outputs x inputs per group x taps."""
    layer = nn.Conv2d(6, 12, (3, 2), stride=stride, groups=groups)
    example = torch.randn(2, 6, 9, 8)
    pixels = prod(layer(example).shape[2:])
    assert dense(layer, example) == pixels * 12 * (6 // groups) * 6


@pytest.mark.parametrize("groups", [1, 3])
def test_transposed_convolutions(groups: int):
    """Input pixels x inputs x outputs per group x taps."""
    layer = nn.ConvTranspose2d(6, 9, 3, stride=2, groups=groups)
    assert dense(layer, torch.randn(2, 6, 5, 4)) == 20 * 6 * (9 // groups) * 9


def test_linear_layers():
    """Inputs x outputs, for every token."""
    assert dense(nn.Linear(7, 5), torch.randn(2, 7)) == 35
    assert dense(nn.Linear(7, 5), torch.randn(2, 4, 7)) == 4 * 35


class Attend(nn.Module):
    """Fused attention of a tensor with itself, after a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x).view(*x.shape[:2], 3, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q)


def test_fused_attention():
    """Heads x queries x keys x (features of queries + features of values), beside the projection."""
    assert dense(Attend(), torch.randn(2, 5, 6)) == 5 * 6 * 12 + 3 * 5 * 5 * (4 + 4)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool):
    """Four projections and two products, whichever way torch computes them."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=need_weights)[0]

    assert dense(Layer(), torch.randn(2, 5, 8)) == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(kind: Any, gates: int):
    """Steps x gates x hidden x (inputs + hidden), layer by layer and direction by direction."""

    class Layer(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.cells = kind(6, 4, batch_first=True, **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(x)[0]

    example = torch.randn(2, 5, 6)
    assert dense(Layer(), example) == 5 * gates * 4 * (6 + 4)
    assert dense(Layer(num_layers=2), example) == 5 * gates * 4 * (6 + 4) + 5 * gates * 4 * (4 + 4)
    assert dense(Layer(bidirectional=True), example) == 2 * 5 * gates * 4 * (6 + 4)


def test_embeddings_multiply_nothing():
    """They are looked up."""
    assert dense(nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3)), torch.randint(0, 20, (2, 4))) == 4 * 18


def test_a_residual_block_by_hand():
    """Two convolutions that share one axis: a polynomial with a square."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.out(x + self.body(x))

    structures = channels(Block(), torch.randn(2, 3, 4, 4))
    for width in (1, 5, 8):
        expected = 16 * (3 * width + 9 * width * width + 2 * width)
        assert evaluate(costs(structures, Block(), "macs"), [width]) == expected
        parameters = 4 * width + 9 * width * width + width + 2 * width + 2
        assert evaluate(costs(structures, Block(), "params"), [width]) == parameters


def test_bytes_count_buffers_and_types():
    """Parameters and buffers at the size of their type; the count of batches is an integer of 8 bytes."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    assert dense(model, torch.randn(2, 3, 4, 4).double(), "bytes") == 8 * (12 + 4 + 4 * 4) + 8


def test_tied_weights_count_once():
    """As torch counts parameters."""
    model, _ = BY_NAME["tied_embeddings"].make()
    structures = channels_of(BY_NAME["tied_embeddings"])
    full = [axis.size for axis in structures.axes]
    assert evaluate(costs(structures, model, "params"), full) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["plain", "rotary_grouped_query", "gru", "concat"])
def test_bytes_of_the_compiled_network(name: str):
    """Predicted exactly."""
    model, example = BY_NAME[name].make()
    structures = channels_of(BY_NAME[name])
    selection = random_selection(structures, 0.5, 0)
    compiled = compile(model, structures, selection, example).model
    held = [*compiled.parameters(), *compiled.buffers()]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert evaluate(costs(structures, model, "bytes"), structures.widths(selection)) == expected


def test_costs_never_rise_when_something_goes():
    """All terms of macs, params and bytes are positive."""
    for name in ("residual", "grouped", "torch_encoder", "lstm"):
        structures: Structures = channels_of(BY_NAME[name])
        model, _ = BY_NAME[name].make()
        for resource in ("macs", "params", "bytes"):
            assert all(term.coefficient > 0 for term in costs(structures, model, resource))  # type: ignore[union-attr]


def test_costs_are_exact_beyond_64_bits():
    """Python integers do not overflow."""
    structures = channels_of(BY_NAME["called_twice"])
    model, _ = BY_NAME["called_twice"].make()
    terms = costs(structures, model, "macs")
    huge = 10**12
    assert evaluate(terms, [huge]) == 10 * huge + 2 * huge * huge + 5 * huge
    assert evaluate(terms, np.array([7])) == 70 + 98 + 35  # type: ignore[arg-type]


def test_resources_that_are_measured_or_unknown_are_refused():
    """With the known ones in the message."""
    model, _ = BY_NAME["mlp"].make()
    assert set(RESOURCES) == {"macs", "params", "bytes", "latency_ns", "density"}
    with pytest.raises(ValueError, match="Expected one of .*'macs'.* Got 'latency_ns'. Latency is measured"):
        costs(channels_of(BY_NAME["mlp"]), model, "latency_ns")


@pytest.mark.parametrize("shape", [(4, 1), (3, 2), (64, 64)])
def test_density_counts_what_blocks_keep(shape: tuple[int, int]):
    """Kept weights inside the structures, smaller blocks at the edge included; biases are in none."""
    model, example = BY_NAME["mlp"].make()
    structures = blocks(model, shape, example=example)
    terms = costs(structures, model, "density")
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert evaluate(terms, [axis.size for axis in structures.axes]) == sum(weight.numel() for weight in weights)
    selection = np.random.default_rng(0).random(structures.n) < 0.5
    masks = structures.masks(selection)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    kept = evaluate(terms, structures.widths(selection))
    assert kept == sum(weight.numel() for weight in weights) - removed


def test_channels_have_no_density():
    """The message says what has one."""
    model, _ = BY_NAME["mlp"].make()
    with pytest.raises(ValueError, match=r"blocks, kernels or nm\. Got channels"):
        costs(channels_of(BY_NAME["mlp"]), model, "density")
