"""Group OMP and its closed-form oracle from moments: identities, planted supports, batches, the backward variant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solvers.group_omp import GroupBackward, GroupOMP
from solvers.least_squares import LeastSquares
from solvers.moment_least_squares import MomentLeastSquares, MomentMap, group_norms, shared_inputs
from solvers.oracle import State

GROUPS, EACH, OUTPUTS = 12, 3, 5


def planted(seed: int, noise: float = 1e-2, keep: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Correlated inputs, targets made of ``keep`` groups of them: inputs, targets, places and support."""
    rng = np.random.default_rng(seed)
    columns = GROUPS * EACH
    mixing = np.eye(columns) + 0.3 * rng.standard_normal((columns, columns)) / math.sqrt(EACH)
    inputs = rng.standard_normal((400, columns)) @ mixing
    support = np.zeros(GROUPS, dtype=bool)
    support[rng.choice(GROUPS, keep, replace=False)] = True
    places = rng.permutation(columns).reshape(GROUPS, EACH)
    weights = np.zeros((columns, OUTPUTS))
    weights[places[support].ravel()] = rng.standard_normal((keep * EACH, OUTPUTS))
    return inputs, inputs @ weights + noise * rng.standard_normal((400, OUTPUTS)), places, support


def from_moments(inputs: np.ndarray, targets: np.ndarray, places: np.ndarray) -> MomentLeastSquares:
    """The oracle that sees nothing but moments."""
    owner = np.zeros(inputs.shape[1], dtype=np.int64)
    for group, columns in enumerate(places):
        owner[columns] = group
    whole = np.tile(owner, (targets.shape[1], 1))
    one = MomentMap(inputs.T @ inputs, inputs.T @ targets, float((targets**2).sum()), whole)
    return MomentLeastSquares([one], len(places))


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_recovered(seed: int) -> None:
    """Four of twelve groups made the targets, and these four are found."""
    inputs, targets, places, support = planted(seed)
    path = GroupOMP(4).solve(from_moments(inputs, targets, places))
    assert np.array_equal(path.result.selection, support)
    assert sorted(path.order.tolist()) == np.flatnonzero(support).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_moments_say_what_the_examples_say(seed: int) -> None:
    """Losses, values and the whole path are those of the oracle that holds all examples."""
    inputs, targets, places, _ = planted(seed, noise=1.0)
    examples, moments = LeastSquares(inputs, targets, places), from_moments(inputs, targets, places)
    first, second = GroupOMP(7).solve(examples), GroupOMP(7).solve(moments)
    assert first.order.tolist() == second.order.tolist()
    assert np.allclose(first.losses, second.losses, rtol=1e-9)
    kept = first.result.selection
    assert np.allclose(examples.values(kept)[~kept], moments.values(kept)[~kept], rtol=1e-6)


def test_the_residual_is_orthogonal_to_every_selected_group_after_each_fit() -> None:
    """To 1e-8 of the first gradient."""
    inputs, targets, places, _ = planted(0, noise=1.0)
    oracle = from_moments(inputs, targets, places)
    seen: list[float] = []

    def look(state: State) -> None:
        gradient = oracle.maps[0].gradient(oracle.weights[0])
        inside = oracle.maps[0].support(state.kept)
        seen.append(float(np.abs(gradient[inside]).max() / np.abs(oracle.maps[0].cross).max()))

    GroupOMP(8).solve(oracle, progress=look)
    assert len(seen) == 8
    assert max(seen) < 1e-8


