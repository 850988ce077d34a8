"""The first pass: text to numbers, part by part; a part is there whole, with its description, or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.criteo.layouts import CATEGORICAL, NUMERIC, Columns, Layout
from benchmarks.criteo.text import Place, pieces
from structprune.files import write_atomically

__all__ = ["RawPart", "read_raw", "write_raw"]


@dataclass(frozen=True)
class RawPart:
    """Rows of one piece of text, as numbers on disk.

    Attributes
    ----------
    path
        The numbers: keys (26, rows), missing (rows,), numeric (13, rows), label (rows,), one after another.
    file
        Which of the text files, from 0.
    begin
        The first row's number in its file.
    rows
        How many.
    end
        Where the text goes on.
    checksum
        CRC-32 of the numbers.
    numeric
        numpy's name of the numbers' type.
    """

    path: Path
    file: int
    begin: int
    rows: int
    end: Place
    checksum: int
    numeric: str

    @property
    def bytes(self) -> int:
        """Size of the numbers."""
        return self.rows * (4 * len(CATEGORICAL) + 4 + 4 * len(NUMERIC) + 1)

    def keys(self, column: int) -> np.ndarray:
        """Keys of category ``column``, uint32 ``(rows,)``."""
        return self._read(column * 4 * self.rows, np.dtype(np.uint32))

    def missing(self, column: int) -> np.ndarray:
        """Rows where category ``column`` is missing, boolean ``(rows,)``."""
        bits = self._read(4 * len(CATEGORICAL) * self.rows, np.dtype(np.uint32))
        return (bits >> np.uint32(column)) & np.uint32(1) == 1

    def number(self, column: int) -> np.ndarray:
        """Number ``column`` as it was read, ``(rows,)``."""
        return self._read((4 * len(CATEGORICAL) + 4 + 4 * column) * self.rows, np.dtype(self.numeric))

    def label(self) -> np.ndarray:
        """Labels, uint8 ``(rows,)``."""
        return self._read((4 * len(CATEGORICAL) + 4 + 4 * len(NUMERIC)) * self.rows, np.dtype(np.uint8))

    def _read(self, offset: int, dtype: np.dtype) -> np.ndarray:
        return np.fromfile(self.path, dtype, self.rows, offset=offset)


def write_raw(
    layout: Layout, files: Sequence[Path], folder: Path, piece_bytes: int, tell: Callable[[int, int, int], None]
) -> list[RawPart]:
    """Read all files into parts; those that are there already are taken as they are.

    Parameters
    ----------
    layout
        The form of the text.
    files
        In the order of the rows.
    folder
        Where parts go; exists.
    piece_bytes
        Text per part, which bounds the memory.
    tell
        Called after each part with (rows of the part, file number, bytes of the file's text that are read).

    Raises
    ------
    DataFileError
        If the text is not what the layout says.
    """
    parts = read_raw(folder)
    resumed_file = parts[-1].file if parts else 0
    for number, path in enumerate(files):
        if number < resumed_file:
            continue
        own = [part for part in parts if part.file == number]
        place = own[-1].end if own else Place()
        row = own[-1].begin + own[-1].rows if own else 0
        for piece in pieces(path, piece_bytes, place):
            columns = layout.parse(piece)
            part = _write(folder / f"part-{len(parts):06d}.bin", columns, number, row, piece.end)
            parts.append(part)
            row += part.rows
            tell(part.rows, number, piece.end.offset)
    return parts


def read_raw(folder: Path) -> list[RawPart]:
    """Return the parts that are there, in order, up to the first that is missing or not whole."""
    return list(_whole(folder))


def _whole(folder: Path) -> Iterator[RawPart]:
    number = 0
    while True:
        path = folder / f"part-{number:06d}.bin"
        described = path.with_suffix(".json")
        if not described.exists() or not path.exists():
            return
        content = json.loads(described.read_text())
        part = RawPart(**{**content, "path": path, "end": Place(**content["end"])})
        if path.stat().st_size != part.bytes:
            return
        yield part
        number += 1


def _write(path: Path, columns: Columns, file: int, begin: int, end: Place) -> RawPart:
    arrays = (columns.keys, columns.missing, columns.numeric, columns.label)
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    part = RawPart(path, file, begin, len(columns), end, zlib.crc32(content), columns.numeric.dtype.str)
    # The description comes last: without it the numbers count for nothing.
    write_atomically(path, content)
    described = {key: value for key, value in asdict(part).items() if key != "path"}
    write_atomically(path.with_suffix(".json"), json.dumps(described).encode())
    return part
