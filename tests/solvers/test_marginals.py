"""Max-marginals: the bound of every level at once."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.bounds import Lagrangian, plan
from solvers.bounds import marginals as module
from solvers.bounds.marginals import marginals
from solvers.reduction import without_links
from tests.references import lagrangian
from tests.solvers.instances import coupled_problem, resnet50
from tests.solvers.test_bounds import random_box


@pytest.mark.parametrize("seed", range(120))
@pytest.mark.parametrize("cells", [10**6, 20, 3])
def test_marginals_are_the_bounds_of_single_levels(seed: int, cells: int) -> None:
    """Exact without split buckets, never too small with them."""
    reduced = without_links(coupled_problem(seed))
    if reduced is None:
        return
    problem, rng = reduced.problem, np.random.default_rng(seed)
    low, high = random_box(problem, rng)
    prices = rng.exponential(size=len(problem.capacities)) * rng.choice([0.0, 0.01, 0.1, 1.0])
    bounds = Lagrangian(problem, cells)
    exact = bounds.evaluate(prices, low, high).exact
    single = {g for limit in problem.local_limits for g, _ in limit.terms if len(limit.terms) == 1}
    for g, found in enumerate(marginals(bounds, prices, low, high)):
        for level in range(low[g], high[g] + 1):
            first, last = low.copy(), high.copy()
            first[g] = last[g] = level
            expected = lagrangian(problem, prices, first, last)
            assert found[level - low[g]] >= expected
            if exact and not single and expected > -np.inf:
                assert found[level - low[g]] <= bounds.evaluate(prices, first, last).bound + 8 * bounds.rounding(prices)


@pytest.mark.parametrize("seed", range(60))
def test_marginals_of_conjugates_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where buckets are maximised by hulls, and where the lines of a bucket are."""
    monkeypatch.setattr(plan, "_ROW_WORK", 0)
    monkeypatch.setattr(plan, "_POINT_WORK", 0)
    monkeypatch.setattr(module, "WHOLE_TABLE", 0)
    test_marginals_are_the_bounds_of_single_levels(seed, 10**6)


def test_a_network_has_marginals_that_peak_at_its_bound() -> None:
    """The largest marginal of every group of a ResNet-50 is the bound itself."""
    problem = resnet50()
    top = np.array([len(group) - 1 for group in problem.groups])
    bounds = Lagrangian(problem)
    prices = np.array([1e-7])
    bound = bounds.evaluate(prices, problem.minimum_choice, top).bound
    for found in marginals(bounds, prices, problem.minimum_choice, top):
        assert found.max() == pytest.approx(bound, rel=1e-12)
