"""The paper's table 2 beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.criteo.coverage import reach
from benchmarks.criteo.published import BARS_DENSE, ERRATA, PAPER_DENSE, TABLE_2
from benchmarks.criteo.reference import fields_of
from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.pages import Page, Part, Table
from benchmarks.grid.report import by_cell, distortion, notes_of, panels_of, picture, provenance, shown, warning_of
from benchmarks.grid.row import Row, summary

__all__ = ["report"]

READING = (
    "Mean ± standard deviation (n - 1) over seeds, their number in brackets. The paper reports validation loss, and so "
    "does its column; test figures are ours alone. Nothing was chosen on test rows. Recall distortion: mean absolute "
    "change, in points, of the recalls of rows with and without a click against the dense network of the same seed, "
    "and in brackets the larger fall. 'Fields' are those that the first layer reads, against the most that so many "
    "blocks can read; 'best fields alone' is the validation log-loss of a dense network on as many fields, ranked by "
    "shuffling them among validation rows: an upper estimate of what a mask of so many fields could reach."
)
HEADINGS = (
    *("method", "block", "s", "validation log-loss", "paper", "validation AUC", "test log-loss", "test AUC"),
    *("kept blocks", "fields", "best fields alone", "first layer", "model", "recall distortion"),
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
        published = TABLE_2 if network == "paper" else {}
        panels = panels_of(own, "validation log-loss", published)
        title = f"{network}: validation log-loss over sparsity"
        parts.append(
            Part(
                f"Recipe '{network}'",
                (dense_words(network, own), table_of(own), *picture(title, panels, "validation log-loss (nats)")),
            )
        )
    parts.append(Part("Reading", (READING,)))
    parts.append(Part("Errata of the paper, and what differs", ERRATA))
    parts.append(Part("Notes of the methods", notes_of(rows)))
    parts.append(Part("Repeating it", (provenance(rows),)))
    return Page("Block pruning on Criteo", warning_of(rows), tuple(parts))


def dense_words(network: str, rows: Sequence[Row]) -> str:
    """Return the dense network's figures beside those published."""
    dense = [row for row in rows if row.cell.method == DENSE]
    loss, test = summary(dense, "validation log-loss"), summary(dense, "test log-loss")
    auc = summary(dense, "test AUC")
    ours = f"Dense network: validation log-loss {shown(loss, 4)}, test {shown(test, 4)}, test AUC {shown(auc, 4)}."
    if not dense:
        ours = "No dense network was trained with this recipe: pruned figures have nothing to stand beside."
    if network == "paper":
        return f"{ours} The paper's dense network has {PAPER_DENSE:.4f} on validation rows."
    return (
        f"{ours} BARS reports {BARS_DENSE['validation']:.4f} on validation rows, {BARS_DENSE['test']:.4f} on test "
        f"rows, AUC {BARS_DENSE['auc']:.4f}."
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Return a line for each cell over its seeds, the dense network first."""
    cells = by_cell(rows)
    order = sorted(
        cells, key=lambda cell: (cell.method != DENSE, cell.block, cell.sparsity, fields_of(cell.method) or 0)
    )
    return Table(HEADINGS, tuple(line_of(cell, cells[cell], rows) for cell in order))


def line_of(cell: Cell, own: Sequence[Row], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return one cell's line."""
    dense = cell.method == DENSE
    published = TABLE_2.get((cell.method, cell.block, round(cell.sparsity, 4))) if cell.network == "paper" else None
    if dense and cell.network == "paper":
        published = PAPER_DENSE
    fields = shown(summary(own, "fields alive"), 0)
    bound = ""
    if cell.block:
        most = reach(cell.block, cell.sparsity).fields
        fields += f" of {most}"
        best = [row for row in rows if fields_of(row.cell.method) == most]
        bound = shown(summary(best, "validation log-loss"), 4) if best else ""
    changed = distortion(own, rows)
    return (
        cell.method,
        str(cell.block) if cell.block else "",
        f"{100 * cell.sparsity:g} %" if cell.block else "",
        shown(summary(own, "validation log-loss"), 4),
        "" if published is None else f"{published:.4f}",
        shown(summary(own, "validation AUC"), 4),
        shown(summary(own, "test log-loss"), 4),
        shown(summary(own, "test AUC"), 4),
        shown(summary(own, "kept blocks"), 0),
        fields,
        bound,
        shown(summary(own, "real sparsity of the first layer"), 1, factor=100),
        shown(summary(own, "real sparsity of the model"), 1, factor=100),
        "" if changed is None else f"{changed[0]:.1f} ({changed[1]:.1f})",
    )
