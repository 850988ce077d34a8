"""The second pass: what the training rows, and they alone, say of every field: its range, or its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from benchmarks.criteo.layouts import CATEGORICAL, NUMERIC
from benchmarks.criteo.raw import RawPart
from benchmarks.criteo.recipes import Numbers, Preprocessing, Scaling, bucketed, encoded, logarithm
from structprune.files import write_atomically

__all__ = ["Assign", "Fitted", "fit"]

Assign = Callable[[RawPart], np.ndarray]
"""From a part to the codes of its rows: 0 trains, 1 validates, 2 tests; uint8 ``(rows,)``."""
KEYS_AT_ONCE = 1 << 26  # training rows whose keys of one category are counted together


@dataclass(frozen=True)
class Training:
    """The training rows, part by part; which they are is worked out when a part's turn comes.

    Attributes
    ----------
    parts
        All rows.
    assign
        Which of a part's rows belong where.
    """

    parts: tuple[RawPart, ...]
    assign: Assign

    def __iter__(self) -> Iterator[tuple[RawPart, np.ndarray]]:
        for part in self.parts:
            own = self.assign(part) == 0
            if own.any():
                yield part, own

    @cached_property
    def rows(self) -> int:
        """How many."""
        return sum(int(own.sum()) for _, own in self)


@dataclass(frozen=True)
class Fitted:
    """What the training rows taught.

    Attributes
    ----------
    preprocessing
        The recipe.
    scalings
        Of every field that stays a number.
    vocabularies
        Sorted keys, uint32, of every field that is a category.
    """

    preprocessing: Preprocessing
    scalings: tuple[Scaling, ...]
    vocabularies: tuple[np.ndarray, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names in the order of the network's input."""
        return NUMERIC + CATEGORICAL

    @property
    def bucketed(self) -> bool:
        """Whether numbers have become categories."""
        return self.preprocessing.numbers is Numbers.BUCKETS

    def numbers(self, part: RawPart) -> np.ndarray:
        """Numeric inputs, float32 ``(rows, numeric fields)``."""
        columns = [scaling(_number(self.preprocessing, part, c)) for c, scaling in enumerate(self.scalings)]
        return np.stack(columns, 1) if columns else np.zeros((part.rows, 0), np.float32)

    def ids(self, part: RawPart) -> np.ndarray:
        """Identities, int32 ``(rows, categorical fields)``."""
        own = range(len(self.vocabularies))
        columns = [encoded(*_category(self.preprocessing, part, c), self.vocabularies[c]) for c in own]
        return np.stack(columns, 1)


def _number(preprocessing: Preprocessing, part: RawPart, column: int) -> np.ndarray:
    values = part.number(column)
    return logarithm(values) if preprocessing.numbers is Numbers.LOG else values.astype(np.float64)


def _category(preprocessing: Preprocessing, part: RawPart, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and which are missing, of a categorical input; with buckets the numbers come first."""
    if preprocessing.numbers is Numbers.BUCKETS:
        if column < len(NUMERIC):
            return bucketed(part.number(column))
        column -= len(NUMERIC)
    return part.keys(column), part.missing(column)


def fit(
    preprocessing: Preprocessing,
    parts: Sequence[RawPart],
    assign: Assign,
    folder: Path,
    tell: Callable[[str], None],
) -> Fitted:
    """Learn ranges and vocabularies from the training rows; each is kept on disk as soon as it is known."""
    training = Training(tuple(parts), assign)
    scalings: list[Scaling] = []
    vocabularies: list[np.ndarray] = []
    names = CATEGORICAL if preprocessing.numbers is not Numbers.BUCKETS else NUMERIC + CATEGORICAL
    if preprocessing.numbers is Numbers.LOG:
        scalings = [_range(preprocessing, training, column) for column in range(len(NUMERIC))]
    elif preprocessing.numbers is Numbers.AS_THEY_ARE:
        scalings = [Scaling(0.0, 1.0)] * len(NUMERIC)
    for column, name in enumerate(names):
        path = folder / f"{name}.npy"
        if not path.exists():
            keys = _vocabulary(preprocessing, training, column)
            write_atomically(path, partial(_save, array=keys))
        vocabularies.append(np.load(path))
    tell(f"vocabularies of {len(names)} fields: {sum(map(len, vocabularies)):,} categories")
    return Fitted(preprocessing, tuple(scalings), tuple(vocabularies))


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _range(preprocessing: Preprocessing, training: Training, column: int) -> Scaling:
    low, high = np.inf, -np.inf
    for part, own in training:
        values = _number(preprocessing, part, column)[own]
        values = values[~np.isnan(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return Scaling(low, high) if low <= high else Scaling(0.0, 0.0)


def _vocabulary(preprocessing: Preprocessing, training: Training, column: int) -> np.ndarray:
    """Return the keys that the training rows hold often enough, sorted.

    Keys are hashes, spread over all of 0 ... 2^32 - 1: where rows are many, one range of keys is counted after
    another, so that memory is bounded however many rows there are.
    """
    passes = -(-training.rows // KEYS_AT_ONCE)
    edges = [number * 2**32 // passes for number in range(passes + 1)]
    found = []
    for low, high in zip(edges, edges[1:], strict=False):
        pending, counts = np.zeros(0, np.uint32), np.zeros(0, np.int64)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for part, own in training:
            keys, missing = _category(preprocessing, part, column)
            inside = own & ~missing
            if passes > 1:
                inside &= (keys >= low) & (keys < high)
            waiting.append(np.unique(keys[inside], return_counts=True))
            if sum(len(one) for one, _ in waiting) > max(len(pending), 1 << 20):
                pending, counts = _merged(pending, counts, waiting)
                waiting = []
        pending, counts = _merged(pending, counts, waiting)
        found.append(pending[counts >= preprocessing.min_count])
    return np.concatenate(found)


def _merged(
    keys: np.ndarray, counts: np.ndarray, more: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    every = np.concatenate([keys, *(one for one, _ in more)])
    weights = np.concatenate([counts, *(one for _, one in more)])
    order = np.argsort(every, kind="stable")
    every, weights = every[order], weights[order]
    first = np.flatnonzero(np.r_[True, every[1:] != every[:-1]]) if every.size else np.zeros(0, np.int64)
    return every[first], np.add.reduceat(weights, first) if first.size else weights
