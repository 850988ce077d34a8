"""Parquet files as Hugging Face stores images: a column of encoded images and one of labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grid.problems import DataFileError
from benchmarks.imagenet.sources.source import checked_labels

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:  # an extra
    pyarrow = None

__all__ = ["ParquetSource"]

GROUPS_KEPT = 8  # row groups in memory, per process


class ParquetSource:
    """Images in row groups, which are read whole: neighbours are best read together.

    Raises
    ------
    DataFileError
        If a file is damaged, or lacks a column or a class.
    ImportError
        If pyarrow is missing.
    """

    def __init__(self, files: Sequence[Path], classes: int) -> None:
        if pyarrow is None:
            raise ImportError(
                "Expected pyarrow, which reads parquet files. Got none. Install it: pip install 'structprune[bench]'."
            )
        self.files = list(files)
        labels: list[np.ndarray] = []
        self.rows: list[tuple[int, int, int]] = []  # file, row group, rows before it
        groups: list[np.ndarray] = []
        total = 0
        for number, path in enumerate(self.files):
            file = _opened(path)
            for group in range(file.num_row_groups):
                column = _group(path, group, ("label",))["label"].to_numpy()
                labels.append(column)
                groups.append(np.full(len(column), len(self.rows)))
                self.rows.append((number, group, total))
                total += len(column)
        self.groups = np.concatenate(groups).astype(np.int64) if groups else np.zeros(0, np.int64)
        every = np.concatenate(labels).tolist() if labels else []
        self.labels = checked_labels(every, [self.place(index) for index in range(total)], classes)
        self._images = lru_cache(maxsize=GROUPS_KEPT)(self._read_group)

    def read(self, index: int) -> bytes:
        """Return the image's bytes."""
        group = int(self.groups[index])
        path, name = self.place(index)
        content = self._images(group)[index - self.rows[group][2]].as_py()
        if not content or not content.get("bytes"):
            raise DataFileError(path, None, f"Expected bytes in column image, {name}. Got none. Fetch the file again.")
        return content["bytes"]

    def place(self, index: int) -> tuple[Path, str]:
        """Return the file and the row."""
        number, group, before = self.rows[int(self.groups[index])]
        return self.files[number], f"row {index - before} of row group {group}"

    def _read_group(self, group: int) -> Any:
        number, own, _ = self.rows[group]
        return _group(self.files[number], own, ("image",))["image"]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is cached: processes that load images read for themselves."""
        return {key: value for key, value in vars(self).items() if key != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = lru_cache(maxsize=GROUPS_KEPT)(self._read_group)


def _opened(path: Path) -> Any:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataFileError(
            path, None, f"Expected a whole parquet file. Got something else ({error}). Fetch it again."
        ) from error
    missing = [name for name in ("image", "label") if name not in file.schema_arrow.names]
    if missing:
        raise DataFileError(
            path,
            None,
            f"Expected columns image and label. Got none called {', '.join(missing)}; the test split of "
            "ImageNet has no labels. Use train and validation.",
        )
    return file


def _group(path: Path, group: int, columns: Sequence[str]) -> Any:
    file = _opened(path)
    try:
        return file.read_row_group(group, columns=list(columns))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataFileError(
            path, None, f"Expected a whole parquet file. Got damage in row group {group} ({error}). Fetch it again."
        ) from error
