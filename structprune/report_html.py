"""The report as one page that needs no network: tables, and plots as inline SVG that follow light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from structprune.units import accuracy_text, fraction_text, quantity, short_number, used_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from structprune.report import AxisRow, CostRow, CurveRow, Report

__all__ = ["page"]

WIDTH_BARS = 60  # axes in the plot of widths
CURVES = 24  # loss curves shown
RECALL_CLASSES = 200  # rows of the table of recalls
INCHES = 10.4  # width of a full plot; a point is a pixel of the page

# Colours in a plot are stand-ins, replaced by the page's variables so that one SVG does in light and in dark.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
BEFORE, AFTER, MARK, GOOD = "#040404", "#050505", "#060606", "#070707"
VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", BEFORE: "before", AFTER: "after", MARK: "mark", GOOD: "good"
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "structprune",  # equal reports give equal pages
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
}


def page(report: Report) -> str:
    """Return the whole page."""
    template = Template(files("structprune").joinpath("report.html").read_text(encoding="utf-8"))
    sections = [
        costs_section(report),
        quality_section(report),
        widths_section(report),
        curves_section(report),
        recall_section(report),
        certificate_section(report),
        notes_section(report),
        pinned_section(report),
        origin_section(report),
    ]
    return template.substitute(
        title=escape(f"{report.model_name}, pruned"),
        subtitle=escape(f"{report.kind} by {report.criterion}, scored in {report.score_unit}"),
        tiles="\n".join(tiles(report)),
        sections="\n".join(section for section in sections if section),
    )


# ---------------------------------------------------------------- what the page says


def tiles(report: Report) -> list[str]:
    """Return the few numbers to see first."""
    shown = []
    for cost in report.costs:
        after = cost.predicted if cost.counted is None else cost.counted
        left = fraction_text(after / cost.before) if cost.before else "-"
        amounts = f"{quantity(cost.resource, cost.before)} → {quantity(cost.resource, after)}"
        shown.append(tile(left, f"of {cost.resource}", amounts))
    if report.latency is not None:
        timing = report.latency
        amounts = f"{quantity('latency_ns', timing.before_ns)} → {quantity('latency_ns', timing.after_ns)}"
        ratio, _, word = timing.verdict.partition(" ")
        shown.append(tile(ratio, f"{word}, measured", amounts))
    measured = [row for row in report.quality if row.accuracy is not None]
    if measured:
        first, last = measured[0], measured[-1]
        was = f"{first.stage} {accuracy_text(first.accuracy or 0.0)}" if first is not last else ""
        shown.append(tile(accuracy_text(last.accuracy or 0.0), f"accuracy, {last.stage}", was))
    if report.gap is not None:
        shown.append(tile(fraction_text(report.gap), "gap, of what is lost", "to the best possible choice"))
    return shown


def tile(number: str, what: str, more: str) -> str:
    """Return one large number with what it is."""
    return f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span><span>{escape(more)}</span></div>'


def section(title: str, *parts: str) -> str:
    """Return a titled part of the page, nothing if it has no content."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str) -> str:
    """Return a paragraph of explanation."""
    return f'<p class="soft">{escape(text)}</p>' if text else ""


def legend(*entries: tuple[str, str]) -> str:
    """Return coloured keys, as pairs (variable, text)."""
    keys = (
        f'<span class="entry"><span class="key" style="background: var(--{name})"></span>{escape(text)}</span> '
        for name, text in entries
    )
    return f'<p class="soft">{"".join(keys)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls where it is too wide; the first column names the row, the others are numbers."""
    cells = "".join(f"<th{' class=number' if index else ''}>{escape(name)}</th>" for index, name in enumerate(head))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{' class=number' if index else ''}>{escape(cell)}</td>" for index, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{body}\n</table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of named facts."""
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in rows)
    return f'<div class="scroll"><table>\n{body}\n</table></div>' if body else ""


