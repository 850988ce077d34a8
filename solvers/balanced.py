"""Balance: every group of rows keeps equally many entries, and every row between a least and a most number.

Kernels with a regular layout give each row group the same number of blocks. Within a group the rows' least counts are
met by each row's best entries; the rest of the group's count goes to the best entries left, as far as rows may grow.
That greedy is exact: sets with at most ``row_maximum`` entries per row and at most ``q`` in all, from which a row's
least count can still be met, are the independent sets of a matroid (a laminar one with reserved places), and greedy
by value finds the best basis of a matroid.

References
----------
Edmonds, "Matroids and the greedy algorithm", Mathematical Programming 1 (1971).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem import BoolArray, FloatArray
from solvers.structured import MaskResult, checked_values, finished, infeasible, kept_value

__all__ = ["Balanced", "is_balanced"]


@dataclass(frozen=True)
class Balanced:
    """Keeps the best ``keep`` entries of every group of ``rows_per_group`` consecutive rows.

    Parameters
    ----------
    keep
        Kept entries of each group. The last group may have fewer rows; it keeps equally many.
    rows_per_group
        Consecutive rows that form a group.
    row_minimum
        Least kept entries of each row.
    row_maximum
        Most kept entries of each row; None sets no limit.

    Raises
    ------
    ValueError
        Counts below 0, groups of no rows, a least count above the most.
    """

    keep: int
    rows_per_group: int = 1
    row_minimum: int = 0
    row_maximum: int | None = None

    def __post_init__(self) -> None:
        if self.keep < 0 or self.row_minimum < 0 or self.rows_per_group < 1:
            raise ValueError(
                "Expected keep and row_minimum of at least 0 and rows_per_group of at least 1. "
                f"Got {self.keep}, {self.row_minimum} and {self.rows_per_group}. Give counts of entries and rows."
            )
        if self.row_maximum is not None and self.row_maximum < self.row_minimum:
            raise ValueError(
                f"Expected row_maximum of at least row_minimum {self.row_minimum}. Got {self.row_maximum}. Raise it."
            )

    def solve(self, values: ArrayLike) -> MaskResult:
        """Best mask of ``values``, shape ``(R, C)``. Raises ValueError for values that are not a finite table."""
        started = time.perf_counter()
        array = checked_values(values, 2)
        rows, columns = array.shape
        most = columns if self.row_maximum is None else min(self.row_maximum, columns)
        for first in range(0, rows, self.rows_per_group):
            count = min(self.rows_per_group, rows - first)
            if not count * self.row_minimum <= self.keep <= count * most or self.row_minimum > most:
                text = (
                    f"The group of {count} rows from row {first} can keep {count * self.row_minimum} .. "
                    f"{count * most} entries, and keep is {self.keep}. Choose keep in that range."
                )
                return infeasible(text, time.perf_counter() - started)
        selection = self._select(array, most)
        # The greedy mask is a best one: its own value is the bound.
        return finished(array, selection, kept_value(array, selection), time.perf_counter() - started)

    def _select(self, values: FloatArray, most: int) -> BoolArray:
        rows, columns = values.shape
        # Rank of each entry in its row, best first; ties go to the first column.
        ranked = np.argsort(-values, axis=1, kind="stable")
        ranks = np.empty_like(ranked)
        np.put_along_axis(ranks, ranked, np.broadcast_to(np.arange(columns), values.shape), axis=1)
        reserved, open_ = ranks < self.row_minimum, ranks < most
        groups = np.broadcast_to((np.arange(rows) // self.rows_per_group)[:, None], values.shape).ravel()
        # One sort for all groups: by group, then what must stay, what may, what must go, then by value.
        order = np.lexsort((-values.ravel(), np.where(reserved, 0, np.where(open_, 1, 2)).ravel(), groups))
        position = np.empty(values.size, dtype=np.int64)
        position[order] = np.arange(values.size)
        return (position - groups * self.rows_per_group * columns < self.keep).reshape(values.shape)


def is_balanced(selection: ArrayLike, balanced: Balanced) -> bool:
    """Whether every group of a mask ``(R, C)`` keeps exactly ``keep`` entries, every row within its counts."""
    rows = np.asarray(selection, dtype=bool).sum(axis=1)
    groups = np.add.reduceat(rows, np.arange(0, len(rows), balanced.rows_per_group))
    most = np.inf if balanced.row_maximum is None else balanced.row_maximum
    return bool(np.all(groups == balanced.keep) and np.all((rows >= balanced.row_minimum) & (rows <= most)))
