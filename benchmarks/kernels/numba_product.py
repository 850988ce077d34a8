"""The product of a packed weight in numba, compiled by its own vectoriser: what a user could write in an hour."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np

__all__ = ["installed", "numba_product", "product_into"]


def installed() -> bool:
    """Whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


@cache
def compiled() -> Callable[..., None]:
    """Return the compiled product."""
    return importlib.import_module("numba").njit(fastmath=True)(product_into)


def numba_product(x: np.ndarray, values: np.ndarray, columns: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return ``(tokens, groups * G)`` for ``x (tokens, inputs)`` and a packed weight without an order."""
    result = np.empty((x.shape[0], (starts.size - 1) * values.shape[1]), x.dtype)
    compiled()(x, values, columns, starts, result)
    return result


def product_into(
    x: np.ndarray, values: np.ndarray, columns: np.ndarray, starts: np.ndarray, result: np.ndarray
) -> None:
    """Write the product; the innermost loop runs over a group's rows, which lie together."""
    height = values.shape[1]
    sums = np.zeros(height, x.dtype)
    for group in range(starts.size - 1):
        for token in range(x.shape[0]):
            sums[:] = 0
            for kept in range(starts[group], starts[group + 1]):
                entry = x[token, columns[kept]]
                for row in range(height):
                    sums[row] += values[kept, row] * entry
            result[token, group * height : (group + 1) * height] = sums
