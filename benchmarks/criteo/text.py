"""Long text files in pieces of whole lines, plain or gzip, with the number of every line known."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from benchmarks.grid.problems import DataFileError

__all__ = ["Piece", "Place", "md5", "pieces"]

MAGIC = b"\x1f\x8b"  # of gzip
SKIPPED = 1 << 24  # bytes read at once on the way to a place


@dataclass(frozen=True)
class Place:
    """Where a line begins.

    Attributes
    ----------
    offset
        Bytes before it, of the text (of a gzip file: decompressed).
    line
        Its number, from 1.
    """

    offset: int = 0
    line: int = 1


@dataclass(frozen=True)
class Piece:
    """Whole lines of a file.

    Attributes
    ----------
    path
        The file.
    begin, end
        Where the first line begins, and the line after the last.
    data
        The bytes, ending with a line feed.
    """

    path: Path
    begin: Place
    end: Place
    data: bytes

    @property
    def lines(self) -> int:
        """How many."""
        return self.end.line - self.begin.line


def pieces(path: Path, size: int, begin: Place) -> Iterator[Piece]:
    """Yield the file from ``begin`` on, about ``size`` bytes at a time and at least a line.

    The cuts depend on ``size`` and the text alone: a reader that begins where a piece ended sees the same pieces.

    Raises
    ------
    DataFileError
        If a gzip file is cut short or damaged.
    """
    place, rest = begin, b""
    with _opened(path) as file:
        try:
            _skip(file, path, begin.offset)
            while True:
                read = file.read(max(1, size - len(rest)))
                data = rest + read
                if not data:
                    return
                cut = data.rfind(b"\n") + 1 if read else len(data)
                rest = data[cut:]
                if not cut:
                    size *= 2  # a line longer than a piece
                    continue
                whole = data[:cut] if data[:cut].endswith(b"\n") else data[:cut] + b"\n"
                end = Place(place.offset + cut, place.line + whole.count(b"\n"))
                yield Piece(path, place, end, whole)
                place = end
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFileError(
                path,
                place.line,
                f"Expected a whole gzip file. Got one that breaks off after this line ({error}). Download it again.",
            ) from error


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as file:
        packed = file.read(2) == MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")


def _skip(file: gzip.GzipFile | BufferedReader, path: Path, offset: int) -> None:
    """Go to ``offset``; gzip files have to be read to get there."""
    if not isinstance(file, gzip.GzipFile):
        file.seek(offset)
        return
    left = offset
    while left:
        got = len(file.read(min(left, SKIPPED)))
        if not got:
            raise DataFileError(
                path, None, f"Expected {offset:,} bytes of text. Got {offset - left:,}. It has changed."
            )
        left -= got


def md5(path: Path) -> str:
    """Return the MD5 of the text, decompressed where the file is packed.

    Raises
    ------
    DataFileError
        If a gzip file is cut short or damaged.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with _opened(path) as file:
        try:
            while data := file.read(SKIPPED):
                digest.update(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFileError(
                path, None, f"Expected a whole gzip file. Got one that breaks off ({error}). Download it again."
            ) from error
    return digest.hexdigest()
