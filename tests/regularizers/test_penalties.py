"""What distinguishes one penalty from another: limits, biases, thresholds, duals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.regularizers import (
    MCP,
    SCAD,
    ExpGatePenalty,
    GroupLasso,
    GroupLq,
    LogSum,
    SeparableRegularizer,
    SquaredGroupL23,
)
from structprune.regularizers.lq import largest_stationary_point
from structprune.regularizers.roots import increasing_root, lambert_w

NORMS = torch.logspace(-3, 3, 400, dtype=torch.float64)
LASSO = GroupLasso(0.7)


@pytest.mark.parametrize(
    "near",
    [GroupLq(0.7, 1 - 1e-9), MCP(0.7, gamma=1e12), SCAD(0.7, gamma=1e12), LogSum(0.7e9, epsilon=1e9)],
    ids=repr,
)
def test_limits_are_the_group_lasso(near: SeparableRegularizer) -> None:
    """q to 1, gamma and epsilon to infinity: value and proximal map go to those of the lasso."""
    for step in (0.01, 1.0, 30.0):
        torch.testing.assert_close(near.prox_norms(NORMS, step), LASSO.prox_norms(NORMS, step), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(near.penalty(NORMS), LASSO.penalty(NORMS), rtol=1e-5, atol=1e-8)


def test_a_power_of_one_is_the_group_lasso() -> None:
    """Also without a limit."""
    assert torch.equal(GroupLq(0.7, 1.0).prox_norms(NORMS, 0.3), LASSO.prox_norms(NORMS, 0.3))


@pytest.mark.parametrize("regularizer", [MCP(0.7), MCP(0.7, 0.5), SCAD(0.7), SCAD(0.7, 1.2)], ids=repr)
def test_large_norms_are_unbiased(regularizer: MCP | SCAD) -> None:
    """Where the penalty is constant nothing is shrunk; the lasso shrinks everything by the same amount."""
    for step in (0.1, 1.0, 5.0):
        far = NORMS[NORMS > 0.7 * (regularizer.gamma + step + 5)]
        assert torch.equal(regularizer.prox_norms(far, step), far)
        torch.testing.assert_close(far - LASSO.prox_norms(far, step), torch.full_like(far, 0.7 * step).minimum(far))


@pytest.mark.parametrize("q", [0.1, 1 / 3, 1 / 2, 2 / 3, 0.9])
def test_lq_jumps_at_its_threshold(q: float) -> None:
    """Zero up to the known threshold; just above, the norm is that at which the two minima cost the same."""
    t = 0.4
    least = (2 * t * (1 - q)) ** (1 / (2 - q))
    threshold = (2 - q) / (2 * (1 - q)) * least
    norms = torch.tensor([threshold * (1 - 1e-9), threshold * (1 + 1e-9)], dtype=torch.float64)
    found = GroupLq(t, q).prox_norms(norms, 1.0).tolist()
    assert found[0] == 0.0
    assert found[1] == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("q", [1 / 2, 2 / 3])
def test_closed_forms_are_newtons_roots(q: float) -> None:
    """Cosine and quartic agree with the iteration at a power next to theirs, over ten decades."""
    r = torch.logspace(-4, 6, 200, dtype=torch.float64)
    t = 0.3 * r.pow(2 - q) * torch.linspace(1e-9, 1, 200, dtype=torch.float64)
    x = largest_stationary_point(r, t, q)
    torch.testing.assert_close(x + t * q * x.pow(q - 1), r, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(x, largest_stationary_point(r, t, q + 1e-9), rtol=1e-7, atol=0.0)


@settings(max_examples=50)
@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_moreau_for_the_lasso(norm: float, step: float) -> None:
    """The one convex norm here: what the proximal map takes away is the projection on the dual ball."""
    norms = torch.tensor([norm], dtype=torch.float64)
    taken = norms - LASSO.prox_norms(norms, step)
    torch.testing.assert_close(taken, norms.clamp(max=0.7 * step), rtol=1e-9, atol=1e-9 * norm)


def test_the_exp_gate_never_gives_zeros() -> None:
    """It is a ridge near zero: small norms are scaled by 1 / (1 + 2 t), however large the step."""
    small = torch.tensor([1e-9, 1e-6, 1e-4], dtype=torch.float64)
    for step in (0.1, 1.0, 10.0):
        found = ExpGatePenalty(0.7).prox_norms(small, step)
        torch.testing.assert_close(found, small / (1 + 1.4 * step), rtol=1e-6, atol=0.0)


def test_the_exp_gate_jumps_between_two_minima() -> None:
    """For t above 10.55 there is a norm at which the answer leaps; below that the map is continuous."""
    norms = torch.linspace(0.01, 60, 3001, dtype=torch.float64)
    assert float(ExpGatePenalty(1.0).prox_norms(norms, 10.0).diff().max()) < 0.5
    assert float(ExpGatePenalty(1.0).prox_norms(norms, 40.0).diff().max()) > 2.0


def test_lambert_w_solves_its_equation() -> None:
    """From the smallest to the largest numbers, as scipy has it."""
    x = torch.cat([torch.zeros(1, dtype=torch.float64), torch.logspace(-300, 300, 1201, dtype=torch.float64)])
    wanted = torch.from_numpy(scipy.special.lambertw(x.numpy()).real)
    torch.testing.assert_close(lambert_w(x), wanted, rtol=4e-15, atol=0.0)


def test_roots_stay_in_their_brackets() -> None:
    """A flat slope at the start, and functions without a crossing, whose nearer end is the answer."""
    low, high = torch.tensor([-1.0, 1.0, -3.0]).double(), torch.tensor([2.0, 2.0, -1.0]).double()
    found = increasing_root(lambda x: (x.pow(3), 3 * x.square()), low, high)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, -1.0]).double(), rtol=1e-12, atol=1e-12)


# --- the squared group l_{2/3}, which is no sum over groups ----------------------------------------------------------


def squared_cost(points: np.ndarray, norms: np.ndarray, c: float) -> np.ndarray:
    """What its proximal map minimises, at points ``(m, n)``."""
    return 0.5 * ((points - norms) ** 2).sum(axis=1) + c * (points ** (2 / 3)).sum(axis=1) ** 3


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 3), st.floats(-3, 3))
def test_squared_l23_beats_brute_force(seed: int, count: int, power: float) -> None:
    """A grid over all of the box, polished from its ten best points, in up to three dimensions."""
    rng = np.random.default_rng(seed)
    norms = rng.uniform(0.05, 1, count) * 3.0 ** rng.integers(-1, 2, count)
    step = 10.0**power
    found = SquaredGroupL23(1.0).prox_norms(torch.from_numpy(norms), step).numpy()
    c = step / count**2
    lines = [np.linspace(0, norm, {1: 4001, 2: 101, 3: 31}[count]) for norm in norms]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*lines)], axis=1)
    costs = squared_cost(grid, norms, c)
    mine = float(squared_cost(found[None], norms, c)[0])
    assert mine <= costs.min() + 1e-13
    for start in grid[np.argsort(costs)[:10]]:
        local = scipy.optimize.minimize(
            lambda x: float(squared_cost(np.abs(x)[None], norms, c)[0]), start, method="Nelder-Mead"
        )
        assert mine <= local.fun + 1e-12


def test_the_inequality_behind_squared_l23_holds() -> None:
    """Step 2 of its proof: the smaller of two shares is better given away, for all 0 < a <= 1/sqrt(3) and b >= a.

    In b the difference is a cubic with a positive leading coefficient; beyond b = 3 its terms are of one sign.
    """
    a = np.linspace(1e-4, 3**-0.5, 400)[:, None]
    b = np.linspace(0, 3, 3001)[None]
    difference = b * (2 - (1 + a**2) ** 2) + a + b**3 * (1 - a**2) - a * b**2 * (1 + 2 * a**2)
    assert difference.min() > 0
    assert np.all(3 * (1 - a**2) > a * (1 + 2 * a**2))


def test_squared_l23_keeps_equals_together_or_drops_some() -> None:
    """Three equal norms: all are kept at a small step, one at a large one, never with unequal kept sizes."""
    norms = torch.ones(3, dtype=torch.float64)
    counts = []
    for step in (0.1, 1.0, 3.0, 10.0, 100.0):
        found = SquaredGroupL23(1.0).prox_norms(norms, step)
        kept = found[found > 0]
        torch.testing.assert_close(kept, kept[0].expand_as(kept), rtol=1e-10, atol=0.0)
        counts.append(len(kept))
    assert counts[0] == 3
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)


def test_squared_l23_of_one_group_is_a_ridge() -> None:
    """(a^(2/3))^3 is a^2: attention over a single group regularises nothing but its size."""
    norms = torch.tensor([2.0], dtype=torch.float64)
    torch.testing.assert_close(SquaredGroupL23(0.5).prox_norms(norms, 3.0), norms / (1 + 3.0))


def descend(roots: torch.Tensor, norms: torch.Tensor, c: float) -> None:
    """A local minimum in the cube roots of the kept norms, in place."""
    optimizer = torch.optim.LBFGS([roots], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (roots.pow(3) - norms).square().sum() + c * roots.square().sum().pow(3)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("step", [1e-2, 1.0, 1e4])
def test_squared_l23_is_stationary_for_many_groups(step: float) -> None:
    """Six thousand groups, where enumeration is out of reach: every kept count nearby costs more."""
    norms = torch.rand(6000, dtype=torch.float64)
    regularizer = SquaredGroupL23(1.0)
    found = regularizer.prox_norms(norms, step)
    order = torch.argsort(norms, descending=True)
    kept = int((found > 0).sum())
    assert bool((found[order[:kept]] > 0).all())
    cost = float(0.5 * (found - norms).square().sum() + step * regularizer.value(found))
    for other in {max(1, kept - 3), max(1, kept - 1), min(6000, kept + 1), min(6000, kept + 3)} - {kept}:
        masked = torch.zeros_like(norms)
        # The best with another number kept, by descent in the cube roots from the answer.
        chosen = order[:other]
        roots = found[chosen].clamp(min=float(found[found > 0].min())).pow(1 / 3).requires_grad_()
        descend(roots, norms[chosen], step / 6000**2)
        masked[chosen] = roots.detach().abs().pow(3)
        assert cost <= float(0.5 * (masked - norms).square().sum() + step * regularizer.value(masked)) + 1e-9


def test_one_step_serves_all_groups() -> None:
    """A step per group has no meaning where groups share their attention."""
    with pytest.raises(ValueError, match="Expected one step for all groups"):
        SquaredGroupL23().prox_norms(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupLasso(-1.0), "strength of at least 0"),
        (lambda: GroupLq(1.0, 0.0), "0 < q <= 1"),
        (lambda: GroupLq(1.0, 1.5), "0 < q <= 1"),
        (lambda: LogSum(1.0, 0.0), "epsilon above 0"),
        (lambda: MCP(1.0, 0.0), "gamma above 0"),
        (lambda: MCP(1.0, math.inf), "gamma above 0"),
        (lambda: SCAD(1.0, 1.0), "gamma above 1"),
        (lambda: ExpGatePenalty(1.0, 0.0), "logit_decay above 0"),
        (lambda: SquaredGroupL23(math.nan), "strength of at least 0"),
    ],
)
def test_wrong_settings_are_refused(make: object, message: str) -> None:
    """Each constant is checked where it enters."""
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
