"""Elimination of groups of inputs: exact losses, nested orders, and the least squares that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.elimination import QuadraticMap, eliminate


def problem(size: int, each: int, outputs: int, seed: int = 0, others: int = 0) -> QuadraticMap:
    """A random map with ``size`` groups of ``each`` inputs, scattered, and ``others`` inputs that always stay."""
    rng = np.random.default_rng(seed)
    inputs = size * each + others
    rows = rng.standard_normal((3 * inputs, inputs)) @ rng.standard_normal((inputs, inputs))
    places = rng.permutation(inputs)[: size * each].reshape(size, each)
    return QuadraticMap(rng.standard_normal((outputs, inputs)), rows.T @ rows / len(rows), places)


def constrained(one: QuadraticMap, removed: np.ndarray) -> float:
    """Least 1/2 tr (V - W) H (V - W)' over matrices V without the inputs of the removed groups, by normal equations."""
    gone = one.groups[removed].ravel()
    stay = np.setdiff1d(np.arange(one.weight.shape[1]), gone)
    best = np.zeros_like(one.weight)
    target = one.weight @ one.moment[:, stay]
    best[:, stay] = np.linalg.solve(one.moment[np.ix_(stay, stay)], target.T).T
    change = best - one.weight
    return 0.5 * float(np.trace(change @ one.moment @ change.T))


@pytest.mark.parametrize(
    ("size", "each", "outputs", "others"), [(12, 1, 5, 0), (6, 3, 4, 0), (5, 2, 40, 3), (1, 4, 2, 1)]
)
def test_the_loss_of_each_width_is_the_constrained_minimum(size: int, each: int, outputs: int, others: int) -> None:
    """After any number of removals the accumulated loss is that of the best map without the removed groups."""
    one = problem(size, each, outputs, others=others)
    found = eliminate([one])
    for width in range(size + 1):
        assert found.loss[width] == pytest.approx(constrained(one, found.order[width:]), rel=1e-8, abs=1e-10)


def test_a_group_costs_less_and_more_than_its_weights() -> None:
    """On a 12-d quadratic the rise is the loss at the updated weights; sums of single scores and scores without update
    are other numbers."""
    one = problem(4, 3, 1, seed=3)
    found = eliminate([one])
    group = one.groups[found.order[-1]]
    inverse, weight = np.linalg.inv(one.moment), one.weight[0]
    step = -inverse[:, group] @ np.linalg.solve(inverse[np.ix_(group, group)], weight[group])
    assert np.abs((weight + step)[group]).max() < 1e-12
    rise = 0.5 * float(step @ one.moment @ step)
    assert found.loss[3] == pytest.approx(rise, rel=1e-9)
    singles = float(sum(weight[i] ** 2 / inverse[i, i] for i in group) / 2)
    still = 0.5 * float(weight[group] @ one.moment[np.ix_(group, group)] @ weight[group])
    assert abs(singles / rise - 1) > 0.05
    assert still > 1.05 * rise
    best = min(constrained(one, np.array([other])) for other in range(4))
    assert found.loss[3] == pytest.approx(best, rel=1e-9)


def test_orders_are_nested_and_losses_fall_with_the_width() -> None:
    """The order is a permutation, the loss never rises with the width, and nothing is lost at the whole width."""
    found = eliminate([problem(9, 2, 3)])
    assert sorted(found.order.tolist()) == list(range(9))
    assert (np.diff(found.loss) <= 1e-12).all()
    assert found.loss[-1] == 0


def test_several_maps_decide_together() -> None:
    """A structure that feeds two maps costs what both lose."""
    first, second = problem(6, 2, 3, seed=1), problem(6, 1, 4, seed=2, others=2)
    found = eliminate([first, second])
    for width in range(7):
        both = constrained(first, found.order[width:]) + constrained(second, found.order[width:])
        assert found.loss[width] == pytest.approx(both, rel=1e-8, abs=1e-10)


def test_inputs_that_nothing_reads_cost_nothing() -> None:
    """Groups with zero weights and no correlation go first, for free."""
    one = problem(8, 1, 3)
    weight, moment = one.weight.copy(), np.diag(np.diag(one.moment))
    weight[:, one.groups[[2, 5]]] = 0
    found = eliminate([QuadraticMap(weight, moment, one.groups)])
    assert set(found.order[-2:].tolist()) == {2, 5}
    assert found.loss[6] == 0


def test_many_structures_go_several_at_once_and_exactly() -> None:
    """Above twice ``exact_below`` structures several go in one step; the losses at the ends of steps are exact."""
    one = problem(40, 1, 6)
    found = eliminate([one], exact_below=8)
    assert sorted(found.order.tolist()) == list(range(40))
    assert (np.diff(found.loss) <= 1e-12).all()
    width = 40
    while width:
        width -= max(1, width // 8)
        assert found.loss[width] == pytest.approx(constrained(one, found.order[width:]), rel=1e-8)


def test_the_maps_stay_as_they_were() -> None:
    """Arguments are not written to, and equal arguments give equal answers."""
    one = problem(6, 2, 3)
    weight, moment = one.weight.copy(), one.moment.copy()
    first, second = eliminate([one]), eliminate([one])
    assert np.array_equal(one.weight, weight)
    assert np.array_equal(one.moment, moment)
    assert np.array_equal(first.order, second.order)
    assert np.array_equal(first.loss, second.loss)


def test_a_singular_moment_is_refused() -> None:
    """Without damping a moment may be singular; the error says what to add."""
    one = problem(3, 1, 2)
    with pytest.raises(ValueError, match="Expected a positive definite second moment.*Add damping"):
        eliminate([QuadraticMap(one.weight, np.zeros((3, 3)), one.groups)])


def test_maps_over_other_structures_are_refused() -> None:
    """Maps that are eliminated together have the same structures."""
    with pytest.raises(ValueError, match=r"Expected maps over the same structures. Got \[3, 4\]"):
        eliminate([problem(3, 1, 2), problem(4, 1, 2)])
