"""Reordered rows from the choice of blocks to the compiled, saved and loaded network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune import Budget, arrange, blocks, load, masked, solve
from structprune.compile import compile, fuse, packing, sparse
from structprune.compile.sparse import sparse_layers
from structprune.layers import CPU_JIT, ROWLOOP, Backend
from structprune.layers.layer import BlockSparseLayer
from structprune.layers.tune import Tuned
from structprune.structures import Structures
from tests.arrange.test_arrange import planted

BACKENDS = [
    ROWLOOP,
    pytest.param(
        CPU_JIT, marks=pytest.mark.skipif(bool(CPU_JIT.available()), reason=CPU_JIT.available() or "runs here")
    ),
]


class Built:
    """Instead of the clock: every layer pays; what was to be timed is kept."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.layers: dict[str, BlockSparseLayer] = {}

    def __call__(self, name: str, dense: nn.Module, build: Any, *_: Any, **__: Any) -> Tuned:
        self.layers[name] = build(self.backend)
        return Tuned(name, "", self.backend, self.backend.name, 0.5, {"dense": 1.0, self.backend.name: 0.5})


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Built:
    """Put block-sparse layers wherever they can be, computed by one backend after the other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fuse, "time_fused", lambda *_, **__: 1.0)
    monkeypatch.setattr(packing, "time_packed", lambda *_, **__: (1.0, False))
    found = Built(request.param)
    monkeypatch.setattr(sparse, "tune", found)
    return found


class Ends(nn.Module):
    """A hidden layer whose order is free, and a last one, of ragged height for blocks of 64, whose order is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 256), nn.Linear(256, 200)
        with torch.no_grad():
            self.first.weight.copy_(torch.from_numpy(planted(256, 64, 64)))
            self.last.weight.copy_(torch.from_numpy(planted(200, 256, 64, seed=1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def difference(y: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((y - expected).abs().max() / expected.abs().max())


def arranged_blocks(model: nn.Module, x: Tensor, shape: tuple[int, int] = (64, 1)) -> tuple[nn.Module, Structures]:
    """Return the reordered network and its blocks."""
    found = arrange(model, shape, 0.25, example=x, progress=False)
    return found.model, blocks(found.model, shape, example=x, orders=found.orders)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 1), (64, 16), (16, 4)])
def test_compiled_equals_masked_with_orders(shape: tuple[int, int], built: Built) -> None:
    """The hidden layer stores its rows in a row, the last one by its order, and what is timed does so too."""
    model, x = Ends().eval(), torch.randn(48, 64)
    reordered, structures = arranged_blocks(model, x, shape)
    selection = np.random.default_rng(0).random(structures.n) < 0.5
    compiled = compile(reordered, structures, selection, x, cache=False)
    layers = sparse_layers(compiled.model)
    assert layers["first"].order is None
    assert layers["last"].order is not None
    assert built.layers["last"].pattern == layers["last"].pattern
    assert layers["last"].values.shape[1] == shape[0]
    assert layers["last"].pattern.entries == int(structures.masks(selection)["last.weight"].sum())
    assert difference(compiled.model(x), masked(reordered, structures, selection)(x)) < 1e-5


@torch.no_grad()
def test_convolutions_store_rows_by_their_order(built: Built) -> None:
    """A 3x3 convolution that makes the network's output."""
    convolution, x = nn.Conv2d(16, 96, 3, padding=1), torch.randn(2, 16, 12, 12)
    convolution.weight.data.copy_(torch.from_numpy(planted(96, 144, 32)).reshape(96, 16, 3, 3))
    model = nn.Sequential(convolution).eval()
    found = arrange(model, (32, 1), 0.25, example=x, progress=False)
    assert set(found.orders) == {"0"} and found.after > 0.9
    structures = blocks(found.model, (32, 1), example=x, orders=found.orders)
    pruned = solve(found.model, Budget(density=0.25), structures=structures, example=x, progress=False)
    assert sparse_layers(pruned.model)["0"].order is not None
    assert difference(pruned.model(x), masked(found.model, structures, pruned.selection)(x)) < 1e-5


@torch.no_grad()
def test_the_line_from_arrangement_to_a_loaded_network(built: Built, tmp_path: Path) -> None:
    """A quarter of the planted weights computes nearly what all do; saved and loaded, the network is the same."""
    model, x = Ends().eval(), torch.randn(48, 64)
    reordered, structures = arranged_blocks(model, x)
    pruned = solve(reordered, Budget(density=0.25), structures=structures, example=x, progress=False)
    plain = solve(model, Budget(density=0.25), structures=blocks(model, (64, 1)), example=x, progress=False)
    ours, theirs = (difference(one.model(x), model(x)) for one in (pruned, plain))
    assert ours < theirs / 2
    (row,) = [row for row in pruned.report.costs if row.resource == "density"]
    assert row.predicted <= 0.25 * row.before
    pruned.save(tmp_path / "small")
    again = load(tmp_path / "small", Ends())
    assert torch.equal(again(x), pruned.model(x))
    assert sparse_layers(again)["last"].pattern == sparse_layers(pruned.model)["last"].pattern


@torch.no_grad()
def test_an_order_that_was_folded_is_loaded_into_the_given_network(built: Built, tmp_path: Path) -> None:
    """The dense class knows nothing of the reordering; masked networks are loaded as well."""
    model, x = Ends().eval(), torch.randn(48, 64)
    reordered, structures = arranged_blocks(model, x, (8, 1))
    pruned = solve(reordered, Budget(density=0.25), structures=structures, example=x, progress=False)
    assert pruned.built_as == "masked"
    pruned.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", Ends())(x), pruned.model(x))
