"""Prices in words."""

from __future__ import annotations

from solvers.allocation import Allocation
from solvers.prices import prices
from tests.solvers.instances import resnet56


def test_prices_predict_what_one_percent_more_keeps() -> None:
    """Within a tenth of what a solve with the larger limit keeps more."""
    problem = resnet56()
    certificate = Allocation(gap_tolerance=1e-6).solve(problem).certificate
    assert certificate is not None
    (price,) = prices(problem, certificate)
    larger = Allocation(gap_tolerance=1e-6).solve(problem.with_limits({"macs": price.limit * 101 // 100})).certificate
    assert larger is not None
    gained = larger.objective - certificate.objective
    assert abs(price.per_percent - gained) <= 0.1 * gained
    assert f"1 % more macs would keep about {price.per_percent:.3g} more value" in price.text


def test_a_budget_that_does_not_bind_says_how_much_is_free() -> None:
    """Its price is 0; the dearest budget comes first."""
    problem = resnet56(macs=0.3, params=1.0)
    certificate = Allocation().solve(problem).certificate
    assert certificate is not None
    first, second = prices(problem, certificate)
    assert first.resource == "macs"
    assert second.resource == "params"
    assert second.per_unit == 0.0
    assert second.text.startswith("params does not bind")
