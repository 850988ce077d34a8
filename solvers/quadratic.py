"""Selections whose loss is quadratic: with the survivors fitted anew, and as they are.

`RefitProblem` asks which inputs of linear maps to keep when the kept weights are fitted anew by least squares.
`PairwiseProblem` asks which structures to remove when nothing is fitted and each pair of removed structures adds its
own term. Both hold arrays, check them, and evaluate a selection without any solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

__all__ = [
    "PairwiseProblem",
    "QuadraticMap",
    "ReducedMap",
    "RefitProblem",
    "damped",
    "map_from_cross",
    "reduced",
    "single_inputs",
]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class QuadraticMap:
    """One linear map whose inputs are removed in groups.

    Attributes
    ----------
    weight
        ``(m, n)``; rows may be scaled by the square root of what an error in that output costs.
    moment
        ``(n, n)`` second moment of the inputs, positive definite (damped by the caller).
    groups
        ``(size, s)``: the inputs that structure ``i`` takes. Inputs in no group always stay.
    """

    weight: FloatArray
    moment: FloatArray
    groups: NDArray[np.int64]


def damped(moment: FloatArray, fraction: float) -> FloatArray:
    """``moment`` with ``fraction`` of its mean diagonal added to the diagonal, ``(n, n)``."""
    if not 0 <= fraction < np.inf:
        raise ValueError(f"Expected damping >= 0. Got {fraction}. Use for instance 0.01.")
    return np.asarray(moment, dtype=np.float64) + fraction * float(np.mean(np.diag(moment))) * np.eye(len(moment))


def single_inputs(count: int) -> IntArray:
    """Groups of a linear layer: each input is a structure, ``(count, 1)``."""
    return np.arange(count, dtype=np.int64)[:, None]


def map_from_cross(cross: FloatArray, moment: FloatArray, groups: IntArray) -> QuadraticMap:
    """The map that is best with all inputs: ``cross`` is ``E[x y']``, ``(n, m)``, ``moment`` is ``E[x x']``."""
    return QuadraticMap(np.asarray(np.linalg.solve(moment, cross).T, dtype=np.float64), moment, groups)


@dataclass(frozen=True, eq=False)
class ReducedMap:
    """A map without the inputs that always stay, in the order of its structures.

    Fitting the inputs O that always stay to the others P leaves the same problem over P with the moment
    ``H_PP - H_PO H_OO^-1 H_OP`` and the weights of P: the part of x_P that x_O does not explain.

    Attributes
    ----------
    weight
        ``(r, size * s)``, with as few rows as give the same losses.
    moment
        ``(size * s, size * s)``.
    each
        s, inputs per structure.
    """

    weight: FloatArray
    moment: FloatArray
    each: int

    @property
    def cross(self) -> FloatArray:
        """``H W'``, ``(size * s, r)``."""
        return self.moment @ self.weight.T

    @property
    def energy(self) -> float:
        """``1/2 tr(W H W')``: the loss without any input that may go."""
        return 0.5 * float(np.einsum("ij,ji->", self.weight, self.cross))


def reduced(one: QuadraticMap) -> ReducedMap:
    """Fit away the inputs in no group and put those of each structure side by side."""
    inside = np.asarray(one.groups, dtype=np.int64).ravel()
    moment = np.asarray(one.moment, dtype=np.float64)
    weight = np.asarray(one.weight, dtype=np.float64)[:, inside]
    others = np.setdiff1d(np.arange(len(moment)), inside)
    if len(others) or not np.array_equal(inside, np.arange(len(moment))):
        inner = moment[np.ix_(inside, inside)]
        if len(others):
            half = np.linalg.solve(cholesky(moment[np.ix_(others, others)], lower=True), moment[np.ix_(others, inside)])
            inner = inner - half.T @ half
        moment = inner
    if len(weight) > weight.shape[1]:
        weight = np.asarray(np.linalg.qr(weight, mode="r"))
    if not np.array_equal(moment, moment.T):
        moment = (moment + moment.T) / 2
    return ReducedMap(np.ascontiguousarray(weight), moment, one.groups.shape[1])


