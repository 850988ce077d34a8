"""The pruning limit as one page that needs no network: what each estimator says, where, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from structprune.limit import LayerCurve, Limit, LimitEstimate
from structprune.limit.words import checks, confidence_text, kept_text, measured, percent, title, unit
from structprune.page import (
    AFTER,
    BEFORE,
    GOOD,
    INK,
    MARK,
    SOFT,
    alert,
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
from structprune.units import fraction_text, short_number

__all__ = ["page"]

LAYERS = 24  # layer curves in the plot
POINTS = 200  # of a curve, beyond which more are not seen
DEPTH, HEIGHT = 50, 500  # how far the plot reaches below and above epsilon, as factors
WIDE = 0.2  # a smallest limit below this fraction makes the axis of fractions logarithmic
STYLES = {"paper": (SOFT, "--"), "generic": (SOFT, ":"), "constructive": (GOOD, "-")}
TRUST_STYLES = ((AFTER, "-"), (AFTER, "--"), (AFTER, ":"))  # by radius, in the order asked for

CURVES_TEXT = """\
By how much the loss rises when only a fraction of the weights is kept, by each estimator. The band is epsilon, the
rise that is allowed: an estimator's limit is where its curve enters the band for good, and where a curve
leaves the plot below, the loss hardly rises or falls. Under it, the limits with their intervals on the same axis."""


@dataclass(frozen=True)
class Drawn:
    """An estimate with how it is drawn."""

    estimate: LimitEstimate
    colour: str
    dashes: str

    @property
    def name(self) -> str:
        """What readers call it."""
        return title(self.estimate.name)


def page(limit: Limit, asked: float | None = None) -> str:
    """Return the whole page.

    Parameters
    ----------
    limit
        What to show.
    asked
        A budget to judge: the fraction of all weights that it keeps.

    Raises
    ------
    ValueError
        If ``asked`` is not between 0 and 1.
    """
    sections = [
        budget_section(limit, asked),
        curves_section(limit, asked),
        estimates_section(limit),
        layers_section(limit),
        rests_section(limit),
        section("Notes", bullets(limit.notes)),
        origin_section(limit),
    ]
    subtitle = f"how far it can be pruned by {unit(limit.kind)} before its loss rises by more than epsilon"
    return assembled(f"{limit.model_name}, the pruning limit", subtitle, tiles(limit), sections, banner(limit))


# ---------------------------------------------------------------- what the page says


def tiles(limit: Limit) -> list[str]:
    """Return the few numbers to see first: what to keep by each estimator."""
    return [
        tile(fraction_text(one.keep_fraction.value), f"at least, {title(one.name)}", kept_text(one, limit.kind))
        for one in limit.estimates
    ]


def banner(limit: Limit) -> str:
    """Return the warnings, which stand above all numbers."""
    return section("Before you rely on these numbers", *(alert(text[:1].upper() + text[1:]) for text in limit.warnings))


def budget_section(limit: Limit, asked: float | None) -> str:
    """Return what the budget means that was asked for."""
    if asked is None:
        return ""
    sentence = limit.sentence(asked)
    return section("Your budget", paragraph(f"{sentence[0].upper()}{sentence[1:]}."))


def curves_section(limit: Limit, asked: float | None) -> str:
    """Return the plot of all curves and limits."""
    keys = [("before", f"epsilon, {short_number(limit.epsilon.value)} nats")]
    if asked is not None:
        keys.append(("mark", f"your budget, {fraction_text(asked)}"))
    return section("Loss and size", paragraph(CURVES_TEXT), curves_plot(limit, asked), legend(*keys))


def estimates_section(limit: Limit) -> str:
    """Return the table of estimates, and below it what each is."""
    structured = limit.kind != "weights"
    rows = [
        (
            title(one.name),
            percent(one.keep_fraction),
            percent(one.sparsity),
            f"{one.kept:,}",
            *((f"{one.structures:,}",) if structured else ()),
            "upper, on these data" if one.is_upper_bound else "no",
        )
        for one in limit.estimates
    ]
    counts = (f"kept {unit(limit.kind)}",) if structured else ()
    head = ("estimator", "keep at least", "sparsity", "kept weights", *counts, "a bound")
    meanings = pairs((title(one.name), one.meaning) for one in limit.estimates)
    text = f"Fractions are of all {limit.weights:,} weights, with {confidence_text(limit)} intervals."
    return section("Estimates", paragraph(text), table(head, rows), meanings)


def layers_section(limit: Limit) -> str:
    """Return what cutting each layer alone costs."""
    shown = layers_shown(limit.layers)
    left_out = len(limit.layers) - len(shown)
    text = "Rise of the loss in nats when one layer alone keeps so many of its weights, survivors updated, generically."
    if left_out:
        text += f" The {len(shown)} largest layers; {left_out} more are in the JSON."
    return section("Layers", paragraph(text), layers_plot(shown)) if shown else ""


def layers_shown(layers: Sequence[LayerCurve]) -> list[LayerCurve]:
    """Return the layers of the plot in the network's order: all, or the largest where they are too many."""
    most = sorted(range(len(layers)), key=lambda index: -layers[index].weights)[:LAYERS]
    return [layers[index] for index in sorted(most)]


