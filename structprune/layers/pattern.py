"""Which weights of a layer are kept, in a form that kernels read: groups of outputs, each with its own input columns.

The weight ``W`` of ``outputs x inputs`` is cut into groups of ``height`` consecutive rows. A group keeps some of the
``width``-wide runs of input columns whole, and all of its rows keep the same ones: a kept block is ``height x width``.
Tall, narrow blocks are what processors like. A group is then one dense matrix over a short list of inputs, whatever
the width, so narrow blocks cost little time and leave the choice of weights nearly free.

Rows may be stored in another order than the layer's outputs have, so that outputs that use the same inputs lie in one
group: ``order[i]`` is the output in stored row ``i``. This is the reordering of TETRIS (Ji et al., "TETRIS:
Tile-matching the tremendous irregular sparsity", NeurIPS 2018), on the output side only; inputs need none, being a
list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["HEIGHTS", "WIDTHS", "GroupedColumns", "Transposed"]

HEIGHTS = (16, 32, 64, 128, 256)
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class GroupedColumns:
    """A pattern of kept ``height x width`` blocks of an ``outputs x inputs`` weight.

    With ``R = ceil(outputs / height)`` groups and ``C`` kept (group, input column) pairs. Ragged edges are exact: the
    last group has fewer rows and the last piece of a row fewer columns; nothing is padded in the pattern.

    Attributes
    ----------
    outputs, inputs
        Size of the weight.
    height
        Rows of a group, one of :data:`HEIGHTS`.
    width
        Columns of a piece, one of :data:`WIDTHS`; pieces begin at multiples of it.
    columns
        ``(C,)`` int32, the input column of each pair, ascending within a group.
    starts
        ``(R + 1,)`` int32: group ``r`` owns ``columns[starts[r]:starts[r + 1]]``; a group may be empty.
    order
        ``(outputs,)`` int32, the output that each stored row is; None where rows are stored as they are.

    Raises
    ------
    ValueError
        Sizes or arrays that do not describe such a pattern.
    """

    outputs: int
    inputs: int
    height: int
    width: int
    columns: np.ndarray
    starts: np.ndarray
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check every promise that kernels rely on, once, so that they need not."""
        check_sizes(self.outputs, self.inputs, self.height, self.width)
        object.__setattr__(self, "columns", frozen_indices(self.columns, "columns"))
        object.__setattr__(self, "starts", frozen_indices(self.starts, "starts"))
        if self.order is not None:
            object.__setattr__(self, "order", frozen_indices(self.order, "order"))
            check_order(self.order, self.outputs)
        self._check_starts()
        self._check_columns()

    @classmethod
    def from_blocks(
        cls, kept: np.ndarray, outputs: int, inputs: int, height: int, width: int, order: np.ndarray | None = None
    ) -> GroupedColumns:
        """Make the pattern of a choice of blocks.

        Parameters
        ----------
        kept
            ``(R, ceil(inputs / width))`` bool, True = kept, in stored rows.
        outputs, inputs, height, width, order
            As the attributes.

        Raises
        ------
        ValueError
            ``kept`` is not boolean or has another shape.
        """
        check_sizes(outputs, inputs, height, width)
        expected = (-(-outputs // height), -(-inputs // width))
        kept = boolean(kept, expected, "blocks")
        per_column = np.repeat(kept, width, axis=1)[:, :inputs]
        groups, columns = np.nonzero(per_column)
        starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=expected[0]))])
        return cls(outputs, inputs, height, width, columns, starts, order)

    @classmethod
    def from_entries(cls, mask: np.ndarray, height: int, width: int, order: np.ndarray | None = None) -> GroupedColumns:
        """Make the least pattern that holds every kept entry: a block stays if any of its entries does.

        Parameters
        ----------
        mask
            ``(outputs, inputs)`` bool, True = kept, rows in the order of the layer's outputs.
        height, width, order
            As the attributes. Compare :attr:`density` with the mask's to see what blocks of this size add.

        Raises
        ------
        ValueError
            ``mask`` is not a boolean matrix.
        """
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise ValueError(f"Expected a mask of shape (outputs, inputs). Got {mask.shape}. Flatten the taps first.")
        outputs, inputs = mask.shape
        check_sizes(outputs, inputs, height, width)
        mask = boolean(mask, mask.shape, "entries")
        if order is not None:
            order = frozen_indices(order, "order")
            check_order(order, outputs)
            mask = mask[order]
        padded = np.pad(mask, ((0, -outputs % height), (0, -inputs % width)))
        tiled = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
        return cls.from_blocks(np.asarray(tiled.any(axis=(1, 3))), outputs, inputs, height, width, order)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> GroupedColumns:
        """Read what :meth:`to_json` wrote; everything is checked again."""
        size = {name: int(record[name]) for name in ("outputs", "inputs", "height", "width")}
        check_sizes(**size)
        kept = np.zeros((-(-size["outputs"] // size["height"]), -(-size["inputs"] // size["width"])), dtype=bool)
        if len(record["pieces"]) != len(kept):
            raise ValueError(
                f"Expected {len(kept)} groups of pieces. Got {len(record['pieces'])}. Read a file of to_json."
            )
        for row, pieces in zip(kept, record["pieces"], strict=True):
            if any(not 0 <= piece < len(row) for piece in pieces):
                raise ValueError(f"Expected pieces in 0 ... {len(row) - 1}. Got {pieces}. Read a file of to_json.")
            row[pieces] = True
        order = None if record["order"] is None else np.asarray(record["order"])
        return cls.from_blocks(kept, **size, order=order)

    def to_json(self) -> dict[str, Any]:
        """Return numbers and lists that say the pattern, ready for ``json.dumps``."""
        return {
            "outputs": self.outputs,
            "inputs": self.inputs,
            "height": self.height,
            "width": self.width,
            "pieces": [np.flatnonzero(row).tolist() for row in self.blocks()],
            "order": None if self.order is None else self.order.tolist(),
        }

    @property
    def groups(self) -> int:
        """Number of groups ``R``."""
        return -(-self.outputs // self.height)

    @property
    def group_of_column(self) -> np.ndarray:
        """The group that owns each kept pair, ``(C,)``."""
        return np.repeat(np.arange(self.groups), np.diff(self.starts))

    @property
    def entries(self) -> int:
        """Number of kept entries of the weight."""
        lengths = np.diff(self.starts).astype(np.int64)
        ragged = self.groups * self.height - self.outputs
        return int(lengths.sum() * self.height - lengths[-1] * ragged)

    @property
    def density(self) -> float:
        """Kept entries over all entries."""
        return self.entries / (self.outputs * self.inputs)

    def blocks(self) -> np.ndarray:
        """Return ``(R, ceil(inputs / width))`` bool: the kept blocks, in stored rows."""
        kept = np.zeros((self.groups, -(-self.inputs // self.width)), dtype=bool)
        kept[self.group_of_column, self.columns // self.width] = True
        return kept

    def mask(self) -> np.ndarray:
        """Return ``(outputs, inputs)`` bool: the kept entries, rows in the order of the layer's outputs."""
        by_group = np.zeros((self.groups, self.inputs), dtype=bool)
        by_group[self.group_of_column, self.columns] = True
        stored = np.repeat(by_group, self.height, axis=0)[: self.outputs]
        if self.order is None:
            return stored
        mask = np.empty_like(stored)
        mask[self.order] = stored
        return mask

    def transpose(self, height: int | None = None) -> Transposed:
        """Return the pattern of the transposed stored weight, for ``dX = dY W`` by the same kernels.

        Parameters
        ----------
        height
            Inputs in a group of the transposed weight. By default ``width`` where that is a height, otherwise the
            least height. A height above ``width`` merges pieces that were chosen apart: the difference is stored
            as zeros, and the transposed pattern's :attr:`density` tells how many.
        """
        if height is None:
            height = self.width if self.width in HEIGHTS else HEIGHTS[0]
        if len(self.columns) * self.height >= 2**31:
            raise ValueError(f"Expected fewer than 2**31 values. Got {self.entries}. Train the layer dense and masked.")
        rows = np.arange(len(self.columns), dtype=np.int32)[:, None] * self.height + np.arange(
            self.height, dtype=np.int32
        )
        padded_inputs = -(-self.inputs // height) * height
        # Where each entry of the stored weight lies in the flattened values; the end of them where it lies nowhere.
        place = np.full((padded_inputs, self.groups, self.height), rows.size, dtype=np.int32)
        place[self.columns, self.group_of_column] = rows
        place = place.reshape(padded_inputs, -1)[:, : self.outputs]
        pattern = GroupedColumns.from_entries(place[: self.inputs] < rows.size, height, self.height)
        by_group = place.reshape(-1, height, self.outputs)
        return Transposed(pattern, by_group[pattern.group_of_column, :, pattern.columns])

    def __eq__(self, other: object) -> bool:
        """Whether the other is a pattern that keeps the same blocks in the same order."""
        return isinstance(other, GroupedColumns) and self._key() == other._key()

    def __hash__(self) -> int:
        """Agree with ``==``."""
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        order = None if self.order is None else self.order.tobytes()
        return (
            self.outputs,
            self.inputs,
            self.height,
            self.width,
            self.columns.tobytes(),
            self.starts.tobytes(),
            order,
        )

    def _check_starts(self) -> None:
        starts, count = self.starts, len(self.columns)
        good = (
            len(starts) == self.groups + 1
            and starts[0] == 0
            and starts[-1] == count
            and bool(np.all(np.diff(starts) >= 0))
        )
        if not good:
            raise ValueError(
                f"Expected {self.groups + 1} starts that ascend from 0 to {count}, the number of columns. "
                f"Got {len(starts)}: {starts[:4].tolist()} ... {starts[-2:].tolist()}. Use from_blocks or from_entries."
            )

    def _check_columns(self) -> None:
        columns, group = self.columns.astype(np.int64), self.group_of_column
        if len(columns) and not (columns.min() >= 0 and columns.max() < self.inputs):
            raise ValueError(
                f"Expected columns in 0 ... {self.inputs - 1}. Got {columns.min()} ... {columns.max()}. "
                "Make the pattern from a mask of this layer's shape."
            )
        if np.any((np.diff(columns) <= 0) & (np.diff(group) == 0)):
            raise ValueError(
                "Expected columns that ascend within a group. Got others. Use from_blocks or from_entries."
            )
        pieces = -(-self.inputs // self.width)
        held = np.bincount(group * pieces + columns // self.width, minlength=self.groups * pieces)
        full = np.minimum(self.width, self.inputs - np.arange(pieces) * self.width)
        if np.any((held != 0) & (held != np.tile(full, self.groups))):
            raise ValueError(
                f"Expected whole pieces of {self.width} columns. Got parts of some. "
                "Use from_entries, which completes them."
            )


@dataclass(frozen=True)
class Transposed:
    """A pattern of the transposed stored weight and where its values come from.

    Attributes
    ----------
    pattern
        ``inputs x outputs``, over stored rows: its columns are stored rows of the original.
    source
        ``(C', height')`` int32, index into the original's flattened ``(C, G)`` values; ``C * G`` for a zero.
    """

    pattern: GroupedColumns
    source: np.ndarray


def check_sizes(outputs: int, inputs: int, height: int, width: int) -> None:
    """Refuse sizes that no pattern has."""
    if outputs < 1 or inputs < 1:
        raise ValueError(f"Expected at least one output and one input. Got {outputs} x {inputs}. Give a real weight.")
    if height not in HEIGHTS:
        raise ValueError(
            f"Expected a height in {HEIGHTS}. Got {height}. Taller groups run faster, lower ones fit better."
        )
    if width not in WIDTHS:
        raise ValueError(f"Expected a width in {WIDTHS}. Got {width}. Use 1 for free columns, 16 for half precision.")


def check_order(order: np.ndarray, outputs: int) -> None:
    """Refuse an order that is no permutation of the outputs."""
    if order.shape != (outputs,) or not np.array_equal(np.sort(order), np.arange(outputs)):
        raise ValueError(
            f"Expected an order that holds each of 0 ... {outputs - 1} once. Got {order.size} numbers that do not. "
            "Give order[i] = the output in stored row i."
        )


def frozen_indices(values: np.ndarray, name: str) -> np.ndarray:
    """Return a read-only int32 copy of a list of whole numbers."""
    array = np.asarray(values)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(
            f"Expected {name} as whole numbers in one dimension. Got {array.dtype} {array.shape}. Cast them."
        )
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise ValueError(f"Expected {name} below 2**31. Got {array.max()}. Split the layer: kernels index by 32 bits.")
    copy = array.astype(np.int32)
    copy.setflags(write=False)
    return copy


def boolean(mask: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return the mask if it is boolean and of that shape."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(
            f"Expected a boolean mask of {name} of shape {shape}. Got {mask.dtype} {mask.shape}. True means kept."
        )
    return mask
