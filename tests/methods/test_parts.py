"""Gates on weights: tiles, rows and entries scale and sum the same entries as a plain loop would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structprune.methods.groups import by_layer
from structprune.methods.parts import Entries, Grid, Rows, entry_part
from structprune.structures import EntryAxis, blocks, kernels, nm

Layer = nn.Linear | nn.Conv1d | nn.Conv2d

LAYERS: list[tuple[Layer, tuple[int, int]]] = [
    (nn.Linear(16, 8), (4, 4)),
    (nn.Linear(13, 10), (4, 4)),
    (nn.Linear(5, 3), (8, 8)),
    (nn.Conv2d(8, 12, 3), (4, 4)),
    (nn.Conv2d(6, 10, 3), (4, 4)),
    (nn.Conv2d(8, 12, 3, groups=4), (4, 2)),
    (nn.Conv1d(6, 10, 5), (3, 4)),
]


def index_of(layer: Layer, shape: tuple[int, int]) -> tuple[Grid | Entries, Tensor]:
    """The layer's part, and the structure of each of its entries, counted over all its axes."""
    (group,) = by_layer(blocks(nn.Sequential(layer), shape))
    index = torch.full(layer.weight.shape, -1)
    for axis in group.axes:
        assert isinstance(axis, EntryAxis)
        index = torch.where(axis.index >= 0, axis.index + axis.start, index)
    return entry_part(group.axes), index


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_a_gate_scales_the_entries_of_its_block(layer: Layer, shape: tuple[int, int]) -> None:
    """The scaled weight is the weight times each entry's gate, bit for bit."""
    part, index = index_of(layer, shape)
    gates = torch.rand(int(index.max()) + 1)
    assert torch.equal(part.scale(layer.weight, gates), layer.weight * gates[index])


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_blocks_of_any_layer_form_a_grid(layer: Layer, shape: tuple[int, int]) -> None:
    """No gate of the weight's size is needed for them."""
    assert isinstance(index_of(layer, shape)[0], Grid)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_sums_are_the_adjoint_of_scaling(layer: Layer, shape: tuple[int, int]) -> None:
    """<v, scale(1, g)> = <sum(v), g> for all v and g: each entry is counted once, in its own structure."""
    part, index = index_of(layer, shape)
    values = torch.randn(layer.weight.shape, dtype=torch.float64)
    gates = torch.randn(int(index.max()) + 1, dtype=torch.float64)
    left = (values * part.scale(torch.ones_like(values), gates)).sum()
    torch.testing.assert_close(left, (part.sum(values) * gates).sum())


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_the_gradient_of_a_gate_is_its_blocks_alone(layer: Layer, shape: tuple[int, int]) -> None:
    """d/dg of <v, scale(W, g)> is the sum of v W over the block."""
    part, index = index_of(layer, shape)
    gates = torch.ones(int(index.max()) + 1, requires_grad=True)
    values = torch.randn(layer.weight.shape)
    (values * part.scale(layer.weight, gates)).sum().backward()
    expected = torch.zeros(len(gates)).index_add(0, index.flatten(), (values * layer.weight).flatten())
    torch.testing.assert_close(gates.grad, expected)


def test_kernels_are_one_tile_for_all_taps() -> None:
    """A kernel's nine entries share one gate."""
    layer = nn.Conv2d(3, 4, 3)
    (group,) = by_layer(kernels(nn.Sequential(layer)))
    gates = torch.rand(12)
    scaled = entry_part(group.axes).scale(layer.weight, gates)
    assert torch.equal(scaled, layer.weight * gates.view(4, 3, 1, 1))


def test_single_entries_are_tiles_of_one() -> None:
    """The structures of N:M sparsity have a gate each."""
    layer = nn.Linear(8, 3)
    (group,) = by_layer(nm(nn.Sequential(layer)))
    gates = torch.rand(24)
    assert torch.equal(entry_part(group.axes).scale(layer.weight, gates), layer.weight * gates.view(3, 8))


def test_entries_of_no_structure_keep_their_value() -> None:
    """Index -1 stays as it is, and adds to no sum."""
    part = Entries(torch.tensor([[0, 1, -1], [1, 0, -1]]), 2)
    weight = torch.arange(1.0, 7.0).view(2, 3)
    assert part.scale(weight, torch.tensor([2.0, 0.0])).tolist() == [[2, 0, 3], [0, 10, 6]]
    assert part.sum(weight).tolist() == [6, 6]


def test_rows_take_all_their_positions() -> None:
    """A structure of two rows scales both, along its dimension."""
    part = Rows(1, torch.tensor([[0, 2], [1, 3]]))
    assert part.scale(torch.ones(2, 5), torch.tensor([2.0, 3.0])).tolist() == [[2, 3, 2, 3, 1]] * 2
    assert part.sum(torch.ones(2, 5)).tolist() == [4, 4]
