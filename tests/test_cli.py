"""The command line: each command, its messages and exit codes, and what an interruption leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import structprune.io
from structprune import Budget, load
from structprune.cli import commands, main
from structprune.cli.given import example_of, is_reference, is_shape, made, named
from structprune.cli.inspection import inspect
from structprune.costs import costs, evaluate
from structprune.report import Report
from structprune.structures import channels
from tests.cases import BY_NAME
from tests.test_report import small_report

ROOT = Path(__file__).resolve().parent.parent

# What a user has in the folder where the command is typed.
MODULE = '''
import os, time
from pathlib import Path

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


class Wide(nn.Module):
    """A hidden layer of groups of rows that read the same inputs, in a mixed order."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 48), nn.Linear(48, 40)
        rows = torch.arange(48) * 7 % 48
        with torch.no_grad():
            self.first.weight.mul_((rows[:, None] // 16 == torch.arange(32) % 3) + 0.01)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def wide():
    torch.manual_seed(0)
    return Wide()


def make():
    return Tiny()


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 6, generator=generator), torch.arange(16) % 3) for _ in range(4)]


def others():
    return [(torch.ones(8, 6), torch.arange(8) % 3)]


def once():
    return iter(batches())


def image():
    return torch.zeros(5, 6)


def squared(output, target):
    return ((output - torch.nn.functional.one_hot(target, 3)) ** 2).mean()


def fails():
    raise KeyError("weights of last week")


class Slow:
    """Tells that it is being read, then takes its time."""

    def __iter__(self):
        for batch in batches():
            yield batch
            Path(os.environ["MARKER"]).touch()
            time.sleep(30)


def slow():
    return Slow()


class Holder:
    make = staticmethod(make)
