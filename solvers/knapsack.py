"""Multiple-choice knapsack: groups that do not interact, one budget or several, solved close to or at the optimum.

The budgets are priced (`solvers.bounds.multiple_choice`); the priced choice is repaired, filled and improved by
exchanges (`solvers.knapsack_moves`); what could still improve on it is a small core, which is searched by dynamic
programming (`solvers.bounds.core`) in lists of growing length. With one budget the search usually ends with a proof of
optimality after a few thousand partial choices, for tens as for thousands of groups.

The certificate holds the prices at the root. Its check bounds every choice by one evaluation at these prices, removes
what cannot beat the objective by its reduced cost, and repeats the search over what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from solvers.bounds.multiple_choice import MultipleChoice
from solvers.knapsack_check import CoreCheck
from solvers.knapsack_search import KnapsackSearch
from solvers.problem import SelectionProblem
from solvers.result import Certificate, Leaf, Result, Termination, TerminationReason, relative_gap


@dataclass(frozen=True)
class Knapsack:
    """Chooses the levels of a separable `SelectionProblem`, with a certificate.

    Parameters
    ----------
    gap_tolerance
        Stop when the gap, a fraction of the lost value, is at most this; 0 asks for a proof of optimality.
    time_limit
        Wall seconds, None for no limit. With a time limit, what is found may depend on the machine's speed.
    max_states
        Most partial choices that are formed. This limit is deterministic.
    seed
        Recorded in the result. The search has no randomness: equal problems give equal results for every seed.

    Raises
    ------
    ValueError
        A tolerance or limit below 0.
    """

    gap_tolerance: float = 1e-6
    time_limit: float | None = 20.0
    max_states: int = 100_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gap_tolerance", "time_limit", "max_states"):
            number = getattr(self, name)
            if number is not None and not number >= 0:
                raise ValueError(f"Expected {name} of at least 0. Got {number}. Use 0 for the strictest setting.")

    def solve(self, problem: SelectionProblem) -> Result:
        """Solve a problem whose terms each concern one group.

        Returns
        -------
        Result
            With a certificate whenever a choice within budget was found. An infeasible problem is an outcome. Ctrl-C
            ends the search with what is known.

        Raises
        ------
        ValueError
            A term concerns several groups, or amounts exceed 2^62: `solvers.allocation.Allocation` handles both.
        """
        started = time.perf_counter()
        classes = MultipleChoice.of(problem)
        short = _short(problem, classes)
        if short:
            return self._result(problem, None, Termination(TerminationReason.INFEASIBLE, None, short), started)
        search = KnapsackSearch(
            classes, problem.total_value, self.gap_tolerance, self.time_limit, self.max_states, started
        )
        search.run()
        certificate = _certificate(problem, search)
        limits = ", ".join(f"{c.resource} at most {c.limit}" for c in problem.capacities)
        return self._result(problem, certificate, search.termination(limits), started)

    def _result(
        self, problem: SelectionProblem, certificate: Certificate | None, termination: Termination, started: float
    ) -> Result:
        choice = None if certificate is None else certificate.choice
        selection = None if choice is None else problem.selection(choice)
        return Result(choice, selection, certificate, termination, self.seed, time.perf_counter() - started)


def _short(problem: SelectionProblem, classes: MultipleChoice) -> str:
    """Which budgets no choice keeps, each on its own; empty when none."""
    texts = []
    least = classes.least.sum(axis=1)
    for k, capacity in enumerate(problem.capacities):
        over = int(least[k] - classes.room[k])
        if over > 0:
            smallest = capacity.limit + over
            texts.append(
                f"{capacity.resource}: limit {capacity.limit}, smallest reachable {smallest} (short by {over})"
            )
    advice = "Raise the limit to at least the smallest reachable amount, or allow smaller levels."
    return f"{'; '.join(texts)}. {advice}" if texts else ""


def _certificate(problem: SelectionProblem, search: KnapsackSearch) -> Certificate | None:
    if search.best is None:
        return None
    first = search.classes.starts[:-1]
    choice = search.best - first
    evaluation = problem.evaluate(choice)
    bound = max(search.bound, evaluation.value)
    resources = [capacity.resource for capacity in problem.capacities]
    return Certificate(
        objective=evaluation.value,
        bound=bound,
        gap=relative_gap(evaluation.value, bound, problem.total_value),
        used=evaluation.used,
        allowed={capacity.resource: capacity.limit for capacity in problem.capacities},
        prices=dict(zip(resources, search.prices.tolist(), strict=True)),
        leaves=tuple(Leaf(box.low - first, box.high - first, box.prices) for box in search.proof.boxes),
        choice=choice,
        check=CoreCheck(search.proof),
        kind="Lagrangian relaxation of the budgets, dynamic programming over the core",
    )
