"""Structures as one kind of value: masks, sums and counts, for channels, blocks, kernels and N:M entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.costs import costs, evaluate
from structprune.structures import ChannelAxis, EntryAxis, Structures, blocks, channels, kernels, nm
from tests.cases import BY_NAME
from tests.generated import random_selection
from tests.laws import channels_of

RAGGED = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5))
CONV = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, (1, 3)))
INSIDE = {
    "blocks": lambda: (RAGGED, blocks(RAGGED, (4, 3), example=torch.randn(2, 10))),
    "reordered blocks": lambda: (
        RAGGED,
        blocks(RAGGED, (4, 3), example=torch.randn(2, 10), orders={"0": np.array([6, 0, 3, 1, 5, 2, 4])}),
    ),
    "blocks of convolutions": lambda: (CONV, blocks(CONV, (4, 2), example=torch.randn(2, 3, 8, 8))),
    "kernels": lambda: (CONV, kernels(CONV, example=torch.randn(2, 3, 8, 8))),
    "nm": lambda: (BY_NAME["mlp"].make()[0], nm(BY_NAME["mlp"].make()[0], 2, 4, example=torch.randn(2, 10))),
}


def random_weights(structures: Structures) -> dict[str, Tensor]:
    """Values per weight of every tensor."""
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in structures.shapes.items()}


def removed_sum(structures: Structures, values: dict[str, Tensor], index: int) -> float:
    """Sum of the values that one structure takes, read off its masks."""
    selection = np.ones(structures.n, dtype=bool)
    selection[index] = False
    return sum(float(values[name][~mask].sum()) for name, mask in structures.masks(selection).items())


@pytest.mark.parametrize("name", ["residual", "rotary_grouped_query", "called_twice", "lstm", "grouped"])
def test_sums_of_channels_are_what_the_masks_take(name: str):
    """Also where one tensor loses rows along two dimensions: the entries in both count once."""
    structures = channels_of(BY_NAME[name])
    values = random_weights(structures)
    sums = structures.sum(values)
    for index in range(0, structures.n, max(1, structures.n // 20)):
        assert removed_sum(structures, values, index) == pytest.approx(sums[index], abs=1e-9)


@pytest.mark.parametrize("name", INSIDE)
def test_sums_inside_weights_are_what_the_masks_take(name: str):
    """Entry by entry."""
    _, structures = INSIDE[name]()
    values = random_weights(structures)
    sums = structures.sum(values)
    for index in range(structures.n):
        assert removed_sum(structures, values, index) == pytest.approx(sums[index], abs=1e-9)


@pytest.mark.parametrize("name", INSIDE)
def test_structures_inside_weights_tile_them(name: str):
    """Every entry of every weight belongs to one structure, and all structures of an axis are of one size."""
    _, structures = INSIDE[name]()
    covered: dict[str, Tensor] = {}
    for axis in structures.axes:
        assert isinstance(axis, EntryAxis)
        inside = axis.index >= 0
        sizes = torch.bincount(axis.index[inside], minlength=axis.size)
        assert (sizes == axis.weights_each).all()
        covered[axis.tensor] = covered.get(axis.tensor, torch.zeros(axis.index.shape, dtype=torch.int64)) + inside
    assert all((count == 1).all() for count in covered.values())
    assert structures.count.sum() == sum(count.numel() for count in covered.values())


@pytest.mark.parametrize("name", INSIDE)
def test_costs_inside_weights_are_additive_and_exact(name: str):
    """params falls by the zeroed weights; macs by the multiplications that use them, once per output pixel."""
    model, structures = INSIDE[name]()
    selection = np.random.default_rng(0).random(structures.n) < 0.5
    widths, full = structures.widths(selection), [axis.size for axis in structures.axes]
    masks = structures.masks(selection)
    zeroed = sum(int((~mask).sum()) for mask in masks.values())
    terms = costs(structures, model, "params")
    assert evaluate(terms, full) == sum(p.numel() for p in model.parameters())
    assert evaluate(terms, full) - evaluate(terms, widths) == zeroed
    assert all(len(term.groups) <= 1 for term in costs(structures, model, "macs"))
    pixels = {"0.weight": 36, "2.weight": 36, "4.weight": 24} if model is CONV else {}
    saved = sum(int((~mask).sum()) * pixels.get(tensor, 1) for tensor, mask in masks.items())
    macs = costs(structures, model, "macs")
    assert evaluate(macs, full) - evaluate(macs, widths) == saved


def test_blocks_have_ragged_edges():
    """Weights of 7 x 10 in blocks of 4 x 3: smaller tiles at the edges, on axes of their own."""
    structures = blocks(RAGGED, (4, 3))
    first = [axis for axis in structures.axes if isinstance(axis, EntryAxis) and axis.tensor == "0.weight"]
    assert [(axis.weights_each, axis.size) for axis in first] == [(12, 3), (9, 3), (4, 1), (3, 1)]
    assert first[0].name == "0 (12 weights)"


def test_nm_keeps_n_of_every_m_or_all():
    """The order ranks inside each run of m, so that the first half keeps the two best of every four."""
    model = nn.Linear(8, 3)
    structures = nm(model, 2, 4)
    (axis,) = structures.axes
    assert axis.levels.tolist() == [12, 24]
    values = np.random.default_rng(0).random(24)
    kept = np.zeros(24, dtype=bool)
    kept[axis.order(values)[:12]] = True
    assert (kept.reshape(-1, 4).sum(axis=1) == 2).all()
    for run, chosen in zip(values.reshape(-1, 4), kept.reshape(-1, 4), strict=True):
        assert set(np.flatnonzero(chosen)) == set(np.argsort(-run)[:2])
    assert nm(nn.Linear(10, 3), 2, 4).n == 0


def test_structures_without_an_example_know_parameters_only():
    """macs then asks for the example."""
    structures = blocks(RAGGED, (4, 4))
    assert costs(structures, RAGGED, "params")
    with pytest.raises(ValueError, match="made without an example. Pass example="):
        costs(structures, RAGGED, "macs")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blocks(RAGGED, (0, 4)), "Expected a block shape"),
        (lambda: blocks(RAGGED, (4, 4, 4)), "Expected a block shape"),  # type: ignore[arg-type]
        (lambda: nm(RAGGED, 4, 4), "Expected 0 < n < m"),
        (lambda: channels(RAGGED, torch.randn(2, 10), multiple_of=0), "integer multiple_of >= 1. Got 0"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str):
    """With what was expected."""
    with pytest.raises(ValueError, match=message):
        make()


def kept_whole(item: Any) -> set[str]:
    """Names of the axes that are left when something is kept whole in the plain convolutional network."""
    model, example = BY_NAME["plain"].make()
    return {axis.name for axis in channels(model, example, keep_whole=item(model)).axes}


@pytest.mark.parametrize(
    ("item", "left"),
    [
        (lambda model: [], {"conv1", "conv2", "conv3"}),
        (lambda model: [model.conv2], {"conv3"}),
        (lambda model: model.conv2, {"conv3"}),
        (lambda model: ["conv2"], {"conv3"}),
        (lambda model: ["bn2"], {"conv1", "conv3"}),
        (lambda model: ["conv1.bias"], {"conv2", "conv3"}),
        (lambda model: "conv?", set()),
        (lambda model: model, set()),
        (lambda model: ["bn*", "head.fc"], set()),
    ],
)
def test_modules_names_and_patterns_are_kept_whole(item: Any, left: set[str]):
    """A layer kept whole keeps its inputs and outputs."""
    assert kept_whole(item) == left


def test_the_reason_of_what_is_kept_whole():
    """It was asked for."""
    model, example = BY_NAME["plain"].make()
    pinned = {(p.tensor, p.dim): p.reason for p in channels(model, example, keep_whole=["bn2"]).pinned}
    assert pinned["bn2.weight", 0] == "is kept whole as asked"
    assert "is kept whole as asked" in pinned["conv2.weight", 0]


def test_foreign_modules_and_names_are_refused():
    """With what there is."""
    model, example = BY_NAME["plain"].make()
    with pytest.raises(ValueError, match="modules of the model. Got a foreign Linear"):
        channels(model, example, keep_whole=[nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="Got 'conv9', which matches none. Names look like"):
        channels(model, example, keep_whole=["conv9"])
    with pytest.raises(ValueError, match="Got 'conv9'"):
        blocks(model, keep_whole=["conv9"])


def test_finding_channels_leaves_statistics_alone():
    """A network in training mode and an example of one: batch norm must not see the forward passes."""
    model, example = BY_NAME["plain"].make()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    channels(model, example[:1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masking_writes_refit_weights_first():
    """apply_masks works in place: refit, then zeros."""
    model, _ = BY_NAME["mlp"].make()
    structures = channels_of(BY_NAME["mlp"])
    selection = random_selection(structures, 0.5, 0)
    structures.apply_masks(model, selection, {"fc1.weight": torch.ones(16, 10)})
    assert torch.equal(model.get_parameter("fc1.weight")[:, 0] == 1, torch.from_numpy(selection[:16]))
    assert not model.get_parameter("fc1.bias")[~torch.from_numpy(selection[:16])].any()


def test_members_and_entries_are_consistent():
    """Entries of the axes follow each other, and every member has a row per structure."""
    structures = channels_of(BY_NAME["rotary_grouped_query"])
    start = 0
    for axis in structures.axes:
        assert isinstance(axis, ChannelAxis)
        assert axis.entries == slice(start, start + axis.size)
        assert all(len(member.positions) == axis.size for member in axis.members)
        start += axis.size
    assert start == structures.n == len(structures.axis_of)
