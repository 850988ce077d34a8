"""What the prices of a certificate say: how much value a little more of a budget would keep."""

from __future__ import annotations

from dataclasses import dataclass

from solvers.problem import SelectionProblem
from solvers.result import Certificate

__all__ = ["Price", "prices"]


@dataclass(frozen=True)
class Price:
    """The price of one budget.

    Parameters
    ----------
    resource, limit, used
        The budget, and what the choice uses of it.
    per_unit
        Value per unit at the root of the search: the slope of the bound in the limit.
    per_percent
        Value that 1 % more of the limit would keep, about.
    share_of_lost
        The same as a fraction of the value that is lost; 0 when nothing is.
    """

    resource: str
    limit: int
    used: int
    per_unit: float
    per_percent: float
    share_of_lost: float

    @property
    def text(self) -> str:
        """A sentence."""
        if self.per_unit == 0:
            free = 100 * (self.limit - self.used) / self.limit if self.limit > 0 else 0.0
            return f"{self.resource} does not bind: {free:.3g} % of it is free, more would keep nothing more."
        share = f", {100 * self.share_of_lost:.3g} % of what is lost" if self.share_of_lost else ""
        return f"1 % more {self.resource} would keep about {self.per_percent:.3g} more value{share}."


def prices(problem: SelectionProblem, certificate: Certificate) -> tuple[Price, ...]:
    """The prices of all budgets, dearest first."""
    lost = max(0.0, problem.total_value - certificate.objective)
    found = []
    for capacity in problem.capacities:
        per_unit = certificate.prices[capacity.resource]
        percent = per_unit * 0.01 * max(0, capacity.limit)
        share = min(1.0, percent / lost) if lost > 0 else 0.0
        used = certificate.used[capacity.resource]
        found.append(Price(capacity.resource, capacity.limit, used, per_unit, percent, share))
    return tuple(sorted(found, key=lambda price: (-price.per_percent, price.resource)))
