"""N:M masks: best along one axis, best along both, and the proof."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.bounds.tiles import tile_bounds
from solvers.nm import NM, Transposable, TransposableFlow, entropic_transport, is_nm, is_transposable, rounded
from solvers.result import Limit, TerminationReason
from solvers.structured import MaskResult

SEEDS = st.integers(0, 2**32 - 1)


def table(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one of several kinds: all signs, positive, heavy-tailed, with many ties."""
    rng = np.random.default_rng(seed)
    kinds = (
        rng.normal(size=shape),
        rng.exponential(size=shape),
        rng.lognormal(sigma=4.0, size=shape),
        rng.integers(-1, 3, size=shape).astype(np.float64),
    )
    return kinds[int(rng.integers(4))]


def best_tile(values: np.ndarray, n: int) -> float:
    """Best value of a table with at most ``n`` entries per row and column, row by row over all column counts."""
    rows, columns = values.shape
    patterns = [p for size in range(n + 1) for p in combinations(range(columns), size)]
    reach = {(0,) * columns: 0.0}
    for row in range(rows):
        following: dict[tuple[int, ...], float] = {}
        for (used, value), pattern in product(reach.items(), patterns):
            counts = tuple(u + (c in pattern) for c, u in enumerate(used))
            if max(counts) <= n:
                total = value + sum(values[row, c] for c in pattern)
                following[counts] = max(following.get(counts, -np.inf), total)
        reach = following
    return max(reach.values())


def check(result: MaskResult, values: np.ndarray) -> None:
    """The objective is the mask's value, the bound on its other side."""
    assert result.selection is not None
    assert result.objective is not None
    assert result.bound is not None
    assert result.selection.shape == values.shape
    assert result.objective == pytest.approx(float(values[result.selection].sum()), rel=1e-12, abs=1e-12)
    assert result.bound >= result.objective


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(0, 6), st.integers(0, 2))
def test_the_best_along_an_axis_is_the_enumerated_best(seed: int, m: int, n: int, axis: int) -> None:
    """Each group, also the short last one, keeps its best ``n`` values that are not negative."""
    n = min(n, m)
    values = table(seed, (2, 7, 5))
    result = NM(n, m, axis).solve(values)
    check(result, values)
    assert is_nm(result.selection, n, m, axis)  # type: ignore[arg-type]
    assert result.termination.reason is TerminationReason.OPTIMAL
    lines = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    best = sum(
        sum(max(v, 0.0) for v in sorted(line[i : i + m], reverse=True)[:n])
        for line in lines
        for i in range(0, len(line), m)
    )
    assert result.objective == pytest.approx(best, rel=1e-12, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(0, 4))
def test_transposable_masks_are_the_enumerated_best(seed: int, m: int, n: int) -> None:
    """Flow and exchanges both find the optimum of every tile, ragged ones included, and both prove it."""
    n = min(n, m)
    values = table(seed, (m + 1, 2 * m - 1))
    best = sum(
        best_tile(values[i : i + m, j : j + m], n)
        for i in range(0, values.shape[0], m)
        for j in range(0, values.shape[1], m)
    )
    for solver in (TransposableFlow(n, m), Transposable(n, m), Transposable(n, m, sweeps=5)):
        result = solver.solve(values)
        check(result, values)
        assert is_transposable(result.selection, n, m)  # type: ignore[arg-type]
        assert result.objective == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert result.bound == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert result.termination.reason is TerminationReason.OPTIMAL


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 8), (8, 16), (5, 11)]))
def test_exchanges_end_where_the_flow_does(seed: int, pattern: tuple[int, int]) -> None:
    """On larger tiles, where nothing can be enumerated, two independent exact methods agree."""
    values = table(seed, (33, 40))
    first, second = TransposableFlow(*pattern).solve(values), Transposable(*pattern).solve(values)
    assert first.objective == pytest.approx(second.objective, rel=1e-9)
    assert second.termination.reason is TerminationReason.OPTIMAL


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(0, 4))
def test_any_prices_bound_the_tile(seed: int, m: int, n: int) -> None:
    """Also negative ones."""
    n = min(n, m)
    values = table(seed, (m, m))
    prices = np.random.default_rng(seed).normal(size=(1, m)) * 3
    assert tile_bounds(values[None], prices, n)[0] >= best_tile(values, n) - 1e-9


