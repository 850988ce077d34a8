"""Coverage: keep ``k`` entries of a table of values so that no row and no column starves or takes all.

A weight matrix cut into blocks loses whole inputs when a row of blocks is removed altogether, and whole outputs with a
column. Least and most counts per row and column prevent it:

    maximise   sum_ij values_ij x_ij,   sum_ij x_ij = k,
    subject to row_minimum <= sum_j x_ij <= row_maximum,   column_minimum <= sum_i x_ij <= column_maximum.

This is a transportation problem; `solvers.transport` solves it exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from solvers.oracle import top
from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.structured import MaskResult, checked_values, finished, infeasible
from solvers.transport import maximum_transport

__all__ = ["Coverage", "CoveringChoice", "is_covering"]

#: One count for all rows (or columns), or one for each.
Counts: TypeAlias = int | Sequence[int] | IntArray


@dataclass(frozen=True, eq=False)
class Coverage:
    """Keeps exactly ``keep`` entries within counts per row and column, provably best.

    Parameters
    ----------
    keep
        Number of kept entries.
    row_minimum, column_minimum
        Least kept entries of each row ``(R,)`` and column ``(C,)``; one integer serves all.
    row_maximum, column_maximum
        Most kept entries of each; None sets no limit.
    """

    keep: int
    row_minimum: Counts = 0
    row_maximum: Counts | None = None
    column_minimum: Counts = 0
    column_maximum: Counts | None = None

    def solve(self, values: ArrayLike) -> MaskResult:
        """Best mask of ``values``, shape ``(R, C)``; ``-inf`` marks entries that must not be kept.

        Raises
        ------
        ValueError
            Values that are NaN, ``+inf`` or no table; counts of the wrong shape or below 0.
        """
        started = time.perf_counter()
        array = checked_values(values, 2, forbidden=True)
        limits = self.limits(array.shape)
        text = self._shortage(~np.isneginf(array), limits)
        found = None if text else maximum_transport(array, *limits, self.keep)
        if found is None:
            text = text or (
                "Rows and columns together cannot hold these counts, though each alone could. "
                "Lower the minimum or raise the maximum of the rows or of the columns."
            )
            return infeasible(text, time.perf_counter() - started)
        remedy = "The gap is rounding of the values to integers; scale values of very different sizes."
        return finished(array, found.selection, found.bound, time.perf_counter() - started, remedy=remedy)

    def limits(self, shape: tuple[int, ...]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Least and most of each row, least and most of each column, as arrays."""
        if self.keep < 0:
            raise ValueError(f"Expected keep of at least 0. Got {self.keep}. Give the number of entries to keep.")
        rows, columns = shape
        return (
            _counts(self.row_minimum, rows, columns, "row_minimum"),
            np.minimum(_counts(self.row_maximum, rows, columns, "row_maximum"), columns),
            _counts(self.column_minimum, columns, rows, "column_minimum"),
            np.minimum(_counts(self.column_maximum, columns, rows, "column_maximum"), rows),
        )

    def _shortage(self, allowed: BoolArray, limits: tuple[IntArray, IntArray, IntArray, IntArray]) -> str:
        """Which count cannot be met, looking at rows alone and at columns alone; empty when all can."""
        for axis, what, low, high in ((1, "row", *limits[:2]), (0, "column", *limits[2:])):
            most = np.minimum(high, allowed.sum(axis=axis))
            short = np.flatnonzero(low > most)
            if short.size:
                first = int(short[0])
                return (
                    f"{what.capitalize()} {first} must keep at least {int(low[first])} entries and may keep "
                    f"{int(most[first])} at most; so do {short.size - 1} others. Lower {what}_minimum."
                )
            if self.keep < low.sum() or self.keep > most.sum():
                return (
                    f"The {what}s need {int(low.sum())} .. {int(most.sum())} kept entries in all, and keep is "
                    f"{self.keep}. Choose keep in that range, or change the counts of the {what}s."
                )
        return ""


def _counts(counts: Counts | None, size: int, other: int, name: str) -> IntArray:
    array = np.asarray(other if counts is None else counts)
    if array.dtype.kind not in "iu" or array.shape not in ((), (size,)) or np.any(array < 0):
        raise ValueError(
            f"Expected {name} as one integer of at least 0, or {size} of them. Got {counts!r}. Give counts of entries."
        )
    return np.broadcast_to(array, size).astype(np.int64)


@dataclass(frozen=True, eq=False)
class CoveringChoice:
    """Coverage as the choice inside `solvers.oracle_loops.SequentialSelection`, for schedules that fall to ``keep``.

    While more than ``coverage.keep`` stay, they are the best mask within the counts, filled up with the most valuable
    others. So whatever a falling phase removes, what is left contains a mask that satisfies the counts.

    Parameters
    ----------
    shape
        Rows and columns; structure ``i * C + j`` is the entry of row i and column j.
    coverage
        The final number and its counts.
    """

    shape: tuple[int, int]
    coverage: Coverage

    def __call__(self, values: FloatArray, allowed: BoolArray, count: int) -> BoolArray:
        """The mask of ``count`` entries, shape ``(R * C,)``.

        Raises
        ------
        ValueError
            Fewer than ``coverage.keep`` asked for, or counts that the allowed entries cannot meet.
        """
        rows, columns = self.shape
        if values.shape != (rows * columns,):
            raise ValueError(
                f"Expected {rows * columns} values for a table of {rows} x {columns}. Got {values.shape}. "
                "Give the shape of the grid that the structures form."
            )
        if count < self.coverage.keep:
            raise ValueError(
                f"Expected at least {self.coverage.keep} to keep, the number of the coverage. Got {count}. "
                "Let the schedule end at that number."
            )
        result = self.coverage.solve(np.where(allowed, values, -np.inf).reshape(self.shape))
        if result.selection is None:
            raise ValueError(
                f"Expected counts that {self.coverage.keep} of {int(allowed.sum())} entries can meet. Got others. "
                f"{result.termination.text}"
            )
        needed = result.selection.ravel()
        return needed | top(values, allowed & ~needed, count - self.coverage.keep)


def is_covering(selection: ArrayLike, coverage: Coverage) -> bool:
    """Whether a mask ``(R, C)`` keeps exactly ``keep`` entries within every count."""
    kept = np.asarray(selection, dtype=bool)
    row_low, row_high, column_low, column_high = coverage.limits(kept.shape)
    rows, columns = kept.sum(axis=1), kept.sum(axis=0)
    within = np.all((row_low <= rows) & (rows <= row_high)) and np.all(
        (column_low <= columns) & (columns <= column_high)
    )
    return bool(within and kept.sum() == coverage.keep)
