"""What was measured in one cell, with all that it takes to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.grid.cell import Cell
from structprune.files import write_atomically

__all__ = [
    "DIVERGED",
    "Row",
    "SINGLE",
    "Summary",
    "join_rows",
    "read_row",
    "read_rows",
    "summary",
    "take_apart",
    "write_row",
]

DIVERGED = "diverged"
SINGLE, JOINED = "rows", "rows.json"


@dataclass(frozen=True)
class Row:
    """One cell.

    Attributes
    ----------
    cell
        What was measured.
    values
        Figures by name; None where there is none, :data:`DIVERGED` alone where a run diverged.
    recalls
        Recall of each class before and after pruning, ``(classes,)`` each; empty where there are none.
    settings
        All else that decides the figures.
    sample
        What must be said beside the figures, where the data are no whole data set.
    notes
        What the method says of its mask.
    seconds
        Of training and evaluation.
    command, commit, machine, versions
        What it takes to repeat it.
    """

    cell: Cell
    values: Mapping[str, float | None]
    settings: Mapping[str, Any]
    sample: str = ""
    notes: tuple[str, ...] = ()
    recalls: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: float = 0.0
    command: str = ""
    commit: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_row(path: Path, row: Row) -> None:
    """Write a row whole or not at all."""
    write_atomically(path, (json.dumps(asdict(row), ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode())


def read_row(path: Path) -> Row | None:
    """Read a row; None if there is none.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    if not path.exists():
        return None
    try:
        return _row(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"Expected a row in {path}. Got something else ({error}). Remove it.") from error


def _row(content: Mapping[str, Any]) -> Row:
    recalls = {name: tuple(values) for name, values in content["recalls"].items()}
    changed = {"cell": Cell(**content["cell"]), "notes": tuple(content["notes"]), "recalls": recalls}
    return Row(**{**content, **changed})


def read_rows(folder: Path) -> list[Row]:
    """Read all rows of a grid, sorted by cell: those of single cells, else those that were put together.

    Parameters
    ----------
    folder
        Of the grid: it has a folder of rows, or the file that :func:`join_rows` wrote.

    Raises
    ------
    ValueError
        If a file holds something else.
    """
    if (folder / SINGLE).is_dir():
        found = [read_row(path) for path in sorted((folder / SINGLE).glob("*.json"))]
        return sorted((row for row in found if row is not None), key=lambda row: row.cell)
    path = folder / JOINED
    if not path.exists():
        return []
    try:
        return sorted((_row(one) for one in json.loads(path.read_text(encoding="utf-8"))), key=lambda row: row.cell)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"Expected rows in {path}. Got something else ({error}). Remove it.") from error


def join_rows(folder: Path, rows: Sequence[Row]) -> Path:
    """Write all rows of a grid into one file, a line each."""
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows)
    return write_atomically(folder / JOINED, f"[\n{lines}\n]\n".encode())


def take_apart(folder: Path) -> None:
    """Give each row a file again where there is but the file of all, as in a fresh checkout."""
    rows = [] if (folder / SINGLE).is_dir() else read_rows(folder)
    if rows:
        (folder / SINGLE).mkdir(parents=True)
    for row in rows:
        write_row(folder / SINGLE / f"{row.cell.key}.json", row)


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes
    ----------
    mean
        Over the seeds that did not diverge; None if all did.
    spread
        Standard deviation with n - 1; None for fewer than two.
    count
        Seeds that are in the mean.
    diverged
        Seeds whose training diverged.
    """

    mean: float | None
    spread: float | None
    count: int
    diverged: int


def summary(rows: Sequence[Row], name: str) -> Summary:
    """Return mean and standard deviation of a figure."""
    known = [value for row in rows if (value := row.values.get(name)) is not None]
    return Summary(
        mean(known) if known else None,
        stdev(known) if len(known) > 1 else None,
        len(known),
        sum(DIVERGED in row.values for row in rows),
    )
