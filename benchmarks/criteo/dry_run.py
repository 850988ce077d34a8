"""What the grid is and what it costs, known before there is any data."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.criteo.coverage import reach
from benchmarks.criteo.network import parameter_counts
from benchmarks.criteo.published import TABLE_2
from benchmarks.criteo.reference import fields_of
from benchmarks.criteo.training import Recipe
from benchmarks.grid.cell import Cell
from benchmarks.grid.options import duration
from benchmarks.grid.pages import Page, Part, Table

__all__ = ["ROWS", "RATE", "dry_run"]

ROWS = 33_003_326
"""Training rows of Criteo_x1."""
RATE = 500_000.0
"""Rows per second and GPU that the estimate of time assumes where nothing was measured; a guess."""


def dry_run(
    cells: Sequence[Cell],
    left: int,
    recipes: Sequence[Recipe],
    rows: int,
    rate: float | None,
    processes: int,
    sizes: Sequence[int] | None,
) -> Page:
    """Return the page that ``--dry-run`` prints.

    Parameters
    ----------
    cells
        The grid.
    left
        How many of its cells have no row yet.
    recipes
        How the network is trained.
    rows
        Training rows.
    rate
        Training rows per second, as measured; None where nothing was.
    processes
        Cells at once.
    sizes
        Identities of each categorical field, where rows were prepared.
    """
    counts = parameter_counts(sizes)
    at = sorted({(cell.block, cell.sparsity) for cell in cells if cell.block})
    parts = [Part("Coverage and sparsity", (WORDS, coverage_table(at, counts["dense layers"])))]
    lines = [(name, f"{count:,}") for name, count in counts.items()]
    if sizes is None:
        lines.append(("all", "known when rows are prepared: 10 for each category"))
    parts.append(Part("Parameters", (Table(("part", "parameters"), tuple(lines)),)))
    speed = rate or RATE
    steps = []
    total = 0.0
    for recipe in recipes:
        own = sum(cell.network == recipe.name for cell in cells)
        # A reference trains twice: for the ranking of the fields, and on the best of them.
        runs = own + sum(cell.network == recipe.name and fields_of(cell.method) is not None for cell in cells)
        seconds = runs * rows * recipe.training.epochs / speed
        total += seconds
        multiplications = 3 * counts["dense layers"] * rows * recipe.training.epochs
        steps.append(
            (
                recipe.name,
                str(own),
                f"{rows // recipe.batch_size * recipe.training.epochs:,}",
                f"{2 * multiplications / 1e15:.2f}",
                duration(seconds),
            )
        )
    source = "as measured in OUT" if rate else "a guess: measure one cell, and the estimate takes its rate"
    cost = (
        f"{rows:,} training rows; {speed:,.0f} rows per second and process ({source}). {left} of {len(cells)} cells "
        f"are left: about {duration(total * left / max(1, len(cells)) / processes)} with {processes} at once."
    )
    table = Table(("recipe", "cells", "steps per cell", "PFLOP per cell", "time, one at once"), tuple(steps))
    parts.append(Part("Cost", (cost, table, *(f"{recipe.name}: {recipe.about}." for recipe in recipes))))
    return Page("Criteo: what will be measured", "", tuple(parts))


WORDS = (
    "A mask of k = round((1 - s) n) blocks reaches at most so many of the 39 fields and keeps at most so many of the "
    "400 hidden units alive, whatever method chose it. Sparsities are of the first layer and of all dense layers."
)


def coverage_table(at: Sequence[tuple[int, float]], dense_layers: int) -> Table:
    """Return block counts and bounds for each block size and sparsity, with the paper's loss beside them."""
    lines = []
    for block, sparsity in at:
        bounds = reach(block, sparsity)
        published = TABLE_2.get(("sa++", block, round(sparsity, 4)))
        lines.append(
            (
                f"{block}",
                f"{100 * sparsity:g} %",
                f"{bounds.kept} of {bounds.blocks:,}",
                f"{bounds.fields}",
                f"{bounds.units}",
                f"{100 * bounds.weights_removed:.1f} %",
                f"{100 * bounds.weights_removed * 156_000 / dense_layers:.1f} %",
                "" if published is None else f"{published:.4f}",
            )
        )
    headings = (
        *("block", "s", "blocks kept", "fields at most", "units at most", "first layer", "dense layers"),
        "paper, SA++ loss",
    )
    return Table(headings, tuple(lines))
