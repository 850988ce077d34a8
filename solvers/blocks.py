"""Blocks in layers with integer costs, and the answer to how many each layer keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.knapsack_check import CoreProof
from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.result import Termination
from solvers.terms import frozen_integers

#: All blocks together use less than this of every resource.
_MOST_AMOUNT = 2**62


@dataclass(frozen=True, eq=False)
class BlockLayers:
    """Blocks in layers with integer costs.

    Parameters
    ----------
    values
        Per layer the value of each block, shape ``(n_l,)``, finite, in any order and of any sign.
    costs
        Amount that one block of each layer uses of each resource, shape ``(L, m)``, integers of at least 0; or, when
        the blocks of a layer differ, a sequence of one array of shape ``(m,)`` or ``(n_l, m)`` per layer.
    limits
        Largest amount of each resource, shape ``(m,)``, integers.
    minimum, maximum
        Least and most kept blocks per layer, shape ``(L,)``; 0 and ``n_l`` when not given.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not match, values that are not finite, costs that are negative or no integers, bounds on counts
        that no count satisfies or that come with costs per block.
    """

    values: tuple[NDArray[np.floating], ...]
    costs: IntArray | tuple[IntArray, ...]
    limits: IntArray
    minimum: IntArray | None = None
    maximum: IntArray | None = None

    def __post_init__(self) -> None:
        values = tuple(np.asarray(each) for each in self.values)
        for number, each in enumerate(values):
            if each.ndim != 1 or each.dtype.kind != "f":
                raise ValueError(
                    f"Expected values of layer {number} of shape (n,) and a float type. Got {each.shape} of "
                    f"{each.dtype}. Give one float per block."
                )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "limits", frozen_integers(np.atleast_1d(np.asarray(self.limits)), "limits"))
        sizes = np.array([each.size for each in values], dtype=np.int64)
        self._set_costs(sizes)
        counts = (("minimum", np.zeros_like(sizes)), ("maximum", sizes))
        for name, plain in counts:
            given = getattr(self, name)
            array = plain if given is None else frozen_integers(given, name)
            if array.shape != sizes.shape:
                raise ValueError(f"Expected {name} of shape {sizes.shape}. Got {array.shape}. Give one per layer.")
            object.__setattr__(self, name, array)
        low, high = self.span
        if np.any(low < 0) or np.any(high > sizes) or np.any(low > high):
            raise ValueError(
                "Expected 0 <= minimum <= maximum <= number of blocks in every layer. "
                f"Got minimum {low.tolist()[:8]}, maximum {high.tolist()[:8]}, blocks {sizes.tolist()[:8]}. "
                "Correct the counts."
            )
        if not self.uniform and (np.any(low > 0) or np.any(high < sizes)):
            raise ValueError(
                "Expected no minimum or maximum where blocks of one layer cost different amounts. Got some. "
                "Give each layer one cost, or split it."
            )

    def _set_costs(self, sizes: IntArray) -> None:
        resources = len(self.limits)
        if isinstance(self.costs, np.ndarray) or not any(np.ndim(each) == 2 for each in self.costs):
            costs = frozen_integers(np.asarray(self.costs).reshape(len(sizes), -1) if len(sizes) else [], "costs")
            if len(sizes) and costs.shape != (len(sizes), resources):
                raise ValueError(
                    f"Expected costs of shape {(len(sizes), resources)}. Got {costs.shape}. "
                    "Give one row per layer, one column per resource."
                )
            costs = costs.reshape(len(sizes), resources)
            object.__setattr__(self, "costs", costs)
            rows = [costs[number][None] for number in range(len(sizes))]
        else:
            arrays = [frozen_integers(each, f"costs of layer {number}") for number, each in enumerate(self.costs)]
            if len(arrays) != len(sizes):
                raise ValueError(f"Expected costs for {len(sizes)} layers. Got {len(arrays)}. Give one array each.")
            for number, (array, size) in enumerate(zip(arrays, sizes, strict=True)):
                if array.shape not in ((resources,), (size, resources)):
                    raise ValueError(
                        f"Expected costs of layer {number} of shape {(resources,)} or {(int(size), resources)}. "
                        f"Got {array.shape}. Give one row, or one per block."
                    )
            object.__setattr__(self, "costs", tuple(arrays))
            rows = [array.reshape(-1, resources) for array in arrays]
        most = [0] * resources
        for row, size in zip(rows, sizes.tolist(), strict=True):
            if row.size and row.min() < 0:
                raise ValueError(f"Expected costs of at least 0. Got {int(row.min())}. Costs cannot be negative.")
            for k in range(resources):
                most[k] += size * int(row[:, k].max(initial=0))
        if any(amount >= _MOST_AMOUNT for amount in most):
            raise ValueError(f"Expected amounts below 2^62. Got up to {max(most)}. Measure them in a larger unit.")

    @property
    def uniform(self) -> bool:
        """Whether the blocks of each layer cost the same."""
        return isinstance(self.costs, np.ndarray)

    @property
    def span(self) -> tuple[IntArray, IntArray]:
        """Least and most kept blocks per layer, shape ``(L,)`` each."""
        assert self.minimum is not None
        assert self.maximum is not None
        return self.minimum, self.maximum


@dataclass(frozen=True, eq=False)
class BlockResult:
    """How many blocks each layer keeps.

    Attributes
    ----------
    counts
        Kept blocks per layer, shape ``(L,)``; None when the limits are below what the minimum uses.
    objective, bound
        Kept value, and what no choice within the limits exceeds; None with ``counts``.
    gap
        ``(bound - objective) / (total - objective)``, ``total`` without limits; see `solvers.result.relative_gap`.
    used, limits
        Exact amounts per resource, shape ``(m,)``.
    prices
        Value per unit of each resource, shape ``(m,)``.
    termination
        Why the solver stopped.
    seed, seconds
        As in `solvers.result.Result`. Seconds of a prepared problem leave the sort out.
    kept
        Kept blocks of layers whose blocks cost different amounts: one boolean array per layer; else None.
    proof
        What `check_blocks` repeats when the prices alone do not prove the bound.
    """

    counts: IntArray | None
    objective: float | None
    bound: float | None
    gap: float | None
    used: IntArray | None
    limits: IntArray
    prices: FloatArray
    termination: Termination
    seed: int
    seconds: float
    kept: tuple[BoolArray, ...] | None = None
    proof: tuple[CoreProof, IntArray, IntArray] | None = None

    def selection(self, blocks: BlockLayers) -> tuple[BoolArray, ...]:
        """Kept blocks of each layer, shape ``(n_l,)`` each, True = kept; of equal values the first ones.

        Raises
        ------
        ValueError
            There is no choice within the limits.
        """
        if self.counts is None:
            raise ValueError(f"Expected a choice within the limits. Got none: {self.termination.text}")
        if self.kept is not None:
            return self.kept
        return tuple(largest(values, int(k)) for values, k in zip(blocks.values, self.counts, strict=True))


def largest(values: NDArray[np.floating], count: int) -> BoolArray:
    """Mask of the ``count`` largest values, shape ``(n,)``; of equal ones the first."""
    if count == 0:
        return np.zeros(values.shape, dtype=bool)
    threshold = np.partition(values, values.size - count)[values.size - count]
    kept: BoolArray = values > threshold
    ties = np.flatnonzero(values == threshold)
    kept[ties[: count - int(kept.sum())]] = True
    return kept