def test_rows_may_have_supports_of_their_own() -> None:
    """Structures that are single entries of a weight are fitted row by row, each on its own support."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((50, 4)), rng.standard_normal((50, 2))
    owner = np.arange(8).reshape(2, 4)
    one = MomentMap(inputs.T @ inputs, inputs.T @ targets, float((targets**2).sum()), owner)
    kept = np.array([1, 1, 0, 0, 0, 1, 0, 1], dtype=bool)
    found = one.fitted(kept)
    for row in range(2):
        inside = np.flatnonzero(kept[owner[row]])
        expected = np.linalg.lstsq(inputs[:, inside], targets[:, row], rcond=None)[0]
        assert np.allclose(found[row, inside], expected)
        assert not found[row, ~kept[owner[row]]].any()


def test_entries_without_owner_always_stay() -> None:
    """With nothing kept, the weight is still fitted where no structure owns it."""
    inputs, targets, places, _ = planted(0)
    oracle = from_moments(inputs, targets, places)
    owner = oracle.maps[0].owner.copy()
    owner[:, 0] = -1
    one = MomentMap(oracle.maps[0].moment, oracle.maps[0].cross, oracle.maps[0].energy, owner)
    found = one.fitted(np.zeros(GROUPS, dtype=bool))
    assert np.allclose(found[:, 0], inputs[:, 0] @ targets / (inputs[:, 0] @ inputs[:, 0]))
    assert not found[:, 1:].any()


def test_entries_that_are_gone_stay_gone() -> None:
    """An owner one past the last structure is kept by no selection, and its gradient counts for none."""
    one = MomentMap(np.eye(3), np.ones((3, 1)), 3.0, np.array([[0, 1, 2]]))
    assert one.fitted(np.ones(2, dtype=bool)).tolist() == [[1.0, 1.0, 0.0]]
    assert group_norms([np.full((1, 3), 2.0)], [one.owner], 2, by_output=False).tolist() == [2.0, 2.0]


def test_a_singular_moment_gives_the_solution_of_least_norm() -> None:
    """Two equal inputs share the weight of one."""
    one = MomentMap(np.ones((2, 2)), np.ones((2, 1)), 1.0, np.array([[0, 1]]))
    assert np.allclose(one.fitted(np.ones(2, dtype=bool)), 0.5)
    assert np.allclose(one.fitted(np.array([True, False])), [[1.0, 0.0]])


def test_the_two_norms_of_a_gradient() -> None:
    """Frobenius norm over the structure against the sum of its norms output by output."""
    gradient, owner = np.array([[3.0, 4.0, 1.0], [0.0, 12.0, 2.0]]), np.array([[0, 0, -1], [0, 0, 1]])
    assert np.allclose(group_norms([gradient], [owner], 2, by_output=False), [13.0, 2.0])
    assert np.allclose(group_norms([gradient], [owner], 2, by_output=True), [17.0, 2.0])


def test_the_losses_of_several_maps_add_up() -> None:
    """An axis that two maps consume is valued by both; scale weighs them."""
    inputs, targets, places, _ = planted(1, noise=1.0)
    one = from_moments(inputs, targets, places).maps[0]
    twice = MomentMap(one.moment, one.cross, one.energy, one.owner, scale=2.0)
    single, both = MomentLeastSquares([one], GROUPS), MomentLeastSquares([one, twice], GROUPS)
    kept = np.arange(GROUPS) < 3
    assert both.fit(kept) == pytest.approx(3 * single.fit(kept))
    assert np.allclose(both.values(kept)[3:], math.sqrt(5) * single.values(kept)[3:])


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_of_unrelated_groups_lose_nothing() -> None:
    """Where the inputs are orthogonal, a batch picks what one at a time would pick, in the same order."""
    rng = np.random.default_rng(0)
    inputs = np.linalg.qr(rng.standard_normal((60, GROUPS * EACH)))[0]
    targets = rng.standard_normal((60, OUTPUTS))
    oracle = from_moments(inputs, targets, np.arange(GROUPS * EACH).reshape(GROUPS, EACH))
    one, many = GroupOMP(8).solve(oracle), GroupOMP(8, batch=4).solve(oracle)
    assert one.order.tolist() == many.order.tolist()
    assert one.losses[-1] == pytest.approx(many.losses[-1])


def test_the_weakness_is_the_least_gain_of_a_batch_over_its_largest() -> None:
    """It is one without batches, and what the gains at the batch's beginning say with them."""
    inputs, targets, places, _ = planted(2, noise=1.0)
    oracle = from_moments(inputs, targets, places)
    assert GroupOMP(6).solve(oracle).weakness == 1.0
    oracle.fit(np.zeros(GROUPS, dtype=bool))
    gains = np.sort(oracle.values(np.zeros(GROUPS, dtype=bool)))[::-1]
    path = GroupOMP(3, batch=3).solve(oracle)
    assert path.weakness == pytest.approx(gains[2] / gains[0])
    assert 0 < path.weakness < 1


def test_a_batch_fits_fewer_times() -> None:
    """Ten structures in batches of four take three fits after the first one."""
    inputs, targets, places, _ = planted(0)
    path = GroupOMP(10, batch=4).solve(from_moments(inputs, targets, places))
    assert path.widths.tolist() == [0, 4, 8, 10]


