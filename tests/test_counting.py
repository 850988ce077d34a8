"""Our counts against closed forms, and against torch's counter where that counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from structprune.compile import compile
from structprune.counting import count_macs, count_memory
from structprune.structures import Structures
from tests import laws
from tests.cases import BY_NAME, CASES, Case

# torch counts nothing for attention, recurrent layers and their fast paths on CPUs.
COUNTED = [case for case in CASES if case.name not in ("lstm", "gru", "recommender")]


def by_torch(model: nn.Module, example: Any) -> int:
    """Multiplications per example of a batch of two, by torch.utils.flop_counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example) if isinstance(example, tuple) else model(example)
    flops = counter.get_total_flops()
    assert flops % 4 == 0
    return flops // 4


def narrow(structures: Structures) -> np.ndarray:
    """The narrower half of every axis."""
    selection = np.ones(structures.n, dtype=bool)
    for axis in structures.axes:
        selection[axis.start + axis.levels[(len(axis.levels) - 1) // 2] : axis.start + axis.size] = False
    return selection


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(7, 5), (7,), 7 * 5),
        (nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
        (nn.Conv2d(4, 6, 3), (4, 9, 8), 4 * 6 * 9 * 7 * 6),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 9, 8), 4 * 6 * 9 * 4 * 3),
        (nn.Conv2d(4, 6, (3, 1), groups=2, bias=False), (4, 9, 8), 2 * 6 * 3 * 7 * 8),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 9, 8), 4 * 9 * 9 * 8),
        (nn.Conv1d(4, 6, 5), (4, 9), 4 * 6 * 5 * 5),
        (nn.Conv3d(2, 3, 2), (2, 4, 5, 6), 2 * 3 * 8 * 3 * 4 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 6 * 4 * 25),
        (nn.ReLU(), (7,), 0),
    ],
    ids=repr,
)
def test_layers_cost_what_the_formula_says(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    """Linear: in out; convolution: in/groups out taps positions; per example, whatever the batch."""
    for batch in (2, 3):
        assert count_macs(layer, torch.randn(batch, *shape)) == macs


class Attend(nn.Module):
    """Scaled dot product attention of queries of another length."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_fused_attention_costs_both_products() -> None:
    """heads (queries keys features + queries keys values)."""
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
    assert count_macs(Attend(), (q, k, v)) == 4 * (5 * 7 * 8 + 5 * 7 * 6)


def test_multi_head_attention_costs_its_projections_and_products() -> None:
    """length 4 width^2 for the projections and 2 length^2 width for the products, fast path or not."""
    length, width = 5, 16
    layer = nn.MultiheadAttention(width, 4, batch_first=True).eval()

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x, need_weights=False)[0]

    expected = length * 4 * width**2 + 2 * length**2 * width
    assert count_macs(Self(), torch.randn(2, length, width)) == expected


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_costs_four_gates_a_step(layers: int, both: bool) -> None:
    """length 4 hidden (inputs + hidden) per layer and direction."""
    length, inputs, hidden, ways = 5, 6, 10, 2 if both else 1

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(inputs, hidden, layers, batch_first=True, bidirectional=both)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    expected = sum(
        ways * length * 4 * hidden * ((inputs if layer == 0 else ways * hidden) + hidden) for layer in range(layers)
    )
    assert count_macs(Out(), torch.randn(2, length, inputs)) == expected


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_dense_and_compiled_networks_count_as_torch_counts(case: Case) -> None:
    """Half of torch's flops, before and after; attention that torch does not count is added."""
    model, example = case.make()
    structures = laws.channels_of(case)
    compiled = compile(model, structures, narrow(structures), example).model
    for network in (model, compiled):
        ours, theirs = count_macs(network, example), by_torch(network, example)
        if case.name in (
            "fused_attention",
            "rotary_grouped_query",
            "tied_embeddings",
            "torch_encoder",
            "torch_attention",
        ):
            assert ours >= theirs
        else:
            assert ours == theirs


def test_memory_counts_tied_tensors_once() -> None:
    """Numbers of parameters, and bytes of parameters and buffers."""
    model = BY_NAME["tied_embeddings"].make()[0]
    sizes = [p.numel() for p in model.parameters()]
    assert count_memory(model) == {"params": sum(sizes), "bytes": 4 * sum(sizes)}
    norm = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).half()
    assert count_memory(norm) == {"params": 12 + 8, "bytes": 2 * (12 + 8 + 8) + 8}
