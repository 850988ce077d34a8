"""Which entries of a tensor dimension vanish together: sets of ids per position, kept in a union-find.

The *label* of a dimension is an int64 array ``(size, k)``. Row ``i`` is the set of ids at position ``i``, padded
with 0. A position is removed if and only if any of its ids is removed, so an empty row is never removed. A
product of factors (heads x head dim) has several columns, a concatenation stacks rows, a slice indexes rows.

Ids are joined by union-find, refined by substitution ("this axis is really a product of two") and pinned ("this
may never be removed"). Labels are stored as they were made and read through :meth:`Ids.norm`, which applies
everything learnt since.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

__all__ = ["Ids", "Label", "empty_label", "merge_labels", "stack_rows"]

Label = np.ndarray


def empty_label(size: int) -> Label:
    """A dimension of which no position is ever removed."""
    return np.zeros((size, 0), dtype=np.int64)


def merge_labels(labels: Sequence[Label]) -> Label:
    """Label of several dimensions flattened into one (row-major): the outer product of their rows."""
    size = prod(len(label) for label in labels)
    columns, inner = [], size
    outer = 1
    for label in labels:
        inner //= max(len(label), 1)
        if label.shape[1]:
            columns.append(np.tile(np.repeat(label, inner, axis=0), (outer, 1)))
        outer *= len(label)
    return np.concatenate(columns, axis=1) if columns else empty_label(size)


def stack_rows(parts: Sequence[Label]) -> Label:
    """Label of several dimensions laid end to end."""
    rows = np.zeros((sum(len(part) for part in parts), max(part.shape[1] for part in parts)), dtype=np.int64)
    start = 0
    for part in parts:
        rows[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return rows


class Ids:
    """Union-find over ids with substitution and pinning. Id 0 means "no id"."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._pinned = np.ones(1, dtype=bool)
        self._branching = np.zeros(1, dtype=bool)
        self._factors: dict[int, np.ndarray] = {}
        self._reason_of: dict[int, tuple[str, str]] = {}  # what forbids it, and through which operator it is tied

    def fresh(self, size: int) -> Label:
        """Label of ``size`` positions, each with an id of its own."""
        start = len(self._parent)
        ids = np.arange(start, start + size, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        self._pinned = np.concatenate([self._pinned, np.zeros(size, dtype=bool)])
        self._branching = np.concatenate([self._branching, np.zeros(size, dtype=bool)])
        return ids[:, None]

    def fixed(self, size: int, reason: str) -> Label:
        """Label of a dimension of which no position is ever removed, and why; ``reason`` says what the dimension is."""
        label = np.repeat(self.fresh(1), size, axis=0)
        self.pin(label, reason)
        return label

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Representative of each id (same shape), compressing paths on the way."""
        root = self._parent[ids]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[ids] = root
        return root

    def norm(self, label: Label) -> Label:
        """The label as it is known now: representatives, factors expanded, pinned ids and repetitions dropped."""
        if not label.size:
            return empty_label(len(label))
        rows = self.find(label)
        while True:
            rows = np.where(self._pinned[rows], 0, rows)
            branching = self._branching[rows]
            if not branching.any():
                break
            rows = self._expand(rows, branching)
        for column in range(1, rows.shape[1]):
            repeated = (rows[:, :column] == rows[:, column : column + 1]).any(axis=1)
            rows[repeated, column] = 0
        return rows[:, rows.any(axis=0)]

    def _expand(self, rows: Label, branching: np.ndarray) -> Label:
        ids = np.unique(rows[branching])
        width = max(len(self._factors[int(i)]) for i in ids)
        table = np.zeros((len(ids), width), dtype=np.int64)
        for row, i in enumerate(ids):
            table[row, : len(self._factors[int(i)])] = self._factors[int(i)]
        columns = []
        for column in range(rows.shape[1]):
            if not branching[:, column].any():
                columns.append(rows[:, column : column + 1])
                continue
            wide = np.zeros((len(rows), width), dtype=np.int64)
            wide[:, 0] = rows[:, column]
            here = branching[:, column]
            wide[here] = table[np.searchsorted(ids, rows[here, column])]
            columns.append(wide)
        return self.find(np.concatenate(columns, axis=1))

    def pin(self, label: Label, reason: str) -> None:
        """Forbid the removal of every position of ``label``; ``reason`` is a phrase such as 'is normalised over'.

        An empty reason marks what nobody expects to be removable, such as the taps of a kernel.
        """
        self._pin_ids(self.norm(label), (reason, ""))

    def _pin_ids(self, ids: np.ndarray, reason: tuple[str, str]) -> None:
        for i in np.unique(ids):
            if i and not self._pinned[i]:
                self._pinned[i] = True
                self._reason_of[int(i)] = reason

    def reason(self, label: Label) -> str | None:
        """Why the first pinned position of ``label`` is pinned, as a phrase; None when nothing is."""
        found = self._reason(label)
        if found is None:
            return None
        cause, tie = found
        return f"is tied by {tie} to a dimension that {cause}" if tie else cause

    def _reason(self, label: Label) -> tuple[str, str] | None:
        if not label.size:
            return None
        rows = self.find(label)
        while True:
            for i in rows[self._pinned[rows] & (rows != 0)]:
                return self._reason_of[int(i)]
            branching = self._branching[rows]
            if not branching.any():
                return None
            rows = self._expand(rows, branching)

    def unify(self, first: Label, second: Label, tie: str) -> None:
        """Tie two dimensions of equal size: each position of one is removed exactly when the other's is.

        Where one side can never be removed the other is pinned, for the reason that the first one has; ``tie`` says
        what ties them.
        """
        while True:
            x, y = _cancel_common(self.norm(first), self.norm(second))
            count_x, count_y = (x != 0).sum(axis=1), (y != 0).sum(axis=1)
            differ = (count_x > 0) | (count_y > 0)
            if not differ.any():
                return
            lone = differ & ((count_x == 0) | (count_y == 0))
            if lone.any():
                known = self._reason(first[lone & (count_x == 0)]) or self._reason(second[lone & (count_y == 0)])
                reason = (known[0] if known and known[0] else "cannot shrink", tie)
                self._pin_ids(x[lone], reason)
                self._pin_ids(y[lone], reason)
                continue
            equal = differ & (count_x == count_y)
            if equal.any():
                width = int(count_x[equal].max())
                self._union(x[equal][:, :width].ravel(), y[equal][:, :width].ravel())
                continue
            self._refine(x[differ], y[differ], count_x[differ], count_y[differ], tie)

    def _union(self, first: np.ndarray, second: np.ndarray) -> None:
        """Hook the larger representative of each pair to the smaller until all pairs agree."""
        while True:
            a, b = self.find(first), self.find(second)
            different = a != b
            if not different.any():
                return
            small, large = np.minimum(a, b)[different], np.maximum(a, b)[different]
            np.minimum.at(self._parent, large, small)

    def _refine(self, x: Label, y: Label, count_x: np.ndarray, count_y: np.ndarray, tie: str) -> None:
        """Rows of unequal counts: one id against several becomes their product; anything else is pinned.

        One substitution at a time is sure to keep the factors leaves, so a batch stops at the first row that
        touches an id used before in it; the caller comes back for the rest.
        """
        refined: set[int] = set()
        for row in range(len(x)):
            one, many = (x[row], y[row]) if count_x[row] == 1 else (y[row], x[row])
            one, many = one[one != 0], many[many != 0]
            if len(one) != 1:
                self._pin_ids(np.concatenate([one, many]), ("is a product of other dimensions", tie))
                return
            if refined & {int(one[0]), *many.tolist()}:
                return
            self._factors[int(one[0])] = many.copy()
            self._branching[one[0]] = True
            refined.add(int(one[0]))

    def split(self, label: Label, sizes: Sequence[int], tie: str) -> list[Label]:
        """Labels of the dimensions that ``label`` is viewed as; the inverse of :func:`merge_labels`."""
        labels = []
        for position, size in enumerate(sizes[:-1]):
            head, label = self._split_two(label, size, prod(sizes[position + 1 :]), tie)
            labels.append(head)
        return [*labels, label]

    def _split_two(self, label: Label, a: int, b: int, tie: str) -> tuple[Label, Label]:
        rows = self.norm(label)
        if a == 1:
            return empty_label(1), rows
        if b == 1:
            return rows, empty_label(1)
        grid = rows.reshape(a, b, -1)
        of_a = (grid == grid[:, :1]).all(axis=(0, 1))  # constant along b
        of_b = (grid == grid[:1]).all(axis=(0, 1)) & ~of_a
        heads, tails = [grid[:, 0][:, of_a]], [grid[0][:, of_b]]
        mixed = grid[:, :, ~(of_a | of_b)]
        if (mixed == 0).any():
            # Part of the dimension can never be removed: only entries that agree along a can go.
            for index in range(1, a):
                self.unify(mixed[0], mixed[index], tie)
            tails.append(mixed[0])
        else:
            for column in range(mixed.shape[2]):
                head, tail = self.fresh(a), self.fresh(b)
                self.unify(mixed[:, :, column].reshape(-1, 1), merge_labels([head, tail]), tie)
                heads.append(head)
                tails.append(tail)
        return np.concatenate(heads, axis=1), np.concatenate(tails, axis=1)


def _cancel_common(x: Label, y: Label) -> tuple[Label, Label]:
    """Drop the ids that both rows have and push the others to the left, keeping their order."""
    if not x.shape[1] or not y.shape[1]:
        return _left(x), _left(y)
    same = x[:, :, None] == y[:, None, :]
    return _left(np.where(same.any(axis=2), 0, x)), _left(np.where(same.any(axis=1), 0, y))


def _left(rows: Label) -> Label:
    order = np.argsort(rows == 0, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)
