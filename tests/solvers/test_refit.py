"""Selections with refit: every formula against fresh least squares, every bound against all selections."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

from solvers import refit, refit_path
from solvers.bounds.diagonal import largest_diagonal
from solvers.bounds.refit import (
    BoundKind,
    Capacity,
    dual_value,
    perspective_bound,
    refit_bound,
    spectral_bound,
    whitened,
)
from solvers.bounds.refit_conic import conic_bound
from solvers.elimination import eliminate
from solvers.quadratic import QuadraticMap, RefitProblem, damped, map_from_cross, reduced, single_inputs
from solvers.refit import Refit, from_activity, from_backward, from_forward, from_inverse, width_curve
from solvers.refit_moves import swap_bounds, swap_gains
from solvers.refit_path import backward, forward
from solvers.result import Limit, TerminationReason
from solvers.tableau import Tableau


def random_map(
    size: int, each: int, outputs: int, rng: np.random.Generator, damping: float = 1e-2, others: int = 0
) -> QuadraticMap:
    """Correlated inputs of different scales, in scattered groups, and ``others`` that always stay."""
    inputs = size * each + others
    mixed = rng.standard_normal((inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    rows = (rng.standard_normal((3 * inputs, inputs)) * np.exp(rng.standard_normal(inputs))) @ mixed
    places = rng.permutation(inputs)[: size * each].reshape(size, each)
    return QuadraticMap(rng.standard_normal((outputs, inputs)), damped(rows.T @ rows / len(rows), damping), places)


def random_problem(seed: int, size: int = 8) -> RefitProblem:
    """One or two maps over the same structures, from well to ill conditioned."""
    rng = np.random.default_rng(seed)
    count, damping = int(rng.integers(1, 3)), float(10 ** rng.uniform(-9, -1))
    maps = [
        random_map(size, int(rng.integers(1, 4)), int(rng.integers(1, 4)), rng, damping, int(rng.integers(0, 3)))
        for _ in range(count)
    ]
    return RefitProblem(tuple(maps), int(rng.integers(1, size)))


def drawn_selection(problem: RefitProblem, seed: int = 0) -> np.ndarray:
    """A random selection of the problem's size."""
    kept = np.zeros(problem.size, dtype=bool)
    kept[np.random.default_rng(seed).permutation(problem.size)[: problem.keep]] = True
    return kept


def all_selections(size: int, keep: int) -> list[np.ndarray]:
    """Every selection of that size."""
    return [np.isin(np.arange(size), chosen) for chosen in itertools.combinations(range(size), keep)]


def optimum(problem: RefitProblem) -> float:
    """Least loss of all selections."""
    return min(problem.lost(kept) for kept in all_selections(problem.size, problem.keep))


def naive_loss(one: QuadraticMap, kept: np.ndarray) -> float:
    """By least squares on a square root of the moment."""
    root = np.linalg.cholesky(one.moment).T
    stay = np.setdiff1d(np.arange(len(root)), one.groups[~kept].ravel())
    fitted = np.zeros_like(one.weight)
    fitted[:, stay] = np.linalg.lstsq(root[:, stay], root @ one.weight.T, rcond=None)[0].T
    return 0.5 * float((((fitted - one.weight) @ root.T) ** 2).sum())


@pytest.mark.parametrize("seed", range(6))
def test_the_loss_is_that_of_least_squares(seed: int) -> None:
    """The problem's loss, and that of the weights that it gives, is the least that the kept inputs allow."""
    problem = random_problem(seed)
    kept = drawn_selection(problem, seed)
    expected = sum(naive_loss(one, kept) for one in problem.maps)
    assert problem.lost(kept) == pytest.approx(expected, rel=1e-6)
    total = 0.0
    for one, weight in zip(problem.maps, problem.refitted(kept), strict=True):
        assert not weight[:, one.groups[~kept].ravel()].any()
        total += 0.5 * float(np.trace((weight - one.weight) @ one.moment @ (weight - one.weight).T))
    assert total == pytest.approx(expected, rel=1e-6)


def test_inputs_that_always_stay_are_fitted_away() -> None:
    """The reduced map loses the same as the map with inputs in no group."""
    one = random_map(5, 2, 7, np.random.default_rng(3), others=3)
    small = reduced(one)
    same = QuadraticMap(small.weight, small.moment, np.arange(10).reshape(5, 2))
    for kept in all_selections(5, 2):
        assert naive_loss(same, kept) == pytest.approx(naive_loss(one, kept), rel=1e-9)
    assert small.energy == pytest.approx(RefitProblem((one,), 0).total(), rel=1e-9)


