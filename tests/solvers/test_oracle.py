"""Oracle loops over least squares: identities of group OMP, schedules, exchanges, and going on from a state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.least_squares import ExactGains, LeastSquares
from solvers.oracle import EvenlyPerPart, OracleResult, State, run, top
from solvers.oracle_loops import (
    GreedyByGains,
    SequentialSelection,
    SwapSelection,
    dense_and_sparse,
    one_at_a_time,
)
from solvers.result import Limit, TerminationReason


def planted(
    seed: int, groups: int = 12, each: int = 3, keep: int = 4, noise: float = 1e-2, exact: bool = False
) -> tuple[LeastSquares, np.ndarray]:
    """Correlated inputs, targets made of ``keep`` groups; the oracle and the planted selection."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(groups * each) + 0.3 * rng.standard_normal((groups * each, groups * each)) / math.sqrt(each)
    inputs = rng.standard_normal((400, groups * each)) @ mixing
    support = np.zeros(groups, dtype=bool)
    support[rng.choice(groups, keep, replace=False)] = True
    places = rng.permutation(groups * each).reshape(groups, each)
    weights = np.zeros((groups * each, 5))
    weights[places[support].ravel()] = rng.standard_normal((keep * each, 5))
    targets = inputs @ weights + noise * rng.standard_normal((400, 5))
    return (ExactGains if exact else LeastSquares)(inputs, targets, places), support


def noisy(seed: int, groups: int = 8, ridge: float = 0.1, exact: bool = False) -> LeastSquares:
    """Targets that no few groups explain."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((40, 2 * groups)) @ rng.standard_normal((2 * groups, 2 * groups))
    targets = rng.standard_normal((40, 3)) + inputs[:, :4] @ rng.standard_normal((4, 3))
    places = rng.permutation(2 * groups).reshape(groups, 2)
    return (ExactGains if exact else LeastSquares)(inputs, targets, places, ridge)


def losses_by_subset(oracle: LeastSquares, keep: int) -> dict[tuple[int, ...], float]:
    """Loss of every subset of ``keep`` groups."""
    found = {}
    for subset in itertools.combinations(range(oracle.size), keep):
        found[subset] = oracle.fit(np.isin(np.arange(oracle.size), subset))
    return found


# --- group orthogonal matching pursuit -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_planted_support_is_recovered(seed: int) -> None:
    """Greedy by gradients finds the groups that made the targets, and the loss is that of the noise."""
    oracle, support = planted(seed)
    result = GreedyByGains(int(support.sum())).solve(oracle)
    assert np.array_equal(result.selection, support)
    assert result.loss == pytest.approx(0.5 * 400 * 5 * 1e-4, rel=0.2)
    assert result.termination.reason is TerminationReason.HEURISTIC


def test_the_residual_is_orthogonal_to_every_selected_group() -> None:
    """After each fit, to 1e-8 relative to the targets: what makes matching pursuit orthogonal."""
    oracle, _ = planted(0, noise=1.0)
    seen: list[float] = []

    def look(state: State) -> None:
        products = oracle.inputs[:, oracle.groups[state.kept].ravel()].T @ oracle.residual
        seen.append(float(np.abs(products).max()) / float(np.abs(oracle.inputs.T @ oracle.targets).max()))

    GreedyByGains(8).solve(oracle, progress=look)
    assert len(seen) == 8
    assert max(seen) < 1e-8


def test_no_group_is_selected_twice_and_the_loss_falls() -> None:
    """A selected group's gradient is zero; every step keeps one more and loses nothing."""
    oracle, _ = planted(1, noise=1.0)
    counts: list[int] = []
    result = GreedyByGains(12).solve(oracle, progress=lambda state: counts.append(int(state.kept.sum())))
    assert counts == list(range(1, 13))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(result.state.losses))


