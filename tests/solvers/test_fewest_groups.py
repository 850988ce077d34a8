"""The bound on the number of groups: against all selections, valid for any multipliers, and where it is tight."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import fewest_groups as module
from solvers.fewest_groups import fewest_groups


def fewest_of_all(matrix: np.ndarray, weights: np.ndarray, groups: list[np.ndarray], epsilon: float) -> int:
    """The least number of groups over all selections, survivors fitted by least squares."""
    values, vectors = np.linalg.eigh(matrix)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    for keep in range(len(groups) + 1):
        for kept in itertools.combinations(range(len(groups)), keep):
            gone = [group for g, group in enumerate(groups) if g not in kept]
            removed = np.concatenate([np.zeros(0, np.int64), *gone])
            others = np.setdiff1d(np.arange(len(weights)), removed)
            left = factor[removed].T @ weights[removed]
            if len(others) and len(removed):
                left = left - factor[others].T @ np.linalg.lstsq(factor[others].T, left, rcond=1e-13)[0]
            if 0.5 * float(left @ left) <= epsilon * (1 + 1e-9):
                return keep
    raise AssertionError("keeping all groups loses nothing")


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], float]:
    """Groups of unequal size in random order, some entries free; H plain, badly scaled, rank-deficient or ill."""
    rng = np.random.default_rng(seed)
    sizes, free = rng.integers(1, 4, int(rng.integers(2, 7))), int(rng.integers(0, 3))
    size = int(sizes.sum()) + free
    groups = np.split(rng.permutation(size)[: sizes.sum()], np.cumsum(sizes)[:-1])
    kind = seed % 4
    if kind == 3:
        turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
        matrix = (turn * 10 ** rng.uniform(-rng.uniform(0, 12), 0, size)) @ turn.T
    else:
        count = max(1, size - 2) if kind == 2 else 2 * size
        rows = rng.standard_normal((count, size)) * np.exp((kind == 1) * rng.standard_normal(size))
        matrix = rows.T @ rows / count
    matrix = (matrix + matrix.T) / 2
    weights = rng.standard_normal(size) * np.exp(0.5 * rng.standard_normal(size))
    return matrix, weights, groups, 0.5 * float(weights @ matrix @ weights) * 10 ** rng.uniform(-2.5, -0.05)


@pytest.mark.parametrize("start", range(0, 120, 12))
def test_never_above_the_fewest_of_all(start: int) -> None:
    """On 120 problems, plain to singular, the bound is at most what the best of all selections needs."""
    for seed in range(start, start + 12):
        matrix, weights, groups, epsilon = problem(seed)
        found = fewest_groups(matrix, weights, groups, epsilon)
        assert found.at_least <= fewest_of_all(matrix, weights, groups, epsilon), seed


def test_the_bound_is_often_the_optimum() -> None:
    """Of forty well-conditioned problems at least thirty are settled by the bound."""
    settled = 0
    for seed in range(0, 160, 4):
        matrix, weights, groups, epsilon = problem(seed)
        bound = fewest_groups(matrix, weights, groups, epsilon)
        settled += bound.at_least == fewest_of_all(matrix, weights, groups, epsilon)
    assert settled >= 30


def spread(seed: int, groups: int = 6, each: int = 2) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A problem whose groups are alike, so that no single one is necessary at a moderate loss."""
    rng = np.random.default_rng(seed)
    size = groups * each
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = (turn * np.exp(-rng.uniform(0, 1, size))) @ turn.T
    return (matrix + matrix.T) / 2, rng.uniform(0.8, 1.2, size), list(np.arange(size).reshape(groups, each))


@given(st.integers(0, 10_000), st.floats(0.02, 0.95), st.floats(-9, 1))
@settings(max_examples=60, deadline=None)
def test_any_multipliers_give_a_bound(seed: int, share: float, size: float) -> None:
    """The weak dual is at most the fewest of all for whatever v the solver might return."""
    matrix, weights, groups = spread(seed, 4)
    epsilon = share * 0.5 * float(weights @ matrix @ weights)
    factor = np.linalg.cholesky(matrix) / math.sqrt(2 * epsilon)
    relaxation = module._problem(factor, weights, groups, np.zeros(len(weights), dtype=bool))
    assert relaxation is not None
    v = -np.random.default_rng(seed).uniform(0, 2) * weights + 10**size * np.random.default_rng(
        seed + 1
    ).standard_normal(len(weights))
    value = module._weak_dual(relaxation, v)
    assert value <= fewest_of_all(matrix, weights, groups, epsilon) + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_recomputed_bound_is_the_relaxations_value(seed: int) -> None:
    """Where a conic solver succeeds the weak dual at its solution leaves almost no gap."""
    matrix, weights, groups = spread(seed)
    found = fewest_groups(matrix, weights, groups, 0.1 * float(weights @ matrix @ weights))
    assert found.solver != module.NO_SOLVER
    assert 0 <= found.dual_gap < 1e-3


