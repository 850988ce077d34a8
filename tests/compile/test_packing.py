"""Linear layers are packed where that was measured to be faster, and nothing else about the network changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structprune import Budget, blocks, load, packed, solve
from structprune.compile import fuse, packing, sparse
from structprune.compile.packing import pack_linear, packed_layers
from structprune.layers import ROWLOOP
from structprune.layers.onednn import missing
from structprune.layers.packed_linear import PackedLinear
from structprune.layers.tune import Tuned

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "runs here")


@pytest.fixture
def winners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, float]:
    """Return shares of time by number of outputs, which stand for the clock; other layers lose."""
    shares: dict[int, float] = {}

    def time_packed(dense: nn.Linear, *_: Any, **__: Any) -> tuple[float, bool]:
        ratio = shares.get(dense.out_features, 1.2)
        return ratio, ratio < 0.95

    monkeypatch.setattr(packing, "time_packed", time_packed)
    monkeypatch.setattr(fuse, "time_fused", lambda *_, **__: 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shares


class Own(nn.Linear):
    """A class of the user's own."""


class Network(nn.Module):
    """Layers of several kinds, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(96, 160), nn.Linear(160, 96)
        self.again = self.wide
        self.own, self.small = Own(96, 160), nn.Linear(160, 2)
        self.hooked = nn.Linear(160, 160)
        self.hooked.register_forward_hook(lambda module, given, y: y + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.small(self.hooked(self.own(self.narrow(self.again(self.narrow(self.wide(x)))))))


def test_layers_that_win_are_packed(winners: dict[int, float]) -> None:
    """Under all their names, in a copy; the notes give the measured shares of winners and losers."""
    model, x = Network().eval(), torch.randn(64, 96)
    winners.update({160: 0.5, 2: 0.5})
    fast, notes = packed(model, x)
    assert packed_layers(fast) == ("wide",) and fast.get_submodule("again") is fast.get_submodule("wide")
    assert not packed_layers(model) and type(fast.get_submodule("narrow")) is nn.Linear
    assert any("wide 0.50" in note for note in notes) and any("narrow 1.20" in note for note in notes)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
    assert list(fast.state_dict()) == list(model.state_dict())


def test_a_network_that_is_one_layer(winners: dict[int, float]) -> None:
    """The layer is the network."""
    winners[160] = 0.5
    fast, _ = packed(nn.Linear(96, 160), torch.randn(64, 96))
    assert type(fast) is PackedLinear


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the notes say why."""
    monkeypatch.setattr(packing, "missing", lambda: "no oneDNN here.")
    fast, notes = packed(nn.Linear(96, 160), torch.randn(64, 96))
    assert type(fast) is nn.Linear and "no oneDNN here." in notes[0]


def test_types_that_onednn_does_not_multiply_stay(tmp_path: Path) -> None:
    """Double precision is not even timed."""
    fast, notes = packed(nn.Linear(96, 160).double(), torch.randn(64, 96, dtype=torch.float64), cache=tmp_path)
    assert type(fast) is nn.Linear and not notes and not list(tmp_path.iterdir())


def test_the_clock_decides(tmp_path: Path) -> None:
    """A layer is packed exactly where its measured share is below the margin; equal layers are measured once."""
    model, x = nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 96)).eval(), torch.randn(64, 96)
    first, notes = packed(model, x, cache=tmp_path)
    again, same_notes = packed(model, x, cache=tmp_path)
    assert notes == same_notes and len(notes) == 1
    assert packed_layers(first) == packed_layers(again) and len(packed_layers(first)) in (0, 2)


def test_a_foreign_name_is_refused() -> None:
    """As when a file is loaded into another network."""
    with pytest.raises(ValueError, match="Expected a linear layer 'fc'. Got NoneType"):
        pack_linear(nn.Sequential(nn.Linear(2, 2)), ["fc"])


def test_dense_layers_beside_block_sparse_ones(
    winners: dict[int, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Are packed where it pays, saved so, and loaded to compute bit for bit the same."""

    def tune(name: str, *_: Any, **__: Any) -> Tuned:
        pays = name == "0"
        return Tuned(name, "", ROWLOOP if pays else None, ROWLOOP.name, 0.5 if pays else 2.0, {})

    monkeypatch.setattr(sparse, "tune", tune)
    winners[192] = 0.5
    model = nn.Sequential(nn.Linear(96, 128), nn.Tanh(), nn.Linear(128, 192), nn.Linear(192, 64)).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)  # so that every layer loses some blocks
    x = torch.randn(64, 96)
    structures = blocks(model, (64, 1), example=x)
    pruned = solve(model, Budget(density=0.5), structures=structures, example=x, progress=False)
    assert pruned.built_as == "block-sparse" and packed_layers(pruned.model) == ("2",)
    assert any("2 0.50" in note for note in pruned.report.notes)
    pruned.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert packed_layers(again) == ("2",)
    with torch.no_grad():
        assert torch.equal(again(x), pruned.model(x))
