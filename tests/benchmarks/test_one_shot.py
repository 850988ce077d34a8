"""Facts of the one-shot benchmark: command line, rows and tables; the whole of it where real data are present."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import one_shot
from benchmarks.one_shot_table import Row, Settings, as_markdown, as_table, read_row, row_path, write_row, write_tables

needs_torch_pruning = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None, reason="needs torch-pruning: pip install '.[bench]'"
)
SETTINGS = Settings(images=200, calibration=64, seed=0)


def row(method: str, accuracy: float | None, software: str = "structprune", **changes: object) -> Row:
    """Return a made row of resnet20 at half the macs."""
    made = Row(
        network="resnet20",
        macs_cap=0.5,
        method=method,
        label=method,
        software=software,
        batch_norm="recalibrated",
        settings=SETTINGS,
        accuracy=accuracy,
        loss=None if accuracy is None else 0.5,
        macs=None if accuracy is None else 19_900_000,
        macs_dense=40_000_000,
        own_fraction=0.4975,
        params=150_000,
        params_dense=270_000,
        seconds=1.5,
        versions={"torch": "2.13.0"},
        commit="abc",
        command="python -m benchmarks.one_shot",
        machine="2 CPU cores",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def rows() -> list[Row]:
    """Return a dense row, one of each software and a failure."""
    dense = row("dense", 0.92, software="", macs_cap=1.0, macs=40_000_000)
    theirs = row("tp-magnitude-global", 0.61, software="Torch-Pruning")
    failure = row("fisher", None, failure="ValueError: Expected more. Got less.")
    return [dense, failure, theirs, row("reconstruction", 0.85, gap=0.0012)]


# ---------------------------------------------------------------- command line


def test_help_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` ends well and describes each method by the name that --methods takes."""
    with pytest.raises(SystemExit) as end:
        one_shot.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {method.name} " in text for method in one_shot.METHODS)


def test_methods_have_names_of_their_own() -> None:
    """No two methods share a name, hence none a file."""
    names = [method.name for method in one_shot.METHODS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["0", "1", "1.5", "-0.1", "half"])
