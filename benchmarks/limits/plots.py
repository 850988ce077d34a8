"""Theory against actual: the rise of the loss over the keep fraction, one panel per kind of structures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter

from benchmarks.limits.row import Row
from structprune.files import write_atomically
from structprune.limit import LimitEstimate

__all__ = ["theory_against_actual"]

WIDTH, HEIGHT = 4.6, 3.9  # inches of a panel
FLOOR = 0.03  # of the smallest epsilon: rises below, and falls, are drawn here
CEILING = 300.0  # of the largest epsilon
COLOURS = {"paper": "#c2571a", "generic": "#8a4fbf", "constructive": "#2f8f4e"}
TRUTH, MARKERS = "#d62728", "os^"
TRUST = ("#0b5fa5", "#5d9fe0", "#1f9a9a")


def theory_against_actual(path: Path, rows: Sequence[Row]) -> None:
    """Draw all rows of a task and write the picture.

    Lines are the estimators' predictions, dots the measured losses of retrained supports (hollow at the floor where
    the loss did not rise), stars the truths, horizontal lines the epsilons, ticks on them the estimators' limits.
    """
    kinds = list(dict.fromkeys(row.structures for row in rows))
    figure = Figure(figsize=(WIDTH * len(kinds), HEIGHT + 0.8 / len(kinds)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        _panel(panel, kind, [row for row in rows if row.structures == kind])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 3 * len(kinds)), frameon=False, fontsize=8
    )
    figure.suptitle(rows[0].about, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def _panel(panel: Axes, kind: str, rows: Sequence[Row]) -> None:
    """Draw one kind of structures, all its epsilons."""
    epsilons = sorted({row.limit.epsilon.value for row in rows})
    floor, ceiling = FLOOR * epsilons[0], CEILING * epsilons[-1]
    first = rows[0].limit
    colours = _colours(first.estimates)
    for estimate in first.estimates:
        shown = [(x, min(max(y, floor), 10 * ceiling)) for x, y in estimate.curve]
        if shown:
            panel.plot(*zip(*shown, strict=True), color=colours[estimate.name], linewidth=1.3, label=estimate.name)
    for truth, marker in zip(rows[0].truths, MARKERS, strict=False):
        for risen in (True, False):
            dots = [(p.keep_fraction, p.loss - first.loss) for p in truth.points]
            dots = [(x, max(y, floor)) for x, y in dots if (y > floor) == risen]
            if dots:
                # Labels with an underscore stay out of the legend.
                label = f"retrained {truth.label}" if risen else "_hollow"
                face = "#222222" if risen else "none"
                xs, ys = zip(*dots, strict=True)
                panel.plot(xs, ys, marker, color="#222222", markerfacecolor=face, markersize=4, label=label)
    for row in rows:
        limit = row.limit
        epsilon = limit.epsilon.value
        panel.axhline(epsilon, color="#999999", linewidth=0.8, linestyle="--")
        panel.annotate(f"epsilon {epsilon:.2g}", (1.0, epsilon), fontsize=7, color="#666666", ha="right", va="bottom")
        for estimate in limit.estimates:
            kept = estimate.keep_fraction
            panel.plot([kept.low, kept.high], [epsilon] * 2, color=colours[estimate.name], linewidth=3, alpha=0.5)
            panel.plot([kept.value], [epsilon], "|", color=colours[estimate.name], markersize=11, markeredgewidth=2)
        for truth, face in zip(row.truths, ("none", TRUTH), strict=False):
            at = [truth.size.keep_fraction], [epsilon]
            panel.plot(*at, "*", color=TRUTH, markerfacecolor=face, markersize=11, zorder=5)
    for truth, face in zip(rows[0].truths, ("none", TRUTH), strict=False):
        panel.plot([], [], "*", label=f"truth, {truth.label}", color=TRUTH, markerfacecolor=face, markersize=9)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(floor / 1.5, ceiling)
    panel.set_title(kind, fontsize=9)
    panel.set_xlabel("kept, of all parameters", fontsize=8)
    panel.set_ylabel("rise of the loss (nats)", fontsize=8)
    panel.tick_params(labelsize=7, which="both")
    panel.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _colours(estimates: Sequence[LimitEstimate]) -> dict[str, str]:
    trust = [estimate.name for estimate in estimates if estimate.name.startswith("trust")]
    return {**COLOURS, **{name: TRUST[number % len(TRUST)] for number, name in enumerate(trust)}}
