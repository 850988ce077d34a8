"""Saved networks: equal bit for bit in a fresh process, refused when they are not whole, never half written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import structprune.io
from structprune import Budget, FileFormatError, FineTune, Magnitude, Pruned, blocks, load, nm, solve
from structprune.axes import as_example
from structprune.axes.graph import run
from structprune.report import Report
from tests.cases import BY_NAME

ROOT = Path(__file__).resolve().parent.parent

# Loads every folder named on the command line and compares with the outputs that were written beside it.
FRESH = """
import sys
from pathlib import Path
import torch
from structprune import load
from structprune.axes import as_example
from structprune.axes.graph import run
from tests.cases import BY_NAME

torch.set_num_threads(int(sys.argv[1]))
for folder in map(Path, sys.argv[2:]):
    case = BY_NAME[folder.name.split("-")[0]]
    model = load(folder, case.build())
    for inputs, wanted in torch.load(folder.with_suffix(".pt"), weights_only=True):
        got = run(model, as_example(inputs))
        assert got.dtype == wanted.dtype and torch.equal(got, wanted), folder.name
    print(folder.name, type(model).__name__)
"""


def pruned_case(name: str, structures: Callable[..., Any] | None = None, **options: Any) -> Pruned:
    """Prune a small network to about two thirds of its parameters."""
    model, example = BY_NAME[name].make()
    found = None if structures is None else structures(model, example=example)
    budget = Budget(params=0.7)
    criterion = Magnitude()
    return solve(model, budget, structures=found, example=example, criterion=criterion, progress=False, **options)


def fine_tuned() -> Pruned:
    """Prune the plain network and train it."""
    _, images = BY_NAME["plain"].make()
    data = [(torch.cat([images] * 4), torch.arange(8) % 5)] * 2
    return pruned_case("plain", data=data, loss=F.cross_entropy, finetune=FineTune(epochs=1, lr=0.1))


SAVED: dict[str, tuple[Callable[[], Pruned], str]] = {
    "plain-module": (lambda: pruned_case("plain"), "module"),
    "plain-tuned": (fine_tuned, "module"),
    "lstm-module": (lambda: pruned_case("lstm"), "module"),
    "tied_embeddings-graph": (lambda: pruned_case("tied_embeddings"), "graph"),
    "plain-blocks": (lambda: pruned_case("plain", lambda m, example: blocks(m, (2, 2), example=example)), "masked"),
    "mlp-nm": (lambda: pruned_case("mlp", lambda m, example: nm(m, 1, 2, example=example)), "masked"),
}
MORE: dict[str, tuple[Callable[[], Pruned], str]] = {
    "residual_padded-module": (lambda: pruned_case("residual_padded"), "module"),
    "gru-module": (lambda: pruned_case("gru"), "module"),
    "recommender-module": (lambda: pruned_case("recommender"), "module"),
    "fused_attention-graph": (lambda: pruned_case("fused_attention"), "graph"),
    "torch_encoder-graph": (lambda: pruned_case("torch_encoder"), "graph"),
}


@pytest.fixture(scope="module")
def plain() -> Pruned:
    """Return a pruned plain network."""
    return pruned_case("plain")


@pytest.fixture
def folder(plain: Pruned, tmp_path: Path) -> Path:
    """Return the folder of a saved plain network."""
    return plain.save(tmp_path / "small")


def names_in(path: Path) -> set[str]:
    """Return the names in a folder, hidden ones included."""
    return {entry.name for entry in path.iterdir()}


@pytest.mark.parametrize("saved", [SAVED, pytest.param(MORE, marks=pytest.mark.slow)], ids=["kinds", "more"])
def test_loaded_networks_are_equal_bit_for_bit(tmp_path: Path, saved: dict) -> None:
    """In a fresh process every kind of network gives the saved one's outputs, on the example and on other batches."""
    for name, (make, built_as) in saved.items():
        pruned = make()
        assert pruned.built_as == built_as, name
        assert pruned.report.costs[1].predicted < pruned.report.costs[1].before, name
        pruned.save(tmp_path / name)
        inputs = list(pruned.example.args)
        more = [torch.cat([tensor, tensor.flip(0), tensor[:1]]) for tensor in inputs]
        pairs = [(tuple(given), run(pruned.model, as_example(tuple(given)))) for given in (inputs, more)]
        torch.save(pairs, tmp_path / f"{name}.pt")
    folders = [str(tmp_path / name) for name in saved]
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, str(torch.get_num_threads()), *folders],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert [line.split()[0] for line in answer.stdout.splitlines()] == list(saved)


