"""Reordered networks compute what they did, and their tall blocks keep more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune import Magnitude, arrange, blocks, channels
from structprune.arrange import Arrangement
from structprune.arrange.fold import proved
from structprune.axes import as_example
from structprune.axes.graph import run
from structprune.compile.proof import difference, tensors
from structprune.errors import CompileError
from structprune.structures import ChannelAxis, EntryAxis
from tests.cases import BY_NAME, CASES, Case

WITH_LAYERS = [case for case in CASES if case.name != "raw_parameters"]
DENSITY = 0.25


def planted(outputs: int, inputs: int, height: int, seed: int = 0) -> np.ndarray:
    """Return a weight whose groups of ``height`` rows use a quarter of the columns each, with its rows shuffled."""
    rng = np.random.default_rng(seed)
    groups = -(-outputs // height)
    columns = np.stack([rng.permutation(inputs) < inputs // 4 for _ in range(groups)])
    rows = np.repeat(columns, height, axis=0)[:outputs]
    weight = np.where(rows, rng.normal(1, 0.2, rows.shape), rng.normal(0, 0.1, rows.shape))
    return weight[rng.permutation(outputs)]


def two_layers(weight: np.ndarray, more: int = 8) -> nn.Sequential:
    """Return a network with this first weight, whose outputs another layer reads."""
    first = nn.Linear(weight.shape[1], len(weight))
    first.weight.data.copy_(torch.from_numpy(weight))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(len(weight), more)).eval()


def ideal(weight: np.ndarray, count: int) -> float:
    """Return the share of |w|^2 in the largest entries, which no blocks can exceed."""
    squares = np.sort(weight.ravel() ** 2)
    return float(squares[-count:].sum() / squares.sum())


def arranged(model: nn.Module, shape: tuple[int, int], x: Any, **options: Any) -> Arrangement:
    """Arrange for a quarter of the blocks, without a display."""
    return arrange(model, shape, DENSITY, example=x, progress=False, **options)


def kept_share(found: Arrangement, layer: str) -> float:
    """Return what the best blocks of a layer keep, by the structures and the criterion that solve would use."""
    structures = blocks(
        found.model,
        found.shape,
        layers=[layer],
        orders={name: order for name, order in found.orders.items() if name == layer},
    )
    values = Magnitude()(found.model, structures).values
    # Ragged blocks count as blocks, as in the arrangement.
    keep = max(1, round(found.keep_fraction * structures.n))
    return float(np.sort(values)[-keep:].sum())


@pytest.mark.parametrize("case", WITH_LAYERS, ids=str)
def test_every_reordered_network_computes_what_it_did(case: Case) -> None:
    """Within rounding, with the given network untouched, and with no kept score lost."""
    model, x = case.make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = as_example(x)
    found = arranged(model, (4, 2), x)
    assert difference(tensors(run(found.model, example)), tensors(run(model, example))) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.error < 1e-5
    assert found.after >= found.before
    if found.folded:
        assert any(not torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())


@pytest.mark.parametrize(("name", "shape"), [("mlp", (5, 3)), ("residual", (4, 2)), ("torch_encoder", (4, 1))])
def test_the_kept_shares_are_those_of_the_blocks(name: str, shape: tuple[int, int]) -> None:
    """What is told of each layer is what magnitude finds in the reordered network's blocks."""
    model, x = BY_NAME[name].make()
    found = arranged(model, shape, x)
    assert any(layer.order == "folded" for layer in found.layers)
    for layer in found.layers:
        assert kept_share(found, layer.name) == pytest.approx(layer.after, rel=1e-5)


@pytest.mark.parametrize(("outputs", "height"), [(256, 64), (200, 64), (96, 16), (130, 32)])
def test_planted_tall_blocks_are_recovered(outputs: int, height: int) -> None:
    """Of what shuffling the rows lost, at least 95 %, with ragged last blocks too."""
    weight = planted(outputs, 64, height)
    model = two_layers(weight)
    found = arranged(model, (height, 1), torch.randn(2, 64), layers=["0"])
    (layer,) = found.layers
    most = ideal(weight, round(DENSITY * weight.size))
    assert (layer.after - layer.before) / (most - layer.before) >= 0.95
    assert layer.order == "folded" and not found.orders


def test_wide_blocks_are_recovered_by_rows_and_columns() -> None:
    """Columns come through the layer before, whose outputs they are."""
    rng = np.random.default_rng(1)
    tiles = rng.permutation(32).reshape(4, 8) < 8
    weight = np.kron(tiles, np.ones((32, 8))) * rng.normal(1, 0.1, (128, 64)) + rng.normal(0, 0.05, (128, 64))
    weight = weight[rng.permutation(128)][:, rng.permutation(64)]
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), *two_layers(weight)).eval()
    found = arranged(model, (32, 8), torch.randn(2, 12), layers=["2"])
    (layer,) = found.layers
    most = ideal(weight, round(DENSITY * weight.size))
    assert (layer.after - layer.before) / (most - layer.before) >= 0.95
    assert len(found.folded) == 2


def test_a_network_that_was_arranged_starts_where_it_ended() -> None:
    """The second time finds in the given order what the first time reached, and never less."""
    model, x = BY_NAME["mlp"].make()
    first = arranged(model, (4, 1), x)
    second = arranged(first.model, (4, 1), x)
    for one, two in zip(first.layers, second.layers, strict=True):
        if one.order != "indexed":
            assert two.before == pytest.approx(one.after, rel=1e-6)
    assert second.after >= second.before


