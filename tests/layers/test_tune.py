"""The autotuner: a sparse layer is chosen only where it was measured to be faster than every dense one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.layers import (
    CPU_JIT,
    CUDA_TRITON,
    ROWLOOP,
    Backend,
    BlockSparseConv2d,
    BlockSparseLinear,
    Geometry,
    Packed,
    tune_key,
)
from structprune.layers import tune as tuner
from structprune.layers.activation import Activation
from structprune.layers.tune import BlockSparse, Call, Timed, Tuned, tune

needs_jit = pytest.mark.skipif(bool(CPU_JIT.available()), reason=CPU_JIT.available() or "runs here")


@dataclass(frozen=True)
class Altered(Backend):
    """The row loop, with an extra wait or a mistake."""

    wait_s: float = 0.0
    mistake: float = 0.0
    reason: str = ""

    @property
    def name(self) -> str:
        """Return a name that tells all."""
        return f"altered {self.wait_s} {self.mistake} {self.reason}"

    def available(self) -> str:
        """Return the reason given."""
        return self.reason

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Return the product, late or wrong."""
        end = time.thread_time() + self.wait_s
        while time.thread_time() < end:
            pass
        return ROWLOOP.linear(x, packed, bias, activation) * (1 + self.mistake)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Return the row loop's."""
        return ROWLOOP.conv2d(x, packed, geometry, bias, activation)