'''


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the user's module, which can be imported under one name in this session."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tinynet.py").write_text(MODULE)
    (folder / "broken_on_import.py").write_text("import a_module_that_nobody_has")
    return folder


@pytest.fixture(autouse=True)
def here(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in the user's folder, with the import path put back."""
    monkeypatch.chdir(user_folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(*arguments: object) -> int:
    """Run a command in this process; returns its exit code, also where argparse raises it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def solve_tiny(out: Path, *more: object) -> int:
    """Solve the user's network to half its macs, by magnitude."""
    return run("solve", "--model", "tinynet:make", "--budget", "macs=0.5", "--out", out, "--quiet", *more)


# ---------------------------------------------------------------- solve


def test_solve_saves_what_load_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data-free, network and report are saved and the report is printed; the network loads and is within budget."""
    out = tmp_path / "small"
    assert run("solve", "--model", "tinynet:make", "--budget", "macs=0.5,params=60%", "--out", out) == 0
    shown = capsys.readouterr().out
    assert "Magnitude" in shown and "Saved in" in shown
    report = Report.from_json(out / "report.json")
    assert {row.resource for row in report.costs if row.allowed is not None} == {"macs", "params"}
    assert all(row.allowed is None or row.counted <= row.allowed for row in report.costs if row.counted is not None)
    pruned = load(out, made("tinynet:make"))
    assert pruned(torch.zeros(2, 6)).shape == (2, 3)


def test_solve_uses_every_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data, validation, loss, criterion, fine-tuning, widths and layers that stay whole are all taken in."""
    out = tmp_path / "small"
    options = ["--data", "tinynet:batches", "--validation", "tinynet:others", "--loss", "tinynet:squared"]
    options += ["--criterion", "fisher", "--finetune", "1", "--lr", "0.05", "--seed", "3", "--example", "4x6"]
    assert solve_tiny(out, *options, "--keep-whole", "last", "--multiple-of", "4") == 0
    assert capsys.readouterr().out == ""
    report = Report.from_json(out / "report.json")
    assert report.criterion == "Fisher" and report.seed == 3
    assert [row.stage for row in report.quality] == ["dense", "pruned", "fine-tuned"]
    assert {row.examples for row in report.quality} == {8}
    assert [axis.after % 4 for axis in report.axes] == [0] * len(report.axes)
    pruned = load(out, made("tinynet:make"))
    assert pruned.get_submodule("second").out_features == 12  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("name", ["magnitude", "taylor", "bn-scale", "random", "reconstruction"])
def test_every_criterion_has_a_name(name: str) -> None:
    """Each name of --criterion makes a criterion of that name; the seed goes where something is drawn."""
    made_one = commands.criterion(name, seed=5)
    assert name.replace("-", "") in type(made_one).__name__.lower()
    assert getattr(made_one, "seed", 5) == 5


def test_equal_seeds_give_equal_networks(tmp_path: Path) -> None:
    """The seed decides the random weights of a network without any, and everything after."""
    for name in ("a", "b"):
        assert solve_tiny(tmp_path / name, "--seed", "7") == 0
    a, b = (load(tmp_path / name, made("tinynet:make")).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def solve_wide(out: Path, *more: object) -> int:
    """Solve the wide network to a third of the weights in blocks of 16 outputs."""
    options = ["--model", "tinynet:wide", "--example", "8x32", "--budget", "density=0.34", "--blocks", "16x1"]
    return run("solve", *options, "--out", out, *more)


def test_solve_cuts_blocks(tmp_path: Path) -> None:
    """Of the layers that are named, and what is saved is loaded with as many weights as were allowed."""
    assert solve_wide(tmp_path / "small", "--layers", "first", "--quiet") == 0
    report = Report.from_json(tmp_path / "small" / "report.json")
    assert report.kind == "blocks"
    (row,) = [row for row in report.costs if row.resource == "density"]
    assert row.before == 32 * 48 and row.predicted <= 0.34 * row.before
    model = load(tmp_path / "small", named("tinynet:wide")())
    assert int((model.state_dict()["first.weight"] != 0).sum()) == row.predicted
    assert bool((model.state_dict()["last.weight"] != 0).all())


def test_solve_arranges_before_it_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kept shares are shown, and the arranged network stays far closer to the dense one."""
    assert solve_wide(tmp_path / "arranged", "--layers", "first", "--arrange") == 0
    assert re.search(r"first  0\.\d+ -> (0\.99|1\.00)\d  folded", capsys.readouterr().out)
    assert solve_wide(tmp_path / "plain", "--layers", "first", "--quiet") == 0
    dense, x = named("tinynet:wide")().eval(), torch.randn(8, 32)
    with torch.no_grad():
        apart = [
            float((load(tmp_path / name, named("tinynet:wide")())(x) - dense(x)).norm())
            for name in ("arranged", "plain")
        ]
    assert apart[0] < apart[1] / 5


def test_solve_arranges_all_but_what_is_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layer kept whole is neither cut nor ordered."""
    assert solve_wide(tmp_path / "small", "--arrange", "--keep-whole", "last") == 0
    shown = capsys.readouterr().out
    assert "  first  " in shown and "  last  " not in shown


def test_an_existing_folder_stops_solve_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there is refused before the network is made, unless --overwrite says otherwise."""
    (tmp_path / "small").mkdir()
    options = ["--model", "tinynet:fails", "--budget", "macs=0.5", "--out", tmp_path / "small"]
    assert run("solve", *options) == 1
    assert "overwrite" in capsys.readouterr().err
    assert run("solve", *options, "--overwrite") == 1
    assert "something else" in capsys.readouterr().err


def test_an_earlier_result_is_overwritten(tmp_path: Path) -> None:
    """With --overwrite the second result stands in the first one's place."""
    assert solve_tiny(tmp_path / "small", "--seed", "1") == 0
    assert solve_tiny(tmp_path / "small", "--seed", "2", "--overwrite") == 0
    assert Report.from_json(tmp_path / "small" / "report.json").seed == 2


def test_weights_are_loaded(tmp_path: Path) -> None:
    """The pruned network holds the file's weights, whichever of the two formats it has."""
    torch.manual_seed(99)
    dense = made("tinynet:make")
    save_file(dense.state_dict(), tmp_path / "dense.safetensors")
    torch.save({"epoch": 3, "state_dict": dense.state_dict()}, tmp_path / "dense.pt")
    bias = dense.last.bias.detach()
    for name in ("dense.safetensors", "dense.pt"):
        out = tmp_path / f"of-{name}"
        assert solve_tiny(out, "--weights", tmp_path / name) == 0
        assert torch.equal(load(out, made("tinynet:make")).get_parameter("last.bias"), bias)


# ---------------------------------------------------------------- inspect


def test_inspect_shows_axes_costs_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """The tables name the axes, the dense costs, and why the outputs stay."""
    assert run("inspect", "--model", "tinynet:make", "--example", "2x6") == 0
    shown = capsys.readouterr().out
    for part in ("Tiny", "324 MAC", "first", "second", "output of the network", "last.weight[0]", "Every operator"):
        assert part in shown


def test_inspect_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json everything is there for a program, and the sums are right: half of 16 hidden units is 45 %."""
    assert run("inspect", "--model", "tinynet:Holder.make", "--data", "tinynet:batches", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "structprune-inspection"
    assert found["dense"]["macs"] == 6 * 16 + 16 * 12 + 12 * 3
    first = next(axis for axis in found["axes"] if axis["name"] == "first")
    assert first["size"] == 16
    assert {"first.weight[0]", "norm.running_var[0]", "second.weight[1]"} <= set(first["members"])
    assert first["halved"]["macs"] == pytest.approx((6 * 8 + 8 * 12) / 324)
    assert first["removed"]["macs"] == pytest.approx((6 * 16 + 16 * 12) / 324)
    assert first["removed"]["params"] == pytest.approx((7 * 16 + 2 * 16 + 16 * 12) / found["dense"]["params"])
    assert found["pinned"] and found["without_rule"] == {}


def test_inspect_follows_the_wishes(capsys: pytest.CaptureFixture[str]) -> None:
    """Layers kept whole are listed with that reason, and widths follow --multiple-of."""
    options = ["--example", "tinynet:image", "--keep-whole", "second.weight", "--multiple-of", "8", "--json"]
    assert run("inspect", "--model", "tinynet:make", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"] == []
    reasons = {dimension: row["reason"] for row in found["pinned"] for dimension in row["dimensions"]}
    assert "kept whole" in reasons["second.weight[0]"]


def test_inspection_agrees_with_the_costs() -> None:
    """What an axis saves when removed is the difference of the cost polynomials."""
    model, example = BY_NAME["residual"].make()
    structures = channels(model, example)
    terms = costs(structures, model, "macs")
    full = [axis.size for axis in structures.axes]
    found = inspect(model, structures)
    assert found.dense["macs"] == evaluate(terms, full)
    for number, axis in enumerate(found.axes):
        gone = 1 - evaluate(terms, [*full[:number], 0, *full[number + 1 :]]) / found.dense["macs"]
        assert axis.removed["macs"] == pytest.approx(gone)


# ---------------------------------------------------------------- report


def test_report_prints_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder or a file is printed; --html writes the page."""
    small_report().to_json(tmp_path / "report.json")
    for path in (tmp_path, tmp_path / "report.json"):
        assert run("report", path, "--html", tmp_path / "page.html") == 0
        assert "Digits" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": "structprune-report", "format_version": 99}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing, empty, foreign or newer file gives one message."""
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert run("report", tmp_path) == 1
    assert re.match(r"error: Expected .* Got .*\n$", capsys.readouterr().err)


# ---------------------------------------------------------------- messages and exit codes

FAILING = {
    "module": (["--model", "nowhere:make"], "No module named 'nowhere'"),
    "module that fails": (["--model", "broken_on_import:make"], "a_module_that_nobody_has"),
    "attribute": (["--model", "tinynet:unmade"], "Expected 'unmade' in tinynet"),
    "no function": (["--model", "math:pi"], "Got a float"),
    "factory that fails": (["--model", "tinynet:fails"], "KeyError: 'weights of last week'"),
    "no network": (["--model", "tinynet:batches"], "torch.nn.Module. Got a list"),
    "data once": (["--model", "tinynet:make", "--data", "tinynet:once"], "several times"),
    "no data": (["--model", "tinynet:make", "--data", "tinynet:make"], "batches of \\(inputs, targets\\)"),
    "loss": (["--model", "tinynet:make", "--data", "tinynet:batches", "--loss", "math:pi"], "to be a function"),
    "criterion without data": (["--model", "tinynet:make", "--criterion", "fisher"], "data"),
    "example": (["--model", "tinynet:make", "--example", "2x7"], "example"),
    "pattern": (["--model", "tinynet:make", "--keep-whole", "third"], "Got 'third'"),
    "weights": (["--model", "tinynet:make", "--weights", "none.pt"], "file of weights"),
}


@pytest.mark.parametrize("case", FAILING)
def test_failures_are_one_message(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the user got wrong is said in one message on standard error, exit code 1, and nothing is written."""
    arguments, expected = FAILING[case]
    assert run("solve", *arguments, "--budget", "macs=0.5", "--out", tmp_path / "small", "--quiet") == 1
    streams = capsys.readouterr()
    assert re.search(expected, streams.err) and streams.err.startswith("error: Expected ")
    assert "Traceback" not in streams.err and streams.out == ""
    assert not list(tmp_path.iterdir())


def test_an_impossible_budget_tells_the_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the least that works, and that works."""
    assert run("solve", "--model", "tinynet:make", "--budget", "macs=1", "--out", tmp_path / "small", "--quiet") == 1
    least = re.search(r"Budget\((macs=\d+)\)", capsys.readouterr().err)
    assert least is not None
    assert run("solve", "--model", "tinynet:make", "--budget", least[1], "--out", tmp_path / "small", "--quiet") == 0


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --debug the place in the user's file is shown; the exit code is the same."""
    options = ["--model", "tinynet:fails", "--budget", "macs=0.5", "--out", tmp_path / "small"]
    assert run("solve", *options, "--debug") == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "tinynet.py" in shown


def test_errors_without_words_get_their_name() -> None:
    """An error that says nothing of itself is named, and --debug recommended."""
    assert commands.message(AssertionError()).startswith("AssertionError: no message. Add --debug")
    assert commands.message(RuntimeError("out of paper")) == "RuntimeError: out of paper. Add --debug to see where."
    assert commands.message(ValueError("Expected this. Got that.")) == "Expected this. Got that."


MISUSED = {
    "no command": ([], "COMMAND"),
    "unknown command": (["prune"], "invalid choice"),
    "no budget": (["solve", "--model", "a:b", "--out", "x"], "--budget"),
    "no out": (["solve", "--model", "a:b", "--budget", "macs=0.5"], "--out"),
    "budget": (["solve", "--model", "a:b", "--budget", "flops=0.5", "--out", "x"], "macs"),
    "budget above": (["demo", "--budget", "macs=1.5"], "fraction of at most 1"),
    "model": (["solve", "--model", "mynet", "--budget", "macs=0.5", "--out", "x"], "package.module:function"),
    "example": (["inspect", "--model", "a:b", "--example", "2x-3"], "2x3x32x32"),
    "criterion": (["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--criterion", "l1"], "magnitude"),
    "multiple": (["inspect", "--model", "a:b", "--multiple-of", "0"], "above 0"),
    "seed": (["demo", "--seed", "one"], "invalid int"),
    "lr alone": (
        ["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--data", "a:b", "--lr", "1"],
        "--finetune",
    ),
    "layers alone": (["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--layers", "y"], "--blocks"),
    "arrange alone": (["solve", "--model", "a:b", "--budget", "density=0.5", "--out", "x", "--arrange"], "--blocks"),
    "arrange without density": (
        ["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--blocks", "64x1", "--arrange"],
        "density=0.25",
    ),
    "block size": (["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--blocks", "64"], "64x1"),
    "blocks and widths": (
        ["solve", "--model", "a:b", "--budget", "macs=.5", "--out", "x", "--blocks", "64x1", "--multiple-of", "8"],
        "channels",
    ),
    "tune alone": (["solve", "--model", "a:b", "--budget", "macs=0.5", "--out", "x", "--finetune", "1"], "--data"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_misuse_is_told_apart_from_failure(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that make no command are exit code 2 with the usage and what is wrong."""
    arguments, expected = MISUSED[case]
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: structprune") and expected in shown


@pytest.mark.parametrize("command", [[], ["demo"], ["solve"], ["inspect"], ["limit"], ["report"]])
def test_every_command_helps_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help explains, and its examples are commands that are understood."""
    assert run(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    examples = re.findall(r"^ +structprune ((?:[^\\\n]|\\\n)*)", shown.split("examples:")[1], flags=re.MULTILINE)
    assert examples
    for line in examples:
        words = line.replace("\\\n", " ").replace("'", "").split()
        assert commands.parser().parse_args(words).command.__name__ == f"run_{words[0]}"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the program's name and release."""
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("structprune ")


# ---------------------------------------------------------------- what is named


def test_names_and_shapes_are_told_apart() -> None:
    """A shape is numbers with x between them; a reference is a module and what is in it."""
    assert is_shape("2x3x32x32") and is_shape("7") and not is_shape("0x3") and not is_shape("2x")
    assert is_reference("a.b:c.d") and not is_reference("a.b") and not is_reference("a:b:c") and not is_reference("2:b")


def test_examples_have_the_networks_type() -> None:
    """Noise of a shape is drawn from the seed, in the precision of the weights."""
    model = made("tinynet:make").double()
    drawn = example_of("2x6", model, seed=1)
    assert drawn.shape == (2, 6) and drawn.dtype == torch.float64
    assert torch.equal(drawn, example_of("2x6", model, seed=1))
    assert torch.equal(example_of("tinynet:image", model, seed=1), torch.zeros(5, 6))


def test_dotted_attributes_are_found() -> None:
    """What follows the colon may be inside a class."""
    assert named("tinynet:Holder.make") is named("tinynet:make")


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("step", ["save_file", "_swap"])
def test_an_interrupted_save_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the result is written is exit code 130 without a file or folder left."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(structprune.io, step, interrupt)
    assert solve_tiny(tmp_path / "small") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_solve_leaves_nothing(tmp_path: Path, user_folder: Path) -> None:
    """SIGINT while the data is read: `python -m structprune` ends with 130 at once and leaves nothing behind."""
    out, marker = tmp_path / "results" / "small", tmp_path / "marker"
    out.parent.mkdir()
    arguments = ["solve", "--model", "tinynet:make", "--data", "tinynet:slow", "--budget", "macs=0.5", "--out", out]
    before = set(user_folder.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "structprune", *map(str, arguments)],
        cwd=user_folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MARKER": str(marker), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        shown, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert marker.exists(), told
    assert process.returncode == 130, told
    assert time.monotonic() - sent < 25
    assert told.strip().endswith("interrupted") and "Traceback" not in told and shown == ""
    assert not list(out.parent.iterdir())
    assert set(user_folder.iterdir()) == before


def test_the_module_is_the_command(user_folder: Path) -> None:
    """`python -m structprune` runs in a folder with the user's module and passes the exit code on."""
    command = [sys.executable, "-m", "structprune", "inspect", "--example", "2x6", "--model"]
    for model, code in (("tinynet:make", 0), ("tinynet:unmade", 1)):
        answer = subprocess.run(
            [*command, model],
            cwd=user_folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert answer.returncode == code, answer.stderr


def test_budgets_are_read() -> None:
    """--budget is the text form of Budget."""
    arguments = commands.parser().parse_args(["demo", "--budget", "macs=0.5,params=300k"])
    assert arguments.budget == Budget(macs=0.5, params=300_000)