def test_it_is_the_plain_algorithm() -> None:
    """Equal to OMP written out: gradient norms of the residual, argmax, normal equations."""
    oracle, _ = planted(2, noise=0.5)
    kept: list[int] = []
    residual = oracle.targets
    for _ in range(6):
        norms = [np.linalg.norm(oracle.inputs[:, group].T @ residual) for group in oracle.groups]
        kept.append(int(np.argmax(np.where(np.isin(np.arange(12), kept), -1.0, norms))))
        columns = oracle.groups[kept].ravel()
        rows = oracle.inputs[:, columns]
        residual = oracle.targets - rows @ np.linalg.solve(rows.T @ rows, rows.T @ oracle.targets)
    selection = GreedyByGains(6).solve(oracle).selection
    assert sorted(kept) == np.flatnonzero(selection).tolist()


# --- the oracle's values ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 255), st.sampled_from([0.0, 0.1, 10.0]))
def test_exact_gains_are_differences_of_fitted_losses(seed: int, code: int, ridge: float) -> None:
    """Adding gains and dropping loses just what is valued, refit of all rows included."""
    oracle = noisy(seed, ridge=ridge, exact=True)
    kept = np.array([bool(code >> g & 1) for g in range(8)])
    loss = oracle.fit(kept)
    values = oracle.values(kept)
    for g in range(8):
        other = kept.copy()
        other[g] = not kept[g]
        assert values[g] == pytest.approx(abs(oracle.fit(other) - loss), rel=1e-6, abs=1e-8 * loss)


def test_repeated_columns_gain_nothing_twice() -> None:
    """Rank-deficient inputs: once a column is kept, its copy is worth nothing, and fits stay finite."""
    rng = np.random.default_rng(0)
    column = rng.standard_normal((30, 1))
    inputs = np.hstack([column, column, rng.standard_normal((30, 1))])
    targets = column @ rng.standard_normal((1, 2))
    for kind in (LeastSquares, ExactGains):
        oracle = kind(inputs, targets, np.arange(3)[:, None])
        loss = oracle.fit(np.array([True, False, False]))
        assert loss == pytest.approx(0.0, abs=1e-20)
        assert oracle.values(np.array([True, False, False]))[1] == pytest.approx(0.0, abs=1e-10)
        assert oracle.fit(np.array([True, True, False])) == pytest.approx(0.0, abs=1e-20)


# --- greedy with costs -----------------------------------------------------------------------------------------------


def test_costs_are_never_exceeded_and_used_while_something_fits() -> None:
    """Gains per cost, within the limit, several at a time."""
    oracle, _ = planted(3, noise=1.0)
    costs = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
    for per_step in (1, 3):
        kept = GreedyByGains(17, costs, per_step).solve(oracle).selection
        assert costs[kept].sum() <= 17
        assert np.all(costs[~kept] > 17 - costs[kept].sum())


def test_what_costs_nothing_is_always_kept() -> None:
    """Free structures fit whatever the limit."""
    oracle, _ = planted(3)
    costs = np.array([0, 1] * 6)
    assert GreedyByGains(0, costs).solve(oracle).selection.tolist() == [True, False] * 6


def test_a_tolerance_ends_the_greedy_loop() -> None:
    """Beyond the planted groups a step gains little: the loop stops one step later."""
    oracle, support = planted(4, noise=1e-3)
    kept = GreedyByGains(12, tolerance=1e-3).solve(oracle).selection
    assert np.all(kept[support])
    assert kept.sum() == support.sum() + 1


# --- schedules -------------------------------------------------------------------------------------------------------