def test_a_budget_is_a_fraction(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A cap outside (0, 1) is refused by the parser."""
    with pytest.raises(SystemExit) as end:
        one_shot.main([f"--budgets={text}"])
    assert end.value.code == 2
    assert "--budgets" in capsys.readouterr().err


def test_missing_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the folder the exit status is 2, the message says what to do about it, and nothing is made."""
    out = tmp_path / "out"
    assert one_shot.main(["--data", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    for word in ("Expected", "cifar10_test.npz.xz", "nowhere", "--data", "STRUCTPRUNE_DATA"):
        assert word in message
    assert not out.exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder is refused by the name of the first file that it lacks."""
    assert one_shot.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "resnet20_cifar10.npz" in capsys.readouterr().err


# ---------------------------------------------------------------- rows and tables


def test_a_row_is_read_back_as_written(tmp_path: Path, rows: list[Row]) -> None:
    """Rows survive their files."""
    for one in rows:
        write_row(tmp_path, one)
        assert read_row(tmp_path, one.network, one.macs_cap, one.method) == one


def test_an_unwritten_row_is_none(tmp_path: Path) -> None:
    """A row that has no file is None, so that a resumed run makes it."""
    assert read_row(tmp_path, "resnet20", 0.5, "fisher") is None


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"network": "resnet20"}', '{"format": "another"}'])
def test_a_foreign_file_is_no_row(tmp_path: Path, text: str) -> None:
    """Truncated and foreign files are refused with their path."""
    path = row_path(tmp_path, "resnet20", 0.5, "fisher")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="Expected a row in .*fisher"):
        read_row(tmp_path, "resnet20", 0.5, "fisher")


def test_the_console_table_is_sorted_by_accuracy(rows: list[Row]) -> None:
    """The best row comes first and failures last, with their reason."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(as_table(rows, "resnet20", 0.5))
    text = console.export_text()
    places = [text.index(word) for word in ("85.00 %", "61.00 %", "failed", "fisher: ValueError")]
    assert places == sorted(places)
    assert "dense: 92.00 %" in text
    assert "0.12 %" in text  # the gap
    assert "0.9950" in text  # of the cap


def test_the_markdown_table_is_well_formed(rows: list[Row]) -> None:
    """Every line of a table has as many cells as its heading, bars in words included."""
    odd = row("odd", 0.3, software="Torch-Pruning", label="a | b")
    lines = as_markdown([*rows, odd], "command").splitlines()
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1


def test_the_markdown_page_says_how_to_repeat_it(rows: list[Row]) -> None:
    """Command, images, calibration, seed, versions, commit and machine are on the page."""
    page = as_markdown(rows, "python -m benchmarks.one_shot --seeds 0")
    for word in ("benchmarks.one_shot --seeds 0", "200", "64", "seed 0", "torch 2.13.0", "abc", "2 CPU cores"):
        assert word in page


def test_the_margin_is_between_the_best_rows(rows: list[Row]) -> None:
    """The sentence below a table compares the best of structprune with the best of the others, either way."""
    assert "24.00 points above the best of Torch-Pruning" in as_markdown(rows, "")
    better = row("tp-taylor-global", 0.9, software="Torch-Pruning")
    assert "5.00 points below the best of Torch-Pruning" in as_markdown([*rows, better], "")


def test_tables_are_written_with_their_rows(tmp_path: Path, rows: list[Row]) -> None:
    """rows.json holds every row with its settings, table.md the page, and no temporary file is left."""
    write_tables(tmp_path, rows, "command")
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [one["method"] for one in content] == [one.method for one in rows]
    assert content[0]["settings"] == {"images": 200, "calibration": 64, "seed": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "table.md"]


# ---------------------------------------------------------------- the whole of it


@needs_torch_pruning
def test_a_run_is_resumed_by_row(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Torch-Pruning's magnitude on 50 images: a row within the cap, which --resume does not make anew."""
    command = ["--data", str(data_folder), "--models", "resnet20", "--budgets", "0.6", "--images", "50"]
    command += ["--calibration", "32", "--out", str(tmp_path), "--methods", "tp-magnitude-uniform"]
    assert one_shot.main(command) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [one["method"] for one in content] == ["dense", "tp-magnitude-uniform"]
    assert all(0.5 < one["macs"] / one["macs_dense"] <= 0.6 for one in content[1:])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert one_shot.main([*command, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == files


@pytest.mark.slow
@needs_torch_pruning
def test_reconstruction_beats_the_baseline(data_folder: Path, tmp_path: Path) -> None:
    """ResNet-20 at half the macs, 200 images: layer reconstruction is ahead of Torch-Pruning by ten points or more."""
    command = ["--data", str(data_folder), "--models", "resnet20", "--budgets", "0.5", "--images", "200"]
    command += ["--out", str(tmp_path), "--methods", "reconstruction", "magnitude", "tp-magnitude-steps100-bn"]
    assert one_shot.main(command) == 0
    rows = {one["method"]: one for one in json.loads((tmp_path / "rows.json").read_text())}
    best = max(one["accuracy"] for name, one in rows.items() if name.startswith("tp-"))
    assert rows["reconstruction"]["accuracy"] >= best + 0.1
    assert all(one["macs"] <= 0.5 * one["macs_dense"] for name, one in rows.items() if name != "dense")


def test_tables_show_means_over_seeds(rows: list[Row], tmp_path: Path) -> None:
    """Rows of several seeds keep files of their own and share a line, mean ± std; a failure shows."""
    other = replace(rows[3], accuracy=0.87, settings=replace(SETTINGS, seed=1))
    page = as_markdown([*rows, other], "command")
    assert "**86.00 ± 1.41 %**" in page
    assert "seeds 0, 1" in page
    assert "85.00" not in page
    write_row(tmp_path, rows[3])
    write_row(tmp_path, other)
    assert read_row(tmp_path, "resnet20", 0.5, "reconstruction", 1) == other
    assert read_row(tmp_path, "resnet20", 0.5, "reconstruction") == rows[3]
    failed = replace(other, accuracy=None, failure="ValueError: no")
    assert "Failed, reconstruction: ValueError: no" in as_markdown([*rows, failed], "command")
