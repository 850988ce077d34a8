"""Selections without refit: losses of pairs, several budgets, and the certificate that any point gives."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import pairwise
from solvers.bounds.box import box_bound, linearised_bound
from solvers.pairwise import Pairwise
from solvers.quadratic import PairwiseProblem
from solvers.result import Limit, TerminationReason


def random_problem(seed: int, count: int = 9) -> PairwiseProblem:
    """Convex or not, of full rank or not, with one to three budgets."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((int(rng.integers(2, 20)), count)) * np.exp(rng.standard_normal(count))
    quadratic = rows.T @ rows - (seed % 3 == 0) * rng.uniform(0, 3) * np.eye(count)
    linear = rng.standard_normal(count) * (seed % 2)
    if seed % 4 == 1:
        return PairwiseProblem.keeping(quadratic, linear, int(rng.integers(0, count)))
    costs = rng.integers(0, 10, (int(rng.integers(1, 4)), count))
    return PairwiseProblem(quadratic, linear, costs, (costs.sum(axis=1) * rng.uniform(0, 1)).astype(int))


def optimum(problem: PairwiseProblem) -> float:
    """Least loss of all selections within budget."""
    every = (np.array(kept) for kept in itertools.product([False, True], repeat=problem.size))
    return min(problem.loss(kept) for kept in every if problem.fits(kept))


def test_the_loss_adds_up_pairs() -> None:
    """Written out: every removed structure, and every pair of removed ones once."""
    problem = random_problem(5)
    kept = np.arange(9) % 3 == 0
    gone = np.flatnonzero(~kept)
    singles = sum(problem.linear[i] + problem.quadratic[i, i] / 2 for i in gone)
    pairs = sum(problem.quadratic[i, j] for i, j in itertools.combinations(gone, 2))
    assert problem.loss(kept) == pytest.approx(singles + pairs)
    assert problem.used(kept).tolist() == [int(problem.costs[r][kept].sum()) for r in range(len(problem.costs))]


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)])
def test_answers_are_within_budget_and_bounds_below_the_optimum(seeds: range) -> None:
    """For all kinds of problems; the losses are recomputed, and at least 9 of 10 are optimal."""
    optimal = []
    for seed in seeds:
        problem = random_problem(seed)
        found, best = Pairwise(bound=True).solve(problem), optimum(problem)
        assert found.selection is not None
        assert found.bound is not None
        assert found.used is not None
        assert found.loss is not None
        assert problem.fits(found.selection)
        assert found.loss == pytest.approx(problem.loss(found.selection))
        assert (found.used <= problem.limits).all()
        scale = abs(best) + float(np.abs(problem.quadratic).max())
        assert found.bound.value <= best + 1e-9 * scale
        optimal.append(found.loss <= best + 1e-9 * scale)
    assert np.mean(optimal) >= 0.9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 100))
def test_any_point_and_prices_give_a_bound(seed: int, spread: float) -> None:
    """The certificate needs neither a feasible point nor good prices."""
    problem = random_problem(seed, count=7)
    rng = np.random.default_rng(seed)
    diagonal = np.full(7, np.linalg.eigvalsh(problem.quadratic)[0] - 1e-9)
    point, prices = spread * rng.standard_normal(7), spread * rng.uniform(0, 1, len(problem.limits))
    best = optimum(problem)
    assert linearised_bound(problem, point, prices, diagonal) <= best + 1e-9 * (1 + abs(best))


def test_a_bound_is_recomputed_from_its_proof() -> None:
    """And a proof that was tampered with is refused."""
    problem = random_problem(8)
    bound = box_bound(problem)
    again = linearised_bound(problem, bound.point, bound.prices, bound.diagonal)
    assert again == bound.value
    with pytest.raises(ValueError, match="Expected prices >= 0"):
        linearised_bound(problem, bound.point, bound.prices - 1, bound.diagonal)
    with pytest.raises(ValueError, match=r"Expected Q - diag\(d\) to be positive semidefinite"):
        linearised_bound(problem, bound.point, bound.prices, bound.diagonal + 100)


def test_a_diagonal_problem_is_solved_and_proven() -> None:
    """Without pairs the best are those that cost least, and the bound has no gap."""
    rng = np.random.default_rng(0)
    worth = rng.uniform(0.1, 1, 12)
    problem = PairwiseProblem.keeping(np.diag(worth), np.zeros(12), 5)
    found = Pairwise(bound=True).solve(problem)
    assert found.selection is not None
    assert set(np.flatnonzero(found.selection)) == set(np.argsort(-worth)[:5])
    assert found.gap == pytest.approx(0, abs=1e-6)


def test_pairs_decide() -> None:
    """Two structures that only hurt together: one of them goes, and cheaply, which diagonals cannot see."""
    quadratic = np.array([[1.0, -0.95, 0.0], [-0.95, 1.0, 0.0], [0.0, 0.0, 0.6]])
    found = Pairwise().solve(PairwiseProblem.keeping(quadratic, np.zeros(3), 1))
    assert found.selection is not None
    assert found.selection.tolist() == [False, False, True]


@pytest.mark.parametrize("seed", range(10))
def test_swaps_are_never_worse_than_greedy(seed: int) -> None:
    """Nor than a selection to begin from that is within budget."""
    problem = random_problem(seed, count=20)
    greedy, found = Pairwise(swaps=False).solve(problem), Pairwise().solve(problem)
    assert found.loss is not None
    assert greedy.loss is not None
    assert found.loss <= greedy.loss + 1e-12
    start = np.zeros(20, dtype=bool)
    again = Pairwise(kicks=0).solve(problem, start)
    assert again.loss is not None
    assert again.loss <= problem.loss(start)


