"""Activations move into the block-sparse layer before them only where nobody can tell but the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune import Budget, FileFormatError, blocks, load, masked, solve
from structprune.axes import trace
from structprune.compile import Compiled, compile, fuse, packing, sparse
from structprune.compile.fuse import Applied, applied, followed_by
from structprune.compile.sparse import sparse_layers
from structprune.layers import CPU_JIT, ROWLOOP, BlockSparseLinear
from structprune.layers.tune import Call, Tuned, time_fused

BACKEND = ROWLOOP if CPU_JIT.available() else CPU_JIT


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Every layer pays, nothing is packed; ``fused`` is the share of time of fused layers."""
    shares = {"fused": 0.9}

    def tune(name: str, *_: Any, **__: Any) -> Tuned:
        return Tuned(name, "", BACKEND, BACKEND.name, 0.5, {})

    monkeypatch.setattr(sparse, "tune", tune)
    monkeypatch.setattr(fuse, "time_fused", lambda *_, **__: shares["fused"])
    monkeypatch.setattr(packing, "time_packed", lambda *_, **__: (1.0, False))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shares


class Mixed(nn.Module):
    """Fusable pairs, and all that looks like one: each kind of reason why an activation must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu = nn.Linear(64, 128), nn.ReLU(inplace=True)
        self.b, self.gelu = nn.Linear(128, 64), nn.GELU()
        self.c, self.shared = nn.Linear(64, 64), nn.ReLU()
        self.d = nn.Linear(64, 64)
        self.e, self.read_twice = nn.Linear(64, 64), nn.ReLU()
        self.f, self.tanh_gelu = nn.Linear(64, 64), nn.GELU(approximate="tanh")
        self.g = nn.Linear(64, 64)
        self.h, self.drop, self.late = nn.Linear(64, 64), nn.Dropout(), nn.ReLU()
        self.i, self.hooked = nn.Linear(64, 64), nn.ReLU()
        self.hooked.register_forward_hook(lambda module, given, y: y + 1)
        self.j, self.own = nn.Linear(64, 64), Own()

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.b(self.relu(self.a(x))))
        x = self.shared(self.d(self.shared(self.c(x))))
        y = self.e(x)
        x = self.tanh_gelu(self.f(self.read_twice(y) + y))
        x = self.late(self.drop(self.h(F.relu(self.g(x)))))
        return self.own(self.j(self.hooked(self.i(x))))


class Own(nn.ReLU):
    """A class of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Pictures(nn.Module):
    """Convolutions with an activation behind, directly and behind batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(16, 64, 3, padding=1), nn.ReLU()
        self.point, self.gelu = nn.Conv2d(64, 64, 1), nn.GELU()
        self.last, self.norm, self.late = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.norm(self.last(self.gelu(self.point(self.relu(self.first(x)))))))


def half(model: nn.Module, x: Tensor, traced: bool = True) -> tuple[Compiled, nn.Module]:
    """Return the network compiled with half of its blocks, and the masked one."""
    structures = blocks(model, (64, 1), example=x if traced else None)
    selection = np.random.default_rng(0).random(structures.n) < 0.5
    return compile(model, structures, selection, x, cache=False), masked(model, structures, selection)


def pairs(model: nn.Module) -> set[tuple[str, str, str]]:
    """Return what was fused."""
    return {(one.layer, one.module, one.activation) for one in applied(model)}


@pytest.mark.parametrize("traced", [True, False], ids=["traced structures", "structures without a graph"])
def test_only_safe_activations_are_fused(traced: bool) -> None:
    """Of modules called once on an output that nobody else reads; compiled equals masked."""
    model, x = Mixed().eval(), torch.randn(64, 64)
    compiled, reference = half(model, x, traced)
    assert set(sparse_layers(compiled.model)) == set("abcdefghij")
    assert pairs(compiled.model) == {("a", "relu", "relu"), ("b", "gelu", "gelu")}
    with torch.no_grad():
        torch.testing.assert_close(compiled.model(x), reference(x), rtol=1e-4, atol=1e-4)
    assert type(model.relu) is nn.ReLU
    assert any("relu by a 0.90, gelu by b 0.90" in note for note in compiled.notes)


def test_convolutions_apply_theirs() -> None:
    """Directly behind them; behind batch norm it stays."""
    model, x = Pictures().eval(), torch.randn(2, 16, 9, 9)
    model.norm.running_mean = torch.randn(64)
    compiled, reference = half(model, x)
    assert pairs(compiled.model) == {("first", "relu", "relu"), ("point", "gelu", "gelu")}
    with torch.no_grad():
        torch.testing.assert_close(compiled.model(x), reference(x), rtol=1e-4, atol=1e-4)


def test_slower_is_not_fused(clock: dict[str, float]) -> None:
    """The clock has the last word."""
    clock["fused"] = 1.01
    compiled, _ = half(Mixed().eval(), torch.randn(64, 64))
    assert compiled.built_as == "block-sparse" and not applied(compiled.model)


def test_dense_layers_keep_their_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only block-sparse layers have kernels that apply one."""
    monkeypatch.setattr(sparse, "tune", lambda name, *_, **__: Tuned(name, "", None, "rowloop", 2.0, {}))
    compiled, _ = half(Mixed().eval(), torch.randn(64, 64))
    assert compiled.built_as == "masked" and type(compiled.model.get_submodule("relu")) is nn.ReLU


