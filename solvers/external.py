"""Answers of general solvers, whose bound has to be believed: what is checked, and how that is said."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from solvers.moves import filled
from solvers.problem import IntArray, SelectionProblem
from solvers.result import (
    OPTIMAL_GAP,
    Certificate,
    Limit,
    Result,
    Termination,
    TerminationReason,
    relative_gap,
)
from solvers.verify import check_choice

__all__ = ["Answer", "WordCertificate", "interrupts_kept", "interrupts_noted", "quiet", "to_result"]


@dataclass(frozen=True, eq=False)
class WordCertificate(Certificate):
    """A certificate without leaves: objective, amounts and choice can be checked, the bound is a solver's word.

    Parameters
    ----------
    source
        Who says that no choice within budget exceeds the bound.
    """

    source: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a general solver said.

    Parameters
    ----------
    choice
        Level index per group, shape ``(G,)``; None when it found none.
    bound
        Its bound in units of value, rounding of the values included; None when it gave none.
    infeasible
        Whether it says that there is no choice.
    limit
        The limit that stopped it.
    """

    choice: IntArray | None
    bound: float | None
    infeasible: bool
    limit: Limit | None


def without_room(problem: SelectionProblem, answer: Answer) -> Answer:
    """The answer with the room used that a solver left by stopping early, or at a tie."""
    return answer if answer.choice is None else replace(answer, choice=filled(problem, answer.choice))


def to_result(problem: SelectionProblem, answer: Answer, source: str, seed: int, seconds: float) -> Result:
    """A result from an answer whose choice, if any, is within budget."""
    if answer.choice is None:
        reason = TerminationReason.INFEASIBLE if answer.infeasible else TerminationReason.UNKNOWN
        text = (
            f"{source} says that no choice is within budget. Raise a limit or allow smaller levels."
            if answer.infeasible
            else f"{source} found no choice within budget. Give it more time, or a start."
        )
        return Result(None, None, None, Termination(reason, answer.limit, text), seed, seconds)
    found = problem.evaluate(answer.choice)
    selection = problem.selection(answer.choice)
    if answer.bound is None:
        text = f"{source} gave no bound. Give it more time."
        termination = Termination(TerminationReason.HEURISTIC, answer.limit, text)
        return Result(answer.choice, selection, None, termination, seed, seconds)
    bound = max(min(answer.bound, problem.total_value), found.value)
    gap = relative_gap(found.value, bound, problem.total_value)
    certificate = WordCertificate(
        objective=found.value,
        bound=bound,
        gap=gap,
        used=found.used,
        allowed={capacity.resource: capacity.limit for capacity in problem.capacities},
        prices={},
        leaves=(),
        choice=answer.choice,
        check=check_choice,
        kind=f"word of {source}",
        source=source,
    )
    word = f"The bound is the word of {source}; verify() checks the choice alone."
    if gap <= OPTIMAL_GAP:
        termination = Termination(TerminationReason.OPTIMAL, None, f"No choice within budget keeps more value. {word}")
    else:
        text = f"At most {100 * gap:.3g} % of the lost value is avoidable. {word}"
        termination = Termination(TerminationReason.FEASIBLE, answer.limit, text)
    return Result(answer.choice, selection, certificate, termination, seed, seconds)


@contextmanager
def quiet() -> Iterator[None]:
    """Send what compiled code writes to standard output, file descriptor 1, to nowhere meanwhile.

    The descriptor is the whole process's: other threads are silent too as long as this lasts.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a process without standard output has nothing to keep quiet
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Put Python's handler of Ctrl-C back at the end: compiled code that has one of its own leaves none behind."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        # Only the main thread may set handlers, and only there does compiled code get Ctrl-C.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list instead of raising, so that what uninterruptible code returns is not lost."""
    noted: list[int] = []
    with interrupts_kept():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
        yield noted
