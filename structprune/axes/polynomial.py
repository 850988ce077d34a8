"""Kept sizes and costs as integer polynomials of the axes' widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

__all__ = ["Polynomial"]


@dataclass(frozen=True)
class Polynomial:
    """Sum of ``coefficient * product of widths``; a term is the sorted tuple of its axes, repeated for powers."""

    terms: Mapping[tuple[int, ...], int]

    @classmethod
    def constant(cls, value: int) -> Polynomial:
        """A polynomial of degree zero."""
        return cls({(): value} if value else {})

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for axes, coefficient in other.terms.items():
            terms[axes] = terms.get(axes, 0) + coefficient
        return Polynomial(terms)

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        if isinstance(other, int):
            return Polynomial({axes: coefficient * other for axes, coefficient in self.terms.items()})
        terms: dict[tuple[int, ...], int] = {}
        for first, a in self.terms.items():
            for second, b in other.terms.items():
                axes = tuple(sorted(first + second))
                terms[axes] = terms.get(axes, 0) + a * b
        return Polynomial(terms)

    def __call__(self, widths: Sequence[int]) -> int:
        """Exact value at ``widths`` (one per axis)."""
        return sum(c * prod(int(widths[axis]) for axis in axes) for axes, c in self.terms.items())
