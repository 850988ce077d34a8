"""The report as one page that needs no network: tables, and plots as inline SVG that follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from structprune.page import (
    AFTER,
    BEFORE,
    GOOD,
    INK,
    MARK,
    SOFT,
    assembled,
    bars,
    bullets,
    legend,
    new_figure,
    pairs,
    panels,
    paragraph,
    section,
    shortened,
    svg,
    table,
    tile,
)
from structprune.units import accuracy_text, fraction_text, quantity, short_number, used_text

if TYPE_CHECKING:
    from structprune.report import AxisRow, CostRow, CurveRow, Report

__all__ = ["page"]

WIDTH_BARS = 60  # axes in the plot of widths
CURVES = 24  # loss curves shown
RECALL_CLASSES = 200  # rows of the table of recalls


def page(report: Report) -> str:
    """Return the whole page."""
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
    subtitle = f"{report.kind} by {report.criterion}, scored in {report.score_unit}"
    return assembled(f"{report.model_name}, pruned", subtitle, tiles(report), sections)


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
    return section("Notes", bullets(report.notes))


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
    with panels(len(curves)) as (figure, plots):
        for plot, curve in zip(plots, curves, strict=True):
            points = zip(curve.levels, curve.loss, strict=True)
            finite = [(level, loss) for level, loss in points if math.isfinite(loss)]
            plot.plot([level for level, _ in finite], [loss for _, loss in finite], color=AFTER, linewidth=1.6)
            plot.plot([curve.chosen], [chosen_loss(curve)], "o", color=MARK, markersize=6)
            plot.set_title(f"{shortened(curve.name, 24)}: {curve.chosen} of {max(curve.levels, default=0)}")
            plot.set_xlim(left=0)
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