@pytest.mark.parametrize("sweeps", [0, 1, 30])
def test_rounding_alone_is_feasible_and_bounded(sweeps: int) -> None:
    """Without exchanges the mask satisfies the pattern, and the gap is honest."""
    values = np.random.default_rng(3).exponential(size=(64, 64))
    result = Transposable(4, 8, rounds=0, sweeps=sweeps).solve(values)
    optimum = TransposableFlow(4, 8).solve(values).objective
    check(result, values)
    assert is_transposable(result.selection, 4, 8)  # type: ignore[arg-type]
    assert optimum is not None
    assert result.bound is not None
    assert result.bound >= optimum
    assert result.termination.reason is TerminationReason.FEASIBLE
    assert "Allow more rounds" in result.termination.text


def test_transport_keeps_its_capacities_nearly() -> None:
    """After enough projections rows and columns hold ``n`` at most, entries at most 1."""
    values = np.random.default_rng(0).exponential(size=(5, 8, 8))
    values /= values.max()
    mask = entropic_transport(values, 3, 400, 10.0)
    assert mask.max() <= 1.0
    assert mask.sum(axis=1).max() <= 3.001
    assert mask.sum(axis=2).max() <= 3.001
    assert rounded(values, mask, 3).sum(axis=2).max() <= 3


@pytest.mark.parametrize("solver", [Transposable(2, 4, time_limit=0.0), TransposableFlow(2, 4, time_limit=0.0)])
def test_no_time_gives_a_mask_and_a_bound(solver: Transposable | TransposableFlow) -> None:
    """The limit is named, the reason is never OPTIMAL, and the bound still holds."""
    values = np.random.default_rng(1).exponential(size=(16, 16))
    result = solver.solve(values)
    optimum = Transposable(2, 4).solve(values).objective
    check(result, values)
    assert is_transposable(result.selection, 2, 4)  # type: ignore[arg-type]
    assert optimum is not None
    assert result.bound is not None
    assert result.bound >= optimum
    assert result.termination.reason is TerminationReason.FEASIBLE
    assert result.termination.limit is Limit.TIME


def test_transposing_the_values_transposes_the_value() -> None:
    """Rows and columns are alike; scaling by a factor scales objective and bound."""
    values = np.random.default_rng(2).exponential(size=(24, 16))
    plain, turned, scaled = (Transposable(2, 4).solve(v) for v in (values, values.T, 1e-200 * values))
    assert plain.objective == pytest.approx(turned.objective, rel=1e-12)
    assert 1e-200 * (plain.objective or 0.0) == pytest.approx(scaled.objective, rel=1e-12)


def test_equal_values_give_equal_masks() -> None:
    """Two runs are equal to the byte."""
    values = np.random.default_rng(4).integers(0, 3, size=(40, 40))
    for solver in (NM(2, 4), Transposable(2, 4), Transposable(4, 8, sweeps=10), TransposableFlow(4, 8)):
        first, second = solver.solve(values), solver.solve(values)
        assert np.array_equal(first.selection, second.selection)  # type: ignore[arg-type]
        assert (first.objective, first.bound) == (second.objective, second.bound)


def test_zero_of_m_keeps_nothing_and_m_of_m_all_above_zero() -> None:
    """The ends of the pattern."""
    values = np.random.default_rng(5).normal(size=(9, 9))
    for solver in (NM, Transposable, TransposableFlow):
        assert not solver(0, 4).solve(values).selection.any()  # type: ignore[union-attr]
        assert np.array_equal(solver(4, 4).solve(values).selection, values > 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [NM, Transposable, TransposableFlow])
def test_mistakes_are_named(solver: type[NM] | type[Transposable] | type[TransposableFlow]) -> None:
    """NaN, no entries, patterns that are none."""
    for wrong in (np.full((4, 4), np.nan), np.full((4, 4), np.inf)):
        with pytest.raises(ValueError, match="Got 16 that are NaN or infinite"):
            solver(2, 4).solve(wrong)
    with pytest.raises(ValueError, match=r"Got shape \(0, 4\)"):
        solver(2, 4).solve(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="Expected n of m with 0 <= n <= m"):
        solver(5, 4)


def test_an_axis_that_is_not_there_is_named() -> None:
    """And a table is asked for where one is needed."""
    with pytest.raises(ValueError, match="Expected an axis"):
        NM(2, 4, axis=2).solve(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="Expected values with 2 axes"):
        Transposable(2, 4).solve(np.zeros(4))


def test_an_interrupt_keeps_the_masks_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle returns a feasible mask with a bound, and says that it was stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solvers.nm.improve_tiles", interrupt)
    values = np.random.default_rng(6).exponential(size=(8, 8))
    result = Transposable(2, 4).solve(values)
    check(result, values)
    assert result.termination.limit is Limit.INTERRUPTED
