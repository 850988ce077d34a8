"""Pictures of gap against time, one panel per suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.solvers.row import Row
from benchmarks.solvers.table import Reference, excess, reference, suite_of
from benchmarks.solvers.trace import points_of
from structprune.files import write_atomically

__all__ = ["gap_against_time"]

FLOOR = 1e-9  # smaller gaps are drawn here: proven best up to rounding
COLUMNS, WIDTH, HEIGHT = 3, 4.3, 3.1  # panels, inches
MOST = 24  # panels in one picture
COLOURS = (
    *("#0b5fa5", "#c2571a", "#2f8f4e", "#8a4fbf", "#b8860b", "#c23b5a", "#1f9a9a", "#7a6a58"),
    *("#5d7fe0", "#8f8f22", "#d07fb5", "#444f5c"),
)


def gap_against_time(path: Path, title: str, rows: Sequence[Row]) -> bool:
    """Draw the rows and write the picture; False, and nothing written, where no instance has a proven bound.

    Full marks are gaps that the method proves itself; hollow ones the distance from the tightest bound of any method.
    """
    instances: dict[str, list[Row]] = {}
    for row in rows:
        instances.setdefault(row.instance, []).append(row)
    known = {instance: reference(group) for instance, group in instances.items()}
    suites: dict[str, list[Row]] = {}
    for row in rows:
        if known[row.instance] is not None:
            suites.setdefault(suite_of(row.instance), []).append(row)
    if not suites:
        return False
    methods = list(dict.fromkeys(row.method for group in suites.values() for row in group))
    colours = {method: COLOURS[number % len(COLOURS)] for number, method in enumerate(methods)}
    markers = {method: "osD^vP"[number // len(COLOURS) % 6] for number, method in enumerate(methods)}
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
        _panel(panel, shown[number], suites[shown[number]], known, colours, markers)
    handles = [
        panels.flat[0].plot([], [], markers[method], color=colours[method], linestyle="none", label=method)[0]
        for method in methods
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=8)
    left = f"; {len(suites) - MOST} more suites in the table" if len(suites) > MOST else ""
    figure.suptitle(
        f"{title}: full marks are proven gaps, hollow ones distances from the best bound{left}", fontsize=10
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    return True


def _panel(
    panel: Axes,
    suite: str,
    rows: Sequence[Row],
    known: dict[str, Reference | None],
    colours: dict[str, str],
    markers: dict[str, str],
) -> None:
    """Draw one suite."""
    for row in rows:
        best = known[row.instance]
        gap = row.gap if row.gap is not None else None if best is None else excess(row, best)
        if gap is None:
            continue
        colour = colours[row.method]
        points = points_of(row.facts)
        if points:
            # Each improvement holds until the next; the last one until the method stopped.
            times = [max(seconds, 1e-5) for seconds, _ in points] + [max(row.seconds, points[-1][0])]
            gaps = [max(value, FLOOR) for _, value in points] + [max(points[-1][1], FLOOR)]
            panel.step(times, gaps, where="post", color=colour, linewidth=1.1, alpha=0.6)
        panel.plot(
            [max(row.seconds, 1e-5)],
            [max(gap, FLOOR)],
            markers[row.method],
            markerfacecolor=colour if row.gap is not None else "none",
            markeredgecolor=colour,
            markersize=6,
            alpha=0.85,
            clip_on=False,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(suite if len(suite) < 52 else suite[:50] + " ...", fontsize=8.5)
    panel.set_xlabel("seconds", fontsize=8)
    panel.set_ylabel("gap", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(True, which="major", color="#e3e3e3", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
