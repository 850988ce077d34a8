"""What was measured, as one JSON file: the rows of each family with what it takes to repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.solvers.row import Row
from structprune.files import write_atomically

__all__ = ["Record", "read_records", "write_records"]

FILE = "rows.json"


@dataclass(frozen=True)
class Record:
    """One run of one family.

    Attributes
    ----------
    family
        Its name on the command line.
    quick
        Whether the instances were the small ones.
    seconds
        Wall time of the run.
    """

    family: str
    quick: bool
    rows: tuple[Row, ...]
    seconds: float
    command: str
    commit: str
    machine: str
    versions: Mapping[str, str]


def write_records(folder: Path, records: Mapping[str, Record]) -> Path:
    """Write ``rows.json`` whole or not at all; one family's rows stand in one line each, for readable differences."""
    lines = []
    for name, record in records.items():
        about = {key: value for key, value in asdict(record).items() if key != "rows"}
        rows = ",\n".join("  " + text_of(asdict(row)) for row in record.rows)
        lines.append(f' {text_of(name)}: {{\n  "about": {text_of(about)},\n  "rows": [\n{rows}\n  ]\n }}')
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(folder / FILE, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def text_of(content: Any) -> str:
    """Return one line of JSON; numpy's numbers become Python's, and what is not finite becomes null."""
    return json.dumps(plain(content), ensure_ascii=False, allow_nan=False)


def plain(content: Any) -> Any:
    """Return content that JSON knows."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_records(folder: Path) -> dict[str, Record]:
    """Read ``rows.json`` back, by family; empty if there is none.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: _record(found) for name, found in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected rows of solvers in {path}. Got something else ({error}). Remove the file."
        ) from error


def _record(found: Mapping[str, Any]) -> Record:
    known = {one.name for one in fields(Row)}
    rows = tuple(Row(**{key: value for key, value in row.items() if key in known}) for row in found["rows"])
    return Record(rows=rows, **found["about"])
