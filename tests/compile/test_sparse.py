"""Blocks compile to block-sparse layers where these are faster, equal to the masked network, and are saved so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune import Budget, blocks, channels, load, masked, solve
from structprune.compile import compile, fuse, packing, sparse
from structprune.compile.sparse import sparse_layers
from structprune.errors import FileFormatError
from structprune.finetune import FineTune
from structprune.layers import CPU_JIT, DENSE, ROWLOOP, Backend, BlockSparseConv2d, BlockSparseLinear
from structprune.layers.tune import Tuned
from structprune.structures import Structures, kernels, nm

needs_jit = pytest.mark.skipif(bool(CPU_JIT.available()), reason=CPU_JIT.available() or "runs here")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that says which layers pay, instead of the clock."""

    def choose(names: str, backend: Backend = ROWLOOP, notes: tuple[str, ...] = ()) -> None:
        def tune(name: str, *_: Any, **__: Any) -> Tuned:
            chosen = names == "all" or name in names.split()
            found = {"dense": 1.0, backend.name: 0.5 if chosen else 2.0}
            return Tuned(name, "", backend if chosen else None, backend.name, found[backend.name], found, notes)

        monkeypatch.setattr(sparse, "tune", tune)
        monkeypatch.setattr(fuse, "time_fused", lambda *_, **__: 1.0)
        monkeypatch.setattr(packing, "time_packed", lambda *_, **__: (1.0, False))

    return choose


class Perceptron(nn.Module):
    """Two hidden layers; sizes with ragged edges for blocks of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(96, 200), nn.Linear(200, 130), nn.Linear(130, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.relu(self.fc1(x)))))


class Pictures(nn.Module):
    """Convolutions of 3x3 and 1x1, strided, grouped and dilated ones, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(16, 64, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(64)
        self.point = nn.Conv2d(64, 64, 1)
        self.depth = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.wide = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.depth(F.relu(self.point(x))))
        return self.head(self.wide(x).mean(dim=(2, 3)))


def half(structures: Structures) -> np.ndarray:
    """Keep half of the structures, at random."""
    return np.random.default_rng(0).random(structures.n) < 0.5


