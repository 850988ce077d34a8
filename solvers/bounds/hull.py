"""Upper convex hull of a curve."""

from __future__ import annotations

import numpy as np

from solvers.problem import FloatArray, IntArray

#: Vectorised passes before the remaining points go through the scalar chain.
_PASSES = 40


def upper_hull(x: FloatArray, y: FloatArray) -> IntArray:
    """Indices of the vertices of the upper hull of the points ``(x_i, y_i)``, ``x`` strictly increasing.

    ``max_i y_i - p x_i`` is attained at a vertex for every ``p``. Slopes between neighbouring vertices decrease.

    A point on or below the chord of its two neighbours is no vertex, so all such points (no two of them adjacent) can
    go at once; what is left after a few passes is finished by Andrew's monotone chain (1979).
    """
    kept = np.arange(len(x), dtype=np.int64)
    for _ in range(_PASSES):
        slopes = np.diff(y[kept]) / np.diff(x[kept])
        below = slopes[1:] >= slopes[:-1]
        if not below.any():
            return kept
        if not (below[1:] & below[:-1]).any():
            drop = below
        else:
            # Of a run of such points every second one goes: each is then judged by neighbours that stay.
            positions = np.arange(len(below))
            starts = np.maximum.accumulate(np.where(below & ~np.r_[False, below[:-1]], positions, 0))
            drop = below & ((positions - starts) % 2 == 0)
        kept = kept[np.r_[True, ~drop, True]]
    return _chain(kept, x, y)


def _chain(candidates: IntArray, x: FloatArray, y: FloatArray) -> IntArray:
    hull: list[int] = []
    for point in candidates.tolist():
        while len(hull) > 1:
            first, second = hull[-2], hull[-1]
            if (y[point] - y[second]) / (x[point] - x[second]) < (y[second] - y[first]) / (x[second] - x[first]):
                break
            hull.pop()
        hull.append(point)
    return np.array(hull, dtype=np.int64)