def test_more_blocks_keep_more() -> None:
    """The kept share rises with the fraction that is kept."""
    model, x = BY_NAME["residual"].make()
    shares = [arrange(model, (4, 1), d, example=x, progress=False).after for d in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert all(less < more for less, more in zip(shares, shares[1:], strict=False))
    assert shares[-1] == pytest.approx(1)


def test_the_outputs_of_the_network_keep_their_places() -> None:
    """The last layer's order is its own, for an indexed store; the hidden layer's is folded."""
    last = nn.Linear(64, 128)
    last.weight.data.copy_(torch.from_numpy(planted(128, 64, 32)))
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), last).eval()
    found = arranged(model, (32, 1), torch.randn(2, 32))
    assert set(found.orders) == {"2"} and set(found.folded) == {"0"}
    assert {layer.name: layer.order for layer in found.layers} == {"0": "folded", "2": "indexed"}
    assert np.array_equal(np.sort(found.orders["2"]), np.arange(128))
    assert kept_share(found, "2") > 0.9


def test_writers_of_one_residual_stream_get_one_order() -> None:
    """Both planted weights, shuffled alike, are recovered together."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Linear(64, 128), nn.Linear(128, 64)
            self.outer, self.head = nn.Linear(64, 128), nn.Linear(128, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(x)

    model = Residual().eval()
    with torch.no_grad():
        model.stem.weight.copy_(torch.from_numpy(planted(128, 64, 32)))
        model.outer.weight.copy_(torch.from_numpy(planted(128, 64, 32)))  # the same groups of rows
    found = arranged(model, (32, 1), torch.randn(2, 64), layers=["stem", "outer"])
    assert len(found.folded) == 1 and not found.orders
    assert all(layer.after > 0.9 for layer in found.layers)


def test_scores_of_the_caller_decide() -> None:
    """Rows are grouped by the scores given and not by the weights, which say nothing here."""
    scores = np.abs(planted(128, 64, 32))
    model = two_layers(np.ones((128, 64)))
    found = arranged(model, (32, 1), torch.randn(2, 64), layers=["0"], scores={"0.weight": torch.from_numpy(scores)})
    (layer,) = found.layers
    assert layer.after - layer.before > 0.2
    with pytest.raises(ValueError, match=r"Expected finite scores of 0.weight of shape \(128, 64\). Got NoneType"):
        arranged(model, (32, 1), torch.randn(2, 64), layers=["0"], scores={})


def test_equal_seeds_give_equal_orders() -> None:
    """In every axis."""
    model, x = BY_NAME["residual"].make()
    first, second = (arranged(model, (4, 2), x, seed=7) for _ in range(2))
    assert first.folded.keys() == second.folded.keys()
    assert all(np.array_equal(order, second.folded[name]) for name, order in first.folded.items())


def test_the_text_names_every_layer() -> None:
    """With its kept shares and what became of its order."""
    model, x = BY_NAME["mlp"].make()
    found = arranged(model, (4, 1), x)
    text = str(found)
    assert text.startswith("4x1 blocks at 0.25 keep 0.")
    assert all(f"{one.before:.3f} -> {one.after:.3f}  {one.order}" in text for one in found.layers)


def test_an_order_that_misses_a_tensor_is_refused() -> None:
    """The proof tells a permuted weight whose reader was not permuted."""
    model, x = two_layers(planted(64, 16, 16)), torch.randn(4, 16)
    structures = channels(model, x)
    (axis,) = structures.axes
    assert isinstance(axis, ChannelAxis)
    half = replace(axis, members=axis.members[:1])
    with pytest.raises(CompileError, match="Expected a reordered Sequential that computes what it did"):
        proved(model, structures, [(half, np.arange(64)[::-1].copy())], as_example(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (64,)}, "Expected a block shape of two positive sizes"),
        ({"keep_fraction": 0}, "Expected a keep_fraction above 0"),
        ({"layers": ["third"]}, "Expected layers to match a parameter or module. Got 'third'"),
        ({"layers": ["1"]}, "Expected layers to match a linear layer or convolution. Got '1'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    """Before any work."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    given: dict[str, Any] = {"shape": (4, 1), "keep_fraction": 0.5, "layers": None} | options
    with pytest.raises(ValueError, match=message):
        arrange(model, given["shape"], given["keep_fraction"], layers=given["layers"], progress=False)


def test_blocks_hold_the_outputs_of_the_order() -> None:
    """With h outputs to a block, block row i holds the outputs order[i h : (i + 1) h], the last one those left."""
    model, order = nn.Sequential(nn.Linear(6, 10)), np.array([9, 0, 4, 2, 7, 1, 3, 8, 5, 6])
    structures = blocks(model, (4, 2), orders={"0": order})
    owner = torch.zeros(10, 6, dtype=torch.int64)
    for axis in structures.axes:
        assert isinstance(axis, EntryAxis)
        owner = torch.where(axis.index >= 0, axis.index + axis.start, owner)
    for rows in (order[:4], order[4:8], order[8:]):
        assert all((owner[rows, column] == owner[rows[0], column]).all() for column in range(6))
    assert structures.n == 9
    assert [(axis.size, axis.weights_each) for axis in structures.axes if isinstance(axis, EntryAxis)] == [
        (6, 8),
        (3, 4),
    ]


def test_orders_that_fit_no_layer_are_refused() -> None:
    """Other names, other lengths, repetitions."""
    model = nn.Sequential(nn.Linear(6, 4))
    for orders in ({"1": np.arange(4)}, {"0": np.arange(3)}, {"0": np.zeros(4, dtype=np.int64)}):
        with pytest.raises(ValueError, match="Expected in orders"):
            blocks(model, (2, 1), orders=orders)


def test_blocks_of_chosen_layers_leave_the_others_alone() -> None:
    """By pattern or by module."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    assert {axis.name for axis in blocks(model, (2, 1), layers=["0", model[2]]).axes} == {"0", "2"}
    assert {axis.name for axis in blocks(model, (2, 1), layers="[23]").axes} == {"2", "3"}
