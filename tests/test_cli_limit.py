"""``structprune limit``: what it prints and writes, its messages, and what an interruption leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune.cli.limit as command
from structprune.cli import commands, main
from structprune.limit import Limit
from structprune.structures import Structures
from tests.test_limit_value import small_limit

# What a user has in the folder where the command is typed.
MODULE = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def images():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(16, 6, generator=generator) for _ in range(6)]
    return [(batch, batch[:, :3].argmax(1)) for batch in inputs]


def pictures():
    return [(batch[:, :4].reshape(16, 1, 2, 2).repeat(1, 1, 2, 2), targets) for batch, targets in batches()]


def shuffled():
    dataset = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches())))
    return torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)


def squared(output, target):
    return ((output - torch.nn.functional.one_hot(target, 3)) ** 2).mean()
"""
NETWORK = ("--model", "limitnet:make", "--data", "limitnet:batches")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder with the user's module, with the import path put back."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "limitnet.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A thousand products with small matrices are slowed down many times by threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a limit made by hand in the place of the long work; returns what it is called with."""
    seen: dict[str, Any] = {}

    def pruning_limit(model: nn.Module, data: Any, loss: Any, **options: Any) -> Limit:
        seen.update(model=model, data=data, loss=loss, **options)
        return small_limit()

    monkeypatch.setattr(command, "pruning_limit", pruning_limit)
    return seen


def run(*arguments: object) -> int:
    """Run a command in this process; returns its exit code, also where argparse raises it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


# ---------------------------------------------------------------- the whole way


def test_the_limit_of_a_network_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With real work: a screen of text, the sentence, and two files that hold the same numbers."""
    out = tmp_path / "limit"
    options = ["--epsilon", "0.05", "--estimators", "paper", "generic", "--probes", "2", "--budget-keep", "30%"]
    assert run("limit", *NETWORK, *options, "--out", out, "--quiet") == 0
    shown = capsys.readouterr().out
    limit = Limit.from_json(out / "limit.json")
    assert str(limit) in shown and limit.sentence(0.3) in shown
    assert [one.name for one in limit.estimates] == ["paper", "generic"]
    assert limit.weights == 6 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3
    page = (out / "limit.html").read_text()
    assert page.startswith("<!doctype html>") and "Your budget keeps 30.0 %" in page
    assert sorted(path.name for path in out.iterdir()) == ["limit.html", "limit.json"]


def test_a_solve_is_judged_by_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command wrote, named as folder or file, gives the line of a solve's report."""
    options = ["--structures", "channels", "--epsilon", "0.05", "--estimators", "generic", "--probes", "2", "--quiet"]
    assert run("limit", *NETWORK, *options, "--out", tmp_path / "limit") == 0
    for number, path in enumerate((tmp_path / "limit", tmp_path / "limit" / "limit.json")):
        out = tmp_path / f"small{number}"
        asked = ["--budget", "params=0.5", "--limit", path, "--out", out, "--quiet"]
        assert run("solve", "--model", "limitnet:make", *asked) == 0
        assert "the generic limit is" in json.loads((out / "report.json").read_text())["limit_sentence"]
    assert run("solve", "--model", "limitnet:make", "--budget", "params=0.5", "--limit", "no", "--out", "x") == 1
    assert capsys.readouterr().err.startswith("error: Expected a limit.json. Got 'no'")


# ---------------------------------------------------------------- arguments


