"""`python -m benchmarks.solvers`: records, tables, plots and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.solvers.__main__ import FAMILIES, INTERRUPTED, Named, main, parser
from benchmarks.solvers.record import read_records
from benchmarks.solvers.row import Row, Verdict
from benchmarks.solvers.table import excess, reference, references, suite_of, suites_of, summaries

ROWS = [
    # Kept value of at most 10: ours proves 8.0 with bound 8.2; the other reaches 7.
    Row(
        "toy", "toy, seed 0", "ours", 8.0, 0.5, bound=8.2, gap=0.1, peak_mib=3.0, repeats=3, facts={"cpu_seconds": 0.4}
    ),
    Row("toy", "toy, seed 0", "other", 7.0, 0.1),
    Row("toy", "toy, seed 1", "ours", 9.0, 0.7, bound=9.0, gap=0.0),
    Row("toy", "toy, seed 1", "other", None, 0.2),
]


@dataclass
class Toy:
    """A family that returns rows, or raises."""

    found: list[Row] = field(default_factory=lambda: list(ROWS))
    error: BaseException | None = None
    ran: int = 0

    def rows(self, quick: bool) -> list[Row]:
        self.ran += 1
        if self.error is not None:
            raise self.error
        return self.found

    def verdicts(self, rows: list[Row]) -> list[Verdict]:
        return [Verdict("T0", "at least 1 row", f"{len(rows)} rows", bool(rows))]


def named(**families: Toy) -> list[Named]:
    """Return families under names."""
    return [Named(name, f"{name} things", family) for name, family in families.items()]


def test_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, the page with verdicts, summary and rows, and the picture are written."""
    assert main(["--out", str(tmp_path)], named(toy=Toy())) == 0
    assert "4 rows" in capsys.readouterr().out
    page = (tmp_path / "table.md").read_text()
    assert "| T0 | at least 1 row | 4 rows | yes |" in page
    assert "| ours | 2 | 8.5 | 5 % | 10 % |" in page
    assert "2 (1 without)" in page
    assert "cpu_seconds 0.4" in page
    assert "![gap against time](toy.png)" in page
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    record = read_records(tmp_path)["toy"]
    assert record.rows == tuple(ROWS)
    assert record.command.startswith("python -m benchmarks.solvers --out ")
    assert "numpy" in record.versions


def test_other_families_stay(tmp_path: Path) -> None:
    """A run of one family keeps the rows of the others, and the page shows both."""
    main(["--out", str(tmp_path)], named(a=Toy(), b=Toy()))
    again = named(a=Toy(), b=Toy())
    main(["--out", str(tmp_path), "--families", "b"], again)
    assert [one.family.ran for one in again if isinstance(one.family, Toy)] == [0, 1]
    assert list(read_records(tmp_path)) == ["a", "b"]
    page = (tmp_path / "table.md").read_text()
    assert "## a" in page
    assert "## b" in page


def test_resume(tmp_path: Path) -> None:
    """With --resume, families that are there are not run again."""
    main(["--out", str(tmp_path)], named(a=Toy()))
    first, second = Toy(), Toy()
    assert main(["--out", str(tmp_path), "--resume"], named(a=first, b=second)) == 0
    assert (first.ran, second.ran) == (0, 1)


def test_interruption_keeps_finished_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the second family leaves the first one's rows and page."""
    assert main(["--out", str(tmp_path)], named(a=Toy(), b=Toy(error=KeyboardInterrupt()))) == INTERRUPTED
    assert "go on with --resume" in capsys.readouterr().err
    assert list(read_records(tmp_path)) == ["a"]
    assert "## a" in (tmp_path / "table.md").read_text()


def test_a_failure_costs_its_family_alone(tmp_path: Path) -> None:
    """An error in one family is told by the exit status; the others are measured."""
    assert main(["--out", str(tmp_path)], named(a=Toy(error=RuntimeError("broken")), b=Toy())) == 1
    assert list(read_records(tmp_path)) == ["b"]