def test_an_activation_with_two_names_stays() -> None:
    """Somebody may call it by the other one."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    assert len(followed_by(model, trace(model, torch.randn(4, 64)))) == 1
    model.register_module("other", model[1])
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    assert not followed_by(model, trace(model, torch.randn(4, 64)))


def test_outputs_of_the_network_stay_as_they_are() -> None:
    """A layer's output that the network returns as well is read by somebody."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(64, 64), nn.ReLU()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.fc(x)
            return y, self.relu(y)

    model = Both().eval()
    assert not followed_by(model, trace(model, torch.randn(4, 64)))


def test_training_has_the_same_gradients() -> None:
    """In training mode the activation is applied behind the product, once."""
    model, x = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).eval(), torch.randn(64, 64)
    compiled, reference = half(model, x)
    assert pairs(compiled.model) == {("0", "1", "gelu")}
    grads = []
    for network in (compiled.model.train(), reference.train()):
        given = x.clone().requires_grad_()
        network(given).square().sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def saved(path: Path) -> tuple[nn.Module, Any]:
    """Return a network, and what was saved of it."""
    model, x = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.ReLU()).eval(), torch.randn(32, 64)
    structures = blocks(model, (64, 1), example=x)
    pruned = solve(model, Budget(density=0.5), structures=structures, example=x, progress=False)
    assert len(applied(pruned.model)) == 2
    pruned.save(path)
    return model, pruned


def test_saved_networks_are_loaded_bit_for_bit(tmp_path: Path) -> None:
    """With their activations applied once."""
    model, pruned = saved(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert pairs(again) == pairs(pruned.model)
    x = torch.randn(32, 64)
    with torch.no_grad():
        assert torch.equal(again(x), pruned.model(x))


def test_a_broken_record_is_refused(tmp_path: Path) -> None:
    """An activation without the module that it was."""
    model, _ = saved(tmp_path / "small")
    file = tmp_path / "small" / "structure.json"
    structure = json.loads(file.read_text())
    del structure["sparse"]["0"]["applied"]
    file.write_text(json.dumps(structure))
    with pytest.raises(FileFormatError, match="without a sound applied"):
        load(tmp_path / "small", model)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    """On loading into a network that has not the one that was fused."""
    model, _ = saved(tmp_path / "small")
    model.register_module("1", nn.Tanh())
    with pytest.raises(ValueError, match=r"the gelu '1'\. Got BlockSparseLinear and Tanh"):
        load(tmp_path / "small", model)


def test_an_applied_activation_tells_by_whom() -> None:
    """A printed network shows where the activation went."""
    assert repr(Applied("body.0")) == "Applied(by body.0)"


def test_timing_leaves_the_layer_alone(tmp_path: Path) -> None:
    """The measured share is positive, kept on disk, and the layer has no activation afterwards."""
    layer = BlockSparseLinear.from_dense(nn.Linear(64, 64), np.ones((1, 64), dtype=bool), 64, 1).eval()
    calls = [Call.of(torch.empty(8, 64))]
    first = time_fused(layer, nn.GELU(), "gelu", calls, rounds=4, cache=tmp_path)
    assert first > 0 and layer.activation == "none"
    assert time_fused(layer, nn.GELU(), "gelu", calls, rounds=4, cache=tmp_path) == first
