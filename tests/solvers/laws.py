"""What every certified answer satisfies."""

from __future__ import annotations

import numpy as np

from solvers.problem import SelectionProblem
from solvers.result import OPTIMAL_GAP, Result, TerminationReason, relative_gap
from solvers.verify import is_feasible, is_maximal

__all__ = ["check_laws"]


def check_laws(problem: SelectionProblem, result: Result) -> None:
    """What every answer satisfies: within budget, maximal, recomputed, on the right side of a verified bound."""
    certificate = result.certificate
    assert certificate is not None
    assert result.choice is not None
    assert result.selection is not None
    assert is_feasible(problem, result.choice)
    assert is_maximal(problem, result.choice)
    assert certificate.objective == problem.evaluate(result.choice).value
    assert certificate.bound >= certificate.objective
    assert certificate.gap == relative_gap(certificate.objective, certificate.bound, problem.total_value)
    assert (result.termination.reason is TerminationReason.OPTIMAL) == (certificate.gap <= OPTIMAL_GAP)
    assert np.array_equal(result.selection, problem.selection(result.choice))
    certificate.verify(problem)
