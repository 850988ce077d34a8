"""Which inputs of linear maps to keep when the kept weights are fitted anew: greedy starts, then exchanges.

Greedy elimination (Hassibi and Stork 1993) or greedy selection gives a first selection of the wanted size. All swaps
of a kept and a removed structure are then compared exactly and at once (`solvers.refit_moves`), many are done together,
and the search ends where no swap lowers the loss. The best of a few starts counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri

from solvers.bounds.refit import BoundKind, refit_bound
from solvers.elimination import Elimination
from solvers.quadratic import BoolArray, FloatArray, ReducedMap, RefitProblem, reduced
from solvers.refit_moves import best_swaps
from solvers.refit_path import backward, forward
from solvers.result import OPTIMAL_GAP, Limit, Selection, Termination, TerminationReason, relative_gap
from solvers.tableau import Tableau

__all__ = [
    "Refit",
    "RefitResult",
    "Start",
    "from_activity",
    "from_backward",
    "from_forward",
    "from_inverse",
    "width_curve",
]

#: A start returns a first selection with that many kept structures; None when it was stopped before it had one.
Start: TypeAlias = Callable[[Sequence[ReducedMap], int, Callable[[], bool]], BoolArray | None]

#: Above so many inputs the greedy paths cost more than the exchanges that they save.
LARGE = 2048

#: A probe vector that is reproduced with a larger relative error has the tableau computed afresh.
DRIFT = 1e-6

#: With a smaller one the loss that it has kept count of is taken at its word.
SOUND = 1e-9

#: Exchanges between two looks at the drift.
LOOK = 8


def from_activity(maps: Sequence[ReducedMap], keep: int, stop: Callable[[], bool]) -> BoolArray:
    """Keep the structures with the largest ``tr(W_g H_gg W_g')``: activation times weight. ``stop`` is not asked."""
    count = len(maps[0].moment) // maps[0].each
    return _kept(np.argsort(-_activity(maps), kind="stable")[:keep], count)


def _activity(maps: Sequence[ReducedMap]) -> FloatArray:
    count = len(maps[0].moment) // maps[0].each
    scores = np.zeros(count)
    for one in maps:
        if one.each == 1:
            scores += np.diag(one.moment) * (one.weight**2).sum(axis=0)
            continue
        index = np.arange(len(one.moment)).reshape(count, one.each)
        blocks = one.moment[index[:, :, None], index[:, None, :]]
        parts = one.weight[:, index]
        scores += np.einsum("rgi,rgi->g", (parts[:, :, None] @ blocks)[:, :, 0], parts)
    return scores


def from_inverse(maps: Sequence[ReducedMap], keep: int, stop: Callable[[], bool]) -> BoolArray:
    """Keep the structures whose removal alone, all others refitted, loses most: ``tr(W_g (H^-1)_gg^-1 W_g')``.

    One inverse instead of one for every structure that exact elimination takes out. ``stop`` is not asked.
    """
    count = len(maps[0].moment) // maps[0].each
    scores = np.zeros(count)
    for one in maps:
        factor, failed = dpotrf(one.moment.T, lower=1)
        if failed:
            raise np.linalg.LinAlgError("Expected a positive definite moment. Got one that is not. Add damping.")
        lower, _ = dpotri(factor, lower=1, overwrite_c=1)
        places = np.arange(len(lower)).reshape(count, one.each)
        below = np.tril(lower[places[:, :, None], places[:, None, :]])
        blocks = below + np.tril(below, -1).transpose(0, 2, 1)
        parts = one.weight.T.reshape(count, one.each, -1)
        scores += np.einsum("gir,gir->g", np.linalg.solve(blocks, parts), parts)
    return _kept(np.argsort(-scores, kind="stable")[:keep], count)


def from_backward(maps: Sequence[ReducedMap], keep: int, stop: Callable[[], bool]) -> BoolArray | None:
    """Keep what exact backward elimination leaves, one structure at a time."""
    count = len(maps[0].moment) // maps[0].each
    path = backward(maps, count - keep, stop)
    return ~_kept(path.taken, count) if len(path.taken) == count - keep else None


def from_forward(maps: Sequence[ReducedMap], keep: int, stop: Callable[[], bool]) -> BoolArray | None:
    """Keep what greedy selection takes first, one structure at a time."""
    path = forward(maps, keep, stop)
    return _kept(path.taken, len(maps[0].moment) // maps[0].each) if len(path.taken) == keep else None


def _kept(places: np.ndarray, count: int) -> BoolArray:
    kept = np.zeros(count, dtype=bool)
    kept[places] = True
    return kept


def width_curve(problem: RefitProblem) -> Elimination:
    """Nested order and loss at every width, by exact backward elimination."""
    path = backward([reduced(one) for one in problem.maps], problem.size)
    return Elimination(path.taken[::-1].copy(), np.concatenate([[0.0], np.cumsum(path.changes)])[::-1].copy())


@dataclass(frozen=True, eq=False)
class RefitResult:
    """A selection with refit and what is known about it.

    Attributes
    ----------
    selection
        Kept structures, ``(size,)``, True = kept.
    error
        Loss after the refit, as ``problem.lost(selection)``; ``problem.refitted(selection)`` gives the weights.
    bound, bound_kind
        No selection of that size loses less, and the relaxation that says so; None when no bound was asked for.
    gap
        ``(error - bound) / error``: the part of the loss that might still be avoidable; None without a bound.
    curve
        Nested order and loss at every width; None when not asked for.
    termination
        Why the solver stopped. A selection that no swap improves is no proof: HEURISTIC without a bound.
    swaps
        Exchanged pairs over all starts.
    seed, seconds
        Equal seeds give equal results. Wall time.
    """

    selection: Selection
    error: float
    bound: float | None
    bound_kind: BoundKind | None
    gap: float | None
    curve: Elimination | None
    termination: Termination
    swaps: int
    seed: int
    seconds: float


@dataclass(frozen=True)
class Refit:
    """Greedy starts and exchanges.

    Parameters
    ----------
    starts
        Where searches begin; None takes activation times weight and, below 2,048 inputs, exact backward elimination.
    tolerance
        Swaps that lower the loss by a smaller part than this are left.
    depth
        Where no swap helps, chains of so many swaps are tried that help together; 0 for none.
    curve
        Whether to give the loss at every width, too.
    bound
        Whether to bound the loss from below.
    time_limit
        Wall seconds for starts and exchanges, None for no limit.
    seed
        For the vectors that watch rounding.
    """

    starts: tuple[Start, ...] | None = None
    tolerance: float = 1e-7
    depth: int = 8
    curve: bool = False
    bound: bool = False
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.starts is not None and not self.starts:
            raise ValueError("Expected at least one start. Got none. Use (from_backward,) or leave it out.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"Expected tolerance between 0 and 1. Got {self.tolerance}. Use for instance 1e-7.")
        if self.time_limit is not None and not self.time_limit >= 0:
            raise ValueError(f"Expected time_limit >= 0 or None. Got {self.time_limit}. Give wall seconds.")

    def solve(self, problem: RefitProblem, start: BoolArray | None = None) -> RefitResult:
        """Select ``problem.keep`` structures; ``start`` is one more selection to begin from, of any size.

        A start of another size is filled up, or cut, by activation times weight. After the time limit, or Ctrl-C, the
        best selection so far comes back.
        """
        begin = monotonic()
        maps = [reduced(one) for one in problem.maps]
        search = _Search(problem, maps, self, begin)
        try:
            for selection in self._selections(maps, problem, start, search.over):
                search.descend(selection)
                if search.over() or problem.keep in (0, problem.size):
                    break
        except KeyboardInterrupt:
            search.interrupted()
        selection = search.best
        error = search.loss if search.sound else problem.lost(selection)
        found, curve = None, None
        try:
            found = refit_bound(problem) if self.bound and not search.stopped else None
            curve = width_curve(problem) if self.curve and not search.stopped else None
        except KeyboardInterrupt:
            search.stopped = True
        bound = None if found is None else min(found.value, error)
        kind = None if found is None else found.kind
        gap = None if bound is None else relative_gap(-error, -bound, 0.0)
        ending = _termination(search, problem, gap)
        return RefitResult(
            selection, error, bound, kind, gap, curve, ending, search.swaps, self.seed, monotonic() - begin
        )

    def _selections(
        self, maps: Sequence[ReducedMap], problem: RefitProblem, given: BoolArray | None, stop: Callable[[], bool]
    ) -> Iterator[BoolArray]:
        if given is not None:
            yield _of_size(maps, given, problem.size, problem.keep)
        starts = self.starts
        if starts is None:
            large = max(len(one.moment) for one in maps) > LARGE
            starts = (from_activity,) if large else (from_activity, from_backward)
        for start in starts:
            selection = start(maps, problem.keep, stop)
            if selection is not None:
                yield selection


def _of_size(maps: Sequence[ReducedMap], given: BoolArray, size: int, keep: int) -> BoolArray:
    kept = np.asarray(given)
    if kept.shape != (size,) or kept.dtype != bool:
        raise ValueError(
            f"Expected a boolean start of shape ({size},). Got {kept.dtype} of shape {kept.shape}. True means kept."
        )
    first = np.argsort(-_activity(maps) - np.where(kept, np.inf, 0.0), kind="stable")
    return kept if kept.sum() == keep else _kept(first[:keep], size)


class _Search:
    """Local search with its incumbent, its clock, and an eye on rounding."""

    def __init__(self, problem: RefitProblem, maps: Sequence[ReducedMap], settings: Refit, begin: float) -> None:
        self.maps, self.settings = maps, settings
        self.until = np.inf if settings.time_limit is None else begin + settings.time_limit
        self.rng = np.random.default_rng(settings.seed)
        self.best = _kept(np.argsort(-_activity(maps), kind="stable")[: problem.keep], problem.size)
        self.loss = np.inf
        self.swaps = 0
        self.timed_out = self.stopped = False
        self.sound = False  # whether the loss is as good as that of a fresh least squares
        self.running: Tableau | None = None

    def over(self) -> bool:
        """Whether time is up."""
        if monotonic() >= self.until:
            self.timed_out = True
        return self.timed_out

    def interrupted(self) -> None:
        """Keep what the running search has reached."""
        self.stopped = True
        if self.running is not None:
            self._offer(self.running)

    def descend(self, selection: BoolArray) -> None:
        """Exchange until no swap lowers the loss by more than the tolerance."""
        tableau = self._fresh(selection)
        last, since, checked = tableau.loss, 0, True
        while not self.over():
            least = self.settings.tolerance * max(tableau.loss, 0.0)
            leave, enter = best_swaps(tableau, least, self.over, self.settings.depth)
            if len(leave):
                tableau.exchange(leave, enter)
                self.swaps += len(leave)
                since, checked = since + 1, False
            if since >= LOOK or not (checked or len(leave)):
                since, checked = 0, True
                if tableau.drift(self.maps, self.rng) > DRIFT:
                    # Rounding has worn it out: what it says is asked for again, as long as that leads further.
                    tableau = self._fresh(tableau.selection)
                    if tableau.loss >= last:
                        break
                    last = tableau.loss
                    continue
            if not len(leave):
                break
        if self.over():
            self._offer(tableau)
        elif tableau.drift(self.maps, self.rng) <= SOUND:
            self._offer(tableau, True)
        else:
            self._fresh(tableau.selection)
        self.running = None

    def _fresh(self, selection: BoolArray) -> Tableau:
        self.running = tableau = Tableau.fresh(self.maps, selection)
        self._offer(tableau, True)
        return tableau

    def _offer(self, tableau: Tableau, sound: bool = False) -> None:
        if tableau.loss < self.loss:
            self.best, self.loss, self.sound = tableau.selection, max(tableau.loss, 0.0), sound


def _termination(search: _Search, problem: RefitProblem, gap: float | None) -> Termination:
    if search.stopped:
        text = "Stopped by Ctrl-C: the best selection so far. Solve again with start=result.selection to go on."
        return Termination(TerminationReason.HEURISTIC, Limit.STOPPED, text)
    if problem.keep in (0, problem.size):
        return Termination(TerminationReason.OPTIMAL, None, "There is one selection of this size.")
    limit = Limit.TIME if search.timed_out else None
    why = "Stopped by the time limit" if limit else f"No swap gains {search.settings.tolerance:g} of the loss"
    if gap is None:
        text = f"{why}; no bound was asked for, use bound=True for one."
        return Termination(TerminationReason.HEURISTIC, limit, text)
    if gap <= OPTIMAL_GAP and limit is None:
        return Termination(TerminationReason.OPTIMAL, None, "The bound proves that no selection loses less.")
    weak = " The bound is weak: more damping or more kept structures sharpen it." if gap > 0.6 else ""
    text = f"{why}; at most {100 * gap:.3g} % of the loss might be avoidable.{weak}"
    return Termination(TerminationReason.FEASIBLE, limit, text)