@dataclass(frozen=True, eq=False)
class RefitProblem:
    """Keep ``keep`` structures; the kept weights are fitted anew.

    The loss of keeping S is the least ``1/2 sum_t tr((V_t - W_t) H_t (V_t - W_t)')`` over matrices V_t whose columns
    are zero at the inputs of all other structures.

    Parameters
    ----------
    maps
        Maps over the same structures: the consumers of one axis, for instance.
    keep
        How many structures stay.

    Raises
    ------
    ValueError
        If shapes do not fit together, numbers are not finite, a group is empty, an input is in two groups, or a moment
        is not positive definite.
    """

    maps: tuple[QuadraticMap, ...]
    keep: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        if not self.maps:
            raise ValueError("Expected at least one map. Got none. Pass the consumers of the axis.")
        sizes = [len(one.groups) for one in self.maps]
        if len(set(sizes)) > 1:
            raise ValueError(f"Expected maps over the same structures. Got {sizes} of them.")
        for number, one in enumerate(self.maps):
            _check_map(f"map {number}", one)
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | np.integer) or not 0 <= self.keep:
            raise ValueError(f"Expected keep to be an integer >= 0. Got {self.keep!r}. Say how many structures stay.")
        object.__setattr__(self, "keep", min(int(self.keep), self.size))

    @property
    def size(self) -> int:
        """Number of structures."""
        return len(self.maps[0].groups)

    def refitted(self, selection: BoolArray) -> list[FloatArray]:
        """Best weights of every map that use only the kept structures, ``(m, n)`` each."""
        return [_weights(one, self._selection(selection)) for one in self.maps]

    def lost(self, selection: BoolArray) -> float:
        """Loss of keeping ``selection``, by a fresh least squares; knows no solver."""
        kept = self._selection(selection)
        return max(sum(_loss(one, kept) for one in self.maps), 0.0)

    def total(self) -> float:
        """Loss of keeping nothing."""
        return self.lost(np.zeros(self.size, dtype=bool))

    def _selection(self, selection: BoolArray) -> BoolArray:
        kept = np.asarray(selection)
        if kept.shape != (self.size,) or kept.dtype != bool:
            raise ValueError(
                f"Expected a boolean selection of shape ({self.size},). Got {kept.dtype} of shape {kept.shape}. "
                "True means kept."
            )
        return kept


def _parts(one: QuadraticMap, kept: BoolArray) -> tuple[IntArray, FloatArray, FloatArray, float]:
    """Inputs that stay, ``W_P H_PS``, the Cholesky factor of ``H_SS``, and ``tr(W_P H_PP W_P')`` (S stays, P goes)."""
    gone = np.asarray(one.groups[~kept], dtype=np.int64).ravel()
    stay = np.setdiff1d(np.arange(len(one.moment)), gone)
    removed = np.asarray(one.weight, dtype=np.float64)[:, gone]
    factor = cholesky(one.moment[np.ix_(stay, stay)], lower=True, check_finite=False)
    total = float(np.sum((removed @ one.moment[np.ix_(gone, gone)]) * removed))
    return stay, removed @ one.moment[np.ix_(gone, stay)], factor, total


def _weights(one: QuadraticMap, kept: BoolArray) -> FloatArray:
    """The kept weights change by what makes up for the removed ones: ``V_S = W_S + W_P H_PS H_SS^-1``."""
    stay, missing, factor, _ = _parts(one, kept)
    best = np.zeros(one.weight.shape)
    best[:, stay] = one.weight[:, stay]
    if len(stay):
        best[:, stay] += cho_solve((factor, True), missing.T, check_finite=False).T
    return best


def _loss(one: QuadraticMap, kept: BoolArray) -> float:
    """``1/2 tr(W_P (H_PP - H_PS H_SS^-1 H_SP) W_P')``: what the kept inputs do not explain of the removed ones."""
    stay, missing, factor, removed = _parts(one, kept)
    explained = solve_triangular(factor, missing.T, lower=True, check_finite=False) if len(stay) else np.zeros((0, 0))
    return 0.5 * (removed - float(np.sum(explained**2)))


def _check_map(name: str, one: QuadraticMap) -> None:
    moment, weight, groups = (np.asarray(array) for array in (one.moment, one.weight, one.groups))
    inputs = weight.shape[1] if weight.ndim == 2 else -1
    if weight.ndim != 2 or moment.shape != (inputs, inputs):
        raise ValueError(
            f"{name}: Expected weight (m, n) and moment (n, n). Got {weight.shape} and {moment.shape}. "
            "A column of the weight belongs to each input."
        )
    if groups.ndim != 2 or groups.shape[1] < 1 or not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(
            f"{name}: Expected groups to be integers of shape (size, s) with s >= 1. "
            f"Got {groups.dtype} of shape {groups.shape}. Give the inputs of each structure."
        )
    if groups.size and (groups.min() < 0 or groups.max() >= inputs or len(np.unique(groups)) < groups.size):
        raise ValueError(
            f"{name}: Expected groups of different inputs from 0 to {inputs - 1}. Got one twice or outside. "
            "An input belongs to one structure at most."
        )
    for what, array in (("weight", weight), ("moment", moment)):
        wrong = int(np.sum(~np.isfinite(array)))
        if wrong:
            raise ValueError(f"{name}: Expected a finite {what}. Got {wrong} numbers that are not. Look at the data.")
    if not np.allclose(moment, moment.T, rtol=1e-6, atol=1e-9 * max(float(np.abs(moment).max(initial=0.0)), 1e-300)):
        raise ValueError(f"{name}: Expected a symmetric moment. Got one that is not. Pass (H + H') / 2.")
    if inputs:
        try:
            cholesky(moment, lower=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"{name}: Expected a positive definite second moment. Got one that is not. Add damping to its diagonal."
            ) from error


