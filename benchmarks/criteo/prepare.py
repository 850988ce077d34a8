"""From text to memory-mapped arrays, in three passes that can be stopped at any moment and gone on with.

1. Text to numbers, piece by piece (`raw`).
2. Over the training rows alone: the vocabulary of every category, the range of every number.
3. All rows through these into the arrays, appended part by part.

Everything grows in a folder beside the one asked for, which takes its name when all is there: what is found under the
final name is whole.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.criteo.arrays import ARRAYS, MANIFEST, Growing, Prepared, checksum, open_prepared
from benchmarks.criteo.fit import Assign, Fitted, fit
from benchmarks.criteo.layouts import Layout
from benchmarks.criteo.raw import RawPart, read_raw, write_raw
from benchmarks.criteo.recipes import Preprocessing
from benchmarks.criteo.splits import PARTS, Split
from benchmarks.criteo.text import md5
from benchmarks.grid.problems import DataFileError, telling_disk_full
from structprune.files import write_atomically

__all__ = ["Request", "prepare"]

PIECE_BYTES = 1 << 25
OPTIONS, RAW, FITTED, PROGRESS = "options.json", "raw", "fitted", "progress.json"


@dataclass(frozen=True)
class Request:
    """What to prepare.

    Attributes
    ----------
    layout
        The form of the text.
    files
        In the order of the rows.
    split
        Which rows train, validate, test.
    preprocessing
        The recipe.
    piece_bytes
        Text that is read at once; bounds the memory and decides no number.
    check_md5
        Whether files with a known MD5 must have it.
    """

    layout: Layout
    files: tuple[Path, ...]
    split: Split
    preprocessing: Preprocessing
    piece_bytes: int = PIECE_BYTES
    check_md5: bool = True

    def described(self) -> dict[str, Any]:
        """All that decides the arrays, as JSON knows it."""
        sources = [{"name": path.name, "bytes": path.stat().st_size} for path in self.files]
        return {
            "layout": self.layout.name,
            "sources": sources,
            "split": _plain(self.split),
            "preprocessing": _plain(self.preprocessing),
        }

    def dated(self) -> dict[str, Any]:
        """The same, with the files' dates: half-read files must not change."""
        return {**self.described(), "changed_ns": [path.stat().st_mtime_ns for path in self.files]}


def prepare(request: Request, folder: Path, tell: Callable[[str], None] = lambda text: None) -> Prepared:
    """Prepare the rows, or go on where an earlier call stopped, or open what one finished.

    Parameters
    ----------
    request
        What to prepare.
    folder
        Where the arrays go; its parent is made.
    tell
        Takes lines of progress.

    Raises
    ------
    DataFileError
        If a file is not what its layout says; the message names file and line.
    ValueError
        If the folder holds rows of another request.
    DiskFullError
        If there is no room.
    """
    described = request.described()
    if folder.exists():
        prepared = open_prepared(folder)
        _same(described, prepared.manifest["request"], folder)
        tell(f"{folder} is there already: {_count(prepared)}")
        return prepared
    work = folder.with_name(folder.name + ".unfinished")
    for each in (work / RAW, work / FITTED):
        each.mkdir(parents=True, exist_ok=True)
    if (work / OPTIONS).exists():
        _same(request.dated(), json.loads((work / OPTIONS).read_text()), work)
    write_atomically(work / OPTIONS, json.dumps(request.dated()).encode())
    start = perf_counter()
    with telling_disk_full(work):
        sums = _checked(request, work, tell)
        parts = _to_numbers(request, work, tell)
        totals = tuple(sum(part.rows for part in parts if part.file == number) for number in range(len(request.files)))

        def assign(part: RawPart) -> np.ndarray:
            return request.split.assign(part.file, part.begin, part.rows, totals)

        counts = sum(np.bincount(assign(part), minlength=len(PARTS)) for part in parts)
        rows = {name: int(count) for name, count in zip(PARTS, np.broadcast_to(counts, len(PARTS)), strict=True)}
        _no_empty(rows, request)
        fitted = fit(request.preprocessing, parts, assign, work / FITTED, tell)
        crcs = _write_arrays(fitted, parts, assign, rows, work, tell)
        seconds = perf_counter() - start
        manifest = {
            "request": described,
            "md5": sums,
            "sample": _sample(sum(totals), request.layout),
            "rows": rows,
            "fields": list(fitted.fields),
            "numeric": len(fitted.scalings),
            "sizes": [len(vocabulary) + 2 for vocabulary in fitted.vocabularies],
            "scalings": [asdict(scaling) for scaling in fitted.scalings],
            "arrays": crcs,
        }
        write_atomically(work / MANIFEST, json.dumps(manifest, indent=1).encode())
    shutil.rmtree(work / RAW)
    for name in (OPTIONS, PROGRESS):
        (work / name).unlink(missing_ok=True)
    os.replace(work, folder)
    total = sum(rows.values())
    tell(f"{total:,} rows in {seconds:.0f} s of this call: {total / seconds:,.0f} rows/s, {_peak()}")
    return open_prepared(folder)


