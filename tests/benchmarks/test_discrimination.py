"""Facts of the benchmark of channel selections: cells, rows and tables; a small run where real data are present."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import discrimination
from benchmarks.cifar import MissingDataError
from benchmarks.discrimination import EXPANDED, LAMS, ONE, SHARED, Cell, cells, parser
from benchmarks.discrimination_rows import (
    HELD_OUT,
    Row,
    Settings,
    as_markdown,
    chosen_lam,
    read_row,
    write_row,
    write_tables,
)

SETTINGS = Settings(chosen_on=100, pass_images=0, tuned_on=200, epochs=1, images=300)


def row(method: str, before: float, after: float | None, **changes: object) -> Row:
    """Return a made row of resnet20 with half of its channels."""
    made = Row(
        network="resnet20",
        kept=0.5,
        method=method,
        label=f"by {method}",
        seed=0,
        settings=SETTINGS,
        before=before,
        after=after,
        loss_before=1 - before,
        macs=0.5,
        params=0.5,
        channels=168,
        choose_seconds=10.0,
        versions={"torch": "2.13.0"},
        commit="abc",
        machine="2 CPU cores",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# ---------------------------------------------------------------- cells


def test_every_selection_of_a_network_has_the_same_settings() -> None:
    """Images, fine-tuning and test images are equal in all rows that stand in one table."""
    found = [cell for cell in cells(parser().parse_args([])) if cell.selection is not None and not cell.searches]
    for network in ("resnet20", "resnet56"):
        assert len({cell.settings for cell in found if cell.network == network}) == 1
    assert {cell.settings.chosen_on for cell in found} == {1000, 5000}
    assert {(cell.settings.tuned_on, cell.settings.epochs) for cell in found} == {(10_000, 3)}


def test_half_of_the_channels_has_three_seeds_and_less_has_one() -> None:
    """For every selection that both networks share."""
    found = cells(parser().parse_args([]))
    for selection in SHARED:
        for network in ("resnet20", "resnet56"):
            mine = [c for c in found if c.selection is selection and c.network == network and not c.searches]
            assert sorted(c.seed for c in mine if c.kept == 0.5) == [0, 1, 2]
            assert [c.seed for c in mine if c.kept == 0.7] == [0]
    assert sorted(c.seed for c in found if c.selection is ONE) == [0, 1, 2]


def test_lam_is_searched_unless_it_is_given() -> None:
    """By rows without fine-tuning, before all others, for each network and both ways to discriminate."""
    found = cells(parser().parse_args([]))
    searching = [cell for cell in found if cell.searches]
    assert found[: len(searching)] == searching
    assert len({(cell.network, cell.selection, cell.lam) for cell in searching}) == 4 * len(LAMS) == len(searching)
    assert all(cell.settings.tuned_on == 0 for cell in searching)
    assert not any(cell.searches for cell in cells(parser().parse_args(["--lam", "1"])))


def test_selections_differ_in_the_choice_alone(tmp_path: Path) -> None:
    """Training with heads, images, and the last fit are the same objects or equal ones."""
    made = [one.method(0.5, None, 100, 0, tmp_path) for one in SHARED]
    assert len({(method.heads, method.stages, method.examples, method.folder) for method in made}) == 1
    assert all(method.loss.reconstruct_last for method in made)
    assert [method.loss.lam for method in made] == [0.5, 0.0, 0.5, 0.0, 0.0]


# ---------------------------------------------------------------- rows


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """And only for the same question: other settings, or another lam, are another row."""
    one = row("dcp", 0.7, 0.8, lam=0.1, steps=3)
    write_row(tmp_path, one)
    assert read_row(tmp_path, one) == one
    assert read_row(tmp_path, replace(one, settings=replace(SETTINGS, epochs=2))) is None
    assert read_row(tmp_path, replace(one, lam=1.0)) is None
    assert read_row(tmp_path, replace(one, seed=1)) is None


def test_a_file_that_holds_no_row_is_an_error(tmp_path: Path) -> None:
    """Rather than a row made again in silence."""
    one = row("dcp", 0.7, 0.8)
    write_row(tmp_path, one)
    (tmp_path / "rows" / one.name).write_text("{}")
    with pytest.raises(ValueError, match="Remove the file"):
        read_row(tmp_path, one)


def test_lam_is_that_of_the_least_held_out_loss() -> None:
    """Rows of test images, other networks and other ways to pick do not count."""
    held_out = [row("dcp", accuracy, None, label=HELD_OUT, lam=lam) for lam, accuracy in ((0.1, 0.7), (1.0, 0.75))]
    tested = row("dcp", 0.99, 0.99, lam=9.0)
    others = [
        replace(held_out[0], network="resnet56", loss_before=0.0),
        replace(tested, label=HELD_OUT, method="other"),
    ]
    assert chosen_lam([*held_out, tested, *others], "resnet20", "dcp") == 1.0
    with pytest.raises(LookupError, match="held-out"):
        chosen_lam([tested], "resnet20", "dcp")


def test_the_table_says_by_how_much(tmp_path: Path) -> None:
    """Mean differences with their spread over seeds, and what batches save; the best after fine-tuning comes first."""
    rows = [row("dense", 0.9, None, kept=1.0, label="dense", channels=None)]
    for seed, shift in ((0, 0.0), (1, 0.01)):
        rows += [
            row("dcp-expansion", 0.70 + shift, 0.80, seed=seed, choose_seconds=2.0),
            row("dcp-one", 0.70, 0.80, seed=seed, choose_seconds=12.0),
            row("magnitude", 0.65, 0.81, seed=seed),
        ]
    text = as_markdown(rows, "python -m benchmarks.discrimination")
    assert "against by magnitude: +5.50 ± 0.71 points before fine-tuning, -1.00 ± 0.00 points after" in text
    assert "6.0 times less time, +0.50 ± 0.71 points before, +0.00 ± 0.00 points after" in text
    assert text.index("by magnitude") < text.index("by dcp")
    assert "dense 90.00 %" in text
    write_tables(tmp_path, rows, "python -m benchmarks.discrimination")
    assert (tmp_path / "rows.json").exists()
    assert (tmp_path / "table.md").read_text() == text


# ---------------------------------------------------------------- command line


def test_without_data_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing data are an error with instructions, status 2."""
    out = tmp_path / "out"
    assert discrimination.main(["--data", str(tmp_path), "--out", str(out)]) == 2
    assert "Expected" in capsys.readouterr().err
    assert not out.exists()


def test_rows_that_are_there_are_kept(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One real row of ResNet-20, then the same again with --resume: nothing is computed twice."""
    small = Settings(chosen_on=30, pass_images=0, tuned_on=200, epochs=1, images=100)
    one = Cell("resnet20", 0.5, EXPANDED, 0, small)
    monkeypatch.setattr(discrimination, "cells", lambda options: [one])
    monkeypatch.setattr(discrimination.Bench, "estimate", lambda self, todo: 60.0 * len(todo))
    given = ["--data", str(data_folder), "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--lam", "0.1"]
    try:
        assert discrimination.main(given) == 0
    except MissingDataError as error:
        pytest.skip(f"needs CIFAR-10 and ResNet-20: {error}")
    (path,) = (tmp_path / "rows").iterdir()
    before = path.read_text()
    assert '"after": 0.' in before
    assert '"channels": 168' in before
    monkeypatch.setattr(discrimination.Bench, "row", None)
    assert discrimination.main([*given, "--resume"]) == 0
    assert path.read_text() == before
    said = capsys.readouterr().out
    assert "1 of 1 rows to make, about 1 minutes" in said
    assert "0 of 1 rows to make" in said