def relative(y: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    y, expected = y.detach(), expected.detach()
    return float((y - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", [(64, 1), (64, 16), (32, 32), (16, 4), (256, 2), (48, 3), (512, 1)])
def test_layers_that_pay_become_block_sparse(shape: tuple[int, int], pays: Callable[..., None]) -> None:
    """And equal the masked network, ragged edges included; the network itself stays as it was."""
    model = Perceptron().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(64, 96)
    structures = blocks(model, shape, example=x)
    selection = half(structures)
    pays("fc1 fc2")
    compiled = compile(model, structures, selection, x, cache=False)
    assert compiled.built_as == "block-sparse"
    assert {"fc1", "fc2"} == set(sparse_layers(compiled.model))
    assert compiled.error < 1e-5
    assert relative(compiled.model(x), masked(model, structures, selection)(x)) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(model.fc1) is nn.Linear


def test_convolutions_become_block_sparse(pays: Callable[..., None]) -> None:
    """With batch norm and stride; grouped and dilated ones stay dense, and a note says why."""
    model = Pictures().eval()
    model.norm.running_mean = torch.randn(64)
    x = torch.randn(4, 16, 18, 18)
    structures = blocks(model, (64, 1), example=x)
    selection = half(structures)
    pays("stem point head depth wide")
    compiled = compile(model, structures, selection, x, cache=False)
    assert {type(layer) for layer in sparse_layers(compiled.model).values()} == {BlockSparseConv2d}
    assert set(sparse_layers(compiled.model)) == {"stem", "point"}
    assert relative(compiled.model(x), masked(model, structures, selection)(x)) < 1e-5
    assert any("depth" in note and "one group" in note for note in compiled.notes)


def test_images_stay_in_one_layout(tmp_path: Path, pays: Callable[..., None]) -> None:
    """Dense convolutions beside block-sparse ones have channels innermost too, and again after loading."""
    model, x = Pictures().eval(), torch.randn(4, 16, 18, 18)
    structures = blocks(model, (64, 1), example=x)
    pays("point")
    pruned = solve(model, Budget(density=0.1), structures=structures, example=x, progress=False)
    pruned.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    for network in (pruned.model, again):
        assert network.get_submodule("stem")(x).is_contiguous(memory_format=torch.channels_last)
    assert model.stem(x).is_contiguous()
    with torch.no_grad():
        assert torch.equal(again(x), pruned.model(x))


def test_what_does_not_pay_stays_dense(pays: Callable[..., None]) -> None:
    """And the notes give the measured ratios of both kinds."""
    model, x = Perceptron().eval(), torch.randn(64, 96)
    structures = blocks(model, (64, 1), example=x)
    pays("fc2")
    compiled = compile(model, structures, half(structures), x, cache=False)
    assert set(sparse_layers(compiled.model)) == {"fc2"} and type(compiled.model.fc1) is nn.Linear
    assert any("fc2 0.50 (rowloop)" in note for note in compiled.notes)
    assert any("fc1 2.00" in note for note in compiled.notes)
    pays("", notes=("cpu-jit: llvmlite is missing.",))
    compiled = compile(model, structures, half(structures), x, cache=False)
    assert sum("llvmlite is missing" in note for note in compiled.notes) == 1
    assert compiled.built_as == "masked" and "dense layers that hold zeros" in compiled.notes[0]
    assert [one.ratio for one in compiled.tuned] == [2.0, 2.0]


@pytest.mark.parametrize("shape", [(8, 8), (4, 1), (20, 1)])
def test_low_blocks_stay_dense_and_say_which_can_be_fast(shape: tuple[int, int], pays: Callable[..., None]) -> None:
    """Nothing is measured for them."""
    model, x = Perceptron().eval(), torch.randn(64, 96)
    structures = blocks(model, shape, example=x)
    pays("fc1 fc2 fc3")
    compiled = compile(model, structures, half(structures), x, cache=False)
    assert compiled.built_as == "masked"
    assert any("blocks of 16 or 32 or 64 or 128 or 256 outputs" in note for note in compiled.notes)


@pytest.mark.parametrize("make", [kernels, nm])
def test_kernels_and_nm_are_zeros_still(make: Any, pays: Callable[..., None]) -> None:
    """Only blocks have layers of their own."""
    model, x = Pictures().eval(), torch.randn(4, 16, 18, 18)
    structures = make(model, example=x)
    pays("stem point head")
    assert compile(model, structures, half(structures), x, cache=False).built_as == "masked"


def test_weights_that_others_read_stay_dense(pays: Callable[..., None]) -> None:
    """Tied weights, weights read without a call, and classes of the user's own."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.read, self.own = nn.Linear(64, 64), Own(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(F.linear(self.second(self.first(x)), self.read.weight))

    model, x = Odd().eval(), torch.randn(64, 64)
    structures = blocks(model, (64, 1), example=x)
    pays("first second read own")
    compiled = compile(model, structures, half(structures), x, cache=False)
    assert compiled.built_as == "masked"
    for words in ("same weight", "without calling", "no block-sparse form"):
        assert any(words in note for note in compiled.notes), words


def test_a_network_that_does_not_run_with_them_stays_masked(pays: Callable[..., None]) -> None:
    """Here it asks for the weight of a layer that it also calls; the note gives its error."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc.weight.mean()

    model, x = Asks().eval(), torch.randn(64, 64)
    structures = blocks(model, (64, 1), example=x)
    pays("fc")
    compiled = compile(model, structures, half(structures), x, cache=False)
    assert compiled.built_as == "masked"
    assert any("faster layers cannot be put in: AttributeError" in note for note in compiled.notes)


def test_a_network_that_is_one_layer(pays: Callable[..., None]) -> None:
    """The layer is the network."""
    model, x = nn.Linear(64, 128).eval(), torch.randn(64, 64)
    structures = blocks(model, (64, 1), example=x)
    selection = half(structures)
    pays("all")
    compiled = compile(model, structures, selection, x, cache=False)
    assert isinstance(compiled.model, BlockSparseLinear)
    assert relative(compiled.model(x), masked(model, structures, selection)(x)) < 1e-5


def test_layers_without_kept_blocks(pays: Callable[..., None]) -> None:
    """An empty pattern gives the bias."""
    model, x = Perceptron().eval(), torch.randn(64, 96)
    structures = blocks(model, (64, 1), example=x)
    selection = half(structures)
    selection[structures.axes[0].entries] = selection[structures.axes[1].entries] = False
    pays("fc1 fc2")
    compiled = compile(model, structures, selection, x, cache=False)
    assert compiled.built_as == "block-sparse"
    assert relative(compiled.model(x), masked(model, structures, selection)(x)) < 1e-5


def pruned_perceptron(**options: Any) -> Any:
    """Prune to a quarter of the weights."""
    model, x = Perceptron().eval(), torch.randn(64, 96)
    structures = blocks(model, (64, 1), example=x)
    return model, x, solve(model, Budget(density=0.25), structures=structures, example=x, progress=False, **options)


def test_saved_networks_are_loaded_bit_for_bit(tmp_path: Path, pays: Callable[..., None]) -> None:
    """In the same process and in a fresh one, with patterns and backends."""
    pays("fc1 fc2")
    model, x, pruned = pruned_perceptron()
    pruned.save(tmp_path / "small")
    again = load(tmp_path / "small", model)
    assert torch.equal(again(x), pruned.model(x))
    assert sparse_layers(again)["fc1"].pattern == sparse_layers(pruned.model)["fc1"].pattern
    assert sparse_layers(again)["fc1"].backend == ROWLOOP
    torch.save({"x": x, "y": pruned.model(x)}, tmp_path / "pair.pt")
    program = (
        "import sys, torch, structprune\n"
        "from tests.compile.test_sparse import Perceptron\n"
        f"pair = torch.load({str(tmp_path / 'pair.pt')!r})\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"model = structprune.load({str(tmp_path / 'small')!r}, Perceptron())\n"
        "sys.exit(not torch.equal(model(pair['x']), pair['y']))\n"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


@pytest.mark.filterwarnings("ignore:Expected the backend rowloop of the layer 'fc2'")
def test_a_saved_backend_that_is_missing_is_replaced_loudly(
    tmp_path: Path, pays: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is computed densely, with a warning that says so."""
    pays("fc1 fc2")
    model, x, pruned = pruned_perceptron()
    pruned.save(tmp_path / "small")
    monkeypatch.setattr(type(ROWLOOP), "available", lambda self: "no loops here.")
    with pytest.warns(UserWarning, match=r"Expected the backend rowloop of the layer 'fc1'.*no loops here"):
        again = load(tmp_path / "small", model)
    assert sparse_layers(again)["fc1"].backend == DENSE
    assert relative(again(x), pruned.model(x)) < 1e-5


def test_another_network_is_refused_on_loading(tmp_path: Path, pays: Callable[..., None]) -> None:
    """Whose layer has another number of inputs."""
    pays("fc1 fc2")
    _, _, pruned = pruned_perceptron()
    pruned.save(tmp_path / "small")
    other = Perceptron()
    other.fc1 = nn.Linear(40, 200)
    with pytest.raises(FileFormatError, match="pattern of 'fc1'"):
        load(tmp_path / "small", other)


def test_fine_tuning_keeps_the_pattern(pays: Callable[..., None]) -> None:
    """Block-sparse layers train their values, and zeros in dense layers stay."""
    pays("fc1")
    data = [(torch.randn(64, 96), torch.randint(0, 10, (64,))) for _ in range(3)]
    _, _, pruned = pruned_perceptron(data=data, finetune=FineTune(epochs=1, lr=0.1))
    layer = sparse_layers(pruned.model)["fc1"]
    untrained = pruned.structures.masks(pruned.selection)
    assert isinstance(layer, BlockSparseLinear)
    dense = layer.to_dense()
    assert isinstance(dense, nn.Linear)
    assert not dense.weight[~untrained["fc1.weight"]].any()
    assert not pruned.model.fc2.weight[~untrained["fc2.weight"]].any()


@pytest.mark.parametrize("cap", [0.25, 0.1, 0.777, 1.0, 9000])
def test_a_density_is_never_exceeded(cap: float, pays: Callable[..., None]) -> None:
    """And is used up to less than one block; the kept entries are those of the masks."""
    pays("")
    model, x = Perceptron().eval(), torch.randn(8, 96)
    structures = blocks(model, (64, 1), example=x)
    pruned = solve(model, Budget(density=cap), structures=structures, example=x, progress=False)
    total = 96 * 200 + 200 * 130 + 130 * 10
    masks = pruned.structures.masks(pruned.selection)
    kept = sum(int(mask.sum()) for mask in masks.values())
    kept += sum(p.numel() for n, p in model.named_parameters() if n not in masks and p.ndim == 2)
    allowed = cap if isinstance(cap, int) else int(cap * total + 1e-9)
    assert allowed - 64 < kept <= allowed
    (row,) = [row for row in pruned.report.costs if row.resource == "density"]
    assert (row.before, row.predicted) == (total, kept)


def test_a_density_of_channels_is_refused() -> None:
    """Their weights lie in several layers; the message names what to do."""
    model, x = Perceptron().eval(), torch.randn(8, 96)
    with pytest.raises(ValueError, match=r"Expected structures inside weights .* Got channels\. Cap params"):
        solve(model, Budget(density=0.5), structures=channels(model, x), example=x, progress=False)


def test_a_density_below_one_block_keeps_none(pays: Callable[..., None]) -> None:
    """A cap that no block fits keeps none, which is a choice as well."""
    pays("")
    model, x = Perceptron().eval(), torch.randn(8, 96)
    structures = blocks(model, (64, 1), example=x)
    pruned = solve(model, Budget(density=1), structures=structures, example=x, progress=False)
    assert not pruned.selection.any()


class Large(nn.Module):
    """Layers of a size at which blocks pay."""

    def __init__(self, pictures: bool) -> None:
        super().__init__()
        self.pictures = pictures
        if pictures:
            self.body = nn.Sequential(
                nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 1), nn.ReLU()
            )
        else:
            self.body = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU())
        self.head = nn.Linear(128 if pictures else 512, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y.mean(dim=(2, 3)) if self.pictures else y)


@needs_jit
@pytest.mark.parametrize("pictures", [False, True], ids=["perceptron", "convolutions"])
def test_the_whole_line(tmp_path: Path, pictures: bool) -> None:
    """A quarter of the weights: within budget, equal to masked, measured faster, and no shipped layer is slower."""
    model = Large(pictures).eval()
    x = torch.randn(2, 64, 28, 28) if pictures else torch.randn(128, 512)
    structures = blocks(model, (64, 1), example=x, keep_whole=["head"])
    selected = solve(model, Budget(density=0.25), structures=structures, example=x, progress=False)
    assert selected.built_as == "block-sparse"
    reference = masked(model, structures, selected.selection)
    with torch.no_grad():
        assert relative(selected.model(x), reference(x)) < 1e-4
    # Measured again, apart from the measurement that chose them; a busy machine gets a second and a third look.
    shipped = set(sparse_layers(selected.model))
    assert shipped
    for look in range(3):
        again = compile(model, structures, selected.selection, x, cache=tmp_path / f"again{look}")
        ratios = {one.name: one.ratio for one in again.tuned if one.name in shipped}
        if max(ratios.values()) <= 1.0:
            break
    assert ratios.keys() == shipped and max(ratios.values()) <= 1.0
    assert "block-sparse" in str(selected)
