"""The user's wish: a cap per resource, as a fraction of the dense network or as an amount, several at once."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction

from structprune.units import fraction_text, quantity

__all__ = ["Budget"]

NUMBER = re.compile(r"(?P<number>[+-]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][+-]?\d+)?)\s*(?P<unit>[^\d\s.]*)")
# One letter for 2**10 and its powers is ambiguous, so those need their i, as in KiB. "m" could be milli or mega.
COUNT_UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BYTE_UNITS = {f"{prefix}B": size for prefix, size in {"": 1, **COUNT_UNITS}.items()} | {
    f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)
}
TIME_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
UNITS = {
    "macs": COUNT_UNITS,
    "params": COUNT_UNITS,
    "bytes": COUNT_UNITS | BYTE_UNITS,
    "latency_ns": TIME_UNITS,
    "density": COUNT_UNITS,
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Caps that are never exceeded; at least one.

    Each is a float in (0, 1], the fraction of what the dense network takes, or a whole number, an amount. The type
    tells 1.0 (all of the dense network) from 1 (one unit); a whole float above 1, as in ``4e9``, is an amount.

    Attributes
    ----------
    macs
        Multiply-accumulates of one example (flops are twice as many).
    params
        Number of parameters.
    bytes
        Memory of parameters and buffers.
    latency_ns
        Nanoseconds of one forward pass over the example batch.
    density
        Kept weights inside the structures, for structures that lie in weights: blocks, kernels, nm. As a fraction, of
        all weights inside them; what no structure covers (biases, other layers) does not count.

    Raises
    ------
    TypeError
        If a cap is not a number; truth values and text are not.
    ValueError
        If a cap is not in range, or there is none.
    """

    macs: int | float | None = None
    params: int | float | None = None
    bytes: int | float | None = None
    latency_ns: int | float | None = None
    density: int | float | None = None

    def __post_init__(self) -> None:
        for resource in RESOURCES:
            wish = getattr(self, resource)
            if wish is not None:
                object.__setattr__(self, resource, checked(resource, wish))
        if not self.resources:
            raise ValueError("Expected at least one cap. Got none. Pass one, as in Budget(macs=0.5).")

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the capped resources, in the order macs, params, bytes, latency_ns, density."""
        return tuple(resource for resource in RESOURCES if getattr(self, resource) is not None)

    def limits(self, dense: Mapping[str, int]) -> dict[str, int]:
        """Return the caps in whole units, given what the dense network takes.

        A fraction f of an amount c is floor(f c), computed with the decimal that f prints as and not with its binary
        neighbour: 0.7 of 10 is 7. A cap above the dense amount stays as it is; it does not bind.

        Parameters
        ----------
        dense
            Amount of each capped resource in the dense network; others may be there too.

        Raises
        ------
        ValueError
            If a capped resource is missing from `dense`, or its amount is negative.
        """
        limits = {}
        for resource in self.resources:
            if resource not in dense:
                known = ", ".join(dense) or "none"
                raise ValueError(f"Expected the dense network's {resource}. Got {known}. Count it, or do not cap it.")
            if dense[resource] < 0:
                got = f"Got {dense[resource]}. Check how it is counted."
                raise ValueError(f"Expected at least 0 {resource} in the dense network. {got}")
            wish = getattr(self, resource)
            limits[resource] = wish if isinstance(wish, int) else math.floor(exact(wish) * int(dense[resource]))
        return limits

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read caps as typed in a shell: ``macs=0.5,params=300k``.

        A number with a point in (0, 1] and a percentage (``50%``) are fractions; whole numbers are amounts, with
        k, M, G, T for powers of a thousand, kB to TB and KiB to TiB for bytes, and ns, us, ms, s for latency_ns.

        Raises
        ------
        ValueError
            If the text cannot be read so; the message quotes the part at fault.
        """
        caps: dict[str, int | float] = {}
        for part in text.split(","):
            resource, equals, amount = (piece.strip() for piece in part.partition("="))
            if not equals or resource not in RESOURCES:
                raise ValueError(
                    f"Expected caps such as macs=0.5 or params=300k, separated by commas. Got {part.strip()!r}. "
                    f"Name one of {', '.join(RESOURCES)}."
                )
            if resource in caps:
                raise ValueError(f"Expected each resource once. Got {resource} twice in {text!r}. Keep one of them.")
            caps[resource] = parse_amount(resource, amount)
        return cls(**caps)

    def __str__(self) -> str:
        caps = ((resource, getattr(self, resource)) for resource in self.resources)
        return ", ".join(
            f"{resource} <= {quantity(resource, cap) if isinstance(cap, int) else fraction_text(cap)}"
            for resource, cap in caps
        )


RESOURCES = tuple(field.name for field in fields(Budget))


def checked(resource: str, wish: object) -> int | float:
    """Return the cap as an int (amount) or as a float in (0, 1] (fraction)."""
    advice = f"Pass {resource}=0.5 for a half of the dense network, or a whole number for an amount."
    # numpy's bool is no Number; Python's is one.
    if isinstance(wish, bool) or not isinstance(wish, numbers.Real):
        raise TypeError(f"Expected a number for {resource}. Got {wish!r}. {advice}")
    if not math.isfinite(wish) or wish <= 0:
        raise ValueError(f"Expected {resource} above 0 and finite. Got {wish!r}. {advice}")
    if isinstance(wish, numbers.Integral):
        return int(wish)
    value = float(wish)
    if value > 1 and not value.is_integer():
        raise ValueError(f"Expected a fraction of at most 1, or a whole number, for {resource}. Got {wish!r}. {advice}")
    if value == 0:
        raise ValueError(f"Expected {resource} above 0. Got {wish!r}, which rounds to 0. {advice}")
    return value if value <= 1 else int(value)


def exact(fraction: float) -> Fraction:
    """Return the rational number that the float prints as."""
    return Fraction(str(fraction))


def parse_amount(resource: str, text: str) -> int | float:
    """Read one cap, as in ``0.5``, ``50%``, ``1.5G`` or ``2ms``."""
    units = UNITS[resource]
    match = NUMBER.fullmatch(text)
    unit = match["unit"] if match else ""
    if match is None or unit not in {"", "%", *units}:
        raise ValueError(
            f"Expected a number for {resource}. Got {text!r}. "
            f"Write 0.5 or 50% for a half of the dense network, or a whole number, with one of {', '.join(units)}."
        )
    number = Decimal(match["number"].replace("_", ""))
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"Expected a percentage above 0 and up to 100 for {resource}. Got {text!r}. Lower it.")
        return float(number / 100)
    if unit:
        amount = number * units[unit]
        if amount != amount.to_integral_value():
            raise ValueError(f"Expected a whole amount of {resource}. Got {text!r}, which is {amount}. Round it.")
        return int(amount)
    return int(number) if re.fullmatch(r"[+-]?[\d_]+", match["number"]) else float(number)
