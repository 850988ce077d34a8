"""The pruning limit in words: one screen of text, and what a budget means beside it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from structprune.units import fraction_text, quantity, short_number

if TYPE_CHECKING:
    from structprune.limit.value import Interval, Limit, LimitEstimate

__all__ = ["checks", "described", "judgement", "kept_text", "measured", "percent", "title", "unit"]

WIDTH = 112  # characters per line
LINES = 24  # on one screen
# Lines for each explanation, note and warning, as many as fit: explanations give way before warnings do.
FITS = ((4, 2, 4), (3, 2, 4), (3, 1, 4), (2, 1, 4), (2, 0, 4), (1, 0, 4), (1, 0, 2), (1, 0, 1), (0, 0, 1))
UNITS = {"weights": "single weights", "nm": "N:M entries"}  # other kinds are called by their own name


# ---------------------------------------------------------------- what a budget means


def judgement(limit: Limit, keep_fraction: float, kind: str | None) -> str:
    """Return what keeping this fraction of all weights, by removing structures of ``kind``, means beside the limit."""
    judge = judging(limit, keep_fraction)
    said = verdict(limit, judge, keep_fraction, kind or limit.kind)
    # What makes estimates doubtful leaves a measured loss what it is.
    doubt = " (in doubt, see the limit's warnings)" if limit.warnings and not judge.is_upper_bound else ""
    return (
        f"your budget keeps {fraction_text(keep_fraction)} of the weights; the {title(judge.name)} limit is "
        f"{percent(judge.keep_fraction)}: {said}{doubt}"
    )


def judging(limit: Limit, keep_fraction: float) -> LimitEstimate:
    """Return the estimate to judge by.

    A measurement that covers the budget beats any estimate. Else trust-region estimates are the ones that were near
    the truth where it is known; without one, a measurement that the budget misses still says more than the others.
    """
    bounds = sorted((one for one in limit.estimates if one.is_upper_bound), key=lambda one: one.keep_fraction.value)
    if bounds and keep_fraction >= bounds[0].keep_fraction.value:
        return bounds[0]
    trusted = [one for one in limit.estimates if one.name.startswith("trust")]
    return [*trusted, *bounds, *limit.estimates][0]


def verdict(limit: Limit, judge: LimitEstimate, keep_fraction: float, kind: str) -> str:
    """Return what the judge says of the budget."""
    kept = judge.keep_fraction
    # Structures are removed in worse company than single weights: below the weights' limit they are below their own.
    if kind != limit.kind and not (limit.kind == "weights" and not judge.is_upper_bound and keep_fraction < kept.low):
        return f"no verdict, that is the limit of {unit(limit.kind)} and the budget removes {unit(kind)}"
    if judge.is_upper_bound:
        within = keep_fraction >= kept.value
        return "within reach, the loss was measured there" if within else "beyond what was measured to work"
    if keep_fraction < kept.low:
        whole = limit.free / limit.weights if limit.weights else 0.0
        floor = f", {fraction_text(whole)} are always kept there" if keep_fraction < whole else ""
        return f"expect loss{floor}"
    if keep_fraction <= kept.high:
        return "at the limit"
    if judge.name.startswith("trust"):
        return "likely within reach"
    return "not ruled out, but this estimate says little of what is in reach"


# ---------------------------------------------------------------- one screen


def described(limit: Limit) -> str:
    """Return the limit on one screen; what does not fit is shortened, explanations before warnings."""
    for most in FITS:
        lines = screen(limit, *most)
        if len(lines) <= LINES:
            return "\n".join(lines)
    # A limit with more parts than lines: the warnings that open the text and the estimates are what matters.
    return "\n".join([*lines[: LINES - 1], "... (all of it is in the JSON and on the page)"])


def screen(limit: Limit, explained: int, noted: int, warned: int) -> list[str]:
    """Return the text with at most so many lines for every explanation, note and warning."""
    lines = [f"{limit.model_name}: how far it can be pruned by {unit(limit.kind)}"]
    for text in limit.warnings:
        lines += [f"! {line}" for line in shortened(f"WARNING {text}", WIDTH - 2, warned)]
    for label, text in (("loss", loss_text(limit)), ("weights", weights_text(limit)), ("curvature", curvature(limit))):
        lines += fact(label, text)
    lines += ["", *estimates_table(limit, explained), ""]
    if checks(limit):
        lines += fact("checks", "; ".join(checks(limit)))
    for text in limit.notes if noted else ():
        lines += fact("note", text, noted)
    return lines + fact("run", measured(limit))


def estimates_table(limit: Limit, explained: int) -> list[str]:
    """Return the estimates one below the other, each with at most so many lines of what it is."""
    head = ("keep at least", f"({confidence_text(limit)} interval)")
    names = [title(one.name) for one in limit.estimates]
    amounts = [percent(one.keep_fraction) for one in limit.estimates]
    first = max(map(len, [head[0], *(f"  {name}" for name in names)])) + 2
    second = max(map(len, [head[1], *amounts])) + 2
    lines = [f"{head[0]:<{first}}{head[1]:<{second}}what it is"]
    for name, amount, one in zip(names, amounts, limit.estimates, strict=True):
        meaning = shortened(one.meaning, WIDTH - first - second, explained) or [""]
        lines.append(f"{'  ' + name:<{first}}{amount:<{second}}{meaning[0]}".rstrip())
        lines += [" " * (first + second) + line for line in meaning[1:]]
    return lines


def fact(label: str, text: str, most: int = LINES) -> list[str]:
    """Return a labelled text in at most so many lines."""
    wrapped = shortened(text, WIDTH - 12, most)
    return [f"{label if index == 0 else '':<12}{line}" for index, line in enumerate(wrapped)]


def shortened(text: str, width: int, most: int) -> list[str]:
    """Return the text in lines of a width, with an ellipsis where there are too many."""
    if most < 1:
        return []
    return textwrap.wrap(text, width, max_lines=most, placeholder=" ...", break_long_words=True, break_on_hyphens=False)


# ---------------------------------------------------------------- sentences


def loss_text(limit: Limit) -> str:
    """Return the loss, and how much it may rise."""
    return (
        f"{short_number(limit.loss)} nats on {limit.examples:,} examples; may rise by epsilon = "
        f"{interval(limit.epsilon, short_number)} nats ({limit.epsilon_source})"
    )


def weights_text(limit: Limit) -> str:
    """Return how many weights there are and in how many structures."""
    among = "" if limit.kind == "weights" else f" in {limit.structures:,} {unit(limit.kind)}"
    dead = f"; {limit.dead:,} are zero without influence" if limit.dead else ""
    return (
        f"{limit.weights:,}, of which {limit.free:,} are always kept and {limit.weights - limit.free:,} can go"
        f"{among}{dead}"
    )


def curvature(limit: Limit) -> str:
    """Return the curvature and how many directions of it the loss feels."""
    if not math.isfinite(limit.dimension.value):
        return limit.curvature
    felt = interval(limit.dimension, short_number)
    return f"{limit.curvature}; the loss feels about {felt} directions (effective dimension)"


def checks(limit: Limit) -> list[str]:
    """Return what tells how far the numbers can be relied on, as far as it was looked at."""
    said = []
    if limit.stationarity is not None:
        times = f" ({limit.stationarity / limit.epsilon.value:.2g} epsilon)" if limit.epsilon.value > 0 else ""
        said.append(f"one second-order step would lower the loss by {short_number(limit.stationarity)} nats{times}")
    if limit.movement is not None:
        said.append(f"the unbounded update would move the survivors by {limit.movement:.2g} of their length")
    if limit.model_error is not None:
        said.append(f"predicted and measured rise differ by {limit.model_error:.2g} epsilon")
    return said


def measured(limit: Limit) -> str:
    """Return what it took and what repeats it."""
    memory = f", largest Lanczos basis {quantity('bytes', limit.memory_bytes)}" if limit.memory_bytes else ""
    return f"{limit.seconds:.1f} s, seed {limit.seed}{memory}"


def confidence_text(limit: Limit) -> str:
    """Return the confidence of the intervals: '95 %'."""
    return f"{100 * limit.confidence:g} %"


def unit(kind: str) -> str:
    """Return what structures of a kind are called, in the plural."""
    return UNITS.get(kind, kind)


def title(name: str) -> str:
    """Return an estimator's name for readers."""
    return f"trust-region ({name.removeprefix('trust ')})" if name.startswith("trust ") else name


def percent(kept: Interval) -> str:
    """Return a fraction in per cent with its interval: '12.0 % [11.0, 13.0]'."""
    text = fraction_text(kept.value)
    return (
        text if kept.low == kept.high else f"{text} [{short_number(100 * kept.low)}, {short_number(100 * kept.high)}]"
    )


def interval(known: Interval, text: Callable[[float], str]) -> str:
    """Return a value with its interval, without one where it is known exactly."""
    return (
        text(known.value) if known.low == known.high else f"{text(known.value)} [{text(known.low)}, {text(known.high)}]"
    )


def kept_text(estimate: LimitEstimate, kind: str) -> str:
    """Return the counts of what an estimate keeps."""
    structures = "" if kind == "weights" else f" in {estimate.structures:,} {unit(kind)}"
    return f"{estimate.kept:,} weights{structures}"
