"""Upper bound of what whole blocks can keep, whatever the orders of rows and columns."""

from __future__ import annotations

import numpy as np

from solvers.problem import FloatArray

__all__ = ["permuted_bound"]


def permuted_bound(values: FloatArray, block: tuple[int, int], keep: int, balanced: bool = False) -> float:
    """No orders and no ``keep`` blocks of the permuted matrix hold more than this.

    A row that lies in ``j`` kept blocks keeps at most its ``j * block[1]`` best values above 0: the ``j`` best *chunks*
    of ``block[1]`` of its sorted values. Kept blocks have ``block[0]`` rows at most, so all rows together keep at most
    the ``keep * block[0]`` best chunks (each row its share of them if ``balanced``). The same holds for columns; the
    smaller of the two is the bound.

    Parameters
    ----------
    values
        ``(R, C)``.
    block
        Rows and columns of a block.
    keep
        Number of kept blocks.
    balanced
        Whether every row of blocks keeps equally many.
    """
    rows, columns = block
    by_row = _chunks(values, columns)
    if balanced:
        each = keep // -(-len(values) // rows)
        of_rows = float(by_row[:, :each].sum())
    else:
        of_rows = _best(by_row, keep * rows)
    return min(of_rows, _best(_chunks(values.T, rows), keep * columns))


def _chunks(values: FloatArray, size: int) -> FloatArray:
    """Sums of ``size`` values above 0 of each row, best first, ``(R, ceil(C / size))``."""
    ordered = np.maximum(np.sort(values, axis=1)[:, ::-1], 0.0)
    chunks: FloatArray = np.add.reduceat(ordered, np.arange(0, values.shape[1], size), axis=1)
    return chunks


def _best(chunks: FloatArray, count: int) -> float:
    """Sum of the ``count`` largest."""
    flat = np.sort(chunks, axis=None)
    return float(flat[max(0, flat.size - count) :].sum())