@dataclass(frozen=True, eq=False)
class PairwiseProblem:
    """Remove structures within budgets at the least ``1/2 z'Qz + q'z``, where ``z_i = 1`` if ``i`` is removed.

    Parameters
    ----------
    quadratic
        Q, ``(n, n)`` symmetric: ``Q_ij = E[<w_i, grad><w_j, grad>]`` or a Gauss-Newton matrix of gates.
    linear
        q, ``(n,)``.
    costs
        ``(r, n)`` integers >= 0: what structure ``i`` uses of each resource while it is kept.
    limits
        ``(r,)`` integers: the kept structures use at most this much.

    Raises
    ------
    ValueError
        If shapes do not fit together, numbers are not finite, Q is not symmetric, or costs are negative or no integers.
    """

    quadratic: FloatArray
    linear: FloatArray
    costs: IntArray
    limits: IntArray

    def __post_init__(self) -> None:
        quadratic, linear = np.asarray(self.quadratic, dtype=np.float64), np.asarray(self.linear, dtype=np.float64)
        costs, limits = np.asarray(self.costs), np.asarray(self.limits)
        count = len(linear) if linear.ndim == 1 else -1
        if count < 0 or quadratic.shape != (count, count):
            raise ValueError(
                f"Expected quadratic (n, n) and linear (n,). Got {quadratic.shape} and {linear.shape}. "
                "A row belongs to each structure."
            )
        if costs.ndim != 2 or costs.shape[1] != count or limits.shape != (len(costs),):
            raise ValueError(
                f"Expected costs (r, {count}) and limits (r,). Got {costs.shape} and {limits.shape}. "
                "A row belongs to each resource."
            )
        if not np.isfinite(quadratic).all() or not np.isfinite(linear).all():
            raise ValueError("Expected finite quadratic and linear terms. Got some that are not. Look at the data.")
        if not np.issubdtype(costs.dtype, np.integer) or not np.issubdtype(limits.dtype, np.integer):
            raise ValueError(
                f"Expected integer costs and limits. Got {costs.dtype} and {limits.dtype}. Count in small units."
            )
        if costs.size and costs.min() < 0:
            raise ValueError(f"Expected costs >= 0. Got {costs.min()}. A removed structure cannot cost more.")
        if not np.allclose(quadratic, quadratic.T, rtol=1e-9, atol=1e-9 * float(np.abs(quadratic).max(initial=1e-300))):
            raise ValueError("Expected a symmetric quadratic term. Got one that is not. Pass (Q + Q') / 2.")
        object.__setattr__(self, "quadratic", (quadratic + quadratic.T) / 2)
        object.__setattr__(self, "linear", linear)
        object.__setattr__(self, "costs", costs.astype(np.int64))
        object.__setattr__(self, "limits", limits.astype(np.int64))

    @property
    def size(self) -> int:
        """Number of structures."""
        return len(self.linear)

    @classmethod
    def keeping(cls, quadratic: FloatArray, linear: FloatArray, keep: int) -> PairwiseProblem:
        """The problem with one budget: at most ``keep`` structures stay."""
        count = len(np.asarray(linear))
        return cls(quadratic, linear, np.ones((1, count), dtype=np.int64), np.array([keep], dtype=np.int64))

    def loss(self, selection: BoolArray) -> float:
        """``1/2 z'Qz + q'z`` of keeping ``selection``."""
        gone = (~self._selection(selection)).astype(np.float64)
        return float(0.5 * gone @ self.quadratic @ gone + self.linear @ gone)

    def used(self, selection: BoolArray) -> IntArray:
        """Exact amount of each resource that ``selection`` uses, ``(r,)``."""
        return np.asarray(self.costs[:, self._selection(selection)].sum(axis=1), dtype=np.int64)

    def fits(self, selection: BoolArray) -> bool:
        """Whether ``selection`` is within every budget."""
        return bool((self.used(selection) <= self.limits).all())

    def _selection(self, selection: BoolArray) -> BoolArray:
        kept = np.asarray(selection)
        if kept.shape != (self.size,) or kept.dtype != bool:
            raise ValueError(
                f"Expected a boolean selection of shape ({self.size},). Got {kept.dtype} of shape {kept.shape}. "
                "True means kept."
            )
        return kept


def total_loss(maps: Sequence[ReducedMap]) -> float:
    """Loss of keeping nothing, over all maps."""
    return sum(one.energy for one in maps)
