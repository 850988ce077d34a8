"""Three loops over an oracle: add what gains most, follow a schedule, exchange with an accept test.

Each is a frozen dataclass of settings. ``solve(oracle)`` runs it from its start or from a saved `solvers.oracle.State`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from solvers.oracle import Chooser, Oracle, OracleResult, State, advance, begin, fitted, frozen, run, top, valued
from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.terms import frozen_integers

Progress = Callable[[State], bool | None]


@dataclass(frozen=True, eq=False)
class GreedyByGains:
    """Adds the structure that gains most per cost, fits again, and so on: group orthogonal matching pursuit.

    With a least-squares oracle whose gains are gradient norms this is group OMP (Tropp, Gilbert and Strauss 2006;
    Swirszcz, Abe and Lozano 2009). Discrimination-aware channel pruning (Zhuang et al. 2018) is the same loop over a
    network's loss, with one more loss in it.

    Parameters
    ----------
    limit
        Number of structures to keep, or the amount that they may cost.
    costs
        Integer cost of each structure, shape ``(n,)``, at least 0; each costs 1 when not given.
    per_step
        Structures added before the oracle is fitted again.
    tolerance
        Stop when a step lowers the loss by at most this fraction of the first loss; never when not given.
    first
        Structures kept from the start, shape ``(n,)``; none when not given.

    Raises
    ------
    ValueError
        A limit below 0, fewer than one structure per step.
    """

    limit: int
    costs: IntArray | None = None
    per_step: int = 1
    tolerance: float | None = None
    first: BoolArray | None = None

    def __post_init__(self) -> None:
        if self.limit < 0 or self.per_step < 1:
            raise ValueError(
                f"Expected limit of at least 0 and per_step of at least 1. Got {self.limit} and {self.per_step}. "
                "Count structures."
            )
        if self.costs is not None:
            costs = frozen_integers(self.costs, "costs")
            if costs.size and costs.min() < 0:
                raise ValueError(f"Expected costs of at least 0. Got {int(costs.min())}. Costs cannot be negative.")
            object.__setattr__(self, "costs", costs)

    def solve(
        self,
        oracle: Oracle,
        state: State | None = None,
        progress: Progress | None = None,
        time_limit: float | None = None,
    ) -> OracleResult:
        """Run; see `solvers.oracle.run`."""
        return run(self, oracle, state, progress, time_limit)

    def start(self, oracle: Oracle) -> State:
        """Fit to the first structures. Raises ValueError when they or the costs do not match the oracle."""
        kept = np.zeros(oracle.size, dtype=bool) if self.first is None else np.asarray(self.first, dtype=bool)
        _check_shape("first", kept, oracle)
        if self.costs is not None:
            _check_shape("costs", self.costs, oracle)
        return begin(oracle, kept)

    def step(self, oracle: Oracle, state: State) -> State | None:
        """Add the best that fit."""
        if self.tolerance is not None and state.step and state.stalled:
            return None
        costs = np.ones(oracle.size, dtype=np.int64) if self.costs is None else self.costs
        room = self.limit - int(costs[state.kept].sum())
        outside = ~state.kept & (costs <= room)
        if not outside.any():
            return None
        gains = valued(oracle, state.kept)
        # What costs nothing comes first, by its gain alone.
        rates = np.where(costs > 0, gains / np.maximum(costs, 1), np.where(gains > 0, np.inf, gains))
        order = np.flatnonzero(outside)
        order = order[np.lexsort((order, -gains[order], -rates[order]))]
        kept, added = state.kept.copy(), 0
        for structure in order:
            if added < self.per_step and costs[structure] <= room:
                kept[structure] = True
                room -= int(costs[structure])
                added += 1
        kept = frozen(kept)
        loss = fitted(oracle, kept)
        least = -math.inf if self.tolerance is None else self.tolerance * abs(state.first_loss)
        return advance(state, kept, loss, state.loss - loss > least)


@dataclass(frozen=True, eq=False)
class SequentialSelection:
    """Follows a schedule of numbers kept.

    When the number falls, the least valuable of the kept ones go, so that falling phases are nested. When it rises,
    the most valuable of the others come; a rise to all of them is a dense phase. A constant number only fits again.

    Parameters
    ----------
    schedule
        Number of kept structures at each step, shape ``(T,)``; see `dense_and_sparse` and `one_at_a_time`.
    choose
        Chooses by value; `solvers.oracle.top` over all structures, or `solvers.oracle.EvenlyPerPart` per layer.
    first
        Structures kept before the first step, shape ``(n,)``; all when not given.

    Raises
    ------
    ValueError
        No steps, or negative numbers.
    """

    schedule: tuple[int, ...]
    choose: Chooser = top
    first: BoolArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", tuple(int(count) for count in self.schedule))
        if not self.schedule or min(self.schedule) < 0:
            raise ValueError(f"Expected a schedule of counts of at least 0. Got {self.schedule}. Give one per step.")

    def solve(
        self,
        oracle: Oracle,
        state: State | None = None,
        progress: Progress | None = None,
        time_limit: float | None = None,
    ) -> OracleResult:
        """Run; see `solvers.oracle.run`."""
        return run(self, oracle, state, progress, time_limit)

    def start(self, oracle: Oracle) -> State:
        """Fit to the first structures. Raises ValueError when they or the schedule do not match the oracle."""
        if max(self.schedule) > oracle.size:
            raise ValueError(
                f"Expected at most {oracle.size} kept. Got {max(self.schedule)} in the schedule. Lower it."
            )
        first = np.ones(oracle.size, dtype=bool) if self.first is None else np.asarray(self.first, dtype=bool)
        _check_shape("first", first, oracle)
        return begin(oracle, first)

    def step(self, oracle: Oracle, state: State) -> State | None:
        """Go to the schedule's next number and fit."""
        if state.step == len(self.schedule):
            return None
        count, now = self.schedule[state.step], int(state.kept.sum())
        kept = state.kept
        if count == oracle.size:
            kept = frozen(np.ones(oracle.size, dtype=bool))
        elif count < now:
            kept = frozen(self.choose(valued(oracle, state.kept), state.kept, count))
        elif count > now:
            kept = frozen(state.kept | self.choose(valued(oracle, state.kept), ~state.kept, count - now))
        if int(kept.sum()) != count:
            raise ValueError(f"Expected the chooser to keep {count}. Got {int(kept.sum())}. Check its constraints.")
        return advance(state, kept, fitted(oracle, kept), True)


