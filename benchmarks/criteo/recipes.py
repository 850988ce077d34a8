"""How columns become what a network reads: numbers as they are, logarithms, or buckets; categories by vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from benchmarks.criteo.layouts import MISSING_INT

__all__ = ["MISSING_ID", "RARE_ID", "Numbers", "Preprocessing", "Scaling", "bucketed", "encoded", "logarithm"]

MISSING_ID, RARE_ID, FIRST_ID = 0, 1, 2
"""Identities of a missing category, of one that the vocabulary lacks, and of the vocabulary's first."""


class Numbers(Enum):
    """What becomes of I1 ... I13."""

    AS_THEY_ARE = "as they are"  # Criteo_x1 comes scaled
    LOG = "log"  # log(1 + x), then to [0, 1] over the training rows; a missing one is 0
    BUCKETS = "buckets"  # floor(log2 x) above 2, else 1 ("x4" recipe), as categories


@dataclass(frozen=True)
class Preprocessing:
    """A recipe.

    Attributes
    ----------
    numbers
        What becomes of I1 ... I13.
    min_count
        Categories seen more rarely in the training rows share one identity with those never seen there.
    """

    numbers: Numbers
    min_count: int = 1

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ValueError(f"Expected a minimum count of at least 1. Got {self.min_count}. 1 keeps all categories.")


@dataclass(frozen=True)
class Scaling:
    """The range of a number over the training rows."""

    low: float
    high: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Map the range to [0, 1]; rows of validation and test are cut to it, missing ones become 0."""
        width = self.high - self.low
        scaled = (values - self.low) / width if width > 0 else np.zeros_like(values)
        return np.where(np.isnan(values), 0.0, np.clip(scaled, 0.0, 1.0)).astype(np.float32)


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Return a raw column as float64 with NaN for missing values."""
    if values.dtype == np.int32:
        return np.where(values == MISSING_INT, np.nan, values.astype(np.float64))
    return values.astype(np.float64)


def logarithm(values: np.ndarray) -> np.ndarray:
    """Return ``log(1 + max(x, 0))`` of a raw column, NaN for missing values."""
    return np.log1p(np.maximum(as_numbers(values), 0.0))


def bucketed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a raw integer column as keys, and which are missing.

    Above 2 the key is floor(log2 x), else 1 (0 and the few below among them).
    """
    numbers = as_numbers(values)
    missing = np.isnan(numbers)
    whole = np.where(missing, 0, numbers)
    keys = np.where(whole > 2, np.floor(np.log2(np.maximum(whole, 1))), 1)
    return np.where(missing, 0, keys).astype(np.uint32), missing


def encoded(keys: np.ndarray, missing: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """Return identities, int32, of keys by a sorted vocabulary of uint32."""
    if not vocabulary.size:
        return np.where(missing, MISSING_ID, RARE_ID).astype(np.int32)
    place = np.searchsorted(vocabulary, keys)
    place[place == len(vocabulary)] = 0
    known = vocabulary[place] == keys
    return np.where(missing, MISSING_ID, np.where(known, place + FIRST_ID, RARE_ID)).astype(np.int32)
