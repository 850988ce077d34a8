"""Pictures of gap against time, one panel per suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.solvers.row import Row
from benchmarks.solvers.table import Reference, excess, references, suites_of
from benchmarks.solvers.trace import points_of
from structprune.files import write_atomically

__all__ = ["gap_against_time"]

FLOOR = 1e-9  # smaller gaps are drawn here: proven best up to rounding
COLUMNS, WIDTH, HEIGHT = 3, 4.3, 3.1  # panels, inches
MOST = 18  # panels in one picture
COLOURS = (
    *("#0b5fa5", "#c2571a", "#2f8f4e", "#8a4fbf", "#b8860b", "#c23b5a", "#1f9a9a", "#7a6a58"),
    *("#5d7fe0", "#8f8f22", "#d07fb5", "#444f5c"),
)


def gap_against_time(path: Path, title: str, rows: Sequence[Row]) -> bool:
    """Draw the rows and write the picture; False, and nothing written, where there is nothing to compare.

    Full marks are gaps that the method proves itself; hollow ones the distance from the tightest bound of any method
    or, where there is none, from the best objective of any. Lines are gaps while a method ran.
    """
    known = references(rows)
    suites = suites_of([row for row in rows if row.instance in known])
    suites = {suite: group for suite, group in suites.items() if len(group) > 1 and _differ(group, known)}
    if not suites:
        return False
    methods = list(dict.fromkeys(row.method for group in suites.values() for row in group))
    style = {
        method: (COLOURS[number % len(COLOURS)], "osD^vP"[number // len(COLOURS) % 6])
        for number, method in enumerate(methods)
    }
    shown = list(suites)[:MOST]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    legend = 0.26 * -(-len(methods) // (2 * columns)) + 0.6
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines + legend), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for number, panel in enumerate(panels.flat):
        if number >= len(shown):
            panel.set_visible(False)
            continue
        _panel(panel, shown[number], suites[shown[number]], known, style)
    handles = [
        panels.flat[0].plot([], [], marker, color=colour, linestyle="none", label=method)[0]
        for method, (colour, marker) in style.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(2 * columns, 5), frameon=False, fontsize=8)
    left = f"; {len(suites) - MOST} more suites in the table" if len(suites) > MOST else ""
    figure.suptitle(
        f"{title}: full marks are proven gaps, hollow ones distances from the best known{left}", fontsize=10
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
    return True


def _differ(rows: Sequence[Row], known: dict[str, Reference]) -> bool:
    """Whether there is something to see: a proven bound, or methods that reached different objectives."""
    return any(known[row.instance].proven or excess(row, known[row.instance]) for row in rows)


def _panel(
    panel: Axes, suite: str, rows: Sequence[Row], known: dict[str, Reference], style: dict[str, tuple[str, str]]
) -> None:
    """Draw one suite."""
    proven = any(known[row.instance].proven for row in rows)
    shown = [(row, row.gap if row.gap is not None else excess(row, known[row.instance])) for row in rows]
    positive = [gap for _, gap in shown if gap]
    # The best found is not proven best: it stands a little below the others, not at rounding.
    floor = FLOOR if proven or not positive else min(positive) / 3
    for row, gap in shown:
        if gap is None:
            continue
        colour, marker = style[row.method]
        points = points_of(row.facts)
        if points:
            # Each improvement holds until the next; the last one until the method stopped.
            times = [max(seconds, 1e-5) for seconds, _ in points] + [max(row.seconds, points[-1][0])]
            gaps = [max(value, floor) for _, value in points] + [max(points[-1][1], floor)]
            panel.step(times, gaps, where="post", color=colour, linewidth=1.1, alpha=0.6)
        panel.plot(
            [max(row.seconds, 1e-5)],
            [max(gap, floor)],
            marker,
            markerfacecolor=colour if row.gap is not None else "none",
            markeredgecolor=colour,
            markersize=6,
            alpha=0.85,
            clip_on=False,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(*_decades(panel.dataLim.intervalx))
    panel.set_ylim(*_decades(panel.dataLim.intervaly))
    panel.minorticks_off()
    panel.set_title(suite if len(suite) < 56 else suite[:54] + " ...", fontsize=8)
    panel.set_xlabel("seconds", fontsize=8)
    panel.set_ylabel("gap" if proven else "above the best found", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(True, which="major", color="#e3e3e3", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _decades(interval: Sequence[float]) -> tuple[float, float]:
    """Whole powers of ten around an interval, so that the axes have labels that one can read."""
    low, high = (math.log10(end) for end in interval)
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    return 10.0**first * 0.8, 10.0 ** max(last, first + 1) * 1.25
