"""Rows that keep equally many blocks, as one group of a selection problem.

Kernels for block-sparse matrices run evenly when every group of rows keeps the same number of blocks. With ``k`` blocks
in each of ``R`` rows a layer is worth ``V(k) = sum_r (sum of the k largest values of row r)`` and costs ``R k`` blocks:
one class of a multiple-choice knapsack with few levels. ``V`` is concave, because each row's sum is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem import Group


def balanced_rows(name: str, values: ArrayLike, first: int = 0, minimum: int = 0, maximum: int | None = None) -> Group:
    """A group whose levels keep the same number of blocks in every row.

    Parameters
    ----------
    name
        Name of the group.
    values
        Value of each block, shape ``(R, C)``, finite.
    first
        Index of the first block among the problem's structures; blocks are numbered row by row.
    minimum, maximum
        Least and most kept blocks per row; 0 and ``C`` when not given.

    Returns
    -------
    Group
        Levels ``R k`` for ``k = minimum .. maximum``; a term ``Product((group,), cost)`` prices one block.

    Raises
    ------
    ValueError
        Values that are not a finite matrix, or counts that no row can keep.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(
            f"Expected values of {name!r} of shape (R, C), not empty. Got {matrix.shape}. Give one matrix."
        )
    if not np.all(np.isfinite(matrix)):
        raise ValueError(f"Expected finite values for {name!r}. Got NaN or infinite ones. Check the scores.")
    rows, columns = matrix.shape
    most = columns if maximum is None else maximum
    if not 0 <= minimum <= most <= columns:
        raise ValueError(
            f"Expected 0 <= minimum <= maximum <= {columns} for {name!r}. Got {minimum} and {most}. Correct the counts."
        )
    ranked = np.argsort(-matrix, axis=1, kind="stable")
    best = np.take_along_axis(matrix, ranked, axis=1)
    curve = np.r_[0.0, np.cumsum(best.sum(axis=0))]
    counts = np.arange(minimum, most + 1, dtype=np.int64)
    # All rows' best blocks come first, then all second best, so that level R k keeps k of each row.
    order = first + (ranked + columns * np.arange(rows)[:, None]).T.ravel()
    return Group(name, rows * counts, curve[counts], order)
