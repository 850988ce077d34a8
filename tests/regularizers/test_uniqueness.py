"""The uniqueness theorem of SequentialAttention++ (arXiv 2402.17902, Theorem 1.1), and what lies outside it.

For a strictly convex loss, and q strictly increasing and subadditive with q(0) = 0: if the group lasso has a unique
minimiser with at most one group, it is the unique minimiser of ``loss + lam q^-1(sum q(||u_i||))`` too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.regularizers import ExpGatePenalty, GroupLq, LogSum, SeparableRegularizer, SquaredGroupL23

GROUPS, EACH = 3, 2
SUBADDITIVE: list[SeparableRegularizer] = [GroupLq(1.0, 1 / 2), GroupLq(1.0, 2 / 3), LogSum(1.0, epsilon=0.5)]
Objective = Callable[[np.ndarray], float]


def q(regularizer: SeparableRegularizer, norms: np.ndarray) -> np.ndarray:
    """The penalty of each norm."""
    return regularizer.penalty(torch.from_numpy(np.asarray(norms, dtype=np.float64))).numpy()


def joined(regularizer: SeparableRegularizer, norms: np.ndarray) -> float:
    """q^-1(sum q(norms)), in closed form where there is one and else by root finding."""
    total = float(q(regularizer, norms).sum())
    if total == 0:
        return 0.0
    if isinstance(regularizer, GroupLq):
        return float((total / regularizer.strength) ** (1 / regularizer.q))
    if isinstance(regularizer, LogSum):
        return float(regularizer.epsilon * np.expm1(total / regularizer.strength))
    high = 1.0
    while float(q(regularizer, np.array([high]))[0]) < total:
        high *= 2
    return float(scipy.optimize.brentq(lambda a: float(q(regularizer, np.array([a]))[0]) - total, 0, high, xtol=1e-14))


def problem(seed: int) -> tuple[Objective, np.ndarray, float, int]:
    """A strictly convex quadratic, the lasso's minimiser just below its critical strength, that strength, its group."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(12, GROUPS * EACH))
    targets = rng.normal(size=12) + inputs @ rng.normal(size=GROUPS * EACH)
    pull = np.linalg.norm((inputs.T @ targets).reshape(GROUPS, EACH), axis=1)
    lam, chosen = 0.97 * float(pull.max()), int(pull.argmax())

    def loss(beta: np.ndarray) -> float:
        return 0.5 * float(((targets - inputs @ beta) ** 2).sum())

    columns = slice(chosen * EACH, (chosen + 1) * EACH)
    moment, cross = inputs[:, columns].T @ inputs[:, columns], inputs[:, columns].T @ targets
    # On one group, beta = (M + lam / ||beta|| I)^-1 X'y: a scalar equation in ||beta||.
    size = scipy.optimize.brentq(
        lambda a: float(np.linalg.norm(np.linalg.solve(moment + lam / a * np.eye(EACH), cross))) / a - 1, 1e-9, 1e6
    )
    beta = np.zeros(GROUPS * EACH)
    beta[columns] = np.linalg.solve(moment + lam / size * np.eye(EACH), cross)
    residual = (inputs.T @ (targets - inputs @ beta)).reshape(GROUPS, EACH)
    others = np.delete(np.linalg.norm(residual, axis=1), chosen)
    assert others.max() < lam, "the lasso keeps one group: the optimality conditions of the others hold strictly"
    return loss, beta, lam, chosen


def norms_of(beta: np.ndarray) -> np.ndarray:
    """Norm of each group."""
    return np.linalg.norm(beta.reshape(GROUPS, EACH), axis=1)


def best_of_many(objective: Objective, seed: int, starts: int = 12) -> tuple[np.ndarray, float]:
    """The lowest of local searches from random points of many sizes."""
    rng = np.random.default_rng(seed)
    best, value = np.zeros(GROUPS * EACH), objective(np.zeros(GROUPS * EACH))
    for _ in range(starts):
        start = rng.normal(size=GROUPS * EACH) * 10.0 ** rng.uniform(-2, 0.5)
        found = scipy.optimize.minimize(objective, start, method="Powell", options={"xtol": 1e-9, "ftol": 1e-13})
        if found.fun < value:
            best, value = found.x, float(found.fun)
    return best, value


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(SUBADDITIVE))
def test_subadditive_penalties_lie_above_the_lasso(seed: int, regularizer: SeparableRegularizer) -> None:
    """sum ||u_i|| <= q^-1(sum q(||u_i||)), with equality for one group: the theorem's whole proof."""
    norms = np.random.default_rng(seed).uniform(0.01, 5, 4)
    assert joined(regularizer, norms) > norms.sum()
    assert joined(regularizer, np.array([norms[0], 0, 0, 0])) == pytest.approx(norms[0], rel=1e-9)