def test_loading_leaves_the_given_model_alone(folder: Path) -> None:
    """The dense network keeps its shapes, its weights and its mode; the loaded one is in evaluation mode."""
    dense, _ = BY_NAME["plain"].make()
    dense.train()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    loaded = load(folder, dense)
    assert dense.training and not loaded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


class TiedTokens(nn.Module):
    """Predicts the next token by the embedding that it was read with."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of each token."""
        return self.out(torch.tanh(self.hidden(self.embedding(tokens))))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    """A weight with two names is one tensor in the file and one parameter after loading."""
    tokens = torch.arange(10).reshape(2, 5)
    pruned = solve(TiedTokens(), Budget(params=0.7), example=tokens, progress=False)
    assert pruned.built_as == "module" and pruned.model.get_submodule("embedding").embedding_dim in range(1, 8)
    path = pruned.save(tmp_path / "tied")
    assert json.loads((path / "structure.json").read_text())["aliases"] == {"out.weight": "embedding.weight"}
    loaded = load(path, TiedTokens())
    assert loaded.get_parameter("out.weight") is loaded.get_parameter("embedding.weight")
    assert torch.equal(loaded(tokens), pruned.model(tokens))


def test_a_loaded_network_can_be_trained(folder: Path) -> None:
    """Parameters that required gradients still do, so training goes on."""
    loaded = load(folder, BY_NAME["plain"].build()).train()
    loaded(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_the_layers_tell_their_new_sizes(folder: Path) -> None:
    """The integers of loaded layers agree with their weights."""
    for module in load(folder, BY_NAME["plain"].build()).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)


def test_the_report_is_saved_too(plain: Pruned, folder: Path) -> None:
    """The folder's report is the run's."""
    assert Report.from_json(folder / "report.json") == plain.report
    assert names_in(folder) == {"weights.safetensors", "structure.json", "report.json", "report.html"}


def test_others_may_read_the_files(folder: Path) -> None:
    """Everyone who may enter the folder may read what is in it."""
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in [folder, *folder.iterdir()])


# ---------------------------------------------------------------- files that are not what they must be


def cut(path: Path) -> None:
    """Drop the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes fields of a folder's structure.json; None removes one."""

    def edit(folder: Path) -> None:
        path = folder / "structure.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