def test_every_argument_arrives(given: dict[str, Any]) -> None:
    """Loss, patterns, settings and seed are handed on; the network is in evaluation mode."""
    options = ["--loss", "limitnet:squared", "--free", "0", "4.*", "--epsilon", "0.01", "--curvature", "layerwise"]
    options += ["--estimators", "trust", "constructive", "--tau", "0.2", "--probes", "3", "--steps", "17"]
    assert run("limit", *NETWORK, *options, "--confidence", "0.9", "--seed", "5", "--quiet") == 0
    assert given["loss"].__name__ == "squared" and not given["model"].training and len(given["data"]) == 6
    expected = {
        "structures": None, "free": ["0", "4.*"], "epsilon": 0.01, "curvature": "layerwise", "tau": (0.2,), "probes": 3,
        "steps": 17, "estimators": ("trust", "constructive"), "confidence": 0.9, "seed": 5, "progress": False,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


def test_the_defaults_are_the_functions(given: dict[str, Any]) -> None:
    """What is not said is as in Python."""
    assert run("limit", *NETWORK) == 0
    assert given["loss"] is None and given["structures"] is None and given["progress"] is True
    defaults = {
        "epsilon": "batch_std", "curvature": "auto", "estimators": ("paper", "generic", "trust", "constructive"),
        "tau": (0.05, 0.1), "probes": 8, "steps": 64, "confidence": 0.95, "seed": 0,
    }  # fmt: skip
    assert {name: given[name] for name in defaults} == defaults


@pytest.mark.parametrize(
    ("options", "kind", "count"),
    [
        (["channels"], "channels", 28),
        (["blocks", "--block", "4x3"], "blocks", 8 + 18 + 4),
        (["blocks"], "blocks", 3),
        (["nm", "--nm", "1:4"], "nm", 16 * 12 + 12 * 3),
        (["nm"], "nm", 16 * 12 + 12 * 3),
    ],
)
def test_structures_are_made(options: list[str], kind: str, count: int, given: dict[str, Any]) -> None:
    """Of the kind and size that the arguments say."""
    assert run("limit", *NETWORK, "--structures", *options, "--quiet") == 0
    structures = given["structures"]
    assert isinstance(structures, Structures)
    assert (structures.kind, structures.n) == (kind, count)
    if kind == "nm":
        assert [int(axis.levels[0]) * 4 // axis.size for axis in structures.axes] == [1 if "1:4" in options else 2] * 2


def test_kernels_are_made(given: dict[str, Any]) -> None:
    """One for each pair of channels of the convolution."""
    assert run("limit", "--model", "limitnet:images", "--data", "limitnet:pictures", "--structures", "kernels") == 0
    assert (given["structures"].kind, given["structures"].n) == ("kernels", 4)


MISUSED = {
    "no data": (["--model", "a:b"], "--data"),
    "structures": ([*NETWORK, "--structures", "filters"], "channels"),
    "block": ([*NETWORK, "--structures", "blocks", "--block", "16"], "16x16"),
    "empty block": ([*NETWORK, "--structures", "blocks", "--block", "0x4"], "16x16"),
    "block alone": ([*NETWORK, "--block", "8x8"], "--structures blocks"),
    "nm alone": ([*NETWORK, "--structures", "channels", "--nm", "2:4"], "--structures nm"),
    "epsilon": ([*NETWORK, "--epsilon", "small"], "batch_std"),
    "estimator": ([*NETWORK, "--estimators", "best"], "constructive"),
    "budget": ([*NETWORK, "--budget-keep", "8"], "0.08 or 8%"),
    "budget in words": ([*NETWORK, "--budget-keep", "half"], "0.08 or 8%"),
    "probes": ([*NETWORK, "--probes", "0"], "above 0"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_misuse_is_exit_code_2(case: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The usage and what is wrong, before anything is done."""
    arguments, expected = MISUSED[case]
    assert run("limit", *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: structprune") and expected in shown
    assert not given


@pytest.mark.parametrize("text", ["0.08", "8%"])
def test_fractions_are_read(text: str) -> None:
    """As numbers and in per cent."""
    words = ["limit", *NETWORK, "--budget-keep", text]
    assert commands.parser().parse_args(words).budget_keep == pytest.approx(0.08)


FAILING = {
    "shuffled": (["--model", "limitnet:make", "--data", "limitnet:shuffled"], "the same in every pass"),
    "epsilon": ([*NETWORK, "--epsilon", "-1"], "epsilon > 0"),
    "confidence": ([*NETWORK, "--confidence", "95"], "between 0 and 1"),
    "weights": ([*NETWORK, "--weights", "none.pt"], "file of weights"),
}


@pytest.mark.parametrize("case", FAILING)
def test_failures_are_one_message(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error with exit code 1, and nothing is written."""
    arguments, expected = FAILING[case]
    assert run("limit", *arguments, "--quiet", "--out", tmp_path / "limit") == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("error: Expected ") and expected in streams.err
    assert "Traceback" not in streams.err and streams.out == ""
    assert not (tmp_path / "limit").exists()


# ---------------------------------------------------------------- what is shown and written


def test_json_is_alone_on_the_output(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program can read it; the sentence and the place of the files are on standard error."""
    assert run("limit", *NETWORK, "--json", "--budget-keep", "0.08", "--out", tmp_path / "limit") == 0
    streams = capsys.readouterr()
    assert Limit.from_json(streams.out) == small_limit()
    assert small_limit().sentence(0.08) in streams.err and "Saved in" in streams.err


def test_a_limit_without_a_folder_writes_nothing(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is printed, and that is all."""
    assert run("limit", *NETWORK) == 0
    assert str(small_limit()) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["user"]


def test_an_earlier_limit_stops_the_command_at_once(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work, unless --overwrite says otherwise; other files of the folder are left alone."""
    out = tmp_path / "results"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    assert run("limit", *NETWORK, "--out", out) == 0
    given.clear()
    assert run("limit", *NETWORK, "--out", out) == 1
    assert "--overwrite" in capsys.readouterr().err and not given
    assert run("limit", *NETWORK, "--out", out, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["limit.html", "limit.json", "mine.txt"]


@pytest.mark.parametrize("step", ["write_atomically", "page"])
def test_an_interruption_leaves_nothing_half_written(
    step: str,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C while the result is written is exit code 130 without a folder."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, step, interrupt)
    assert run("limit", *NETWORK, "--out", tmp_path / "results" / "limit") == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not (tmp_path / "results" / "limit").exists()


def test_an_interrupted_second_file_takes_the_first_with_it(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a new folder there are both files or there is no folder."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Limit, "save", interrupt)
    assert run("limit", *NETWORK, "--out", tmp_path / "limit") == 130
    assert not (tmp_path / "limit").exists()
