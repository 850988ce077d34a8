"""The report on a terminal, in colour with tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from structprune.units import accuracy_text, fraction_text, quantity, short_number, used_text

if TYPE_CHECKING:
    from structprune.report import Report

__all__ = ["print_report"]

ROWS = 20  # of the table of widths


def print_report(report: Report, console: Console) -> None:
    """Print the tables, and below them the facts that they do not hold."""
    console.print(Panel(Text(f"{report.model_name}: {report.kind} by {report.criterion}", style="bold"), expand=False))
    console.print(costs_table(report))
    console.print(widths_table(report))
    if report.quality:
        console.print(quality_table(report))
    told = {"model", "kept", "quality", *(row.resource for row in report.costs)}
    summary = Table(box=None, show_header=False, padding=(0, 1))
    summary.add_column(style="cyan", no_wrap=True)
    summary.add_column(overflow="fold")
    for label, sentence in report.facts():
        if label not in told:
            summary.add_row(label, Text(sentence))
    console.print(summary)


def costs_table(report: Report) -> Table:
    """Return the resources before and after, predicted beside counted."""
    table = Table(box=box.SIMPLE_HEAD, title="Cost", title_justify="left", title_style="bold")
    table.add_column("resource", style="cyan", no_wrap=True)
    for name in ("before", "allowed", "predicted", "counted", "left", "used"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.costs:
        agrees = row.counted in (None, row.predicted)
        counted = "-" if row.counted is None else quantity(row.resource, row.counted)
        used = "-" if row.allowed is None else used_text(row.predicted, row.allowed)
        fits = row.allowed is None or row.predicted <= row.allowed
        table.add_row(
            row.resource,
            quantity(row.resource, row.before),
            "-" if row.allowed is None else quantity(row.resource, row.allowed),
            quantity(row.resource, row.predicted),
            Text(counted, style="green" if agrees else "bold red"),
            fraction_text(row.predicted / row.before) if row.before else "-",
            Text(used, style="green" if fits else "bold red"),
        )
    return table


def widths_table(report: Report) -> Table:
    """Return the widths of the most pruned axes in the network's order, with a bar of what is left."""
    chosen = set(report.most_pruned[:ROWS])
    shown = [axis for axis in report.axes if axis in chosen]
    left_out = len(report.most_pruned) - len(shown)
    caption = f"{report.untouched} axes untouched"
    if left_out > 0:
        caption += f", {left_out} pruned less than these"
    table = Table(box=box.SIMPLE_HEAD, title="Widths", title_justify="left", title_style="bold", caption=caption)
    table.add_column("axis", style="cyan", overflow="fold")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("left")
    for axis in shown:
        full = round(20 * axis.after / axis.before) if axis.before else 0
        left = Text("█" * full, style="green") + Text("░" * (20 - full), style="dim")
        table.add_row(axis.name, str(axis.before), str(axis.after), left)
    return table


def quality_table(report: Report) -> Table:
    """Return loss and accuracy by stage."""
    table = Table(box=box.SIMPLE_HEAD, title="Quality", title_justify="left", title_style="bold")
    table.add_column("stage", style="cyan")
    for name in ("loss", "accuracy", "examples"):
        table.add_column(name, justify="right")
    for row in report.quality:
        table.add_row(
            row.stage,
            "-" if row.loss is None else short_number(row.loss),
            "-" if row.accuracy is None else accuracy_text(row.accuracy),
            f"{row.examples:,}",
        )
    return table