def test_quick_rows_do_not_mix_with_full_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quick rows would overwrite full ones; another folder is asked for."""
    main(["--out", str(tmp_path)], named(a=Toy()))
    assert main(["--out", str(tmp_path), "--quick"], named(a=Toy())) == 2
    assert "Expected rows of the same kind" in capsys.readouterr().err


def test_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that holds no rows is named."""
    (tmp_path / "rows.json").write_text("[1]")
    assert main(["--out", str(tmp_path)], named(a=Toy())) == 2
    assert "Expected rows of solvers" in capsys.readouterr().err


def test_numbers_of_numpy(tmp_path: Path) -> None:
    """Numpy's numbers are written as Python's, and infinities as null."""
    row = Row("a", "i", "m", float(np.float64(1)), 0.1, bound=np.inf, facts={"n": np.int64(3), "ok": np.bool_(True)})  # type: ignore[dict-item]
    main(["--out", str(tmp_path)], named(a=Toy([row])))
    found = json.loads((tmp_path / "rows.json").read_text())["a"]["rows"][0]
    assert found["facts"] == {"n": 3, "ok": True}
    assert found["bound"] is None


def test_reference() -> None:
    """The total is read off a gap, and distances are relative to what is lost."""
    best = reference(ROWS[:2])
    assert best is not None
    assert best.maximised
    assert best.best == 8.2
    assert best.total == pytest.approx(10.0)
    assert excess(ROWS[0], best) == pytest.approx(0.1)
    assert excess(ROWS[1], best) == pytest.approx(1.2 / 3.0)


def test_reference_of_errors() -> None:
    """Errors are minimised: the bound is below, and the tightest is the largest."""
    rows = [Row("e", "i", "a", 2.0, 0.1, bound=1.0, gap=0.5), Row("e", "i", "b", 2.5, 0.1, bound=1.5, gap=0.4)]
    best = reference(rows)
    assert best is not None
    assert not best.maximised
    assert best.best == 1.5
    assert best.total == pytest.approx(0.0)
    assert excess(rows[1], best) == pytest.approx(0.4)


def test_no_reference_without_bounds() -> None:
    """Where nothing is proven, nothing tells whether more is better; another instance of the family may."""
    rows = [Row("e", "i", "a", 2.0, 0.1), Row("e", "i", "b", 3.0, 0.1)]
    assert reference(rows) is None
    found = references([*rows, Row("e", "j", "a", 2.0, 0.1, bound=1.0, gap=0.5)])
    assert (found["i"].best, found["i"].proven, found["i"].maximised) == (2.0, False, False)
    assert excess(rows[1], found["i"]) == pytest.approx(0.5)


def test_suites() -> None:
    """Instances that differ in their seed alone are one suite."""
    assert suite_of("ResNet-50 macs 0.5, step 8, sigma 1, seed 12") == "ResNet-50 macs 0.5, step 8, sigma 1"
    assert suite_of("digits") == "digits"
    (group,) = summaries(ROWS).values()
    assert [(one.method, len(one.rows)) for one in group] == [("ours", 2), ("other", 2)]


def test_lonely_suites() -> None:
    """Different instances that one method solved alone stand together; those that were compared keep their suites."""
    lonely = [replace(ROWS[0], instance=f"toy of {size}") for size in (3, 4, 5)]
    assert [(suite, len(group)) for suite, group in suites_of([*lonely, *ROWS]).items()] == [
        ("toy", 4),
        ("ours: 3 instances", 3),
    ]
    assert list(suites_of(lonely[:1])) == ["toy of 3"]


def test_help() -> None:
    """Every family is described in the help, under a name of its own."""
    text = parser().format_help()
    for one in FAMILIES:
        assert f"{one.name} " in text
        assert one.about in text
    assert len({one.name for one in FAMILIES}) == len(FAMILIES)
