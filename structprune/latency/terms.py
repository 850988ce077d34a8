"""A sum of costs in real numbers, turned into integer terms that are never too low."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, prod

import numpy as np

from solvers.problem import Product, Table, Term
from structprune.axes.polynomial import Polynomial

__all__ = ["MOST_CELLS", "TermSum", "Widths", "upper_line"]

MOST_CELLS = 4_000_000  # 32 MB per table
EXACT_COEFFICIENT = 100  # from here on, rounding a coefficient up to an integer costs less than one per cent

Widths = tuple[int, ...]


class TermSum:
    """Terms under construction, in real numbers; equal axes share one table."""

    def __init__(self, levels: Sequence[np.ndarray]) -> None:
        self.levels = levels
        self._constant = 0.0
        self._tables: dict[tuple[int, ...], np.ndarray] = {}
        self._products: dict[tuple[int, ...], float] = {}

    def add_table(self, axes: tuple[int, ...], entries: np.ndarray) -> None:
        self._tables[axes] = self._tables[axes] + entries if axes in self._tables else entries

    def add_line(self, constant: float, slope: float, size: Polynomial) -> None:
        """``constant + slope * size``, monomial by monomial."""
        self._constant += constant
        for axes, coefficient in size.terms.items():
            if not axes:
                self._constant += slope * coefficient
            elif len(set(axes)) <= 2:
                distinct = tuple(dict.fromkeys(axes))
                self.add_table(distinct, slope * coefficient * self._monomial(axes, distinct))
            else:
                self._products[axes] = self._products.get(axes, 0.0) + slope * coefficient

    def _monomial(self, axes: tuple[int, ...], distinct: tuple[int, ...]) -> np.ndarray:
        factors = np.ix_(*(self.levels[axis].astype(np.float64) ** axes.count(axis) for axis in distinct))
        return np.asarray(prod(factors[1:], start=factors[0]))

    def at(self, widths: Widths) -> float:
        """The sum at some widths."""
        total = self._constant
        for axes, entries in self._tables.items():
            total += float(entries[tuple(int(np.searchsorted(self.levels[axis], widths[axis])) for axis in axes)])
        return total + sum(c * prod(widths[axis] for axis in axes) for axes, c in self._products.items())

    def terms(self, full: Widths, dense_ns: int, scale: float) -> tuple[Term, ...]:
        """Integer terms ``scale`` times the sum, and the constant that brings them to ``dense_ns`` at full widths."""
        terms: list[Term] = [Table(axes, _ceil(entries * scale)) for axes, entries in self._tables.items()]
        for axes, coefficient in self._products.items():
            terms.append(self._product(axes, coefficient * scale))
        dense = sum(_at_full(term, full) for term in terms)
        rest = max(ceil(self._constant * scale), dense_ns - dense)
        return (*terms, Product((), rest)) if rest else tuple(terms)

    def _product(self, axes: tuple[int, ...], coefficient: float) -> Term:
        """A table where rounding the coefficient up would be felt and the table is not too large."""
        distinct = tuple(dict.fromkeys(axes))
        cells = prod(len(self.levels[axis]) for axis in distinct)
        if coefficient >= EXACT_COEFFICIENT or cells > MOST_CELLS:
            return Product(axes, ceil(coefficient))
        return Table(distinct, _ceil(coefficient * self._monomial(axes, distinct)))


def _ceil(entries: np.ndarray) -> np.ndarray:
    return np.ceil(entries).astype(np.int64)


def _at_full(term: Term, full: Widths) -> int:
    if isinstance(term, Table):
        return int(term.entries[(-1,) * term.entries.ndim])
    return term.coefficient * prod(full[axis] for axis in term.groups)


def upper_line(sizes: Sequence[int], medians: Sequence[float]) -> tuple[float, float]:
    """The lowest line, in the sum over the points, that no point lies above; constant and slope at least 0.

    It touches two points, or one and a constraint, so all such lines are tried.
    """
    x, y = np.array(sizes, dtype=np.float64), np.array(medians)
    lines = [(float(y.max()), 0.0)]
    if x.all():
        lines.append((0.0, float((y / x).max())))
    for i, j in product(range(len(x)), repeat=2):
        if x[i] < x[j] and y[i] <= y[j]:
            slope = (y[j] - y[i]) / (x[j] - x[i])
            lines.append((float(y[i] - slope * x[i]), float(slope)))
    above = [(a, b) for a, b in lines if a >= 0 and (a + b * x >= y * (1 - 1e-9)).all()]
    return min(above, key=lambda line: float((line[0] + line[1] * x).sum()))