def costs_section(report: Report) -> str:
    """Return costs before and after, predicted beside counted and measured."""
    rows = [cost_cells(row) for row in report.costs]
    if report.latency is not None:
        timing = report.latency
        predicted = next((row.predicted for row in report.costs if row.resource == "latency_ns"), 0)
        rows.append(
            (
                f"measured latency, batch {timing.batch} on {timing.device}",
                quantity("latency_ns", timing.before_ns),
                "-",
                quantity("latency_ns", predicted) if predicted else "-",
                spread(timing.after_ns, timing.after_low, timing.after_high),
                "-",
                f"{timing.after_ns / predicted - 1:+.1%}" if predicted else "-",
            )
        )
    head = ("resource", "before", "allowed", "predicted", "counted or measured", "used", "difference")
    keys = legend(("before", "dense"), ("after", "predicted"), ("good", "counted or measured"), ("mark", "allowed"))
    return section("Cost", keys, costs_plot(report), table(head, rows))


def cost_cells(row: CostRow) -> tuple[str, ...]:
    """Return the cells of a resource in the table of costs."""
    capped, counted = row.allowed is not None, row.counted is not None
    return (
        row.resource,
        quantity(row.resource, row.before),
        quantity(row.resource, row.allowed or 0) if capped else "-",
        quantity(row.resource, row.predicted),
        quantity(row.resource, row.counted or 0) if counted else "-",
        used_text(row.predicted, row.allowed or 0) if capped else "-",
        f"{(row.counted or 0) - row.predicted:+,}".replace("+0", "none") if counted else "-",
    )


def spread(median: int, low: int, high: int) -> str:
    """Return a median with its quartiles."""
    return f"{quantity('latency_ns', median)} [{quantity('latency_ns', low)}, {quantity('latency_ns', high)}]"


def quality_section(report: Report) -> str:
    """Return loss and accuracy by stage."""
    if not report.quality:
        return ""
    rows = [
        (
            row.stage,
            "-" if row.accuracy is None else accuracy_text(row.accuracy),
            "-" if row.loss is None else short_number(row.loss),
            f"{row.examples:,}",
        )
        for row in report.quality
    ]
    return section("Quality", quality_plot(report), table(("stage", "accuracy", "loss", "examples"), rows))


def widths_section(report: Report) -> str:
    """Return what is left of each axis."""
    shown = widths_shown(report)
    left_out = len(report.axes) - len(shown)
    note = f"The {len(shown)} most pruned axes; {left_out} more are in the table." if left_out else ""
    rows = ((axis.name, f"{axis.before:,}", f"{axis.after:,}", share(axis)) for axis in report.axes)
    listing = table(("axis", "before", "after", "left"), rows)
    keys = legend(("before", "before"), ("after", "after"))
    details = f"<details><summary>All {len(report.axes)} axes</summary>{listing}</details>" if report.axes else ""
    return section("Widths", keys, paragraph(note), widths_plot(shown), details) if report.axes else ""


def share(axis: AxisRow) -> str:
    """Return the fraction of an axis that is left."""
    return fraction_text(axis.after / axis.before) if axis.before else "-"


def widths_shown(report: Report) -> list[AxisRow]:
    """Return the axes of the plot in the network's order: all, or the most pruned ones where they are too many."""
    if len(report.axes) <= WIDTH_BARS:
        return list(report.axes)
    chosen = set(report.most_pruned[:WIDTH_BARS])
    return [axis for axis in report.axes if axis in chosen]


def curves_section(report: Report) -> str:
    """Return the loss curves with the chosen points."""
    shown = curves_shown(report.curves)
    left_out = len(report.curves) - len(shown)
    text = f"Estimated loss ({report.score_unit}) by the number of structures kept; the dot is the choice."
    if left_out:
        text += f" The {len(shown)} axes that lose the most; {left_out} more are in the JSON report."
    return section("Loss curves", paragraph(text), curves_plot(shown)) if shown else ""


