"""Curves over sparsity, a panel for each block size: ours with their spread, the paper's dashed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter

__all__ = ["Panel", "Series", "curves"]

WIDTH, HEIGHT = 4.2, 3.6  # inches of a panel
COLOURS = ("#0b5fa5", "#c2571a", "#2f8f4e", "#8a4fbf", "#b8305f", "#1f9a9a", "#7a6a1f", "#444444")


@dataclass(frozen=True)
class Series:
    """One method's curve.

    Attributes
    ----------
    label
        In the legend.
    points
        (sparsity, value, spread or None), by sparsity.
    published
        Whether it is the paper's.
    """

    label: str
    points: tuple[tuple[float, float, float | None], ...]
    published: bool


@dataclass(frozen=True)
class Panel:
    """One block size.

    Attributes
    ----------
    title
        Above it.
    series
        The curves.
    level
        The dense network's value, a horizontal line; None for none.
    """

    title: str
    series: tuple[Series, ...]
    level: float | None


def curves(panels: Sequence[Panel], axis: str) -> bytes:
    """Return the picture as PNG; ``axis`` names the values."""
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT + 0.7), layout="constrained")
    plots = figure.subplots(1, len(panels), squeeze=False)[0]
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    colour = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    handles: dict[str, Any] = {}
    for plot, panel in zip(plots, panels, strict=True):
        for series in panel.series:
            x = [point[0] for point in series.points]
            y = [point[1] for point in series.points]
            spread = [point[2] or 0.0 for point in series.points]
            name = f"{series.label}{', published' if series.published else ''}"
            style = "--" if series.published else "-"
            drawn = plot.errorbar(
                x, y, spread, color=colour[series.label], linestyle=style, marker="o", markersize=3, capsize=2
            )
            handles.setdefault(name, drawn)
        if panel.level is not None:
            handles.setdefault("dense", plot.axhline(panel.level, color="#999999", linewidth=0.9))
        ticks = sorted({point[0] for series in panel.series for point in series.points})
        plot.set_title(panel.title, fontsize=9)
        plot.set_xlabel("nominal sparsity", fontsize=8)
        plot.set_ylabel(axis, fontsize=8)
        plot.xaxis.set_major_locator(FixedLocator(ticks))
        plot.xaxis.set_minor_formatter(NullFormatter())
        plot.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        plot.tick_params(labelsize=7)
        plot.grid(True, color="#e6e6e6", linewidth=0.6)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