def test_few_candidates_end_where_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that looks at few candidates first ends where no pair of all improves."""
    monkeypatch.setattr(pairwise, "CANDIDATES", 2)
    problem = PairwiseProblem.keeping(random_problem(4, count=24).quadratic, np.zeros(24), 10)
    found = Pairwise(kicks=0).solve(problem)
    assert found.selection is not None
    for i, j in itertools.product(np.flatnonzero(found.selection), np.flatnonzero(~found.selection)):
        other = found.selection.copy()
        other[[i, j]] = [False, True]
        assert problem.loss(other) >= problem.loss(found.selection) - 1e-9


def test_more_budget_has_a_bound_that_is_no_higher() -> None:
    """Up to how well the relaxation is solved; the losses of answers follow suit on this problem."""
    problem = random_problem(5, count=16)
    results = [Pairwise(bound=True).solve(replace(problem, limits=np.array([keep]))) for keep in range(0, 17, 2)]
    bounds = [one.bound.value for one in results if one.bound is not None]
    losses = [one.loss for one in results if one.loss is not None]
    assert len(bounds) == len(losses) == 9
    assert (np.diff(bounds) <= 1e-3 * max(abs(bounds[0]), 1)).all()
    assert (np.diff(losses) <= 1e-9).all()


def test_permuting_and_scaling() -> None:
    """Permuted structures have the same least loss; units of loss and of cost do not matter."""
    problem = random_problem(10)
    order = np.random.default_rng(0).permutation(9)
    permuted = PairwiseProblem(
        problem.quadratic[np.ix_(order, order)], problem.linear[order], problem.costs[:, order], problem.limits
    )
    scaled = PairwiseProblem(5 * problem.quadratic, 5 * problem.linear, 3 * problem.costs, 3 * problem.limits)
    found, other, third = (Pairwise().solve(one) for one in (problem, permuted, scaled))
    assert other.loss == pytest.approx(found.loss)
    assert third.loss == pytest.approx(5 * (found.loss or 0.0))


def test_equal_seeds_give_equal_results() -> None:
    """To the last bit, with kicks, and the arguments stay as they were."""
    problem = random_problem(14, count=40)
    before = problem.quadratic.copy()
    first, second = (Pairwise(bound=True, seed=3).solve(problem) for _ in range(2))
    assert first.selection is not None
    assert second.selection is not None
    assert first.bound is not None
    assert second.bound is not None
    assert np.array_equal(first.selection, second.selection)
    assert (first.loss, first.bound.value) == (second.loss, second.bound.value)
    assert np.array_equal(problem.quadratic, before)


def test_a_budget_below_nothing_is_infeasible() -> None:
    """An outcome, not an error; its text names the resource."""
    problem = replace(random_problem(2), limits=np.array([-1] * len(random_problem(2).limits)))
    found = Pairwise(bound=True).solve(problem)
    assert found.selection is None
    assert found.termination.reason is TerminationReason.INFEASIBLE
    assert "Resource 0 allows -1" in found.termination.text
    assert box_bound(problem).value == np.inf


def test_a_budget_of_nothing_keeps_only_what_is_free() -> None:
    """Structures without cost may stay."""
    problem = PairwiseProblem(np.eye(4), np.zeros(4), np.array([[1, 0, 2, 0]]), np.array([0]))
    found = Pairwise().solve(problem)
    assert found.selection is not None
    assert found.selection.tolist() == [False, True, False, True]


def test_limits_return_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """After no time, and after Ctrl-C, the greedy choice is there, within budget, and not called optimal."""
    problem = random_problem(6, count=30)
    late = Pairwise(time_limit=0.0).solve(problem)
    assert late.selection is not None
    assert problem.fits(late.selection)
    assert (late.termination.reason, late.termination.limit) == (TerminationReason.HEURISTIC, Limit.TIME)

    def interrupted(state, until):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    monkeypatch.setattr(pairwise._State, "improve", interrupted)
    stopped = Pairwise(bound=True).solve(problem)
    assert stopped.selection is not None
    assert problem.fits(stopped.selection)
    assert stopped.termination.limit is Limit.STOPPED


def test_what_does_not_fit_is_refused() -> None:
    """Shapes, numbers and settings, each with what to do."""
    good = {"quadratic": np.eye(3), "linear": np.zeros(3), "costs": np.ones((1, 3), int), "limits": np.array([1])}
    wrong = {
        r"Expected quadratic \(n, n\)": {"quadratic": np.eye(2)},
        r"Expected costs \(r, 3\)": {"costs": np.ones((2, 3), int)},
        "Expected finite": {"linear": np.array([0.0, np.nan, 0.0])},
        "Expected integer costs": {"costs": np.ones((1, 3))},
        "Expected costs >= 0. Got -1": {"costs": -np.ones((1, 3), int)},
        "Expected a symmetric quadratic term": {"quadratic": np.triu(np.ones((3, 3)))},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            PairwiseProblem(**{**good, **change})
    with pytest.raises(ValueError, match="Expected a boolean selection"):
        PairwiseProblem(**good).loss(np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected kicks"):
        Pairwise(kicks=-1)
    with pytest.raises(ValueError, match="Expected time_limit"):
        Pairwise(time_limit=-1)


def test_no_structures() -> None:
    """An empty problem has an empty answer."""
    found = Pairwise(bound=True).solve(
        PairwiseProblem(np.zeros((0, 0)), np.zeros(0), np.zeros((1, 0), int), np.array([0]))
    )
    assert found.loss == 0
    assert found.selection is not None
    assert found.selection.shape == (0,)