def rests_section(limit: Limit) -> str:
    """Return what the numbers rest on."""
    dimension, epsilon = limit.dimension, limit.epsilon
    rows = [
        ("loss", f"{short_number(limit.loss)} nats on {limit.examples:,} examples"),
        ("epsilon", f"{bracket(epsilon.low, epsilon.value, epsilon.high)} nats, {limit.epsilon_source}"),
        ("weights", f"{limit.weights:,}, of which {limit.free:,} are always kept"),
        ("dead weights", f"{limit.dead:,} that are zero and without influence: removing them says nothing"),
        ("structures", f"{limit.structures:,} {unit(limit.kind)}"),
        ("curvature", limit.curvature),
        ("effective dimension", bracket(dimension.low, dimension.value, dimension.high)),
        *(("check", text) for text in checks(limit)),
    ]
    return section("What this rests on", pairs(rows))


def origin_section(limit: Limit) -> str:
    """Return what is needed to repeat it."""
    return section("Seed, time, versions", pairs([("run", measured(limit)), *limit.versions.items()]))


def bracket(low: float, value: float, high: float) -> str:
    """Return a value with its interval."""
    return short_number(value) + (f" [{short_number(low)}, {short_number(high)}]" if low < high else "")


# ---------------------------------------------------------------- plots


def styled(limit: Limit) -> list[Drawn]:
    """Return the estimates with their colours; trust-region estimates share one and differ in dashes."""
    radii = iter(range(len(limit.estimates)))
    drawn = []
    for one in limit.estimates:
        colour, dashes = STYLES.get(one.name) or TRUST_STYLES[next(radii) % len(TRUST_STYLES)]
        drawn.append(Drawn(one, colour, dashes))
    return drawn


def curves_plot(limit: Limit, asked: float | None) -> str:
    """Return the rise of the loss over the kept fraction above, the limits with their intervals below."""
    drawn = styled(limit)
    with new_figure(4.3 + 0.3 * len(drawn)) as figure:
        curves, limits = figure.subplots(2, sharex=True, height_ratios=(4, 0.35 + 0.3 * len(drawn)))
        draw_curves(curves, limit, drawn)
        draw_limits(limits, drawn)
        if asked is not None:
            for plot in (curves, limits):
                plot.axvline(asked, color=MARK, linewidth=2)
        scale_fractions(limits, limit, asked)
        return svg(figure, "Rise of the loss over the kept fraction, and the limits")


