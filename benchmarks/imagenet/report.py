"""The paper's table 1 beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.pages import Page, Part, Table
from benchmarks.grid.report import (
    Published,
    by_cell,
    distortion,
    notes_of,
    panels_of,
    picture,
    provenance,
    shown,
    warning_of,
)
from benchmarks.grid.row import Row, summary
from benchmarks.imagenet.published import ERRATA, PAPER_DENSE, REAL_SPARSITY, TABLE_1

__all__ = ["report"]

READING = (
    "Mean ± standard deviation (n - 1) over seeds, their number in brackets; percent. Real sparsity is that of all "
    "convolution and linear weights, removed ones counted. Recall distortion: mean absolute change, in points, of the "
    "recalls of all classes against the dense network of the same seed, and in brackets the fall of the class that "
    "loses most. Speed is that of the compiled network against the dense one on this machine, each in its faster "
    "layout. Columns of different block sizes do not compare: larger blocks leave more layers dense."
)
HEADINGS = (
    *("method", "block", "s", "top-1", "paper", "top-5", "real sparsity", "paper's", "kept blocks"),
    *("recall distortion", "speed"),
)


def report(rows: Sequence[Row]) -> Page:
    """Return the page of all rows.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not rows:
        raise ValueError("Expected measured rows. Got none. Run the benchmark first, with the same --out.")
    parts = []
    for network in dict.fromkeys(row.cell.network for row in rows):
        own = [row for row in rows if row.cell.network == network]
        published: Published = {}
        if network == "resnet50":
            published = {at: value for at, value in TABLE_1.items() if value is not None}
        panels = panels_of(own, "top-1", published, factor=100)
        drawn = picture(f"{network}: top-1 over sparsity", panels, "top-1 (%)")
        parts.append(Part(network, (table_of(own), *drawn)))
    parts.append(Part("Reading", (READING,)))
    parts.append(Part("Errata of the paper, and what differs", ERRATA))
    parts.append(Part("Notes of the methods", notes_of(rows)))
    parts.append(Part("Repeating it", (provenance(rows),)))
    return Page("Block pruning on ImageNet", warning_of(rows), tuple(parts))


def table_of(rows: Sequence[Row]) -> Table:
    """Return a line for each cell over its seeds, the dense network first."""
    cells = by_cell(rows)
    order = sorted(cells, key=lambda cell: (cell.method != DENSE, cell.block, cell.sparsity, cell.method))
    return Table(HEADINGS, tuple(line_of(cell, cells[cell], rows) for cell in order))


def line_of(cell: Cell, own: Sequence[Row], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return one cell's line."""
    dense, at = cell.method == DENSE, (cell.block, round(cell.sparsity, 4))
    published, real = "", ""
    if cell.network == "resnet50":
        known = PAPER_DENSE if dense else TABLE_1.get((cell.method, *at), 0.0)
        published = "diverged" if known is None else f"{known:.2f}" if known else ""
        real = f"{REAL_SPARSITY[at]}" if at in REAL_SPARSITY else ""
    changed = distortion(own, rows)
    fast, slow = summary(own, "pruned images per second").mean, summary(own, "dense images per second").mean
    return (
        cell.method,
        "" if dense else str(cell.block) if cell.block else "channels",
        "" if dense else f"{100 * cell.sparsity:g} %",
        shown(summary(own, "top-1"), 2, factor=100),
        published,
        shown(summary(own, "top-5"), 2, factor=100),
        shown(summary(own, "real sparsity"), 1, factor=100),
        real,
        shown(summary(own, "kept blocks"), 0),
        "" if changed is None else f"{changed[0]:.1f} ({changed[1]:.1f})",
        "" if fast is None or slow is None else f"{fast / slow:.2f}x",
    )
