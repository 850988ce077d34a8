"""Least squares over groups of entries of matrices, from second moments alone: the closed form of layer reconstruction.

For maps ``y = V x`` with moments ``H = E[x x']``, ``C = E[x y']`` and ``e = E|y|^2``,

    L(V) = sum_maps  scale / 2 (tr V H V' - 2 tr V C + e),

where entry ``(o, i)`` of a map's ``V`` belongs to structure ``owner[o, i]`` and is zero unless that is kept. Owners may
differ from row to row: structures are then kernels or blocks of a weight rather than inputs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.quadratic import RefitProblem, map_from_cross
from solvers.result import Selection

__all__ = ["MomentLeastSquares", "MomentMap", "group_norms", "shared_inputs"]


@dataclass(frozen=True, eq=False)
class MomentMap:
    """One linear map by the moments of its inputs and wanted outputs.

    Attributes
    ----------
    moment
        H, ``(n, n)`` symmetric and positive semidefinite.
    cross
        C, ``(n, m)``.
    energy
        e, at least 0.
    owner
        Structure of each entry of the ``(m, n)`` weight; -1 for entries that always stay, and the number of structures
        (one past the last of them) for entries that are gone whatever is kept.
    scale
        Weight of this map in the sum.

    Raises
    ------
    ValueError
        If shapes do not fit together or numbers are not finite.
    """

    moment: FloatArray
    cross: FloatArray
    energy: float
    owner: IntArray
    scale: float = 1.0

    def __post_init__(self) -> None:
        inputs, outputs = self.cross.shape
        if self.moment.shape != (inputs, inputs) or self.owner.shape != (outputs, inputs):
            raise ValueError(
                f"Expected moment (n, n), cross (n, m) and owner (m, n). Got {self.moment.shape}, {self.cross.shape} "
                f"and {self.owner.shape}. A row of owner belongs to each output."
            )
        if not (np.isfinite(self.moment).all() and np.isfinite(self.cross).all() and np.isfinite(self.energy)):
            raise ValueError("Expected finite moments. Got some that are not. Look for NaN or infinite data.")

    def support(self, kept: Selection) -> BoolArray:
        """Entries that may differ from zero, ``(m, n)``."""
        return np.asarray((self.owner < 0) | np.append(kept, False)[np.maximum(self.owner, 0)])

    def loss(self, weight: FloatArray) -> float:
        """The loss of a weight ``(m, n)``."""
        fitted = float(np.sum((weight @ self.moment) * weight))
        return 0.5 * self.scale * (fitted - 2 * float(np.sum(weight * self.cross.T)) + self.energy)

    def gradient(self, weight: FloatArray) -> FloatArray:
        """``scale (V H - C')``, ``(m, n)``."""
        return np.asarray(self.scale * (weight @ self.moment - self.cross.T))

    def fitted(self, kept: Selection) -> FloatArray:
        """The weight of least loss on a support, of least norm where it is not unique, ``(m, n)``."""
        return self.preconditioned(self.support(kept), self.cross.T)

    def preconditioned(self, support: BoolArray, rows: FloatArray) -> FloatArray:
        """Each row ``r`` times the inverse of its own ``H_SS``, zero outside S, ``(m, n)``."""
        found = np.zeros(rows.shape)
        patterns, which = np.unique(support, axis=0, return_inverse=True)
        which = which.ravel()
        for number, pattern in enumerate(patterns):
            inside, mine = np.flatnonzero(pattern), np.flatnonzero(which == number)
            if len(inside):
                found[np.ix_(mine, inside)] = _solved(
                    self.moment[np.ix_(inside, inside)], rows[np.ix_(mine, inside)].T
                ).T
        return found


def _solved(moment: FloatArray, right: FloatArray) -> FloatArray:
    """``H^-1 R`` by Cholesky; where H is singular the solution of least norm."""
    try:
        factor = cho_factor(moment, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.pinv(moment, hermitian=True) @ right)
    return np.asarray(cho_solve(factor, right, check_finite=False))


def group_norms(gradients: Sequence[FloatArray], owners: Sequence[IntArray], size: int, by_output: bool) -> FloatArray:
    """Size of each structure's gradient over all maps, ``(size,)``.

    Parameters
    ----------
    gradients, owners
        Per map, ``(m, n)`` each.
    by_output
        False for ``||G_k||_F``, True for the sum over outputs ``sum_o ||G_{o,k}||``.
    """
    squares, sums = np.zeros(size), np.zeros(size)
    for gradient, owner in zip(gradients, owners, strict=True):
        rows = len(owner)
        cell = np.arange(rows)[:, None] * (size + 2) + owner + 1
        parts = np.bincount(cell.ravel(), weights=(gradient**2).ravel(), minlength=rows * (size + 2))
        parts = parts.reshape(rows, size + 2)[:, 1 : size + 1]
        squares += parts.sum(0)
        sums += np.sqrt(parts).sum(0)
    return sums if by_output else np.sqrt(squares)


def shared_inputs(maps: Sequence[MomentMap], size: int, keep: int) -> RefitProblem | None:
    """The same selection as a problem of inputs that all outputs of a map share, for the solvers that know such.

    None where structures take other entries of one output than of the next, as kernels and blocks do, or more inputs
    of a map than others do.
    """
    found = []
    for one in maps:
        rows = one.owner[(one.owner != size).any(axis=1)]
        if not len(rows) or (rows != rows[0]).any():
            return None
        counts = np.bincount(rows[0][(rows[0] >= 0) & (rows[0] < size)], minlength=size)
        if counts.min() < 1 or counts.min() < counts.max():
            return None
        here = np.flatnonzero(rows[0] != size)
        owner = rows[0][here]
        groups = np.argsort(owner, kind="stable")[np.sum(owner < 0) :].reshape(size, -1)
        found.append(map_from_cross(np.sqrt(one.scale) * one.cross[here], one.moment[np.ix_(here, here)], groups))
    return RefitProblem(tuple(found), keep)


class MomentLeastSquares:
    """An oracle of `solvers.oracle`: fits in closed form, values by norms of the gradient at the fit.

    Outside the kept structures a value is the norm of the structure's gradient, inside that of its weights.

    Parameters
    ----------
    maps
        Maps over the same structures.
    size
        Number of structures.
    by_output
        Which norm of a gradient counts, see :func:`group_norms`.
    """

    def __init__(self, maps: Sequence[MomentMap], size: int, by_output: bool = False) -> None:
        self.maps = tuple(maps)
        self._size = size
        self._by_output = by_output
        self.weights = [np.zeros(one.owner.shape) for one in self.maps]

    @property
    def size(self) -> int:
        """Number of structures."""
        return self._size

    def fit(self, kept: Selection) -> float:
        """Solve for the kept structures' entries; the others are zero."""
        self.weights = [one.fitted(kept) for one in self.maps]
        return sum(one.loss(weight) for one, weight in zip(self.maps, self.weights, strict=True))

    def values(self, kept: Selection) -> FloatArray:
        """Outside: norm of the gradient. Inside: norm of the weights. Shape ``(size,)``."""
        owners = [one.owner for one in self.maps]
        gradients = [one.gradient(weight) for one, weight in zip(self.maps, self.weights, strict=True)]
        gains = group_norms(gradients, owners, self._size, self._by_output)
        norms = group_norms(self.weights, owners, self._size, self._by_output)
        return np.where(kept, norms, gains)