def test_a_map_from_its_cross_moment() -> None:
    """The weights of the best map with all inputs come back from E[x y'] and E[x x']."""
    one = random_map(4, 1, 3, np.random.default_rng(0))
    found = map_from_cross(one.moment @ one.weight.T, one.moment, single_inputs(4))
    assert np.allclose(found.weight, one.weight)


@pytest.mark.parametrize("seed", range(8))
def test_exchanges_change_the_loss_by_what_the_tableau_says(seed: int) -> None:
    """Over a dozen exchanges of several structures; in the end the tableau is that of a fresh factorisation."""
    problem = replace(random_problem(seed, size=9), keep=4)
    maps = [reduced(one) for one in problem.maps]
    tableau = Tableau.fresh(maps, drawn_selection(problem))
    rng = np.random.default_rng(seed)
    total = problem.total()
    for _ in range(12):
        count = int(rng.integers(1, 4))
        leave, enter = rng.permutation(4)[:count], 4 + rng.permutation(5)[:count]
        before, gain = problem.lost(tableau.selection), tableau.gain(np.concatenate([leave, enter]))
        tableau.exchange(leave, enter)
        assert before - gain == pytest.approx(problem.lost(tableau.selection), rel=1e-6, abs=1e-9 * total)
    assert tableau.loss == pytest.approx(problem.lost(tableau.selection), rel=1e-5, abs=1e-8 * total)
    assert tableau.drift(maps, rng) < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_all_swap_gains_are_exact_and_bounded(seed: int) -> None:
    """Each entry is the difference of two least squares losses, and no bound is below it."""
    problem = random_problem(seed)
    kept = drawn_selection(problem, seed)
    tableau = Tableau.fresh([reduced(one) for one in problem.maps], kept)
    gains, bounds = swap_gains(tableau), swap_bounds(tableau)
    before, total = problem.lost(kept), problem.total()
    for i, j in itertools.product(range(problem.keep), range(problem.size - problem.keep)):
        other = kept.copy()
        other[tableau.order[[i, problem.keep + j]]] = [False, True]
        assert gains[i, j] == pytest.approx(before - problem.lost(other), rel=1e-6, abs=1e-9 * total)
    assert (bounds >= gains - 1e-9 * total).all()