def test_the_schedule_of_sequential_attention_plus_plus() -> None:
    """Dense, then 64 / 88 / 97 / 100 % of the way down, then constant; repeated."""
    schedule = dense_and_sparse(1000, 0, cycles=2, dense=2, sparsify=4, sparse=1)
    half = schedule[: len(schedule) // 2]
    assert schedule == half * 2
    assert half[:2] == (1000, 1000)
    assert [round((1000 - count) / 10) for count in half[2:6]] == [64, 88, 97, 100]
    assert half[6:] == (0,)
    assert dense_and_sparse(10, 4, 1, 0, 3, 0, exponent=0.0) == (8, 6, 4)
    assert dense_and_sparse(10, 4, 2, 1, 0, 2) == (10, 4, 4) * 2


def test_falling_phases_are_nested_and_counts_exact() -> None:
    """Each step keeps the scheduled number; within a fall nothing comes back; dense steps keep all."""
    oracle, support = planted(5, noise=0.1)
    schedule = dense_and_sparse(12, 4, cycles=2, dense=1, sparsify=3, sparse=2)
    states: list[State] = []
    result = SequentialSelection(schedule).solve(oracle, progress=states.append)
    assert [int(state.kept.sum()) for state in states] == list(schedule)
    for before, after in itertools.pairwise(states):
        if after.kept.sum() <= before.kept.sum():
            assert not np.any(after.kept & ~before.kept)
    assert np.array_equal(result.selection, support)


def test_one_more_at_a_time_is_greedy() -> None:
    """From none, adding by gains: the same as the greedy loop."""
    oracle, _ = planted(6, noise=1.0)
    sequential = SequentialSelection(one_at_a_time(7), first=np.zeros(12, dtype=bool)).solve(oracle)
    assert np.array_equal(sequential.selection, GreedyByGains(7).solve(oracle).selection)
    assert one_at_a_time(7, 3) == (3, 6, 7)


def test_batches_select_as_many_as_asked() -> None:
    """50 structures, 2, 5, 10 and 25 at a time, end at exactly 50.

    The published code of Sequential Attention compares its step with the number of features already selected, so that
    it stops adding when the two meet: 26 of 50 at 2 a step, 10 at 5 and at 10, 25 at 25. The rest is then filled up
    with the features of the lowest index.
    """
    oracle = noisy(0, groups=60)
    for per_step in (2, 5, 10, 25, 7):
        assert GreedyByGains(50, per_step=per_step).solve(oracle).selection.sum() == 50
        schedule = one_at_a_time(50, per_step)
        kept = SequentialSelection(schedule, first=np.zeros(60, dtype=bool)).solve(oracle).selection
        assert kept.sum() == 50
        assert len(schedule) == math.ceil(50 / per_step)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_parts_keep_their_share(seed: int) -> None:
    """The count is exact, no part is off its share by more than one, and each keeps its best."""
    rng = np.random.default_rng(seed)
    parts = np.sort(rng.integers(0, 4, size=30))
    values, count = rng.standard_normal(30), int(rng.integers(0, 31))
    chosen = EvenlyPerPart(parts)(values, np.ones(30, dtype=bool), count)
    assert chosen.sum() == count
    for part in np.unique(parts):
        mine = parts == part
        share = int(chosen[mine].sum())
        assert abs(share - mine.sum() * count / 30) < 1.0 + 1e-9
        assert np.array_equal(chosen[mine], top(values, mine, share)[mine])


def test_ties_go_to_the_first() -> None:
    """Deterministic without randomness."""
    assert top(np.array([1.0, 2.0, 2.0, 2.0]), np.array([True, False, True, True]), 2).tolist() == [
        False,
        False,
        True,
        True,
    ]


# --- exchanges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_exchanges_reach_the_planted_support_from_anywhere(seed: int) -> None:
    """From the worst start: all wrong groups first."""
    oracle, support = planted(seed)
    first = np.zeros(12, dtype=bool)
    first[np.flatnonzero(~support)[:4]] = True
    result = SwapSelection(first).solve(oracle)
    assert np.array_equal(result.selection, support)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("noise", [1e-2, 1.0])
def test_exchanges_reach_the_brute_force_optimum_of_planted_quadratics(seed: int, noise: float) -> None:
    """Enter by gradient, leave by norm, accept if the loss falls: the best of all 495 subsets, from the worst start."""
    oracle, _ = planted(seed, noise=noise)
    losses = losses_by_subset(oracle, 4)
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    first = np.zeros(12, dtype=bool)
    first[list(worst)] = True
    result = SwapSelection(first, rounds=200, patience=30).solve(oracle)
    assert tuple(np.flatnonzero(result.selection)) == best
    assert result.loss == pytest.approx(losses[best], rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_more_groups_than_planted_reach_the_planted_loss(seed: int) -> None:
    """The guarantee's setting (arXiv 2402.17902, Theorem B.3): k' > k groups, each exchange taken, loss at most L(k).

    Without an accept test the loop ends where it happens to be; the best of its losses is what the theorem bounds.
    """
    oracle, support = planted(seed, noise=0.5)
    target = oracle.fit(support)
    first = np.zeros(12, dtype=bool)
    first[np.flatnonzero(~support)[:7]] = True
    result = SwapSelection(first, rounds=40, barred=0, accept=lambda before, after: True).solve(oracle)
    assert result.selection.sum() == 7
    assert min(result.state.losses) <= target


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_exchanges_within_parts_keep_the_number_of_each(seed: int, swaps: int) -> None:
    """Layers keep their budgets while their structures are exchanged, and the loss never rises."""
    oracle = noisy(seed)
    rng = np.random.default_rng(seed)
    parts, first = rng.integers(0, 3, size=8), rng.random(8) < 0.5
    states: list[State] = []
    loop = SwapSelection(first, rounds=12, swaps=swaps, barred=2, parts=parts)
    result = loop.solve(oracle, progress=states.append)
    for state in states:
        counts = np.bincount(parts[state.kept], minlength=3)
        assert counts.tolist() == np.bincount(parts[first], minlength=3).tolist()
    assert result.loss <= oracle.fit(first)


def test_one_part_is_exchanged_as_without_parts() -> None:
    """The same steps and losses."""
    oracle, _ = planted(7, noise=1.0)
    first = np.arange(12) < 4
    plain = SwapSelection(first, rounds=12, swaps=2).solve(oracle)
    whole = SwapSelection(first, rounds=12, swaps=2, parts=np.zeros(12, dtype=np.int64)).solve(oracle)
    assert same(plain, whole)


def test_a_full_part_has_nothing_to_exchange() -> None:
    """Parts that are kept whole or not at all leave the selection as it is, and the loop ends by patience."""
    oracle = noisy(3)
    parts = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    result = SwapSelection(parts == 0, patience=4, parts=parts).solve(oracle)
    assert np.array_equal(result.selection, parts == 0)
    assert result.state.step == 4


def test_exchanges_often_reach_the_enumerated_optimum() -> None:
    """Exact gains on 30 problems without planted support: optimal on two thirds, never above the greedy start."""
    optimal = 0
    for seed in range(30):
        oracle = noisy(seed, exact=True)
        start = GreedyByGains(3).solve(oracle)
        result = SwapSelection(start.selection, rounds=40, patience=40, barred=3).solve(oracle)
        best = min(losses_by_subset(oracle, 3).values())
        assert best - 1e-9 * abs(best) <= result.loss <= start.loss + 1e-9 * abs(start.loss)
        optimal += result.loss <= best * (1 + 1e-9)
    assert optimal >= 20


@pytest.mark.parametrize("swaps", [1, 3])
def test_the_loss_never_rises_and_the_number_stays(swaps: int) -> None:
    """Rejected exchanges are undone, the oracle fitted back."""
    oracle = noisy(11)
    first = np.array([True] * 4 + [False] * 4)
    states: list[State] = []
    result = SwapSelection(first, swaps=swaps).solve(oracle, progress=states.append)
    losses = [oracle.fit(first), *result.state.losses]
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert all(state.kept.sum() == 4 for state in states)
    assert oracle.fit(result.selection) == pytest.approx(result.loss, rel=1e-12)


def test_an_accept_test_of_ones_own_decides() -> None:
    """Accepting nothing leaves the start, accepting everything moves."""
    oracle = noisy(12)
    first = np.array([True] * 4 + [False] * 4)
    never = SwapSelection(first, accept=lambda before, after: False).solve(oracle)
    always = SwapSelection(first, rounds=3, accept=lambda before, after: True).solve(oracle)
    assert np.array_equal(never.selection, first)
    assert not np.array_equal(always.selection, first)


# --- states ----------------------------------------------------------------------------------------------------------


LOOPS = [
    GreedyByGains(6),
    SequentialSelection(dense_and_sparse(12, 4, 2, 1, 3, 1)),
    SwapSelection(np.arange(12) < 4, rounds=12),
]


def same(one: OracleResult, two: OracleResult) -> bool:
    """Whether two results agree in selection and losses."""
    return np.array_equal(one.selection, two.selection) and one.state.losses == two.state.losses


@pytest.mark.parametrize("loop", LOOPS, ids=["greedy", "sequential", "swap"])
@pytest.mark.parametrize("stop", [1, 3])
def test_going_on_equals_never_having_stopped(loop: GreedyByGains, stop: int) -> None:
    """From the state of any step, with the oracle fitted to it, as a restored checkpoint is."""
    oracle, _ = planted(7, noise=1.0)
    whole = loop.solve(oracle)
    part = loop.solve(oracle, progress=lambda state: state.step == stop)
    assert part.termination.limit is Limit.STOPPED
    assert part.state.step == stop
    fresh, _ = planted(7, noise=1.0)
    fresh.fit(part.state.kept)
    assert same(loop.solve(fresh, part.state), whole)


@pytest.mark.parametrize("loop", LOOPS, ids=["greedy", "sequential", "swap"])
def test_two_runs_are_equal_and_states_frozen(loop: GreedyByGains) -> None:
    """No randomness, and nobody can write to what was kept."""
    oracle, _ = planted(8, noise=1.0)
    first, second = loop.solve(oracle), loop.solve(oracle)
    assert same(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first.selection[0] = True


class Interrupted(LeastSquares):
    """Ctrl-C at the fourth fit."""

    fits = 0

    def fit(self, kept: np.ndarray) -> float:
        """Count, and interrupt."""
        self.fits += 1
        if self.fits == 4:
            raise KeyboardInterrupt
        return super().fit(kept)


def test_the_keyboard_and_the_clock_stop_between_steps() -> None:
    """With the last complete step."""
    source, _ = planted(9)
    result = GreedyByGains(6).solve(Interrupted(source.inputs, source.targets, source.groups))
    assert result.selection.sum() == 2
    assert result.termination.limit is Limit.STOPPED
    result = run(GreedyByGains(6), source, time_limit=0.0)
    assert result.selection.sum() <= 1
    assert result.termination.limit is Limit.TIME


# --- refusals --------------------------------------------------------------------------------------------------------


class Broken(LeastSquares):
    """Values of NaN."""

    def values(self, kept: np.ndarray) -> np.ndarray:
        """All NaN."""
        return np.full(self.size, np.nan)


def test_a_broken_oracle_is_named() -> None:
    """NaN values and losses do not select anything."""
    source, _ = planted(0)
    with pytest.raises(ValueError, match="without NaN from the oracle"):
        GreedyByGains(3).solve(Broken(source.inputs, source.targets, source.groups))
    with pytest.raises(ValueError, match="finite inputs"):
        LeastSquares(source.inputs * np.nan, source.targets, source.groups)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GreedyByGains(-1),
        lambda: GreedyByGains(3, per_step=0),
        lambda: GreedyByGains(3, costs=np.array([-1])),
        lambda: SequentialSelection(()),
        lambda: SequentialSelection((-1,)),
        lambda: SwapSelection(np.ones(3, dtype=bool), swaps=0),
        lambda: dense_and_sparse(3, 4, 1, 1, 1, 1),
        lambda: one_at_a_time(0),
        lambda: LeastSquares(np.ones((3, 2)), np.ones((4, 1)), [[0], [1]]),
        lambda: LeastSquares(np.ones((3, 2)), np.ones((3, 1)), [[0], [0]]),
        lambda: LeastSquares(np.ones((3, 2)), np.ones((3, 1)), [[0], [2]]),
        lambda: GreedyByGains(3, first=np.ones(2, dtype=bool)).solve(noisy(0)),
        lambda: GreedyByGains(3, costs=np.ones(2, dtype=np.int64)).solve(noisy(0)),
        lambda: SwapSelection(np.ones(2, dtype=bool)).solve(noisy(0)),
        lambda: SwapSelection(np.ones(3, dtype=bool), parts=np.array([0, -1, 0])),
        lambda: SwapSelection(np.ones(8, dtype=bool), parts=np.zeros(3, dtype=np.int64)).solve(noisy(0)),
        lambda: SequentialSelection((9,)).solve(noisy(0)),
    ],
)
def test_wrong_settings_are_refused(make: object) -> None:
    """Counts that mean nothing, shapes that do not match the oracle."""
    with pytest.raises(ValueError, match="Expected"):
        make()  # type: ignore[operator]
