"""The three forms in which Criteo's rows are handed around, and how their text becomes columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from benchmarks.criteo.text import Piece
from benchmarks.grid.problems import DataFileError

try:
    import pyarrow
    import pyarrow.csv
except ImportError:  # an extra; `need_pyarrow` says so where it is needed
    pyarrow = None

__all__ = [
    "CATEGORICAL",
    "CRITEO_X1",
    "FIELDS",
    "KAGGLE",
    "LAYOUTS",
    "NUMERIC",
    "TERABYTE",
    "Columns",
    "Keys",
    "Layout",
]

NUMERIC = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
FIELDS = NUMERIC + CATEGORICAL
COLUMNS = ("label", *FIELDS)
MISSING_INT = np.iinfo(np.int32).min
HEX_DIGITS = 8
LARGEST_KEY = 2**32 - 1
SHOWN = 60  # characters of a wrong value in a message
BIT = np.uint32(1) << np.arange(len(CATEGORICAL), dtype=np.uint32)


class Keys(Enum):
    """How categories are written."""

    HEX = "8 hexadecimal digits"
    INTEGER = "an integer of 0 ... 2^32 - 1"


@dataclass(frozen=True)
class Columns:
    """Rows as numbers, nothing lost.

    Attributes
    ----------
    label
        uint8 ``(rows,)``: 1 for a click.
    numeric
        ``(13, rows)``: int32 with the least value for missing ones, or float32 with NaN.
    keys
        uint32 ``(26, rows)``; 0 where missing, which a bit of ``missing`` tells from a real 0.
    missing
        uint32 ``(rows,)``: bit c says that category c is missing.
    """

    label: np.ndarray
    numeric: np.ndarray
    keys: np.ndarray
    missing: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Layout:
    """One form of the rows.

    Attributes
    ----------
    name
        On the command line and in messages.
    about
        Where to get the files and what they look like.
    files
        The names that a folder is searched for, each plain or with ``.gz``.
    separator
        Between columns.
    header
        Whether the first line names the columns.
    numeric
        numpy's type of I1 ... I13: int32, or float32 where they are scaled already.
    keys
        How C1 ... C26 are written.
    rows
        Of the whole data set, labelled.
    md5
        Of the text of known files, by name.
    """

    name: str
    about: str
    files: tuple[str, ...]
    separator: str
    header: bool
    numeric: type[np.int32] | type[np.float32]
    keys: Keys
    rows: int
    md5: Mapping[str, str] = field(default_factory=dict)

    def parse(self, piece: Piece) -> Columns:
        """Turn whole lines into columns.

        Raises
        ------
        DataFileError
            If a line is not what the layout says; the message names it.
        ImportError
            If pyarrow is missing.
        """
        need_pyarrow()
        skipped = 0
        if self.header and piece.begin.line == 1:
            skipped = 1
            self.check_header(piece)
            if piece.lines == 1:
                return self._empty()
        try:
            table = pyarrow.csv.read_csv(pyarrow.BufferReader(piece.data), **self._options(skipped))
        except pyarrow.ArrowInvalid as error:
            raise self.explained(piece, skipped, str(error)) from error
        first = piece.begin.line + skipped
        label = _plain(table["label"].combine_chunks())
        wrong = np.flatnonzero(np.isnan(label) | ((label != 0) & (label != 1)))
        if wrong.size:
            raise self._wrong(piece, first + int(wrong[0]), "label", "0 or 1")
        keys, missing = self._keys(table, piece, first)
        return Columns(label.astype(np.uint8), self._numeric(table), keys, missing)

    def check_header(self, piece: Piece) -> None:
        """Raise DataFileError unless the first line names the 40 columns in order."""
        names = piece.data.split(b"\n", 1)[0].decode(errors="replace").strip().split(self.separator)
        absent = [name for name in COLUMNS if name not in names]
        if absent:
            raise DataFileError(
                piece.path,
                1,
                f"Expected columns label, I1 ... I13, C1 ... C26. Got a header without "
                f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}. {self.about}",
            )
        if tuple(names) != COLUMNS:
            raise DataFileError(
                piece.path,
                1,
                f"Expected the columns {', '.join(COLUMNS[:3])} ... in this order, 40 of them. Got "
                f"{', '.join(names[:3])} ..., {len(names)} of them. {self.about}",
            )

    def explained(self, piece: Piece, skipped: int, reason: str) -> DataFileError:
        """Find the line that a quick reader stumbled over."""
        for number, line in enumerate(piece.data[:-1].split(b"\n")[skipped:], start=piece.begin.line + skipped):
            cells = line.decode(errors="replace").rstrip("\r").split(self.separator)
            if len(cells) != len(COLUMNS):
                return self._miscounted(piece, number, cells)
            for name, cell in zip(COLUMNS, cells, strict=True):
                if not self._fits(name, cell):
                    return self._complaint(piece, number, name, cell)
        return DataFileError(piece.path, piece.begin.line, f"Expected rows of {self.name}. Got {reason}. {self.about}")

    def _options(self, skipped: int) -> dict[str, Any]:
        numeric = pyarrow.int32() if self.numeric is np.int32 else pyarrow.float32()
        key = pyarrow.binary() if self.keys is Keys.HEX else pyarrow.int64()
        types = {"label": pyarrow.int8(), **dict.fromkeys(NUMERIC, numeric), **dict.fromkeys(CATEGORICAL, key)}
        return {
            "read_options": pyarrow.csv.ReadOptions(column_names=list(COLUMNS), skip_rows=skipped),
            "parse_options": pyarrow.csv.ParseOptions(
                delimiter=self.separator, quote_char=False, ignore_empty_lines=False
            ),
            "convert_options": pyarrow.csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=False
            ),
        }

    def _numeric(self, table: Any) -> np.ndarray:
        values = np.empty((len(NUMERIC), len(table)), self.numeric)
        for row, name in enumerate(NUMERIC):
            column = table[name].combine_chunks()
            # fill_null keeps integers integers; to_numpy alone would turn a column with gaps into floats.
            values[row] = column.fill_null(MISSING_INT if self.numeric is np.int32 else np.nan).to_numpy(False)
        return values

    def _keys(self, table: Any, piece: Piece, first: int) -> tuple[np.ndarray, np.ndarray]:
        keys = np.zeros((len(CATEGORICAL), len(table)), np.uint32)
        missing = np.zeros(len(table), np.uint32)
        for row, name in enumerate(CATEGORICAL):
            column = table[name].combine_chunks()
            read = _hexadecimal(column) if self.keys is Keys.HEX else _integers(column)
            if isinstance(read, int):
                raise self._wrong(piece, first + read, name, self.keys.value)
            keys[row], absent = read
            missing |= np.where(absent, BIT[row], np.uint32(0))
        return keys, missing

    def _fits(self, name: str, cell: str) -> bool:
        if name == "label":
            return cell in ("0", "1")
        if name in NUMERIC:
            if self.numeric is np.float32:
                return not cell or _is_number(cell)
            return not cell or (re.fullmatch(r"-?\d+", cell) is not None and MISSING_INT < int(cell) < 2**31)
        if self.keys is Keys.HEX:
            return re.fullmatch(r"[0-9a-fA-F]{8}|", cell) is not None
        return not cell or (cell.isdecimal() and int(cell) <= LARGEST_KEY)

    def _wrong(self, piece: Piece, line: int, name: str, expected: str) -> DataFileError:
        text = piece.data.split(b"\n")[line - piece.begin.line].decode(errors="replace").rstrip("\r")
        cells = text.split(self.separator)
        if len(cells) != len(COLUMNS):  # an empty line counts as a row of empty cells with the quick reader
            return self._miscounted(piece, line, cells)
        return self._complaint(piece, line, name, cells[COLUMNS.index(name)], expected)

    def _miscounted(self, piece: Piece, line: int, cells: list[str]) -> DataFileError:
        hint = " This is Kaggle's test.txt, which has no labels." if len(cells) == len(FIELDS) else ""
        text = self.separator.join(cells)[:SHOWN]
        return DataFileError(
            piece.path, line, f"Expected {len(COLUMNS)} columns. Got {len(cells)}: {text!r}.{hint} {self.about}"
        )

    def _complaint(self, piece: Piece, line: int, name: str, cell: str, expected: str = "") -> DataFileError:
        if not expected:
            expected = "0 or 1" if name == "label" else self.keys.value if name in CATEGORICAL else "a number"
            expected = "a 32-bit integer" if name in NUMERIC and self.numeric is np.int32 else expected
        return DataFileError(
            piece.path,
            line,
            f"Expected {expected}{'' if name == 'label' else ' or nothing'} in column {name}. "
            f"Got {cell[:SHOWN]!r}. {self.about}",
        )

    def _empty(self) -> Columns:
        return Columns(
            np.zeros(0, np.uint8),
            np.zeros((len(NUMERIC), 0), self.numeric),
            np.zeros((len(CATEGORICAL), 0), np.uint32),
            np.zeros(0, np.uint32),
        )


def need_pyarrow() -> None:
    """Raise ImportError, with what to install, where pyarrow is missing."""
    if pyarrow is None:
        raise ImportError(
            "Expected pyarrow, which reads the rows. Got none. Install it: pip install 'structprune[bench]'."
        )


def _plain(column: Any) -> np.ndarray:
    """Return an integer column as float64, NaN where missing."""
    return np.asarray(column.to_numpy(False), dtype=np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _integers(column: Any) -> tuple[np.ndarray, np.ndarray] | int:
    """Return keys and which are missing, or the row of the first that is no uint32."""
    values = column.fill_null(0).to_numpy(False)
    wrong = np.flatnonzero((values < 0) | (values > LARGEST_KEY))
    if wrong.size:
        return int(wrong[0])
    return values.astype(np.uint32), np.asarray(column.is_null().to_numpy(False))


# 255 marks what is no hexadecimal digit.
DIGIT = np.full(256, 255, np.uint8)
DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
DIGIT[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def _hexadecimal(column: Any) -> tuple[np.ndarray, np.ndarray] | int:
    """Return keys and which are missing, or the row of the first that is neither empty nor 8 hexadecimal digits."""
    rows = len(column)
    if not rows:
        return np.zeros(0, np.uint32), np.zeros(0, bool)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + rows + 1]
    lengths = np.diff(ends)
    wrong = np.flatnonzero((lengths != 0) & (lengths != HEX_DIGITS))
    if wrong.size:
        return int(wrong[0])
    present = lengths == HEX_DIGITS
    # Empty cells take no bytes: the 8 digits of all others stand one after another.
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if present.any() else np.zeros(0, np.uint8)
    digits = DIGIT[text].reshape(-1, HEX_DIGITS)
    if digits.size and digits.max() == 255:
        return int(np.flatnonzero(present)[np.flatnonzero((digits == 255).any(1))[0]])
    pairs = (digits[:, 0::2] << 4) | digits[:, 1::2]
    keys = np.zeros(rows, np.uint32)
    keys[present] = np.ascontiguousarray(pairs).view(">u4")[:, 0]
    return keys, ~present


CRITEO_X1 = Layout(
    "criteo_x1",
    "Criteo_x1 is train.csv, valid.csv and test.csv with a header, from the reczoo/Criteo_x1 data set (the split of "
    "the AFN paper): https://github.com/reczoo/Datasets.",
    ("train.csv", "valid.csv", "test.csv"),
    ",",
    True,
    np.float32,
    Keys.INTEGER,
    45_840_617,
    {
        "train.csv": "30b89c1c7213013b92df52ec44f52dc5",
        "valid.csv": "f73c71fb3c4f66b6ebdfa032646bea72",
        "test.csv": "2c48b26e84c04a69b948082edae46f8c",
    },
)
KAGGLE = Layout(
    "kaggle",
    "The Kaggle rows are train.txt of the Criteo Display Advertising Challenge: tab-separated, no header, a label, 13 "
    "integers, 26 categories of 8 hexadecimal digits.",
    ("train.txt",),
    "\t",
    False,
    np.int32,
    Keys.HEX,
    45_840_617,
)
TERABYTE = Layout(
    "terabyte",
    "The Criteo 1TB Click Logs are day_0 ... day_23: tab-separated, no header, a label, 13 integers, 26 categories of "
    "8 hexadecimal digits.",
    tuple(f"day_{number}" for number in range(24)),
    "\t",
    False,
    np.int32,
    Keys.HEX,
    4_373_472_329,
)
LAYOUTS = (CRITEO_X1, KAGGLE, TERABYTE)
