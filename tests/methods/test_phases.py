"""Phases: boundaries that sum exactly, the published schedules, and sparsity as a pure function of the step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from structprune.methods import ACDC, SequentialAttentionPP
from structprune.methods.phases import Cubic, Exponential, Kind, Linear, Plan, Segment, alternating

PAPER = alternating(dense=10, cycles=7, cycle=10, last=5, sparse=15, sparsify=True)
PLANS = [PAPER, alternating(dense=20, cycles=10, cycle=6, last=0, sparse=20, sparsify=False), ACDC().plan()]


@pytest.mark.parametrize("plan", PLANS)
@given(steps=st.integers(100, 5000))
def test_boundaries_end_with_the_run(plan: Plan, steps: int) -> None:
    """Phases are whole steps, none is empty, and together they are the run."""
    ends = plan.over(steps).ends
    assert ends[-1] == steps
    assert all(later > earlier for earlier, later in zip((0, *ends), ends, strict=False))


@pytest.mark.parametrize("plan", PLANS)
@given(steps=st.integers(100, 5000))
def test_each_boundary_is_the_nearest_step(plan: Plan, steps: int) -> None:
    """No boundary is more than half a step from where its share puts it."""
    total, passed = sum(segment.share for segment in plan.segments), 0
    for segment, end in zip(plan.segments, plan.over(steps).ends, strict=True):
        passed += segment.share
        assert abs(end - steps * passed / total) <= 0.5 + 1e-9


def test_acdc_prunes_and_restores_at_the_published_epochs() -> None:
    """Over 100 epochs masks come at 10, 20, ..., 70 and 85 and go at 15, 25, ..., 65 and 75."""
    timeline = ACDC().plan().over(100)
    sparse = [step for step in range(100) if timeline.at(step).kind is Kind.SPARSE]
    starts = [step for step in sparse if timeline.at(step).first]
    assert starts == [10, 20, 30, 40, 50, 60, 70, 85]
    assert [step for step in sparse if step + 1 not in sparse] == [14, 24, 34, 44, 54, 64, 74, 99]


def test_sequential_attention_has_the_published_phases() -> None:
    """10 % dense, six cycles of three thirds, removal from 70 to 85 %, then sparse."""
    timeline = SequentialAttentionPP().plan().over(300)
    kinds = [timeline.at(step).kind for step in range(300)]
    assert kinds[:30] == [Kind.DENSE] * 30
    assert kinds[30:210] == ([Kind.SPARSIFY] * 10 + [Kind.SPARSE] * 10 + [Kind.DENSE] * 10) * 6
    assert kinds[210:255] == [Kind.SPARSIFY] * 45
    assert kinds[255:] == [Kind.SPARSE] * 45


def test_exponential_removes_the_published_fractions() -> None:
    """With c = 4: 64, 88 and 97 % of the removals at a quarter, half and three quarters."""
    assert [round(100 * Exponential(4)(u)) for u in (0.25, 0.5, 0.75)] == [64, 88, 97]


@pytest.mark.parametrize("curve", [Exponential(), Exponential(8), Cubic(), Linear()])
def test_curves_run_from_nothing_to_everything(curve: Exponential | Cubic | Linear) -> None:
    """A removal begins at 0, ends at exactly 1, and never goes back."""
    values = [curve(i / 100) for i in range(101)]
    assert values[0] == 0 and values[-1] == 1
    assert all(later >= earlier for earlier, later in zip(values, values[1:], strict=False))


def test_cubic_is_the_published_schedule() -> None:
    """s(u) = s (1 - (1 - u)^3)."""
    timeline = Plan((Segment(Kind.SPARSIFY, 1, Cubic()),)).over(10)
    assert timeline.at(4).sparsity(0.8) == pytest.approx(0.8 * (1 - 0.5**3))


@given(steps=st.integers(100, 3000))
def test_sparsity_rises_within_a_removal_and_is_complete_at_its_last_step(steps: int) -> None:
    """Within a removal sparsity never falls, and its last step trains at the target."""
    timeline = PAPER.over(steps)
    phases = [timeline.at(step) for step in range(steps)]
    for now, following in zip(phases, phases[1:], strict=False):
        if now.kind is Kind.SPARSIFY and following.index == now.index:
            assert following.done >= now.done
        if now.kind is Kind.SPARSIFY and following.index != now.index:
            assert now.done == 1


def test_a_long_removal_moves_its_mask_as_often_as_asked() -> None:
    """Of 1000 steps, 50 change the sparsity."""
    timeline = Plan((Segment(Kind.SPARSIFY, 1),), updates=50).over(1000)
    assert len({timeline.at(step).done for step in range(1000)} - {0.0}) == 50


def test_cycles_count_the_dense_phases_that_follow_others() -> None:
    """The first dense phase is cycle 0; each return to dense begins the next."""
    timeline = PAPER.over(300)
    starts = [timeline.at(s).cycle for s in range(300) if timeline.at(s).first and timeline.at(s).kind is Kind.DENSE]
    assert starts == list(range(7))


def test_short_phases_are_refused_with_the_steps_that_would_do() -> None:
    """Phases of three steps are refused where four are wanted, and the advice is enough and not far more."""
    with pytest.raises(ValueError, match=r"phases of at least 4 steps. Got 3 in phase 1 \(sparsify\)"):
        PAPER.over(100, min_phase_steps=4)
    assert PAPER.over(120, min_phase_steps=4).shortest >= 4


def test_the_run_has_no_other_steps() -> None:
    """A step beyond the run is an error, not the last phase."""
    with pytest.raises(ValueError, match="Expected a step of 0 ... 99"):
        PAPER.over(100).at(100)


@pytest.mark.parametrize("exponent", [0, -1, math.inf, math.nan])
def test_exponents_must_be_positive(exponent: float) -> None:
    """The formula divides by zero at c = 0 and turns round below."""
    with pytest.raises(ValueError, match="Expected an exponent > 0"):
        Exponential(exponent)