def _checked(request: Request, work: Path, tell: Callable[[str], None]) -> dict[str, str]:
    """Return the MD5 of every file's text; known files must have theirs."""
    remembered = work / "md5.json"
    sums: dict[str, str] = json.loads(remembered.read_text()) if remembered.exists() else {}
    for path in request.files:
        known = request.layout.md5.get(path.name.removesuffix(".gz"))
        if path.name not in sums:
            sums[path.name] = md5(path)
            tell(f"{path.name}: MD5 {sums[path.name]}{', as published' if sums[path.name] == known else ''}")
            write_atomically(remembered, json.dumps(sums).encode())
        if request.check_md5 and known not in (None, sums[path.name]):
            raise DataFileError(
                path,
                None,
                f"Expected MD5 {known}, that of the published {path.name}. Got {sums[path.name]}. Download it again, "
                "or pass --any-checksum for rows of your own in this layout.",
            )
    return sums


def _to_numbers(request: Request, work: Path, tell: Callable[[str], None]) -> list[RawPart]:
    start, seen = perf_counter(), 0
    found = sum(part.rows for part in read_raw(work / RAW))
    if found:
        tell(f"{found:,} rows were read before")

    def told(rows: int, file: int, offset: int) -> None:
        nonlocal seen
        seen += rows
        speed = seen / (perf_counter() - start)
        tell(f"{request.files[file].name}: {offset / 1e6:,.0f} MB of text read, {speed:,.0f} rows/s")

    return write_raw(request.layout, request.files, work / RAW, request.piece_bytes, told)


def _no_empty(rows: dict[str, int], request: Request) -> None:
    empty = [name for name, count in rows.items() if not count]
    if empty:
        names = ", ".join(str(path) for path in request.files)
        raise ValueError(
            f"Expected rows for {', '.join(PARTS)}. Got none for {', '.join(empty)} in {names}. Pass all files of "
            f"{request.layout.name}, or other parts."
        )


# -------------------------------------------------------------------------------------------- the third pass


def _write_arrays(
    fitted: Fitted,
    parts: Sequence[RawPart],
    assign: Assign,
    rows: dict[str, int],
    work: Path,
    tell: Callable[[str], None],
) -> dict[str, dict[str, int]]:
    """Append part after part to the nine arrays; returns size and checksum of each."""
    widths = {"numbers": (len(fitted.scalings),), "ids": (len(fitted.vocabularies),), "labels": ()}
    types: dict[str, np.dtype] = {
        "numbers": np.dtype(np.float32),
        "ids": np.dtype(np.int32),
        "labels": np.dtype(np.uint8),
    }
    growing = {
        (name, array): Growing(work / f"{name}.{array}.npy", (rows[name], *widths[array]), types[array])
        for name in PARTS
        for array in ARRAYS
    }
    progress = work / PROGRESS
    first, done = _done(progress)
    for (name, _), array in growing.items():
        array.begin(done[name])
    start = perf_counter()
    for number in range(first, len(parts)):
        part = parts[number]
        own = assign(part)
        if checksum(part.path) != part.checksum:
            raise DataFileError(
                part.path, None, f"Expected checksum {part.checksum:08x}. Got another. Remove {work} and begin again."
            )
        columns = {"numbers": fitted.numbers(part), "ids": fitted.ids(part), "labels": part.label()}
        for code, name in enumerate(PARTS):
            chosen = own == code
            for kind in ARRAYS:
                growing[name, kind].append(columns[kind][chosen])
            done[name] += int(chosen.sum())
        for each in growing.values():
            _flush(each.path)
        write_atomically(progress, json.dumps({"parts": number + 1, "rows": done}).encode())
        seen = sum(one.rows for one in parts[first : number + 1])
        tell(f"arrays: {number + 1} of {len(parts)} parts, {seen / (perf_counter() - start):,.0f} rows/s")
    return {
        array.path.name: {"bytes": array.path.stat().st_size, "crc32": checksum(array.path)}
        for array in growing.values()
    }


def _done(progress: Path) -> tuple[int, dict[str, int]]:
    """Return how many parts are in the arrays, and how many rows of each array that makes."""
    if not progress.exists():
        return 0, dict.fromkeys(PARTS, 0)
    content = json.loads(progress.read_text())
    return content["parts"], content["rows"]


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------------- small things


def _sample(rows: int, layout: Layout) -> str:
    """What must be said beside figures from rows that are not all of a data set."""
    return "" if rows == layout.rows else f"a {rows:,}-row sample, not the {layout.rows:,} rows of {layout.name}"


def _plain(value: Any) -> Any:
    """Return a description of a frozen dataclass, with the name of its type."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{key: _plain(one) for key, one in vars(value).items()}}
    return value.value if isinstance(value, Enum) else value


def _same(wanted: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    different = [key for key in wanted if wanted[key] != found.get(key)]
    if different:
        raise ValueError(
            f"Expected rows in {folder} that were prepared the same way. Got others: {', '.join(different)} differ. "
            "Name another folder with --work, or remove this one."
        )


def _count(prepared: Prepared) -> str:
    return ", ".join(f"{len(rows):,} rows {name}" for name, rows in prepared.parts.items())


def _peak() -> str:
    """Return the largest memory of this process in words."""
    units = 1 if sys.platform == "darwin" else 1024
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units / 2**30:.2f} GiB of memory"
