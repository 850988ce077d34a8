"""The search of a knapsack's core, and the check that repeats it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.bounds.core import Found, reduce, search
from solvers.bounds.multiple_choice import MultipleChoice
from solvers.problem import FloatArray, SelectionProblem
from solvers.result import ROUNDING, Certificate, relative_gap


def search_core(
    classes: MultipleChoice,
    prices: FloatArray,
    bound: float,
    tried: FloatArray,
    floor: float,
    beam: int,
    most: int,
    stop: Callable[[], bool] = lambda: False,
) -> Found:
    """Drop every option whose reduced cost shows that it beats no ``floor``, and search what is left.

    Parameters
    ----------
    classes
        The whole problem.
    prices, bound
        Prices, shape ``(m,)``, and the Lagrangian bound at them.
    tried
        Prices at which partial choices are bounded, shape ``(q, m)``.
    floor
        Value to beat.
    beam, most, stop
        Limits of the search, see `solvers.bounds.core.search`.
    """
    core = reduce(classes, classes.reduced_costs(prices) <= bound - floor + classes.rounding(prices))
    if core is None:
        return Found(None, -np.inf, True, 0)
    return search(core, tried, floor, beam, most, stop)


@dataclass(frozen=True, eq=False)
class CoreCheck:
    """Checks a knapsack's certificate; it is called as the certificate's check.

    Parameters
    ----------
    tried
        Prices at which partial choices are bounded, shape ``(q, m)``.
    beam, most
        Limits of the search; a beam of 0 for a bound that rests on the prices alone.
    """

    tried: FloatArray
    beam: int
    most: int

    def __call__(self, problem: SelectionProblem, certificate: Certificate) -> None:
        """Bound by prices, drop by reduced costs, search again. Raises ValueError when something is false."""
        _check_choice(problem, certificate)
        classes = MultipleChoice.of(problem)
        if len(certificate.leaves) != 1:
            raise ValueError(f"Expected one leaf, the root. Got {len(certificate.leaves)}. Use its own certificate.")
        prices = np.asarray(certificate.leaves[0].prices, dtype=np.float64)
        for each in (prices, *self.tried):
            if each.shape != classes.room.shape or np.any(each < 0) or not np.all(np.isfinite(each)):
                raise ValueError(
                    f"Expected {len(classes.room)} finite prices of at least 0. Got {each}. No bound follows from them."
                )
        proven, _ = classes.evaluate(prices)
        if proven > certificate.bound and self.beam:
            found = search_core(classes, prices, proven, self.tried, certificate.objective, self.beam, self.most)
            proven = min(proven, max(certificate.objective, found.bound) + classes.value_rounding)
        if not proven <= certificate.bound + classes.value_rounding:
            raise ValueError(
                f"Expected a proof of the bound {certificate.bound!r}. Got one of {proven!r}. The bound is not proven."
            )


def _check_choice(problem: SelectionProblem, certificate: Certificate) -> None:
    """Compare what the certificate says of its choice with the problem."""
    found = problem.evaluate(certificate.choice)
    if not found.feasible:
        raise ValueError(f"Expected a choice within every limit. Got used {dict(found.used)}. It is not feasible.")
    allowance = ROUNDING * max(abs(problem.total_value), abs(found.value))
    if not abs(found.value - certificate.objective) <= allowance:
        raise ValueError(f"Expected the objective {found.value!r}. Got {certificate.objective!r}. It is not true.")
    allowed = {capacity.resource: capacity.limit for capacity in problem.capacities}
    if dict(certificate.used) != dict(found.used) or dict(certificate.allowed) != allowed:
        raise ValueError(
            f"Expected used {dict(found.used)} of {allowed}. Got {dict(certificate.used)} of "
            f"{dict(certificate.allowed)}. The amounts are not the problem's."
        )
    if not certificate.bound >= certificate.objective - allowance:
        raise ValueError(
            f"Expected a bound of at least {certificate.objective!r}. Got {certificate.bound!r}. It is not a bound."
        )
    gap = relative_gap(certificate.objective, certificate.bound, problem.total_value)
    if not abs(gap - certificate.gap) <= 1e-9 * max(1.0, gap):
        raise ValueError(f"Expected the gap {gap!r}. Got {certificate.gap!r}. It is not objective's and bound's.")
