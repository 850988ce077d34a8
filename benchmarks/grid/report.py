"""What both reports share: figures over seeds in words, rows by cell, recall distortion, and the files of a page."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.pages import Page, as_html, as_markdown
from benchmarks.grid.plots import Panel, Series, curves
from benchmarks.grid.row import Row, Summary, summary
from structprune.files import write_atomically

__all__ = [
    "Published",
    "by_cell",
    "distortion",
    "notes_of",
    "panels_of",
    "picture",
    "provenance",
    "shown",
    "warning_of",
    "write_page",
]

PICTURES = "curves"
Published = dict[tuple[str, int, float], float]


def by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """Return rows of all seeds by their cell, whose seed is 0."""
    found: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        found[replace(row.cell, seed=0)].append(row)
    return dict(found)


def shown(one: Summary, digits: int, *, factor: float = 1.0) -> str:
    """Return a figure as 'mean +- spread (n)', with what diverged."""
    if one.mean is None:
        return "diverged" if one.diverged else ""
    text = f"{factor * one.mean:.{digits}f}"
    if one.spread is not None:
        text += f" ± {factor * one.spread:.{digits}f}"
    text += f" ({one.count})" if one.count > 1 else ""
    return text + (f", {one.diverged} diverged" if one.diverged else "")


def distortion(rows: Sequence[Row], every: Sequence[Row]) -> tuple[float, float] | None:
    """Return how pruning changes the recalls of the classes, over seeds: (mean change, largest fall), in points.

    The mean is that of absolute changes over classes, the fall that of the class that loses most; both are averaged
    over the seeds whose dense network was measured. None where there is no such seed. A network may keep its accuracy
    and lose a class.
    """
    dense = {(row.cell.network, row.cell.seed): row for row in every if row.cell.method == DENSE}
    found = []
    for row in rows:
        before = dense.get((row.cell.network, row.cell.seed))
        if row.cell.method == DENSE or before is None:
            continue
        old, new = before.recalls.get("test", ()), row.recalls.get("test", ())
        if old and len(old) == len(new):
            change = np.asarray(new) - np.asarray(old)
            found.append((100 * np.abs(change).mean(), -100 * change.min()))
    return (float(np.mean([one[0] for one in found])), float(np.mean([one[1] for one in found]))) if found else None


def panels_of(rows: Sequence[Row], value: str, published: Published, *, factor: float = 1.0) -> list[Panel]:
    """Return a panel for each block size of one network's rows."""
    cells = by_cell(rows)
    dense = [row for row in rows if row.cell.method == DENSE]
    level = summary(dense, value).mean
    panels = []
    for block in sorted({cell.block for cell in cells if cell.sparsity}):
        own = {cell: measured for cell, measured in cells.items() if cell.block == block and cell.sparsity}
        series = []
        for method in dict.fromkeys(cell.method for cell in own):
            points = []
            for cell in sorted(cell for cell in own if cell.method == method):
                one = summary(own[cell], value)
                if one.mean is not None:
                    points.append((cell.sparsity, factor * one.mean, one.spread and factor * one.spread))
            series.append(Series(method, tuple(points), published=False))
            known = sorted((at[2], number) for at, number in published.items() if at[:2] == (method, block))
            if known:
                series.append(Series(method, tuple((s, number, None) for s, number in known), published=True))
        title = f"{block} x {block} blocks" if block else "channels"
        panels.append(Panel(title, tuple(series), None if level is None else factor * level))
    return panels


def picture(title: str, panels: Sequence[Panel], axis: str) -> tuple[tuple[str, bytes], ...]:
    """Return the picture as content of a page; nothing where there is nothing to draw."""
    return ((title, curves(panels, axis)),) if panels else ()


def warning_of(rows: Sequence[Row]) -> str:
    """Return what must stand above all figures; empty where the data are whole."""
    samples = dict.fromkeys(row.sample for row in rows if row.sample)
    return "" if not samples else f"These figures come from {'; '.join(samples)}. They reproduce no published figure."


def provenance(rows: Sequence[Row]) -> str:
    """Return what it takes to repeat the rows."""

    def all_of(values: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(value for value in values if value))

    versions = all_of(", ".join(f"{name} {v}" for name, v in sorted(row.versions.items())) for row in rows)
    return (
        f"Command: {all_of(row.command for row in rows)}. Commit: {all_of(row.commit for row in rows)}. "
        f"Machine: {all_of(row.machine for row in rows)}. Versions: {versions}."
    )


def notes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what the methods say of the first seed's masks."""
    first = min(row.cell.seed for row in rows)
    return tuple(f"{row.cell.asked}: {'. '.join(row.notes)}." for row in rows if row.notes and row.cell.seed == first)


def write_page(folder: Path, page: Page) -> list[Path]:
    """Write ``table.md`` with its pictures, and ``report.html``, which holds them; returns the two pages."""
    folder.mkdir(parents=True, exist_ok=True)
    text, pictures = as_markdown(page, PICTURES)
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    urls = ["data:image/png;base64," + base64.b64encode(content).decode() for content in pictures.values()]
    return [
        write_atomically(folder / "table.md", text.encode()),
        write_atomically(folder / "report.html", as_html(page, urls).encode()),
    ]
