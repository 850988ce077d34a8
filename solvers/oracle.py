"""Selection by asking: what is each structure worth, given what is kept?

Training methods know no loss curve in advance. They are asked instead: an `Oracle` fits itself to a selection and says
what every structure is worth beside it. `solvers.oracle_loops` holds the loops that ask: greedy, sequential with a
schedule, and exchanges with an accept test.

All training state is the oracle's. A loop's own state is a frozen `State`: with the oracle's state restored, ``solve``
from a saved one goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from solvers.problem import BoolArray, FloatArray, IntArray
from solvers.result import Limit, Selection, Termination, TerminationReason

#: Chooses ``count`` of the ``allowed`` structures by their values: (values, allowed, count) -> mask.
Chooser = Callable[[FloatArray, BoolArray, int], BoolArray]


class Oracle(Protocol):
    """Answers what structures are worth; arrays in, arrays out."""

    @property
    def size(self) -> int:
        """Number of structures ``n``."""
        ...

    def fit(self, kept: Selection) -> float:
        """Adjust to a selection, shape ``(n,)``, and return the loss there, lower is better.

        For an accept test the loss should be one that the fit did not minimise, on held-out examples. A selection may
        come again: when an exchange is rejected, the one before it is fitted once more.
        """
        ...

    def values(self, kept: Selection) -> FloatArray:
        """What each structure is worth beside ``kept``, to which the oracle is fitted; shape ``(n,)``, higher = keep.

        For a structure outside: what adding it gains. For one inside: what dropping it loses. The two are never
        compared with each other, so that they may be of different kinds, for instance norms of gradients and weights.
        """
        ...


@dataclass(frozen=True, eq=False)
class State:
    """Where a loop stands.

    Attributes
    ----------
    kept
        The selection to which the oracle is fitted, shape ``(n,)``, read-only.
    loss
        Its loss.
    first_loss
        Loss of the first selection, the scale for relative changes.
    step
        Completed steps.
    barred
        Steps until each structure may be exchanged again, shape ``(n,)``.
    losses
        Loss after each step.
    stalled
        Steps in a row without progress.
    """

    kept: Selection
    loss: float
    first_loss: float
    step: int
    barred: IntArray
    losses: tuple[float, ...] = ()
    stalled: int = 0


@dataclass(frozen=True, eq=False)
class OracleResult:
    """What a loop hands back.

    Attributes
    ----------
    selection
        Kept structures, shape ``(n,)``.
    loss
        Loss of the oracle fitted to it.
    state
        To go on from.
    termination
        Always HEURISTIC: no bound is known, so that there is none here.
    seed
        The loops have no randomness; that of training is the oracle's.
    seconds
        Wall time of this call.
    """

    selection: Selection
    loss: float
    state: State
    termination: Termination
    seed: int
    seconds: float


def top(values: FloatArray, allowed: BoolArray, count: int) -> BoolArray:
    """The ``count`` most valuable of the allowed structures; of equal ones the first."""
    order = np.flatnonzero(allowed)
    order = order[np.argsort(-values[order], kind="stable")[:count]]
    chosen = np.zeros(values.shape, dtype=bool)
    chosen[order] = True
    return chosen


@dataclass(frozen=True, eq=False)
class EvenlyPerPart:
    """Chooses the same fraction of every part, for instance of every layer, so that none is emptied by the others.

    Parameters
    ----------
    parts
        Part of each structure, shape ``(n,)``, integers of at least 0.
    """

    parts: IntArray

    def __call__(self, values: FloatArray, allowed: BoolArray, count: int) -> BoolArray:
        """Give each part its share of ``count`` by largest remainders, and take the best of each."""
        sizes = np.bincount(self.parts)
        free = np.bincount(self.parts[allowed], minlength=len(sizes))
        exact = sizes * (count / max(1, int(sizes.sum())))
        shares = np.minimum(np.floor(exact + 1e-9).astype(np.int64), free)
        order = np.argsort(shares - exact, kind="stable")
        while shares.sum() < min(count, int(free.sum())):
            for part in order[shares[order] < free[order]][: count - int(shares.sum())]:
                shares[part] += 1
        chosen = np.zeros(values.shape, dtype=bool)
        for part, share in enumerate(shares.tolist()):
            chosen |= top(values, allowed & (self.parts == part), share)
        return chosen


def begin(oracle: Oracle, kept: BoolArray) -> State:
    """Fit an oracle to the first selection."""
    kept = frozen(kept)
    loss = fitted(oracle, kept)
    return State(kept, loss, loss, 0, np.zeros(oracle.size, dtype=np.int64))


def advance(state: State, kept: Selection, loss: float, moved: bool) -> State:
    """The state after a step that led to ``kept``; ``moved`` tells whether that was progress."""
    return replace(
        state,
        kept=kept,
        loss=loss,
        step=state.step + 1,
        losses=(*state.losses, loss),
        stalled=0 if moved else state.stalled + 1,
    )


def frozen(kept: BoolArray) -> Selection:
    """A read-only copy."""
    kept = np.array(kept, dtype=bool)
    kept.setflags(write=False)
    return kept


def fitted(oracle: Oracle, kept: Selection) -> float:
    """The oracle's loss at a selection. Raises ValueError for NaN."""
    loss = float(oracle.fit(kept))
    if np.isnan(loss):
        raise ValueError(f"Expected a loss from the oracle. Got NaN with {int(kept.sum())} kept. Check its training.")
    return loss


def valued(oracle: Oracle, kept: Selection) -> FloatArray:
    """The oracle's values beside a selection. Raises ValueError for another shape and for NaN."""
    values = np.asarray(oracle.values(kept), dtype=np.float64)
    if values.shape != kept.shape or np.any(np.isnan(values)):
        raise ValueError(
            f"Expected values of shape {kept.shape} without NaN from the oracle. Got {values.shape} with "
            f"{int(np.isnan(values).sum())} NaN. Check its scores."
        )
    return values


class Loop(Protocol):
    """What `run` needs of a loop."""

    def start(self, oracle: Oracle) -> State:
        """The first state."""
        ...

    def step(self, oracle: Oracle, state: State) -> State | None:
        """The next state; None when the loop is done."""
        ...


def run(
    loop: Loop,
    oracle: Oracle,
    state: State | None = None,
    progress: Callable[[State], bool | None] | None = None,
    time_limit: float | None = None,
) -> OracleResult:
    """Step until the loop is done, the time is up, ``progress`` returns True, or Ctrl-C.

    Parameters
    ----------
    loop
        One of `solvers.oracle_loops`, or one's own.
    oracle
        Answers; when ``state`` is given, restored to what it was then.
    state
        Where to go on; a new start when not given.
    progress
        Called with every state: the place to save it.
    time_limit
        Wall seconds, looked at between steps.
    """
    started = time.perf_counter()
    limit: Limit | None = None
    state = loop.start(oracle) if state is None else state
    try:
        while True:
            if time_limit is not None and time.perf_counter() - started > time_limit:
                limit = Limit.TIME
                break
            following = loop.step(oracle, state)
            if following is None:
                break
            state = following
            if progress is not None and progress(state) is True:
                limit = Limit.STOPPED
                break
    except KeyboardInterrupt:
        limit = Limit.STOPPED
    text = f"{int(state.kept.sum())} of {state.kept.size} kept after {state.step} steps; no bound is known."
    if limit is not None:
        text += " Stopped early: solve again from the state to go on."
    termination = Termination(TerminationReason.HEURISTIC, limit, text)
    return OracleResult(state.kept, state.loss, state, termination, 0, time.perf_counter() - started)
