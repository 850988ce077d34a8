"""Amounts as people read them: 4.09 GMAC, 25.5 M, 1.83 ms."""

from __future__ import annotations

import math

__all__ = ["accuracy_text", "fraction_text", "quantity", "short_number", "used_text"]

SI = (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12), ("P", 10**15))
NANOSECONDS = (("ns", 1), ("µs", 10**3), ("ms", 10**6), ("s", 10**9))
SUFFIX = {"macs": "MAC", "params": "", "bytes": "B"}


def quantity(resource: str, amount: float) -> str:
    """Return an amount of a resource with its unit and three significant digits: ``quantity("macs", 4.09e9)``.

    Resources other than macs, params, bytes and those in nanoseconds (``..._ns``) are plain numbers.
    """
    if resource.endswith("_ns"):
        return scaled(amount, NANOSECONDS)
    unit = SUFFIX.get(resource, "")
    return scaled(amount, tuple((prefix + unit, size) for prefix, size in SI))


def scaled(amount: float, units: tuple[tuple[str, int], ...]) -> str:
    """Return the amount in the largest unit that leaves it at least 1."""
    if not math.isfinite(amount):
        return str(amount)
    for unit, size in units:
        # 999,600 is 1.00 M, not 1000 k: compare what will be printed.
        if abs(round(amount / size, 0)) < 1000 or unit == units[-1][0]:
            break
    value = amount / size
    if size == 1 and float(value).is_integer():
        return f"{value:,.0f} {unit}".rstrip()
    return f"{short_number(value)} {unit}".rstrip()


def short_number(value: float) -> str:
    """Return three significant digits without an exponent from 1 up to 1000, as short as possible elsewhere."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return f"{value:g}"
    if size < 0.001 or size >= 1e6:
        return f"{value:.2e}"
    # Of the rounded value: 0.9996 is 1.00, which has one decimal less than 0.999.
    decimals = max(0, 2 - math.floor(math.log10(float(f"{size:.2e}"))))
    return f"{value:,.{decimals}f}"


def fraction_text(fraction: float) -> str:
    """Return a fraction in per cent, three significant digits: ``0.503`` is ``50.3 %``."""
    if not math.isfinite(fraction):
        return f"{fraction} %"
    percent = 100 * fraction
    if percent == 0:
        return "0 %"
    return f"{percent:.1e} %" if abs(percent) < 0.001 else f"{short_number(percent)} %"


def accuracy_text(accuracy: float) -> str:
    """Return an accuracy in per cent with the two decimals that ten thousand examples have."""
    return f"{100 * accuracy:.2f} %"


def used_text(used: int, allowed: int) -> str:
    """Return used/allowed in per cent, rounded down, so that 100 % means all of it and more means too much."""
    if allowed <= 0:
        return "100 %" if used <= allowed else "over 100 %"
    hundredths = used * 10_000 // allowed
    if used > allowed:
        # Rounding down would hide a small excess.
        hundredths = max(hundredths, 10_001)
    return "100 %" if used == allowed else f"{hundredths // 100}.{hundredths % 100:02d} %"