def draw_curves(plot: Any, limit: Limit, drawn: Sequence[Drawn]) -> None:
    """Draw one line per estimator and the band of epsilon."""
    epsilon = limit.epsilon
    plot.axhspan(epsilon.value / DEPTH, epsilon.value, color=BEFORE, alpha=0.3, linewidth=0)
    if epsilon.low < epsilon.high:
        plot.axhspan(epsilon.low, epsilon.high, color=BEFORE, alpha=0.5, linewidth=0)
    plot.axhline(epsilon.value, color=BEFORE, linewidth=1)
    for one in drawn:
        points = thinned([point for point in one.estimate.curve if all(map(math.isfinite, point))])
        marker = "o" if one.estimate.is_upper_bound else ""  # measured, point by point
        if points:
            fractions, rises = zip(*points, strict=True)
            style = {"color": one.colour, "linestyle": one.dashes, "marker": marker, "markersize": 3, "linewidth": 1.8}
            plot.plot(fractions, rises, label=one.name, **style)
    seen = [rise for one in drawn for _, rise in one.estimate.curve if math.isfinite(rise)]
    logarithmic(plot)
    if epsilon.value > 0:
        # Near the right the rise goes to nothing, or below it: only what compares with epsilon is of interest.
        plot.set_ylim(epsilon.value / DEPTH, min(2 * max([epsilon.high, *seen]), HEIGHT * epsilon.value))
    plot.set_ylabel("rise of the loss (nats)")
    plot.grid(True)
    plot.tick_params(labelsize=9, labelcolor=SOFT)
    if plot.get_legend_handles_labels()[0]:
        plot.legend(frameon=False, labelcolor=INK)


def draw_limits(plot: Any, drawn: Sequence[Drawn]) -> None:
    """Draw every limit as a dot on its interval."""
    for row, one in enumerate(drawn):
        kept = one.estimate.keep_fraction
        plot.plot([kept.low, kept.high], [row, row], color=one.colour, linewidth=3, alpha=0.5, solid_capstyle="butt")
        plot.plot([kept.value], [row], "o", color=one.colour, markersize=7)
        plot.annotate(
            percent(kept), (kept.high, row), (9, 0), textcoords="offset points", va="center", color=SOFT, fontsize=9
        )
    bars(plot, [one.name for one in drawn])
    plot.set_xlabel("kept fraction of all weights")


def scale_fractions(plot: Any, limit: Limit, asked: float | None) -> None:
    """Make the axis of fractions logarithmic where what matters lies near 0."""
    marks = [one.keep_fraction.low for one in limit.estimates] + ([] if asked is None else [asked])
    seen = [mark for mark in marks if mark > 0]
    if seen and min(seen) < WIDE and 0 not in marks:
        plot.set_xscale("log")
        left = min(seen) / 2
        plot.set_xlim(left, 1)
        ticks = [
            tick for tick in (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if tick >= left
        ]
        plot.set_xticks(ticks)
        plot.set_xticks([], minor=True)
    else:
        plot.set_xlim(0, 1)
    plot.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def logarithmic(plot: Any) -> None:
    """Make the axis of losses logarithmic, with plain numbers beside it; what is not positive falls out below."""
    plot.set_yscale("log", nonpositive="clip")
    plot.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plot.yaxis.set_minor_formatter(lambda value, _: "")


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return as many of the points as are seen, first and last among them."""
    if len(points) <= POINTS:
        return list(points)
    return [points[round(index * (len(points) - 1) / (POINTS - 1))] for index in range(POINTS)]


def layers_plot(layers: Sequence[LayerCurve]) -> str:
    """Return small plots of the layers' curves."""
    with panels(len(layers)) as (figure, plots):
        for plot, layer in zip(plots, layers, strict=True):
            finite = thinned([(kept, rise) for kept, rise in layer.curve if math.isfinite(rise)])
            plot.plot([kept for kept, _ in finite], [rise for _, rise in finite], color=AFTER, linewidth=1.6)
            plot.set_title(f"{shortened(layer.name, 24)}: {layer.weights:,}")
            plot.set_xlim(left=0)
            if sum(rise > 0 for _, rise in finite) > 1:
                logarithmic(plot)
        return svg(figure, "Rise of the loss by layer")
