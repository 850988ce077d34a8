"""Upper bounds of b-matchings in tiles, from prices of the rows."""

from __future__ import annotations

import numpy as np

from solvers.problem import FloatArray

__all__ = ["tile_bounds"]


def tile_bounds(tiles: FloatArray, prices: FloatArray, n: int) -> FloatArray:
    """No mask with at most ``n`` entries per row and column keeps more than this, ``(T,)``.

    By linear duality every ``a, b >= 0`` bounds the value of a tile:

        sum_ij v_ij x_ij  <=  n sum_i a_i + n sum_j b_j + sum_ij max(0, v_ij - a_i - b_j).

    For given row prices ``a`` the best column price is the ``(n + 1)``-th largest of ``v_ij - a_i`` in the column (or
    0), and with it the column's share is the sum of its ``n`` largest positive ``v_ij - a_i``.

    Parameters
    ----------
    tiles
        Values ``(T, m, m)``.
    prices
        Row prices ``(T, m)``; those below 0 count as 0.
    n
        Most entries per row and column.
    """
    nonnegative = np.maximum(prices, 0.0)
    reduced = np.sort(tiles - nonnegative[:, :, None], axis=1)[:, tiles.shape[1] - n :]
    bounds: FloatArray = n * nonnegative.sum(axis=1) + np.maximum(reduced, 0.0).sum(axis=(1, 2))
    return bounds