def curves_shown(curves: Sequence[CurveRow]) -> list[CurveRow]:
    """Return the curves of the plot in the network's order: all, or those that lose the most at their choice."""
    if len(curves) <= CURVES:
        return list(curves)
    most = sorted(range(len(curves)), key=lambda index: -chosen_loss(curves[index]))[:CURVES]
    return [curves[index] for index in sorted(most)]


def chosen_loss(curve: CurveRow) -> float:
    """Return the loss at the choice, interpolated where it lies between two levels; 0 for what is no number."""
    best = min(range(len(curve.levels)), key=lambda index: abs(curve.levels[index] - curve.chosen), default=None)
    loss = curve.loss[best] if best is not None else 0.0
    return loss if math.isfinite(loss) else 0.0


def recall_section(report: Report) -> str:
    """Return recall per class and stage, the classes that lost the most first."""
    recall = report.per_class_recall
    if not recall:
        return ""
    stages = list(recall)
    labels = list(dict.fromkeys(label for stage in stages for label in recall[stage]))
    first, last = recall[stages[0]], recall[stages[-1]]
    labels.sort(key=lambda label: last.get(label, 0.0) - first.get(label, 0.0))
    rows = [
        (label, *(accuracy_text(recall[stage][label]) if label in recall[stage] else "-" for stage in stages))
        for label in labels[:RECALL_CLASSES]
    ]
    left_out = len(labels) - len(rows)
    note = "Sorted by what was lost." + (f" {left_out} more classes are in the JSON report." if left_out else "")
    return section("Recall per class", paragraph(note), table(("class", *stages), rows))


def certificate_section(report: Report) -> str:
    """Return the value reached, the bound, and the proof that the compiled network equals the masked one."""
    told = {"model", "kept", "latency", "quality", "note", "seed", *(row.resource for row in report.costs)}
    return section("What is known of this choice", pairs(fact for fact in report.facts() if fact[0] not in told))


def notes_section(report: Report) -> str:
    """Return the notes."""
    items = "\n".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return section("Notes", f"<ul>\n{items}\n</ul>") if items else ""


def pinned_section(report: Report) -> str:
    """Return what cannot be pruned, by reason."""
    groups = [
        f"<details><summary>{escape(reason)} <span class=soft>({len(tensors)})</span></summary>"
        f"<p><code>{escape(', '.join(tensors))}</code></p></details>"
        for reason, tensors in report.pinned_by_reason.items()
    ]
    return section("Pinned: tensor dimensions that cannot be pruned, and why", *groups)


def origin_section(report: Report) -> str:
    """Return what is needed to repeat the run."""
    rows = [("seed", str(report.seed))]
    rows += [(f"time, {phase}", f"{seconds:.2f} s") for phase, seconds in report.seconds.items()]
    rows += list(report.versions.items())
    return section("Seed, time, versions", pairs(rows))


# ---------------------------------------------------------------- plots