def test_the_path_stops_when_a_step_gains_too_little() -> None:
    """Only noise is left after the planted groups, so that a tolerance ends the path one step later."""
    inputs, targets, places, support = planted(3)
    path = GroupOMP(GROUPS, tolerance=1e-3).solve(from_moments(inputs, targets, places))
    assert len(path.order) == int(support.sum()) + 1
    assert set(path.order[:4].tolist()) == set(np.flatnonzero(support).tolist())


def test_losses_are_known_at_every_width() -> None:
    """Exact at the visited widths, linear between them, flat beyond."""
    inputs, targets, places, _ = planted(0, noise=1.0)
    path = GroupOMP(8, batch=4).solve(from_moments(inputs, targets, places))
    curve = path.loss_at(GROUPS)
    assert curve.shape == (GROUPS + 1,)
    assert curve[[0, 4, 8]].tolist() == path.losses.tolist()
    assert curve[2] == pytest.approx((path.losses[0] + path.losses[1]) / 2)
    assert curve[12] == path.losses[2]


# --- backward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_backward_drops_what_is_worth_least(batch: int) -> None:
    """By the norms of fitted weights, the groups that made nothing go first."""
    inputs, targets, places, support = planted(4)
    path = GroupBackward(4, batch=batch).solve(from_moments(inputs, targets, places))
    assert np.array_equal(path.result.selection, support)
    assert path.widths[0] == GROUPS
    assert path.widths[-1] == 4
    assert sorted(path.order.tolist()) == list(range(GROUPS))
    assert set(path.order[:4].tolist()) == set(np.flatnonzero(support).tolist())


def test_backward_may_keep_everything() -> None:
    """Then nothing is dropped."""
    inputs, targets, places, _ = planted(4)
    path = GroupBackward(GROUPS).solve(from_moments(inputs, targets, places))
    assert path.result.selection.all()
    assert sorted(path.order.tolist()) == list(range(GROUPS))


@pytest.mark.parametrize("settings", [(-1, 1), (3, 0)])
def test_numbers_out_of_range_are_refused(settings: tuple[int, int]) -> None:
    """Neither negative widths nor empty batches."""
    for kind in (GroupOMP, GroupBackward):
        with pytest.raises(ValueError, match="Expected keep"):
            kind(*settings)


def test_moments_that_do_not_fit_are_refused() -> None:
    """Shapes and finite numbers are checked where they enter."""
    with pytest.raises(ValueError, match="Expected moment"):
        MomentMap(np.eye(3), np.zeros((2, 1)), 0.0, np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="finite"):
        MomentMap(np.full((1, 1), np.nan), np.zeros((1, 1)), 0.0, np.zeros((1, 1), dtype=np.int64))


# --- inputs that all outputs share --------------------------------------------------------------------------------


def test_shared_inputs_are_the_same_problem() -> None:
    """Losses of all selections agree but for what even all groups lose; entries that are gone or stay stay so."""
    (one,) = from_moments(*planted(1, noise=1.0)[:3]).maps
    row = np.arange(GROUPS * EACH) % GROUPS
    row[-GROUPS:] = GROUPS  # gone, but for one that stays
    row[-1] = -1
    owner, cross = np.tile(row, (OUTPUTS, 1)), one.cross.copy()
    owner[2], cross[:, 2] = GROUPS, 0.0  # an output that nobody asks for
    changed = MomentMap(one.moment, cross, one.energy, owner, scale=3.0)
    problem = shared_inputs([changed], GROUPS, 4)
    assert problem is not None
    moments = MomentLeastSquares([changed], GROUPS)
    everything = moments.fit(np.ones(GROUPS, dtype=bool))
    rng = np.random.default_rng(0)
    for _ in range(10):
        kept = rng.random(GROUPS) < 0.5
        assert problem.lost(kept) == pytest.approx(moments.fit(kept) - everything, rel=1e-6)


def test_inputs_that_outputs_do_not_share_are_no_such_problem() -> None:
    """Rows with owners of their own, groups of several sizes, and a map that a group has nothing of."""
    for owner in ([[0, 1, 2], [1, 0, 2]], [[0, 0, 1], [0, 0, 1]], [[0, 0, -1], [0, 0, -1]]):
        one = MomentMap(np.eye(3), np.ones((3, 2)), 3.0, np.array(owner))
        assert shared_inputs([one], 3 if owner[0] == [0, 1, 2] else 2, 1) is None
