"""Which rows train, which choose, which judge: decided by file or row number alone, before anything is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["PARTS", "ByFile", "InOrder", "LastFile", "Scattered", "Split"]

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
MIXING = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Split(Protocol):
    """Assigns rows to parts."""

    def assign(self, file: int, begin: int, rows: int, totals: tuple[int, ...]) -> np.ndarray:
        """Return the parts, uint8 ``(rows,)``, of a file's rows from ``begin`` on; ``totals``: rows of each file."""
        ...


@dataclass(frozen=True)
class ByFile:
    """The first file trains, the second validates, the third tests, as Criteo_x1 comes."""

    def assign(self, file: int, begin: int, rows: int, totals: tuple[int, ...]) -> np.ndarray:
        """The file's part."""
        return np.full(rows, file, np.uint8)


@dataclass(frozen=True)
class LastFile:
    """All files but the last train; of the last, a day, the first half validates and the second tests."""

    def assign(self, file: int, begin: int, rows: int, totals: tuple[int, ...]) -> np.ndarray:
        """Training rows, or those of the last day."""
        if file < len(totals) - 1:
            return np.full(rows, TRAIN, np.uint8)
        late = np.arange(begin, begin + rows) >= totals[file] // 2
        return np.where(late, TEST, VALIDATION).astype(np.uint8)


@dataclass(frozen=True)
class InOrder:
    """The first rows train, the next validate, the last test.

    Attributes
    ----------
    validation, test
        Fractions of all rows, or numbers of rows where they are whole numbers of at least 1.
    """

    validation: float
    test: float

    def __post_init__(self) -> None:
        for part in (self.validation, self.test):
            if not (0 < part < 1 or (part >= 1 and part == int(part))):
                raise ValueError(f"Expected a fraction or a number of rows. Got {part}. Use for instance 0.1 or 2000.")

    def assign(self, file: int, begin: int, rows: int, totals: tuple[int, ...]) -> np.ndarray:
        """By row number, over all files."""
        total = sum(totals)
        test, validation = (round(part * total) if part < 1 else int(part) for part in (self.test, self.validation))
        if test + validation >= total:
            raise ValueError(
                f"Expected rows left to train on. Got {validation:,} for validation and {test:,} to test on, of "
                f"{total:,}. Ask for fewer."
            )
        number = np.arange(begin, begin + rows) + sum(totals[:file])
        return np.select(
            [number >= total - test, number >= total - test - validation], [TEST, VALIDATION], TRAIN
        ).astype(np.uint8)


@dataclass(frozen=True)
class Scattered:
    """Rows at random, each by a mixture of its number and a seed: any piece of the data can be assigned on its own.

    Attributes
    ----------
    validation, test
        Probabilities.
    seed
        Of the mixture.
    """

    validation: float
    test: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise ValueError(
                f"Expected fractions that leave rows to train on. Got {self.validation} and {self.test}. Use for "
                "instance 0.1 and 0.1."
            )

    def assign(self, file: int, begin: int, rows: int, totals: tuple[int, ...]) -> np.ndarray:
        """By the mixture of the row number over all files: splitmix64 of Steele, Lea and Flood (2014)."""
        number = np.arange(begin, begin + rows, dtype=np.uint64) + np.uint64(sum(totals[:file]))
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64
            mixed = (number + np.uint64(self.seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(1)) * MIXING[0]
            mixed = (mixed ^ (mixed >> np.uint64(30))) * MIXING[1]
            mixed = (mixed ^ (mixed >> np.uint64(27))) * MIXING[2]
            mixed ^= mixed >> np.uint64(31)
        u = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.select([u < self.test, u < self.test + self.validation], [TEST, VALIDATION], TRAIN).astype(np.uint8)
