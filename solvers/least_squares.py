"""Least squares over groups of inputs, as an oracle: the closed form of what training methods approximate.

    L(B) = 1/2 sum |Y - X B|^2 + ridge / 2 sum |B|^2,    rows of B outside the kept groups zero.

`LeastSquares` values by gradients and weights, which is what a network can tell: outside, the norm of the gradient for
the group's rows; inside, the norm of its fitted rows. `ExactGains` values by the loss itself, refit included.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem import FloatArray, IntArray
from solvers.result import Selection
from solvers.terms import frozen_integers


class LeastSquares:
    """An oracle of `solvers.oracle`: fits by the normal equations, values by norms of gradients and weights.

    Parameters
    ----------
    inputs
        Shape ``(N, p)``.
    targets
        Shape ``(N, m)``.
    groups
        Inputs of each structure, shape ``(n, s)``, distinct.
    ridge
        Weight of the penalty, at least 0. Without one, weights that are not unique are those of least norm.

    Raises
    ------
    ValueError
        Shapes that do not match, entries that are not finite, repeated inputs.
    """

    def __init__(self, inputs: ArrayLike, targets: ArrayLike, groups: ArrayLike, ridge: float = 0.0) -> None:
        self.inputs = np.array(inputs, dtype=np.float64)
        self.targets = np.array(targets, dtype=np.float64)
        self.groups: IntArray = frozen_integers(groups, "groups")
        self.ridge = ridge
        if self.inputs.ndim != 2 or self.targets.ndim != 2 or len(self.inputs) != len(self.targets):
            raise ValueError(
                f"Expected inputs (N, p) and targets (N, m). Got {self.inputs.shape} and {self.targets.shape}. "
                "Give one row per example in both."
            )
        if not (np.all(np.isfinite(self.inputs)) and np.all(np.isfinite(self.targets)) and 0 <= ridge < np.inf):
            raise ValueError("Expected finite inputs and targets, and a ridge of at least 0. Got others. Check them.")
        columns = self.inputs.shape[1]
        if self.groups.ndim != 2 or np.unique(self.groups).size < self.groups.size:
            raise ValueError(f"Expected groups (n, s) of distinct inputs. Got {self.groups.shape}. Name each once.")
        if self.groups.size and not 0 <= self.groups.min() <= self.groups.max() < columns:
            raise ValueError(f"Expected inputs in 0 .. {columns - 1}. Got others in groups. Check the groups.")
        self.weights = np.zeros((columns, self.targets.shape[1]))

    @property
    def size(self) -> int:
        """Number of groups."""
        return len(self.groups)

    @cached_property
    def moment(self) -> FloatArray:
        """``X'X + ridge I``, shape ``(p, p)``."""
        moment: FloatArray = self.inputs.T @ self.inputs + self.ridge * np.eye(self.inputs.shape[1])
        return moment

    @property
    def residual(self) -> FloatArray:
        """``Y - X B`` at the fitted weights, shape ``(N, m)``."""
        residual: FloatArray = self.targets - self.inputs @ self.weights
        return residual

    @property
    def loss(self) -> float:
        """The loss at the fitted weights."""
        return 0.5 * float((self.residual**2).sum() + self.ridge * (self.weights**2).sum())

    def fit(self, kept: Selection) -> float:
        """Solve for the kept groups' rows; the others are zero."""
        columns = self.groups[kept].ravel()
        self.weights = np.zeros_like(self.weights)
        rows, targets = self.inputs[:, columns], self.targets
        if self.ridge:
            rows = np.vstack([rows, np.sqrt(self.ridge) * np.eye(len(columns))])
            targets = np.vstack([targets, np.zeros((len(columns), targets.shape[1]))])
        if len(columns):
            self.weights[columns] = np.linalg.lstsq(rows, targets, rcond=None)[0]
        return self.loss

    def values(self, kept: Selection) -> FloatArray:
        """Outside: norm of the gradient. Inside: norm of the weights. Shape ``(n,)``."""
        gradient = self.inputs.T @ self.residual - self.ridge * self.weights
        worth = np.where(kept[:, None, None], self.weights[self.groups], gradient[self.groups])
        values: FloatArray = np.sqrt((worth**2).sum(axis=(1, 2)))
        return values


class ExactGains(LeastSquares):
    """Values by the loss: what adding a group gains and dropping it loses, all other rows fitted again."""

    def values(self, kept: Selection) -> FloatArray:
        """Outside: ``1/2 tr R_g' S_g^-1 R_g`` with the Schur complement. Inside: ``1/2 tr B_g' (K_gg)^-1 B_g``.

        ``R_g`` is the gradient, ``S_g`` the group's moment without what the kept inputs explain, ``K`` the inverse of
        the kept inputs' moment. A direction without moment gains nothing.
        """
        columns = self.groups[kept].ravel()
        inverse = np.linalg.pinv(self.moment[np.ix_(columns, columns)], hermitian=True)
        gradient = self.inputs.T @ self.residual - self.ridge * self.weights
        place = {int(column): at for at, column in enumerate(columns)}
        values = np.zeros(self.size)
        for g, group in enumerate(self.groups):
            if kept[g]:
                own = [place[int(column)] for column in group]
                block, rows = inverse[np.ix_(own, own)], self.weights[group]
            else:
                cross = self.moment[np.ix_(columns, group)]
                block, rows = self.moment[np.ix_(group, group)] - cross.T @ inverse @ cross, gradient[group]
            values[g] = 0.5 * float(np.einsum("im,ij,jm->", rows, np.linalg.pinv(block, hermitian=True), rows))
        return values
