"""How the structures of one axis are picked: by following gains, as the paper does, or by an expansion of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.group_omp import GroupBackward, GroupOMP
from solvers.moment_least_squares import MomentLeastSquares, shared_inputs
from solvers.oracle import Oracle
from solvers.refit import Refit
from solvers.result import Selection
from structprune.criteria.discrimination import DiscriminationOracle

__all__ = ["Picked", "Picking"]

BATCHES = 32
"""Fits on the expansion where structures are kernels or blocks, of which an axis has too many for one at a time."""


@dataclass(frozen=True, eq=False)
class Picked:
    """A selection on one axis, with the path to it.

    Attributes
    ----------
    selection
        ``(size,)``, True = kept.
    order
        Structures, the kept ones first, ``(size,)``; best first where they were taken one by one, and those that were
        never taken by their last values.
    loss
        L at every width 0 ... size, between the visited ones linear, ``(size + 1,)``; by an expansion, that part of it
        which dropping structures adds.
    weakness
        See :attr:`solvers.group_omp.GroupPath.weakness`.
    """

    selection: Selection
    order: np.ndarray
    loss: np.ndarray
    weakness: float = 1.0


@dataclass(frozen=True)
class Picking:
    """How the structures of one axis are picked.

    Attributes
    ----------
    steps
        Fits per axis, each after an equal share of the picks; None for one pick at a time, as in the paper.
    tolerance
        End an axis when a step lowers its loss by at most this fraction of the loss with nothing kept.
    backward
        Drop the structure with the smallest gradient instead of adding the one with the largest: PocketFlow's variant.
    expand
        Look at the network twice per axis, with everything and with nothing kept, expand the loss to second order, and
        choose by the expansion without asking the network again: channels and heads by :class:`solvers.refit.Refit`,
        where greedy starts and exchanges count every fit; kernels and blocks by group OMP in 32 batches.

    Raises
    ------
    ValueError
        Settings that exclude each other, or numbers out of range.
    """

    steps: int | None = None
    tolerance: float | None = None
    backward: bool = False
    expand: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"Expected steps of at least 1, or None. Got {self.steps}. Use for instance 4.")
        if self.expand and (self.steps is not None or self.tolerance is not None or self.backward):
            raise ValueError("Expected expand alone. Got it with steps, tolerance or backward. Leave these out.")

    def solve(
        self, oracle: DiscriminationOracle, keep: int, ranking: np.ndarray | None = None, every_width: bool = False
    ) -> Picked:
        """Pick ``keep`` structures and fit the oracle to them.

        Parameters
        ----------
        ranking
            Values ``(size,)`` that decide instead of gains, with the same fits.
        every_width
            Whether the losses on the way matter; else an axis that stays whole is fitted and no more.
        """
        if ranking is not None:
            plain = Picking(steps=1) if self.expand else self
            return plain._followed(_Ranked(oracle, ranking), keep)
        if keep == oracle.size and self.tolerance is None and not every_width:
            whole = np.ones(keep, dtype=bool)
            return Picked(whole, np.arange(keep), np.full(keep + 1, oracle.fit(whole)))
        if not self.expand:
            return self._followed(oracle, keep)
        found = self._expanded(oracle, keep)
        oracle.fit(found.selection)
        return found

    def _followed(self, oracle: Oracle, keep: int) -> Picked:
        """Follow gains, or the opposite."""
        moved = oracle.size - keep if self.backward else keep
        batch = 1 if self.steps is None else max(-(-moved // self.steps), 1)
        solver = GroupBackward(keep, batch) if self.backward else GroupOMP(keep, batch, self.tolerance)
        path = solver.solve(oracle)
        values = np.asarray(oracle.values(path.result.selection))
        rest = np.setdiff1d(np.arange(oracle.size), path.order)
        order = np.concatenate([path.order, rest[np.argsort(-values[rest], kind="stable")]])
        return Picked(path.result.selection, order, path.loss_at(oracle.size), path.weakness)

    def _expanded(self, oracle: DiscriminationOracle, keep: int) -> Picked:
        """Choose by the expansion."""
        size, maps = oracle.size, oracle.expansion()
        problem = shared_inputs(maps, size, keep)
        if problem is None:
            return Picking(steps=BATCHES)._followed(MomentLeastSquares(maps, size), keep)
        found = Refit(curve=keep == size).solve(problem)
        if found.curve is not None:
            return Picked(found.selection, found.curve.order, found.curve.loss)
        loss = np.interp(np.arange(size + 1), [0, keep, size], [problem.total(), found.error, 0.0])
        return Picked(found.selection, np.argsort(~found.selection, kind="stable"), loss)


class _Ranked:
    """An oracle whose values are given; it fits as the other one does."""

    def __init__(self, oracle: DiscriminationOracle, values: np.ndarray) -> None:
        self._oracle, self._values = oracle, np.asarray(values, dtype=np.float64)

    @property
    def size(self) -> int:
        return self._oracle.size

    def fit(self, kept: Selection) -> float:
        return self._oracle.fit(kept)

    def values(self, kept: Selection) -> np.ndarray:
        return self._values
