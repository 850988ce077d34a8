"""The lowest point of the largest line, against a general solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from solvers.envelope import lowest_point


@pytest.mark.parametrize("seed", range(300))
def test_the_lowest_point_is_the_linear_programmes(seed: int) -> None:
    """Height, prices and weights satisfy both sides of the duality, for lines of any scale, repeated ones too."""
    rng = np.random.default_rng(seed)
    size, count = int(rng.integers(1, 5)), int(rng.integers(1, 80))
    values = rng.normal(size=count) * 10 ** rng.uniform(-3, 6)
    slacks = rng.normal(size=(count, size)) * 10 ** rng.uniform(-2, 0)
    if seed % 3 == 0:  # all but one above the budgets
        slacks = -np.abs(slacks)
        slacks[0] = np.abs(slacks[0])
    if seed % 7 == 0:
        slacks[1:] = slacks[0]
    spread = float(np.ptp(values)) + 1e-9 * float(np.abs(values).max())
    found = lowest_point(values, slacks, 1e5 * spread)
    assert np.all(found.prices >= 0)
    assert found.height == pytest.approx((values + slacks @ found.prices).max(), rel=1e-12)
    answer = linprog(
        np.r_[1.0, np.zeros(size)] / spread,
        A_ub=np.column_stack([-np.ones(count), slacks]),
        b_ub=-values,
        bounds=[(None, None), *[(0.0, 1e4 * spread)] * size],
        method="highs",
    )
    prices = np.maximum(answer.x[1:], 0.0)
    if prices.max() > 0.999e4 * spread:
        return  # falls without end: any far point will do
    expected = float((values + slacks @ prices).max())
    assert found.height <= expected + 1e-7 * spread
    assert found.weights.sum() == pytest.approx(1.0)
    assert np.all(found.weights @ slacks >= -1e-9)
    assert found.weights @ values == pytest.approx(found.height, abs=1e-7 * spread)


def test_lines_that_all_fall_still_have_an_answer() -> None:
    """A finite point far away, below every line's height at 0."""
    found = lowest_point(np.array([1.0, 2.0]), np.array([[-1.0, -2.0], [-0.5, -1.0]]), 1e5)
    assert np.all(np.isfinite(found.prices))
    assert found.height < 1.0
