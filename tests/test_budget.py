"""Budgets: what may be wished for, how it is typed, and what it comes to in whole units."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from structprune.budget import Budget


def test_a_float_up_to_one_is_a_fraction_and_an_int_an_amount() -> None:
    """The type decides: 1.0 is all of the dense network, 1 is one unit."""
    dense = {"macs": 1000, "params": 500}
    assert Budget(macs=1.0, params=1).limits(dense) == {"macs": 1000, "params": 1}


def test_a_whole_float_above_one_is_an_amount() -> None:
    """4e9 is what people write for four billion."""
    budget = Budget(macs=4e9)
    assert budget.macs == 4_000_000_000
    assert isinstance(budget.macs, int)


def test_numbers_of_numpy_are_numbers() -> None:
    """A cap computed with numpy is taken, and kept as Python's own type."""
    budget = Budget(macs=np.float64(0.5), params=np.int64(300))  # type: ignore[arg-type]
    assert (type(budget.macs), type(budget.params)) == (float, int)


@pytest.mark.parametrize("wish", [True, "0.5", [0.5], np.bool_(True), 1j])
def test_what_is_no_number_is_refused(wish: object) -> None:
    """Truth values, text and lists are refused in words that show what to pass."""
    with pytest.raises(TypeError, match=r"Expected a number for macs\. Got .* Pass macs=0\.5"):
        Budget(macs=wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("wish", [0, 0.0, -1, -0.5, math.nan, math.inf, 1.5, 2.7])
def test_numbers_out_of_range_are_refused(wish: float) -> None:
    """Nothing, less than nothing, no number, infinity, and fractions above one are no budgets."""
    with pytest.raises(ValueError, match=r"Expected .* Got .* Pass params=0\.5"):
        Budget(params=wish)


def test_a_budget_caps_something() -> None:
    """A budget without a cap is refused."""
    with pytest.raises(ValueError, match="at least one cap"):
        Budget()


def test_resources_are_those_that_are_capped() -> None:
    """They come in one order, whatever the order of the arguments."""
    assert Budget(latency_ns=5, macs=0.5).resources == ("macs", "latency_ns")


def test_the_fraction_is_the_decimal_that_was_written() -> None:
    """0.7 of 10 is 7, and 0.29 of 100 is 29, although 0.29 * 100 is less than 29 in binary."""
    assert Budget(macs=0.7).limits({"macs": 10}) == {"macs": 7}
    assert Budget(macs=0.29).limits({"macs": 100}) == {"macs": 29}


@given(st.integers(1, 10**6), st.integers(0, 10**18))
def test_a_fraction_is_rounded_down_and_by_less_than_one(millionths: int, dense: int) -> None:
    """The limit is the largest whole number that is not above the fraction of the dense amount, without overflow."""
    limit = Budget(bytes=millionths / 10**6).limits({"bytes": dense})["bytes"]
    exact = Fraction(millionths, 10**6) * dense
    assert limit <= exact < limit + 1


def test_a_missing_dense_amount_is_named() -> None:
    """A capped resource that was not counted is an error, not an absent cap."""
    with pytest.raises(ValueError, match="latency_ns. Got macs"):
        Budget(latency_ns=5).limits({"macs": 3})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=0.5", Budget(macs=0.5)),
        ("macs=0.5,params=300000", Budget(macs=0.5, params=300_000)),
        (" macs = 50% , params = 33.3 % ", Budget(macs=0.5, params=0.333)),
        ("latency_ns=2ms", Budget(latency_ns=2_000_000)),
        ("latency_ns=1.5us", Budget(latency_ns=1500)),
        ("density=25%", Budget(density=0.25)),
        ("density=3k", Budget(density=3000)),
        ("latency_ns=0.5", Budget(latency_ns=0.5)),
        ("macs=1.5G,params=300k", Budget(macs=1_500_000_000, params=300_000)),
        ("params=2M", Budget(params=2_000_000)),
        ("params=1_000", Budget(params=1000)),
        ("bytes=1.5MiB", Budget(bytes=1_572_864)),
        ("bytes=2MB", Budget(bytes=2_000_000)),
        ("macs=4e9", Budget(macs=4_000_000_000)),
        ("macs=1", Budget(macs=1)),
        ("macs=1.0", Budget(macs=1.0)),
        ("macs=100%", Budget(macs=1.0)),
    ],
)
def test_budgets_are_read_as_typed(text: str, budget: Budget) -> None:
    """Fractions, percentages and amounts with units mean what they look like."""
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "", "0.5", "flops=0.5", "macs", "macs=", "macs=half", "macs=0.5,macs=0.6", "macs=0", "macs=-1", "macs=120%",
        "macs=0%", "macs=2ms", "latency_ns=2M", "params=2m", "params=0.0005k", "macs=nan", "macs=inf", "macs=1.5",
        "macs=0.5;params=0.3", "macs=0.5,",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str) -> None:
    """Unknown resources, foreign units, parts of a unit and numbers out of range are refused with a hint."""
    with pytest.raises(ValueError, match=r"Expected .* Got "):
        Budget.parse(text)


def test_a_budget_prints_as_its_caps() -> None:
    """The text has units, as a person would say it."""
    assert str(Budget(macs=0.5, latency_ns=2_000_000)) == "macs <= 50.0 %, latency_ns <= 2.00 ms"