def foreign_weights(folder: Path) -> None:
    """Put another network's weights into the folder."""
    save_file({"other.weight": torch.ones(2, 2)}, folder / "weights.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights truncated": (lambda folder: cut(folder / "weights.safetensors"), "weights.safetensors.*checksum"),
    "weights foreign": (foreign_weights, "weights.safetensors.*checksum"),
    "weights missing": (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors.*Got none"),
    "structure truncated": (lambda folder: cut(folder / "structure.json"), "structure.json"),
    "structure missing": (lambda folder: (folder / "structure.json").unlink(), "structure.json"),
    "structure empty": (lambda folder: (folder / "structure.json").write_text(""), "structure.json"),
    "structure a list": (lambda folder: (folder / "structure.json").write_text("[1]"), "another file"),
    "structure binary": (lambda folder: (folder / "structure.json").write_bytes(b"\xff\xfe\x00"), "structure.json"),
    "foreign": (edited(format="something-else"), "another file"),
    "newer": (edited(version=99), "version 1 .* Got 99"),
    "no version": (edited(version=None), "version 1 .* Got None"),
    "no tensors": (edited(tensors=None), "tensors"),
    "fields of another kind": (edited(tensors=[1, 2], aliases="x"), "tensors, aliases"),
    "a tensor too many": (edited(tensors={"conv9.weight": [1]}), "tensors"),
    "unknown build": (edited(built_as="magic"), "built_as"),
    "gone": (lambda folder: shutil.rmtree(folder), "folder written by save"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(folder: Path, damage: str) -> None:
    """A truncated, foreign, incomplete or newer folder is refused with a message that names what is wrong."""
    spoil, expected = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(FileFormatError, match=expected) as caught:
        load(folder, BY_NAME["plain"].build())
    assert str(caught.value).startswith("Expected ") and " Got " in str(caught.value)


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    """A network that was built as a graph needs its whole program; it needs no model."""
    path = pruned_case("fused_attention").save(tmp_path / "graph")
    assert load(path).train().eval()(torch.randn(3, 3, 8, 8)).shape[0] == 3
    cut(path / "program.pt2")
    with pytest.raises(FileFormatError, match=r"program\.pt2.*checksum"):
        load(path)


def test_a_model_is_asked_for(folder: Path) -> None:
    """Without the network's class there is nothing to load into, and the message names the class."""
    with pytest.raises(ValueError, match=r"freshly made PlainCNN"):
        load(folder)


@pytest.mark.parametrize("other", ["residual", "mlp", "flatten"])
def test_other_networks_are_refused(folder: Path, other: str) -> None:
    """A network with other tensors is refused and both classes are named."""
    with pytest.raises(ValueError, match=r"Expected a PlainCNN .* Got a \w+ that differs in"):
        load(folder, BY_NAME[other].build())


def test_narrower_networks_are_refused(folder: Path) -> None:
    """A network that is narrower than the pruned one is not the one it was pruned from."""
    model = BY_NAME["plain"].build()
    assert isinstance(model.conv1, nn.Conv2d)
    model.conv1.weight = nn.Parameter(torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        load(folder, model)


# ---------------------------------------------------------------- what was there before


def test_an_existing_folder_is_kept(plain: Pruned, folder: Path) -> None:
    """Saving where something is raises, whatever it is, and changes nothing."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite"):
        plain.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_saved_network_can_be_overwritten(plain: Pruned, folder: Path) -> None:
    """With overwrite the new network takes the folder's place and nothing of the old one stays."""
    (folder / "notes.txt").write_text("old")
    plain.save(folder, overwrite=True)
    assert "notes.txt" not in names_in(folder)
    assert names_in(folder.parent) == {"small"}
    load(folder, BY_NAME["plain"].build())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_only_saved_networks_are_overwritten(plain: Pruned, tmp_path: Path, kind: str) -> None:
    """A folder or file that is no saved network is left alone even with overwrite."""
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
    kept = path / "years.txt" if kind == "folder" else path
    kept.write_text("of work")
    with pytest.raises(FileExistsError, match="something else"):
        plain.save(path, overwrite=True)
    assert kept.read_text() == "of work"


@pytest.mark.parametrize("step", ["save_file", "_digest", "_swap"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_save_leaves_nothing(
    plain: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    """Whatever stops a save at whatever step, neither the folder nor a temporary one is there afterwards."""

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(structprune.io, step, stop)
    with pytest.raises(error):
        plain.save(tmp_path / "small")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("moment", [1, 2])
def test_an_interrupted_overwrite_keeps_the_old_network(
    plain: Pruned, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """If the exchange of folders is interrupted before its first or second move, the old network stands as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    moves = 0
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == moment + 1:  # the first move is the report's, into the temporary folder
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(structprune.io.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plain.save(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names_in(folder.parent) == {"small"}


def test_folders_above_are_made(plain: Pruned, tmp_path: Path) -> None:
    """Saving makes the folders above."""
    assert plain.save(tmp_path / "a" / "b" / "c").is_dir()


def test_values_are_exact(tmp_path: Path, plain: Pruned) -> None:
    """Every parameter and buffer comes back with its very bits, also those that state_dict leaves out."""
    loaded = load(plain.save(tmp_path / "small"), BY_NAME["plain"].build())
    saved: dict[str, Tensor] = {**dict(plain.model.named_parameters()), **dict(plain.model.named_buffers())}
    again = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)