@pytest.mark.parametrize("regularizer", SUBADDITIVE, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_the_minimiser_is_the_lassos_one_group(seed: int, regularizer: SeparableRegularizer) -> None:
    """Searches from everywhere find nothing below it, and none that is as low elsewhere."""
    loss, beta, lam, chosen = problem(seed)

    def objective(point: np.ndarray) -> float:
        return loss(point) + lam * joined(regularizer, norms_of(point))

    at_lasso = objective(beta)
    assert at_lasso == pytest.approx(loss(beta) + lam * float(norms_of(beta).sum()), rel=1e-9)
    found, value = best_of_many(objective, seed)
    assert value >= at_lasso - 1e-7 * at_lasso
    if value <= at_lasso + 1e-7 * at_lasso:
        np.testing.assert_allclose(found, beta, atol=2e-3)
    # Unique along every segment to another point, group-sparse or not.
    rng = np.random.default_rng(seed)
    for _ in range(200):
        direction = rng.normal(size=GROUPS * EACH) * 10.0 ** rng.uniform(-3, 0)
        direction[rng.random(GROUPS * EACH) < 0.3] = 0
        if np.abs(direction).max() > 1e-4:
            assert objective(beta + direction) > at_lasso
    assert np.flatnonzero(norms_of(beta)).tolist() == [chosen]


def test_the_quasi_norm_of_attention_is_covered() -> None:
    """(sum ||u||^(2/3))^(3/2) is q^-1(sum q) for q(a) = a^(2/3); the penalty of attention is its square / n^2."""
    norms = np.array([0.3, 1.0, 2.0])
    squared = float(SquaredGroupL23(1.0).value(torch.from_numpy(norms)))
    assert squared == pytest.approx(joined(GroupLq(1.0, 2 / 3), norms) ** 2 / 9, rel=1e-10)


# --- outside the theorem: exponential gates with a squared decay of the logits (Lemma 2.1) ---------------------------


def test_the_exp_gates_penalty_is_not_subadditive() -> None:
    """Two equal norms below 1.939 / 2 each cost less apart than together: q(2 a) > 2 q(a) for a < 1.939."""
    penalty = ExpGatePenalty(1.0)
    a = np.linspace(0.01, 1.93, 200)
    assert np.all(q(penalty, 2 * a) > 2 * q(penalty, a))
    assert np.all(q(penalty, 2 * (a + 1.94)) < 2 * q(penalty, a + 1.94))
    assert joined(penalty, np.array([0.5, 0.5])) < 1.0


def test_the_exp_gates_penalty_is_a_ridge_near_zero() -> None:
    """q(a) / a^2 tends to 1; q is convex up to 1.166 and concave beyond."""
    penalty = ExpGatePenalty(1.0)
    assert float(q(penalty, np.array([1e-4]))[0]) / 1e-8 == pytest.approx(1.0, abs=1e-6)
    a = np.linspace(0.01, 4, 400)
    bends = np.diff(q(penalty, a), 2)
    assert np.all(bends[a[1:-1] < 1.15] > 0)
    assert np.all(bends[a[1:-1] > 1.18] < 0)


@pytest.mark.parametrize(("logit_decay", "turn"), [(1.0, 2.718), (0.1, 0.860), (0.01, 0.272), (1e-4, 0.0272)])
def test_a_small_decay_of_logits_lowers_where_it_favours_few(logit_decay: float, turn: float) -> None:
    """q(a) / a falls only beyond e sqrt(logit_decay)."""
    a = turn * np.array([0.5, 0.9, 0.99, 1.02, 1.1, 2.0])
    rates = q(ExpGatePenalty(1.0, logit_decay), a) / a
    assert np.all(np.diff(rates[:3]) > 0)
    assert np.all(np.diff(rates[3:]) < 0)


def test_the_exp_gates_minimiser_is_not_the_lassos() -> None:
    """Two orthogonal groups: the lasso keeps one, exponential gates keep both, so the theorem's conclusion fails."""
    pull, lam = np.array([1.0, 0.6]), 0.7
    assert np.maximum(pull - lam, 0).tolist() == pytest.approx([0.3, 0.0])

    def least(regularizer: SeparableRegularizer) -> np.ndarray:
        lines = np.linspace(0, 0.6, 25)
        points = np.stack(np.meshgrid(lines, lines, indexing="ij"), axis=-1).reshape(-1, 2)
        costs = [0.5 * float(((point - pull) ** 2).sum()) + lam * joined(regularizer, point) for point in points]
        return points[int(np.argmin(costs))]

    assert least(GroupLq(1.0, 2 / 3)).tolist() == pytest.approx([0.3, 0.0], abs=1e-9)
    assert np.all(least(ExpGatePenalty(1.0)) > 0.1)
