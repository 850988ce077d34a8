"""Group orthogonal matching pursuit over an oracle, one structure at a time or in batches, and its opposite.

:class:`GroupOMP` adds the structure with the largest gain beside those that it has, fits again, and so on. It leaves a
nested path: an order and the fitted loss at every width that was visited. :class:`GroupBackward` starts with everything
and drops the structure with the least value, as PocketFlow's learner does that is called "DCP" there but is another
algorithm.

Batches save fits. All structures of a batch are chosen by the gains at its beginning, which is exact where structures
explain different things, given the kept ones; else the later ones of a batch may repeat what an earlier one has said.
What is known of the approximation is measured: every pick had at least the fraction ``weakness`` of the largest gain
when its batch began, so that the path is one of stagewise weak selection in the sense of Blumensath and Davies.

References
----------
Tropp, Gilbert, Strauss, "Algorithms for simultaneous sparse approximation, part I", Signal Processing 2006.
Swirszcz, Abe, Lozano, "Grouped orthogonal matching pursuit for variable selection and prediction", NIPS 2009.
Blumensath, Davies, "Stagewise weak gradient pursuits", IEEE Transactions on Signal Processing 2009.
Zhuang et al., "Discrimination-aware channel pruning for deep neural networks", NeurIPS 2018, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.oracle import Oracle, OracleResult, State
from solvers.oracle_loops import GreedyByGains, SequentialSelection
from solvers.problem import FloatArray, IntArray
from solvers.result import Selection

__all__ = ["GroupBackward", "GroupOMP", "GroupPath"]

Progress = Callable[[State], bool | None]


@dataclass(frozen=True, eq=False)
class GroupPath:
    """A nested order of structures and what fitting cost at the widths that were visited.

    Attributes
    ----------
    result
        Selection, loss, state and termination, as every loop over an oracle gives them.
    order
        Structures, best first, ``(k,)`` int64: those that were added, in order; or for a backward path all of them,
        with the dropped ones last in the order opposite to that in which they went.
    widths
        Numbers kept at the fits, in the order of the fits, ``(steps + 1,)`` int64.
    losses
        The oracle's loss at these fits, ``(steps + 1,)``.
    ratios
        Per step, the least value used over the best one, in [0, 1], ``(steps,)``. For additions: gain of the last pick
        over that of the first.
    """

    result: OracleResult
    order: IntArray
    widths: IntArray
    losses: FloatArray
    ratios: FloatArray

    @property
    def weakness(self) -> float:
        """Least ratio over all steps; 1 when structures came one at a time."""
        return float(self.ratios.min(initial=1.0))

    def loss_at(self, size: int) -> FloatArray:
        """Loss at every width 0 ... ``size``, linear between the visited ones and flat beyond them, ``(size + 1,)``."""
        by_width = np.argsort(self.widths, kind="stable")
        return np.asarray(np.interp(np.arange(size + 1), self.widths[by_width], self.losses[by_width]))


class _Watched:
    """An oracle that writes down what it is asked and what it answers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.values_seen: list[FloatArray] = []
        self.fits: list[tuple[Selection, float]] = []

    @property
    def size(self) -> int:
        return self._oracle.size

    def fit(self, kept: Selection) -> float:
        loss = self._oracle.fit(kept)
        self.fits.append((kept, float(loss)))
        return loss

    def values(self, kept: Selection) -> FloatArray:
        values = np.asarray(self._oracle.values(kept), dtype=np.float64)
        self.values_seen.append(values)
        return values

    def path(self, result: OracleResult, moved: list[IntArray], order: IntArray, best_first: bool) -> GroupPath:
        """Put the record together; ``moved`` are the structures that came or went at each step, in order."""
        widths = np.array([int(kept.sum()) for kept, _ in self.fits], dtype=np.int64)
        losses = np.array([loss for _, loss in self.fits])
        ratios = [
            _ratio(values[step[-1]], values[step[0]]) if best_first else _ratio(values[step[0]], values[step[-1]])
            for values, step in zip(self.values_seen, moved, strict=False)
        ]
        return GroupPath(result, order, widths, losses, np.array(ratios))

    def steps(self, added: bool) -> list[IntArray]:
        """Structures that came (or went) between one fit and the next: most valuable (or least valuable) first."""
        sign = -1.0 if added else 1.0
        found = []
        for values, (before, _), (after, _) in zip(self.values_seen, self.fits[:-1], self.fits[1:], strict=False):
            changed = np.flatnonzero(before != after)
            found.append(changed[np.argsort(sign * values[changed], kind="stable")])
        return [step for step in found if len(step)]


