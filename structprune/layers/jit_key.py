"""What a generated kernel depends on, and what one call hands to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cached_property

from structprune.layers.activation import Activation

__all__ = ["Field", "GradientKey", "Isa", "KernelKey", "Storage"]


class Isa(Enum):
    """Vector instructions that code is generated for: lanes of float32 and number of vector registers."""

    AVX2 = (8, 16)
    AVX512 = (16, 32)

    @property
    def lanes(self) -> int:
        return self.value[0]

    @property
    def registers(self) -> int:
        return self.value[1]


class Storage(Enum):
    """How values and activations are stored. The sums are float32 in each case."""

    FLOAT = "float"
    WIDENED = "widened"  # bfloat16 values and results, float32 activations: any columns, any machine
    PAIRS = "pairs"  # bfloat16, columns 2i and 2i + 1 together: vdpbf16ps multiplies and adds two columns at once
    LOOSE = "loose"  # bfloat16, any two columns at once: activations are loaded one by one

    @property
    def element(self) -> str:
        """Type of values and results in memory."""
        return "float" if self is Storage.FLOAT else "bfloat"

    @property
    def activation(self) -> str:
        """Type of activations in memory."""
        return "float" if self in (Storage.FLOAT, Storage.WIDENED) else "bfloat"

    @property
    def step(self) -> int:
        """Columns that one step takes."""
        return 2 if self in (Storage.PAIRS, Storage.LOOSE) else 1


class Field(IntEnum):
    """Places in the array of 64-bit integers that a worker receives.

    The gradient of the values is a product the other way round: it reads ``OUT``, the gradient of the outputs, and
    writes to ``VALUES``.
    """

    NEXT_TASK = 0
    TASKS = 1
    CHUNKS = 2
    CHUNK_GROUPS = 3
    PANEL_TOKENS = 4
    TOKENS = 5
    GROUPS = 6
    OUTPUTS = 7
    X = 8
    VALUES = 9
    COLUMNS = 10
    STARTS = 11
    ORDER = 12
    BIAS = 13
    OUT = 14
    BASES = 15
    TOKEN_BYTES = 16


@dataclass(frozen=True)
class KernelKey:
    """All that the generated code depends on.

    Parameters
    ----------
    height
        Rows of one output group, G.
    storage
        Element types, see `Storage`.
    isa
        Vector instructions.
    activation
        Applied to the sum and its bias.
    """

    height: int
    storage: Storage
    isa: Isa
    activation: Activation

    @cached_property
    def rows(self) -> int:
        """Rows of one register tile; a taller group takes several passes over its columns."""
        return tile_rows(self.height, self.isa)

    @cached_property
    def vectors(self) -> int:
        """Vectors in one column of the tile."""
        return self.rows // self.isa.lanes

    @cached_property
    def tokens(self) -> int:
        """Tokens of one register tile."""
        return tile_width(self.rows, self.isa)


@dataclass(frozen=True)
class GradientKey:
    """All that the code of the values' gradient depends on; everything is float32.

    Parameters
    ----------
    height
        Rows of one output group, G.
    isa
        Vector instructions.
    """

    height: int
    isa: Isa

    @cached_property
    def rows(self) -> int:
        """Rows of one register tile."""
        return tile_rows(self.height, self.isa)

    @cached_property
    def vectors(self) -> int:
        """Vectors in one column of the tile."""
        return self.rows // self.isa.lanes

    @cached_property
    def columns(self) -> int:
        """Columns of one register tile."""
        return tile_width(self.rows, self.isa)


def tile_rows(height: int, isa: Isa) -> int:
    """Return the rows of a register tile of a group."""
    return min(height, 4 * isa.lanes if isa is Isa.AVX512 else 2 * isa.lanes)


def tile_width(rows: int, isa: Isa) -> int:
    """Return how many tokens, or columns of a gradient, a register tile has.

    Sums, one column of values and one broadcast have to fit the vector registers; more than about 10 pointers do not
    fit the general registers; and rows at multiples of 4 KB share the sets of a first-level cache of 8 ways, so 8 is
    the most.
    """
    vectors = rows // isa.lanes
    return min((isa.registers - vectors - 1) // vectors, 8)