@pytest.mark.parametrize("panel", [2, 5, 1000])
def test_the_backward_path_is_exact_elimination(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width of the panels."""
    monkeypatch.setattr(refit_path, "PANEL", panel)
    rng = np.random.default_rng(1)
    maps = [random_map(9, 2, 3, rng), random_map(9, 1, 4, rng, others=2)]
    expected = eliminate(maps, exact_below=1000)
    path = backward([reduced(one) for one in maps], 9)
    assert path.taken[::-1].tolist() == expected.order.tolist()
    assert np.cumsum(path.changes) == pytest.approx(expected.loss[:-1][::-1], rel=1e-9)


def test_the_forward_path_takes_the_largest_fall_each_time() -> None:
    """As all fresh least squares losses say."""
    problem = replace(random_problem(5), keep=5)
    path = forward([reduced(one) for one in problem.maps], 5)
    kept = np.zeros(problem.size, dtype=bool)
    for place, change in zip(path.taken, path.changes, strict=True):
        losses = [np.inf if kept[i] else problem.lost(kept | (np.arange(problem.size) == i)) for i in range(8)]
        assert int(np.argmin(losses)) == place
        assert problem.lost(kept) - min(losses) == pytest.approx(change, rel=1e-6)
        kept[place] = True


def test_the_curve_holds_the_losses_of_its_order() -> None:
    """At every width, and the result carries it when asked."""
    problem = random_problem(2)
    curve = width_curve(problem)
    for width in range(problem.size + 1):
        kept = np.isin(np.arange(problem.size), curve.order[:width])
        assert curve.loss[width] == pytest.approx(problem.lost(kept), rel=1e-5, abs=1e-9 * problem.total())
    found = Refit(curve=True).solve(problem).curve
    assert found is not None
    assert np.array_equal(found.loss, curve.loss)


@pytest.mark.parametrize("seed", range(20))
def test_no_swap_improves_the_answer_and_elimination_is_no_better(seed: int) -> None:
    """The answer is a local optimum at most as lossy as exact elimination, with the loss that it says."""
    problem = random_problem(seed)
    found = Refit().solve(problem)
    assert found.selection.sum() == problem.keep
    assert found.error == pytest.approx(problem.lost(found.selection), rel=1e-6)
    start = from_backward([reduced(one) for one in problem.maps], problem.keep, lambda: False)
    assert start is not None
    assert found.error <= problem.lost(start) * (1 + 1e-7)
    for i, j in itertools.product(np.flatnonzero(found.selection), np.flatnonzero(~found.selection)):
        other = found.selection.copy()
        other[[i, j]] = [False, True]
        assert problem.lost(other) >= found.error * (1 - 1e-5)


def test_small_problems_are_mostly_solved_to_the_optimum() -> None:
    """At least 9 of 10 from three starts."""
    starts = (from_backward, from_forward, from_activity)
    problems = [random_problem(seed) for seed in range(40)]
    optimal = [Refit(starts=starts).solve(one).error <= optimum(one) * (1 + 1e-6) for one in problems]
    assert np.mean(optimal) >= 0.9


@pytest.mark.parametrize("seed", range(20))
def test_the_inverse_ranks_structures_by_what_removing_each_alone_loses(seed: int) -> None:
    """For every size: the structures that stay are those whose removal alone, all others refitted, loses most."""
    problem = random_problem(seed)
    maps = [reduced(one) for one in problem.maps]
    alone = [problem.lost(np.arange(problem.size) != g) for g in range(problem.size)]
    order = np.argsort(-np.array(alone), kind="stable")
    for keep in range(1, problem.size):
        kept = from_inverse(maps, keep, lambda: False)
        assert set(np.flatnonzero(kept)) == set(order[:keep])


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 600), marks=pytest.mark.slow)])
def test_no_selection_is_below_the_bound(seeds: range) -> None:
    """Of hundreds of problems with condition numbers up to 1e10, structures of several inputs and several maps."""
    for seed in seeds:
        problem = random_problem(seed, size=7)
        bound = refit_bound(problem, rounds=2)
        assert 0 <= bound.value <= optimum(problem) * (1 + 1e-7), seed


def test_any_point_of_the_dual_gives_a_bound() -> None:
    """Random weights and any diagonal below the moment are no exception."""
    problem = replace(random_problem(4), keep=3)
    maps = [whitened(reduced(one)) for one in problem.maps]
    rng, best = np.random.default_rng(0), optimum(problem)
    for _ in range(200):
        diagonals = [np.linalg.eigvalsh(one.moment)[0] * rng.uniform(0.01, 1, len(one.moment)) for one in maps]
        weights = [rng.standard_normal(one.cross.shape) * 10 ** rng.uniform(-3, 1) for one in maps]
        assert dual_value(maps, diagonals, weights, Capacity.keeping(8, 3)) <= best


def test_the_bound_is_tight_where_inputs_are_independent() -> None:
    """Then the problem is a sort, and the relaxation has no gap."""
    rng = np.random.default_rng(0)
    one = QuadraticMap(rng.standard_normal((4, 9)), np.diag(rng.uniform(0.5, 2, 9)), single_inputs(9))
    problem = RefitProblem((one,), 4)
    assert refit_bound(problem).value == pytest.approx(optimum(problem), rel=1e-3)


def test_the_spectral_bound_is_tight_on_orthogonal_outputs() -> None:
    """With uncorrelated inputs and one input per output it is the optimum."""
    one = QuadraticMap(np.diag([3.0, 2.0, 1.0, 0.5]), np.eye(4), single_inputs(4))
    assert spectral_bound([reduced(one)], 2) == pytest.approx(0.5 * (1 + 0.25))
    assert optimum(RefitProblem((one,), 2)) == pytest.approx(0.5 * (1 + 0.25))


@pytest.mark.parametrize("seed", range(6))
def test_the_conic_bound_is_a_bound_and_the_fast_one_is_near(seed: int) -> None:
    """The best diagonal's bound is below the optimum; the fast one loses at most half of it, on mild problems."""
    rng = np.random.default_rng(seed)
    problem = RefitProblem((random_map(7, 1 + seed % 2, 2, rng, 3e-2),), 3)
    maps, capacity = [reduced(one) for one in problem.maps], Capacity.keeping(7, 3)
    best, fast = conic_bound(maps, capacity), perspective_bound(maps, capacity)
    assert best is not None
    assert 0.5 * best <= fast <= best * (1 + 1e-3)
    assert best <= optimum(problem)


def test_large_conic_programs_are_refused() -> None:
    """They would take minutes."""
    with pytest.raises(ValueError, match="Expected at most 64 inputs. Got 65"):
        conic_bound([reduced(random_map(65, 1, 1, np.random.default_rng(0)))], Capacity.keeping(65, 3))


def test_the_largest_diagonal_is_nearly_that_of_a_conic_solver() -> None:
    """Within the accuracy asked for, and below the matrix."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 9))
    matrix, weights = rows.T @ rows, rng.uniform(0.1, 1, 9)
    d = cp.Variable(9, nonneg=True)
    best = cp.Problem(cp.Maximize(weights @ d), [matrix - cp.diag(d) >> 0]).solve(solver=cp.CLARABEL)
    found = largest_diagonal(matrix, weights)
    assert best * (1 - 2e-3) <= weights @ found <= best * (1 + 1e-6)
    assert np.linalg.eigvalsh(matrix - np.diag(found))[0] >= 0
    assert not largest_diagonal(np.ones((3, 3)), np.ones(3)).any()


def test_a_knapsack_of_structures_is_bounded_too() -> None:
    """With costs, no selection within the limit is below the bound."""
    for seed in range(10):
        problem = random_problem(seed, size=7)
        costs = np.random.default_rng(seed).integers(0, 9, 7).astype(float)
        limit = float(costs.sum() // 2)
        every = (np.array(kept) for kept in itertools.product([False, True], repeat=7))
        best = min(problem.lost(kept) for kept in every if costs[kept].sum() <= limit)
        assert refit_bound(problem, Capacity(costs, limit), rounds=2).value <= best * (1 + 1e-7)


def test_the_fractional_knapsack_is_a_linear_program() -> None:
    """And the fractions for given weights satisfy its limit."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, values, limit = rng.integers(0, 5, 6).astype(float), rng.uniform(0, 1, 6), float(rng.integers(0, 14))
        capacity = Capacity(costs, limit)
        answer = linprog(-values, A_ub=costs[None], b_ub=[limit], bounds=(0, 1))
        assert capacity.most(values) == pytest.approx(-answer.fun, abs=1e-9)
        assert costs @ capacity.spread(values) <= limit * (1 + 1e-9) + 1e-6
    with pytest.raises(ValueError, match="Expected finite costs >= 0"):
        Capacity(np.array([-1.0]), 1.0)


def test_the_result_says_how_good_it_is() -> None:
    """Bound, kind and gap agree, and without a bound the answer is called heuristic."""
    problem = random_problem(7)
    found = Refit(bound=True).solve(problem)
    assert found.bound is not None
    assert isinstance(found.bound_kind, BoundKind)
    assert found.gap == pytest.approx((found.error - found.bound) / found.error)
    assert found.termination.reason in (TerminationReason.FEASIBLE, TerminationReason.OPTIMAL)
    plain = Refit().solve(problem)
    assert (plain.bound, plain.bound_kind, plain.gap) == (None, None, None)
    assert plain.termination.reason is TerminationReason.HEURISTIC


def test_permuting_or_scaling_changes_nothing_but_names_and_units() -> None:
    """Permuted structures are chosen permuted; losses scale with the moment and the square of the weights."""
    problem = random_problem(11)
    order = np.random.default_rng(0).permutation(problem.size)
    found = Refit(bound=True).solve(problem)
    permuted = RefitProblem(tuple(replace(one, groups=one.groups[order]) for one in problem.maps), problem.keep)
    other = Refit(bound=True).solve(permuted)
    assert np.array_equal(other.selection, found.selection[order])
    scaled = tuple(replace(one, weight=3 * one.weight, moment=7 * one.moment) for one in problem.maps)
    third = Refit().solve(RefitProblem(scaled, problem.keep))
    assert np.array_equal(third.selection, found.selection)
    assert third.error == pytest.approx(63 * found.error, rel=1e-6)


def test_more_structures_lose_less() -> None:
    """Along the widths, as the best of a few starts."""
    problem = random_problem(9)
    errors = [Refit().solve(replace(problem, keep=keep)).error for keep in range(problem.size + 1)]
    assert (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert errors[0] == pytest.approx(problem.total(), rel=1e-6)
    assert errors[-1] == 0


def test_equal_seeds_give_equal_results_and_arguments_stay() -> None:
    """To the last bit."""
    problem = random_problem(13)
    before = [(one.weight.copy(), one.moment.copy()) for one in problem.maps]
    first, second = Refit(bound=True).solve(problem), Refit(bound=True).solve(problem)
    assert np.array_equal(first.selection, second.selection)
    assert (first.error, first.bound) == (second.error, second.bound)
    for one, (weight, moment) in zip(problem.maps, before, strict=True):
        assert np.array_equal(one.weight, weight)
        assert np.array_equal(one.moment, moment)


def test_a_given_selection_is_improved_or_kept() -> None:
    """One of another size is brought to the size first."""
    problem = random_problem(15)
    start = drawn_selection(problem, 3)
    found = Refit(starts=(from_activity,)).solve(problem, start)
    assert found.error <= problem.lost(start)
    assert Refit().solve(problem, np.ones(problem.size, dtype=bool)).selection.sum() == problem.keep
    with pytest.raises(ValueError, match="Expected a boolean start of shape"):
        Refit().solve(problem, np.ones(3, dtype=bool))


def test_a_worn_tableau_is_computed_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that makes the tableau lie, here put in by hand, leads neither to a wrong loss nor a worse answer."""
    problem = replace(random_problem(21, size=14), keep=6)
    clean, exact = Refit(starts=(from_activity,)).solve(problem), refit.best_swaps
    spoilt: list[int] = []

    def spoiling(tableau, least, stop, depth):  # type: ignore[no-untyped-def]
        if len(spoilt) < 2 and len(tableau.order) == problem.size:
            spoilt.append(1)
            for sheet in tableau.sheets:
                sheet.gains *= 0.2
                sheet.moves[0, 1:] *= 1.1
        return exact(tableau, least, stop, depth)

    monkeypatch.setattr(refit, "best_swaps", spoiling)
    found = Refit(starts=(from_activity,)).solve(problem)
    assert spoilt
    assert found.error == pytest.approx(problem.lost(found.selection), rel=1e-6)
    assert found.error <= clean.error * 1.5


def test_limits_return_the_best_so_far() -> None:
    """After no time, and after Ctrl-C in a start, there is a selection, and it is not called optimal."""
    problem = random_problem(17)
    late = Refit(time_limit=0.0, bound=True).solve(problem)
    assert late.selection.sum() == problem.keep
    assert late.termination.limit is Limit.TIME
    assert late.termination.reason is not TerminationReason.OPTIMAL
    assert late.error == pytest.approx(problem.lost(late.selection))

    def interrupted(maps, keep, stop):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    stopped = Refit(starts=(from_activity, interrupted)).solve(problem)
    assert stopped.termination.limit is Limit.STOPPED
    assert stopped.error == pytest.approx(Refit(starts=(from_activity,)).solve(problem).error)


@pytest.mark.parametrize("keep", [0, 8, 100])
def test_nothing_and_everything_are_proven(keep: int) -> None:
    """Keeping no structure, or all, leaves no choice."""
    problem = replace(random_problem(19), keep=keep)
    found = Refit().solve(problem)
    assert found.termination.reason is TerminationReason.OPTIMAL
    assert found.selection.sum() == min(keep, 8)


def test_what_does_not_fit_is_refused() -> None:
    """Shapes, numbers, groups, moments and settings, each with what to do."""
    one = random_map(4, 1, 2, np.random.default_rng(0))
    wrong = {
        "Expected at least one map": (),
        r"Expected maps over the same structures. Got \[4, 3\]": (one, replace(one, groups=one.groups[:3])),
        "Expected weight": (replace(one, moment=np.eye(3)),),
        "Expected groups to be integers": (replace(one, groups=np.zeros((4, 0), dtype=np.int64)),),
        "Got one twice or outside": (replace(one, groups=np.array([[0], [0]])),),
        "Expected a finite weight. Got 8": (replace(one, weight=np.full((2, 4), np.nan)),),
        "Expected a symmetric moment": (replace(one, moment=one.moment + np.triu(np.ones((4, 4)), 1)),),
        "Add damping to its diagonal": (replace(one, moment=np.ones((4, 4))),),
    }
    for message, maps in wrong.items():
        with pytest.raises(ValueError, match=message):
            RefitProblem(maps, 2)
    with pytest.raises(ValueError, match="Expected keep to be an integer >= 0. Got -1"):
        RefitProblem((one,), -1)
    with pytest.raises(ValueError, match="Expected a boolean selection"):
        RefitProblem((one,), 2).lost(np.array([1, 0, 0, 1]))
    with pytest.raises(ValueError, match="Expected at least one start"):
        Refit(starts=())
    with pytest.raises(ValueError, match="Expected time_limit >= 0"):
        Refit(time_limit=-1.0)
    with pytest.raises(ValueError, match="Expected damping >= 0"):
        damped(np.eye(2), -1.0)


def test_rank_deficient_moments_are_solved_with_damping() -> None:
    """Twins: one of two equal inputs goes for nearly nothing, whatever the weights."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 3))
    twins = np.concatenate([rows, rows], axis=1)
    one = QuadraticMap(rng.standard_normal((2, 6)), damped(twins.T @ twins / 50, 1e-8), single_inputs(6))
    found = Refit().solve(RefitProblem((one,), 3))
    assert sorted((np.flatnonzero(found.selection) % 3).tolist()) == [0, 1, 2]
    assert found.error < 1e-6 * RefitProblem((one,), 3).total()
