"""Prepared rows: memory-mapped arrays with the manifest that proves them whole."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ARRAYS", "MANIFEST", "Growing", "Prepared", "Rows", "open_prepared"]

MANIFEST = "manifest.json"
ARRAYS = ("numbers", "ids", "labels")
CHECKED = 1 << 24  # bytes at once


@dataclass(frozen=True)
class Rows:
    """One part of the prepared rows.

    Attributes
    ----------
    numbers
        float32 ``(rows, numeric fields)``, memory-mapped.
    ids
        int32 ``(rows, categorical fields)``: identities within each field.
    labels
        uint8 ``(rows,)``.
    """

    numbers: np.ndarray
    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def click_rate(self) -> float:
        """Fraction of clicks."""
        return float(np.mean(self.labels, dtype=np.float64))


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared rows.

    Attributes
    ----------
    folder
        Where it is.
    parts
        By name: train, validation, test.
    fields
        Names of the fields, numeric ones first; a field's place here is its place in the network's input.
    numeric
        How many of the fields are numbers.
    sizes
        Identities of each categorical field, those of missing and rare ones included.
    manifest
        All that is known of the origin.
    """

    folder: Path
    parts: Mapping[str, Rows]
    fields: tuple[str, ...]
    numeric: int
    sizes: tuple[int, ...]
    manifest: Mapping[str, Any]

    @property
    def sample(self) -> str:
        """What must be said beside every figure from these rows; empty for whole data sets."""
        return str(self.manifest["sample"])

    def verify(self) -> None:
        """Read everything and compare checksums.

        Raises
        ------
        ValueError
            If an array is not what was written.
        """
        for name, described in self.manifest["arrays"].items():
            found = checksum(self.folder / name)
            if found != described["crc32"]:
                raise ValueError(
                    f"Expected {self.folder / name} with checksum {described['crc32']:08x}. Got {found:08x}. "
                    "Remove the folder and prepare the rows again."
                )


def open_prepared(folder: Path) -> Prepared:
    """Open a folder that `prepare` finished; arrays are mapped, not read.

    Raises
    ------
    ValueError
        If there is no manifest, or an array has another size.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected prepared rows in {folder}. Got no readable {MANIFEST} ({error}). Prepare them: "
            "python -m benchmarks.criteo prepare --data FILES --work FOLDER"
        ) from error
    for name, described in manifest["arrays"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != described["bytes"]:
            raise ValueError(
                f"Expected {path} of {described['bytes']:,} bytes. Got {size}. Remove the folder and prepare the rows "
                "again."
            )
    parts = {
        part: Rows(*(np.load(folder / f"{part}.{array}.npy", mmap_mode="r") for array in ARRAYS))
        for part in manifest["rows"]
    }
    fields = tuple(manifest["fields"])
    return Prepared(folder, parts, fields, manifest["numeric"], tuple(manifest["sizes"]), manifest)


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while data := file.read(CHECKED):
            value = zlib.crc32(data, value)
    return value


@dataclass(frozen=True)
class Growing:
    """An array of known size that is written from its first row to its last by plain writes.

    A write into mapped memory would end the process where the disk is full; a plain one raises an error.

    Attributes
    ----------
    path
        The ``.npy`` file.
    shape, dtype
        Of the whole array.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def begin(self, rows: int) -> int:
        """Make the file hold its header and the first ``rows`` rows and nothing else; returns its size.

        Raises
        ------
        ValueError
            If it holds fewer.
        """
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        if not rows:
            with self.path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, described)
                return file.tell()
        with self.path.open("r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            size = file.tell() + rows * self.row_bytes
            if self.path.stat().st_size < size:
                raise ValueError(
                    f"Expected at least {rows:,} rows in {self.path}. Got fewer. Remove its folder and begin again."
                )
            file.truncate(size)
        return size

    def append(self, rows: np.ndarray) -> None:
        """Write rows at the end and wait until they are on disk."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"Expected rows of {self.dtype} {self.shape[1:]}. Got {rows.dtype} {rows.shape[1:]}. Convert them."
            )
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows).data)
            file.flush()