def _ratio(least: float, best: float) -> float:
    return float(np.clip(least / best, 0.0, 1.0)) if best > 0 else 1.0


def _check(keep: int, batch: int) -> None:
    if isinstance(keep, bool) or keep < 0 or isinstance(batch, bool) or batch < 1:
        raise ValueError(
            f"Expected keep of at least 0 and batch of at least 1. Got {keep} and {batch}. Count structures."
        )


@dataclass(frozen=True)
class GroupOMP:
    """Forward greedy: add the structures of largest gain, fit again, until ``keep`` are there.

    Parameters
    ----------
    keep
        Structures to keep.
    batch
        Structures added between two fits; 1 is orthogonal matching pursuit itself.
    tolerance
        Stop when a step lowers the loss by at most this fraction of the first loss (Zhuang et al. 2018, section 3.4);
        never when not given.

    Raises
    ------
    ValueError
        Numbers out of range.
    """

    keep: int
    batch: int = 1
    tolerance: float | None = None

    def __post_init__(self) -> None:
        _check(self.keep, self.batch)
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"Expected tolerance in [0, 1) or None. Got {self.tolerance}. Use for instance 0.001.")

    def solve(self, oracle: Oracle, progress: Progress | None = None, time_limit: float | None = None) -> GroupPath:
        """Run from nothing; see `solvers.oracle.run` for ``progress`` and ``time_limit``."""
        watched = _Watched(oracle)
        loop = GreedyByGains(self.keep, per_step=self.batch, tolerance=self.tolerance)
        result = loop.solve(watched, progress=progress, time_limit=time_limit)
        steps = watched.steps(added=True)
        order = np.concatenate([np.zeros(0, dtype=np.int64), *steps])
        return watched.path(result, steps, order, best_first=True)


@dataclass(frozen=True)
class GroupBackward:
    """Backward greedy: drop the structures of least value, fit again, until ``keep`` are left.

    With an oracle whose values are norms of gradients this is the channel selection of PocketFlow's learner "DCP".
    It is not discrimination-aware channel pruning: at a well fitted selection the gradients of all kept structures
    vanish, so that the values there tell more of the fit's error than of the structures.

    Parameters
    ----------
    keep
        Structures to keep.
    batch
        Structures dropped between two fits.

    Raises
    ------
    ValueError
        Numbers out of range.

    References
    ----------
    Tencent PocketFlow, docs/docs/dcp_learner.md.
    """

    keep: int
    batch: int = 1

    def __post_init__(self) -> None:
        _check(self.keep, self.batch)

    def solve(self, oracle: Oracle, progress: Progress | None = None, time_limit: float | None = None) -> GroupPath:
        """Run from everything; see `solvers.oracle.run` for ``progress`` and ``time_limit``."""
        watched = _Watched(oracle)
        keep = min(self.keep, oracle.size)
        schedule = (*range(oracle.size - self.batch, keep, -self.batch), keep)
        result = SequentialSelection(schedule).solve(watched, progress=progress, time_limit=time_limit)
        steps = watched.steps(added=False)
        gone = np.concatenate([np.zeros(0, dtype=np.int64), *steps])
        left = np.flatnonzero(result.selection)
        if watched.values_seen:
            left = left[np.argsort(-watched.values_seen[-1][left], kind="stable")]
        return watched.path(result, steps, np.concatenate([left, gone[::-1]]), best_first=False)