def one_at_a_time(keep: int, per_step: int = 1) -> tuple[int, ...]:
    """From ``per_step`` to ``keep`` structures, so many more at each step; with none at first, Sequential Attention."""
    if keep < 1 or per_step < 1:
        raise ValueError(f"Expected keep and per_step of at least 1. Got {keep} and {per_step}. Count structures.")
    return (*range(per_step, keep, per_step), keep)


def dense_and_sparse(
    size: int, keep: int, cycles: int, dense: int, sparsify: int, sparse: int, exponent: float = 4.0
) -> tuple[int, ...]:
    """Cycles of dense, sparsifying and sparse steps, as SequentialAttention++ has them; without sparsifying, ACDC's.

    Within a sparsifying phase the fraction that is gone grows as ``(1 - e^(-c u)) / (1 - e^(-c))``, ``u`` from 0 to 1:
    fast first, carefully at the end (Yasuda et al. 2024, section 3.1, where ``c = 4``).

    Parameters
    ----------
    size, keep
        All structures, and those kept in the end.
    cycles
        Repetitions.
    dense, sparsify, sparse
        Steps of each phase.
    exponent
        The constant ``c``; 0 for a linear fall.

    Raises
    ------
    ValueError
        Numbers that are negative, or no steps at all.
    """
    if not 0 <= keep <= size or cycles < 1 or min(dense, sparsify, sparse) < 0 or sparsify + sparse < 1:
        raise ValueError(
            f"Expected 0 <= keep <= size, a cycle, and a sparse or sparsifying step. Got keep {keep} of {size}, "
            f"{cycles} cycles of {dense}, {sparsify} and {sparse} steps. Correct them."
        )
    falls = []
    for step in range(1, sparsify + 1):
        u = step / sparsify
        gone = u if exponent == 0 else math.expm1(-exponent * u) / math.expm1(-exponent)
        falls.append(size - math.floor((size - keep) * gone + 1e-9))
    return (*([size] * dense), *falls, *([keep] * sparse)) * cycles