def svg(figure: Figure, label: str) -> str:
    """Return a figure as an inline SVG in the page's colours, described for those who cannot see it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    # Ids must differ between the plots of a page.
    prefix = re.sub(r"\W+", "-", label)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return f'<div class="plot">{text}</div>'


@contextmanager
def new_figure(height: float) -> Iterator[Figure]:
    """Give an empty figure of the page's width, its height in inches, to be drawn and saved in the page's style."""
    # Here and not above: loading matplotlib takes half a second that only those who want the page should wait for.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.03)
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(INCHES, height), layout=layout)


def bars(axes: Any, names: Sequence[str]) -> None:
    """Prepare horizontal bars, one row per name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def shortened(name: str, length: int = 40) -> str:
    """Return a name cut in its middle to fit beside a plot."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def widths_plot(axes_shown: Sequence[AxisRow]) -> str:
    """Return bars of the widths before, and over them after."""
    if not axes_shown:
        return ""
    with new_figure(0.7 + 0.21 * len(axes_shown)) as figure:
        plot = figure.subplots()
        rows = range(len(axes_shown))
        plot.barh(rows, [axis.before for axis in axes_shown], height=0.72, color=BEFORE)
        plot.barh(rows, [axis.after for axis in axes_shown], height=0.72, color=AFTER)
        reach = max(axis.before for axis in axes_shown)
        for row, axis in enumerate(axes_shown):
            text = f"{axis.after} of {axis.before}" if axis.after < axis.before else f"all {axis.before}"
            plot.text(axis.before + 0.008 * reach, row, text, va="center", color=SOFT, fontsize=9)
        plot.set_xlim(0, reach * 1.12)
        bars(plot, [shortened(axis.name) for axis in axes_shown])
        return svg(figure, "Widths before and after")


def curves_plot(curves: Sequence[CurveRow]) -> str:
    """Return small multiples of the loss curves, the chosen points marked."""
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    with new_figure(0.3 + 1.75 * lines) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for plot, curve in zip(grid, curves, strict=False):
            points = zip(curve.levels, curve.loss, strict=True)
            finite = [(level, loss) for level, loss in points if math.isfinite(loss)]
            plot.plot([level for level, _ in finite], [loss for _, loss in finite], color=AFTER, linewidth=1.6)
            plot.plot([curve.chosen], [chosen_loss(curve)], "o", color=MARK, markersize=6)
            plot.set_title(f"{shortened(curve.name, 24)}: {curve.chosen} of {max(curve.levels, default=0)}")
            plot.set_xlim(left=0)
            plot.grid(True)
            plot.locator_params(nbins=4)
            plot.tick_params(labelsize=8, labelcolor=SOFT)
        for plot in grid[len(curves) :]:
            plot.set_visible(False)
        return svg(figure, "Loss curves")


def costs_plot(report: Report) -> str:
    """Return, per resource, predicted and counted amounts as fractions of the dense network, with the cap as a mark."""
    rows = [row for row in report.costs if row.before > 0]
    if not rows:
        return ""
    with new_figure(0.6 + 0.62 * len(rows)) as figure:
        plot = figure.subplots()
        for index, row in enumerate(rows):
            counted = row.counted
            if row.resource == "latency_ns" and counted is None and report.latency is not None:
                counted = report.latency.after_ns
            plot.barh(index, 1, height=0.66, color=BEFORE)
            low = 0.66 if counted is None else 0.33
            centre = index if counted is None else index - 0.165
            plot.barh(centre, row.predicted / row.before, height=low, color=AFTER)
            if counted is not None:
                plot.barh(index + 0.165, counted / row.before, height=0.33, color=GOOD)
            if row.allowed is not None and row.allowed <= 1.5 * row.before:
                plot.plot([row.allowed / row.before] * 2, [index - 0.42, index + 0.42], color=MARK, linewidth=2.5)
        plot.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        plot.set_xlim(left=0)
        bars(plot, [f"{row.resource} ({quantity(row.resource, row.before)})" for row in rows])
        return svg(figure, "Costs, predicted and counted")


def quality_plot(report: Report) -> str:
    """Return bars of the accuracy by stage, of the loss where there is no accuracy."""
    accuracy = [(row.stage, row.accuracy) for row in report.quality if row.accuracy is not None]
    losses = ((row.stage, row.loss) for row in report.quality if row.loss is not None)
    shown = accuracy or [(stage, loss) for stage, loss in losses if math.isfinite(loss)]
    if not shown:
        return ""
    with new_figure(0.6 + 0.36 * len(shown)) as figure:
        plot = figure.subplots()
        for row, (_, value) in enumerate(shown):
            plot.barh(row, value, height=0.7, color=BEFORE if row == 0 and len(shown) > 1 else AFTER)
            text = accuracy_text(value) if accuracy else short_number(value)
            plot.annotate(text, (value, row), (6, 0), textcoords="offset points", va="center", color=INK)
        if accuracy:
            plot.set_xlim(0, 1.1)
            plot.set_xticks([0, 0.25, 0.5, 0.75, 1])
            plot.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            plot.margins(x=0.12)
        bars(plot, [stage for stage, _ in shown])
        return svg(figure, "Accuracy by stage" if accuracy else "Loss by stage")