class Layer:
    """A linear layer of 64x1 blocks, and its tuning."""

    def __init__(self, inputs: int = 512, outputs: int = 512, density: float = 0.1, tokens: int = 256) -> None:
        rng = np.random.default_rng(0)
        self.kept = rng.random((-(-outputs // 64), inputs)) < density
        whole = nn.Linear(inputs, outputs).eval()
        dense = BlockSparseLinear.from_dense(whole, self.kept, 64, 1).to_dense()
        assert isinstance(dense, nn.Linear)
        self.dense = dense
        self.calls = [Call.of(torch.empty(tokens, inputs))]

    def build(self, backend: Backend) -> BlockSparse:
        """Return the block-sparse layer."""
        return BlockSparseLinear.from_dense(self.dense, self.kept, 64, 1, backend=backend).eval()

    def tune(self, *backends: Backend, cache: Path | Literal[False] = False, rounds: int = 7) -> Tuned:
        """Measure."""
        return tune("fc", self.dense, self.build, self.calls, backends=backends, rounds=rounds, cache=cache)


@needs_jit
def test_a_faster_layer_is_chosen() -> None:
    """A tenth of the weights in tall blocks takes a fraction of the dense time."""
    found = Layer().tune(CPU_JIT)
    assert found.backend == CPU_JIT and found.ratio < tuner.MARGIN
    assert set(found.medians_ns) >= {"dense", "cpu-jit"}
    dense = min(median for name, median in found.medians_ns.items() if name.startswith("dense"))
    assert found.ratio == pytest.approx(found.medians_ns["cpu-jit"] / dense)


def test_a_slower_layer_stays_dense() -> None:
    """The layer that waits is measured and refused, and the report says by how much it lost."""
    slow = Altered(wait_s=0.02)
    found = Layer().tune(slow)
    assert found.backend is None and found.sparse == slow.name and found.ratio > 1
    assert f"{found.ratio:.2f}" in found.report() and "fc: dense" in found.report()


@pytest.mark.parametrize("second, pays", [(0.9, True), (1.1, False)])
def test_the_win_must_hold_in_both_halves(monkeypatch: pytest.MonkeyPatch, second: float, pays: bool) -> None:
    """A median below the margin does not do where one half of the rounds was lost."""
    timed = {"dense": Timed(1.0, 1.0, 1.0), "dense-onednn": Timed(1.0, 1.0, 1.0), "rowloop": Timed(0.9, 0.8, second)}
    monkeypatch.setattr(tuner, "measured", lambda *_: timed)
    assert (Layer().tune(ROWLOOP).backend == ROWLOOP) == pays


def test_a_win_within_the_margin_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few per cent may be noise."""
    timed = {"dense": Timed(1.0, 1.0, 1.0), "dense-onednn": Timed(1.0, 1.0, 1.0), "rowloop": Timed(0.96, 0.96, 0.96)}
    monkeypatch.setattr(tuner, "measured", lambda *_: timed)
    assert Layer().tune(ROWLOOP).backend is None


def test_the_best_dense_layer_is_the_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster than F.linear is not enough where oneDNN is faster still."""
    timed = {"dense": Timed(2.0, 2.0, 2.0), "dense-onednn": Timed(1.0, 1.0, 1.0), "rowloop": Timed(1.5, 1.5, 1.5)}
    monkeypatch.setattr(tuner, "measured", lambda *_: timed)
    monkeypatch.setattr(tuner, "dense_candidates", lambda *_: {"dense": None, "dense-onednn": None})
    found = Layer().tune(ROWLOOP)
    assert found.backend is None and found.ratio == 1.5


def test_a_wrong_layer_takes_no_part() -> None:
    """However fast; the note says how wrong it was."""
    found = Layer().tune(Altered(mistake=1e-3))
    assert found.backend is None and not found.sparse and found.ratio == float("inf")
    assert "differ" in found.notes[0] and "no sparse backend ran" in found.report()


def test_what_is_not_available_is_noted() -> None:
    """With the reason, and nothing is run."""
    found = Layer().tune(Altered(reason="no such machine."), ROWLOOP)
    assert found.sparse == "rowloop" and "no such machine." in found.notes[0]


def test_backends_for_other_devices_are_no_matter() -> None:
    """Nobody with a CPU need read that there is no GPU."""
    found = Layer(64, 64, tokens=4).tune(CUDA_TRITON, ROWLOOP)
    assert found.sparse == "rowloop" and not found.notes


def test_a_backend_that_refuses_the_type_is_noted() -> None:
    """In its own words: the generated kernels do not know float64."""
    layer = Layer(64, 64, tokens=4)
    layer.dense = layer.dense.double()
    layer.calls = [Call.of(torch.empty(4, 64, dtype=torch.float64))]
    found = layer.tune(CPU_JIT, ROWLOOP)
    assert found.sparse == "rowloop" and found.notes[0].startswith("cpu-jit: ")


def test_equal_layers_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer comes from the disk, and equals the first."""
    layer = Layer(64, 64, tokens=8)
    first = layer.tune(ROWLOOP, cache=tmp_path)
    monkeypatch.setattr(tuner, "time_calls", lambda *_: pytest.fail("measured again"))
    assert layer.tune(ROWLOOP, cache=tmp_path) == first


@pytest.mark.parametrize("change", ["tokens", "density", "height of the input", "rounds"])
def test_other_layers_are_measured_anew(tmp_path: Path, change: str) -> None:
    """Tokens, pattern, shape and the number of rounds are part of what a time is known by."""
    Layer(64, 128, tokens=8).tune(ROWLOOP, cache=tmp_path, rounds=5)
    (file,) = tmp_path.iterdir()
    before = len(json.loads(file.read_text())["medians_ns"])
    other = Layer(
        65 if change == "height of the input" else 64,
        128,
        0.3 if change == "density" else 0.1,
        9 if change == "tokens" else 8,
    )
    other.tune(ROWLOOP, cache=tmp_path, rounds=6 if change == "rounds" else 5)
    assert len(json.loads(file.read_text())["medians_ns"]) == 2 * before


def test_a_broken_cache_is_measured_over(tmp_path: Path) -> None:
    """With a warning; the file is whole afterwards."""
    layer = Layer(64, 64, tokens=8)
    layer.tune(ROWLOOP, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-20])
    with pytest.warns(UserWarning, match="cannot be used"):
        again = layer.tune(ROWLOOP, cache=tmp_path)
    assert layer.tune(ROWLOOP, cache=tmp_path) == again


def test_convolutions_are_timed_beside_both_layouts() -> None:
    """The dense convolution with channels innermost is a rival too."""
    dense = nn.Conv2d(16, 64, 3, padding=1).eval()

    def build(backend: Backend) -> BlockSparse:
        return BlockSparseConv2d.from_dense(dense, torch.ones_like(dense.weight, dtype=torch.bool), 64, 1)

    call = Call.of(torch.empty(2, 16, 7, 7))
    found = tune("conv", dense, build, [call], backends=[ROWLOOP], rounds=5, cache=False)
    assert set(found.medians_ns) == {"dense", "dense, channels last", "rowloop"}


def test_inputs_keep_their_layout() -> None:
    """Channels innermost stay so; overlapping inputs become plain ones of the same shape."""
    last = torch.empty(2, 8, 5, 5).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    assert Call.of(last).tensor(generator).stride() == last.stride()
    assert Call.of(torch.empty(1, 8).expand(4, 8)).tensor(generator).stride() == (8, 1)


def test_the_number_of_threads_is_put_back() -> None:
    """Timing uses one thread; the process keeps its own number."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Layer(64, 64, tokens=4).tune(ROWLOOP)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_nothing_to_time_is_refused() -> None:
    """A layer that was never called has no time."""
    layer = Layer(64, 64)
    layer.calls = []
    with pytest.raises(ValueError, match="at least one call"):
        layer.tune(ROWLOOP)


def test_measurements_of_other_kernels_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key holds a fingerprint of the layers' source: after a kernel is changed, layers are timed anew."""
    layer = BlockSparseLinear.from_dense(nn.Linear(32, 32), torch.ones(2, 2, dtype=torch.bool), 16, 16)
    calls = [Call.of(torch.randn(3, 32))]
    before, _ = tune_key.key_of(layer, calls)
    assert tune_key.code_of_layers() in before
    monkeypatch.setattr(tune_key, "code_of_layers", lambda: "another")
    assert tune_key.key_of(layer, calls)[0] != before