@dataclass(frozen=True, eq=False)
class SwapSelection:
    """Exchanges kept structures for better ones, and keeps an exchange only if the fitted loss does not rise.

    Each step brings in the most valuable outside and takes out the least valuable inside, as orthogonal matching
    pursuit with replacement does (Jain, Tewari and Dhillon 2011). A rejected exchange is undone, its structures are
    barred for a while, and the next ones exchange half as many.

    Parameters
    ----------
    first
        Kept structures to start from, shape ``(n,)``.
    rounds
        Most exchanges tried.
    swaps
        Structures exchanged at once, in the first round; a cosine lowers it to 1 over the rounds.
    accept
        Whether an exchange from one loss to another stays: (before, after) -> bool. By default when the loss falls.
    barred
        Rounds for which the structures of a rejected exchange stay as they are.
    patience
        Rejections in a row that end the loop.
    parts
        Part of each structure, for instance its layer, shape ``(n,)``: structures are exchanged within their part, so
        that the number kept of each part stays. Not given, anywhere.

    Raises
    ------
    ValueError
        Numbers below 0, or no structures exchanged.
    """

    first: BoolArray
    rounds: int = 100
    swaps: int = 1
    accept: Callable[[float, float], bool] = lambda before, after: after < before
    barred: int = 5
    patience: int = 10
    parts: IntArray | None = None

    def __post_init__(self) -> None:
        if self.parts is not None:
            parts = frozen_integers(self.parts, "parts")
            if parts.size and parts.min() < 0:
                raise ValueError(f"Expected parts of at least 0. Got {int(parts.min())}. Number them from 0.")
            object.__setattr__(self, "parts", parts)
        if min(self.rounds, self.barred) < 0 or min(self.swaps, self.patience) < 1:
            raise ValueError(
                "Expected rounds and barred of at least 0, swaps and patience of at least 1. "
                f"Got {self.rounds}, {self.barred}, {self.swaps} and {self.patience}. Correct them."
            )
        object.__setattr__(self, "first", frozen(np.asarray(self.first, dtype=bool)))

    def solve(
        self,
        oracle: Oracle,
        state: State | None = None,
        progress: Progress | None = None,
        time_limit: float | None = None,
    ) -> OracleResult:
        """Run; see `solvers.oracle.run`."""
        return run(self, oracle, state, progress, time_limit)

    def start(self, oracle: Oracle) -> State:
        """Fit to the first selection. Raises ValueError when it does not match the oracle."""
        _check_shape("first", self.first, oracle)
        if self.parts is not None:
            _check_shape("parts", self.parts, oracle)
        return begin(oracle, self.first)

    def step(self, oracle: Oracle, state: State) -> State | None:
        """Try one exchange."""
        if state.step >= self.rounds or state.stalled >= self.patience:
            return None
        count = math.ceil(self.swaps * 0.5 * (1.0 + math.cos(math.pi * state.step / max(1, self.rounds))))
        count = max(1, count // 2 ** min(state.stalled, 30))
        free = state.barred == 0
        count = min(count, int((free & state.kept).sum()), int((free & ~state.kept).sum()))
        waiting = np.maximum(0, state.barred - 1)
        going = np.zeros(oracle.size, dtype=bool)
        if count:
            coming, going = self._exchange(valued(oracle, state.kept), free & ~state.kept, free & state.kept, count)
        if not going.any():
            return replace(advance(state, state.kept, state.loss, False), barred=waiting)
        kept = frozen((state.kept | coming) & ~going)
        loss = fitted(oracle, kept)
        if self.accept(state.loss, loss):
            return replace(advance(state, kept, loss, True), barred=waiting)
        # Back to the selection before; its loss is the one that is known already.
        fitted(oracle, state.kept)
        waiting[coming | going] = self.barred
        return replace(advance(state, state.kept, state.loss, False), barred=waiting)

    def _exchange(
        self, values: FloatArray, outside: BoolArray, inside: BoolArray, count: int
    ) -> tuple[BoolArray, BoolArray]:
        """The best from outside and as many of the worst inside, part by part; fewer where a part has no more."""
        if self.parts is None:
            return top(values, outside, count), top(-values, inside, count)
        coming, going = np.zeros_like(outside), np.zeros_like(inside)
        room = np.bincount(self.parts[inside], minlength=int(self.parts.max()) + 1)
        candidates = np.flatnonzero(outside)
        for structure in candidates[np.argsort(-values[candidates], kind="stable")].tolist():
            part = int(self.parts[structure])
            if room[part] > 0 and count > 0:
                coming[structure] = True
                room[part] -= 1
                count -= 1
        for part in np.unique(self.parts[coming]):
            mine = self.parts == part
            going |= top(-values, inside & mine, int(coming[mine].sum()))
        return coming, going


def _check_shape(name: str, array: ArrayLike, oracle: Oracle) -> None:
    if np.shape(array) != (oracle.size,):
        raise ValueError(
            f"Expected {name} of shape ({oracle.size},), one per structure of the oracle. Got {np.shape(array)}. "
            "Give one entry per structure."
        )
