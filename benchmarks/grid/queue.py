"""Cells that several processes share: each takes one that is neither measured nor being measured.

A cell's row is a file of its own that appears whole. While a cell is measured its process holds the lock of another
file; the system lets go of locks when a process dies, however it dies, so that a killed night leaves nothing behind
that would have to be cleared.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.grid.cell import Cell
from benchmarks.grid.row import SINGLE, Row, read_row, write_row

__all__ = ["Queue"]


@dataclass(frozen=True)
class Queue:
    """A folder of rows, locks and checkpoints.

    Attributes
    ----------
    folder
        Made where it is missing.
    settings
        From a cell to all else that decides its figures; rows measured with other settings are refused.
    """

    folder: Path
    settings: Callable[[Cell], dict[str, object]]

    @property
    def rows_folder(self) -> Path:
        """Where rows are."""
        return self.folder / SINGLE

    def checkpoints(self, cell: Cell) -> Path:
        """Where a cell's training keeps its state."""
        return self.folder / "checkpoints" / cell.key

    def row(self, cell: Cell) -> Row | None:
        """Return a measured row.

        Raises
        ------
        ValueError
            If it was measured with other settings.
        """
        row = read_row(self.rows_folder / f"{cell.key}.json")
        wanted = json.loads(json.dumps(self.settings(cell)))
        if row is not None and row.settings != wanted:
            other = sorted(key for key in {*row.settings, *wanted} if row.settings.get(key) != wanted.get(key))
            raise ValueError(
                f"Expected rows in {self.rows_folder} of the same settings. Got {cell.key} with another "
                f"{', '.join(other)}. Name another folder with --out."
            )
        return row

    def take(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Yield the cells that have no row, one at a time, each locked until the next is asked for.

        A cell that another process measures is passed over.
        """
        for cell in cells:
            with self._locked(cell) as mine:
                if mine and self.row(cell) is None:
                    yield cell

    def finish(self, row: Row) -> None:
        """Write a row."""
        self.rows_folder.mkdir(parents=True, exist_ok=True)
        write_row(self.rows_folder / f"{row.cell.key}.json", row)

    @contextmanager
    def _locked(self, cell: Cell) -> Iterator[bool]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(locks / f"{cell.key}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        try:
            yield mine
        finally:
            os.close(descriptor)  # which unlocks