def test_a_solver_that_fails_leaves_a_valid_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solutions that are far off weaken the bound and widen the gap; they never raise it above the optimum."""
    matrix, weights, groups = spread(1)
    epsilon = 0.1 * float(weights @ matrix @ weights)
    true, solved = fewest_groups(matrix, weights, groups, epsilon), module._solved

    def off(*arguments):
        x, relaxed, status = solved(*arguments)
        assert x is not None
        return x + np.random.default_rng(0).standard_normal(len(x)), relaxed, status

    monkeypatch.setattr(module, "_solved", off)
    found = fewest_groups(matrix, weights, groups, epsilon)
    assert found.value < true.value and found.dual_gap > true.dual_gap
    assert found.at_least <= fewest_of_all(matrix, weights, groups, epsilon)
    monkeypatch.setattr(module, "_solved", lambda *_: (None, 0.0, "solver_error"))
    found = fewest_groups(matrix, weights, groups, epsilon)
    assert (found.at_least, found.solver, found.status) == (1, module.NO_SOLVER, "solver_error")


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_diagonal_quadratic_is_settled_by_sorting(seed: int) -> None:
    """Without coupling the fewest groups are the largest losses; the bound is at most one below their number."""
    rng = np.random.default_rng(seed)
    curvature, weights = np.exp(rng.standard_normal(8)), rng.standard_normal(8)
    groups = list(np.arange(8)[:, None])
    losses = np.sort(0.5 * curvature * weights**2)
    epsilon = float(rng.uniform(0.01, 0.9)) * float(losses.sum())
    needed = 8 - int(np.sum(np.cumsum(losses) <= epsilon))
    found = fewest_groups(np.diag(curvature), weights, groups, epsilon)
    assert needed - 1 <= found.at_least <= needed


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_more_loss_needs_no_more_groups(seed: int) -> None:
    """The bound does not rise with epsilon, up to what the solver leaves."""
    matrix, weights, groups, epsilon = problem(seed)
    found = [fewest_groups(matrix, weights, groups, epsilon * factor).value for factor in (1, 2, 8)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(found))
    assert fewest_groups(matrix, weights, groups, float(weights @ matrix @ weights)).at_least == 0


@pytest.mark.parametrize("seed", range(8))
def test_units_do_not_matter(seed: int) -> None:
    """Loss and weights in other units give the same bound."""
    matrix, weights, groups, epsilon = problem(seed)
    found = fewest_groups(matrix, weights, groups, epsilon)
    same = fewest_groups(1e6 * matrix, 1e-5 * weights, groups, 1e-4 * epsilon)
    assert same.value == pytest.approx(found.value, abs=0.01)
    assert same.necessary == found.necessary


def test_necessary_groups_are_named() -> None:
    """A group that alone holds the output cannot go; one that another can replace is not necessary."""
    matrix = np.array([[1.0, 0, 0], [0, 1, 0.999], [0, 0.999, 1]])
    found = fewest_groups(matrix, [3.0, 1.0, 1.0], [[0], [1], [2]], 0.1)
    assert (found.at_least, found.necessary) == (2, (0,))


def test_free_entries_are_fitted_and_not_counted() -> None:
    """Where a free entry can replace the groups, none has to stay."""
    row = np.array([[1.0, 1.0, 1.0]])
    assert fewest_groups(row.T @ row, [1.0, 1.0, 1.0], [[0], [1]], 1e-3).at_least == 0
    assert fewest_groups(row.T @ row, [1.0, 1.0, 1.0], [[0], [1], [2]], 1e-3).at_least == 1


@pytest.mark.parametrize(
    ("matrix", "weights", "groups", "epsilon", "words"),
    [
        (np.eye(3), np.ones(2), [[0]], 0.1, "matrix"),
        (np.eye(2), np.ones(2), [[0], [0, 1]], 0.1, "disjoint"),
        (np.eye(2), np.ones(2), [[0], []], 0.1, "indices"),
        (np.eye(2), np.ones(2), [[2]], 0.1, "indices"),
        (np.eye(2), np.ones(2), [[0]], 0.0, "epsilon"),
        (np.diag([1.0, -1.0]), np.ones(2), [[0]], 0.1, "semidefinite"),
        (np.array([[1.0, 1.0], [0.0, 1.0]]), np.ones(2), [[0]], 0.1, "symmetric"),
    ],
)
def test_impossible_arguments_are_refused(matrix, weights, groups, epsilon, words) -> None:
    """Shapes, overlaps, indices, negative curvature and losses are checked where they enter."""
    with pytest.raises(ValueError, match=words):
        fewest_groups(matrix, weights, groups, epsilon)
