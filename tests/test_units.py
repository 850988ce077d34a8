"""Amounts as text."""

from __future__ import annotations

import pytest

from structprune.units import fraction_text, quantity, short_number, used_text


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        ("macs", 4_089_184_256, "4.09 GMAC"),
        ("params", 25_557_032, "25.6 M"),
        ("params", 812, "812"),
        ("params", 999_600, "1.00 M"),
        ("params", 999_400, "999 k"),
        ("bytes", 1_020_000, "1.02 MB"),
        ("latency_ns", 1_831_000, "1.83 ms"),
        ("latency_ns", 950, "950 ns"),
        ("latency_ns", 3_600_000_000_000, "3,600 s"),
        ("macs", 0, "0 MAC"),
        ("params", float("nan"), "nan"),
    ],
)
def test_quantities_have_three_digits_and_a_unit(resource: str, amount: float, text: str) -> None:
    """The unit is the largest that leaves at least one of it after rounding."""
    assert quantity(resource, amount) == text


def test_used_is_rounded_so_that_a_cap_looks_met_only_if_it_is() -> None:
    """Almost all is not 100 %, and a little too much is more than 100 %."""
    assert used_text(999_999_999, 1_000_000_000) == "99.99 %"
    assert used_text(10, 10) == "100 %"
    assert used_text(1_000_000_001, 1_000_000_000) == "100.01 %"


def test_small_and_large_numbers_are_short() -> None:
    """No number needs more than a few characters."""
    assert [short_number(value) for value in (0.0, 0.183, 12.345, 123.4, 1e-7)] == [
        "0",
        "0.183",
        "12.3",
        "123",
        "1.00e-07",
    ]
    assert [fraction_text(value) for value in (0.0, 0.503, 1.0, 1e-7)] == ["0 %", "50.3 %", "100 %", "1.0e-05 %"]
