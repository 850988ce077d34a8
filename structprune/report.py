"""What was done and what it is worth, predicted beside measured: text, console, JSON and one HTML page.

A report is plain numbers and words. It prints, is saved and read back without the network, the data or torch.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from structprune.files import write_atomically
from structprune.records import Format
from structprune.report_console import print_report
from structprune.report_html import page
from structprune.units import accuracy_text, fraction_text, quantity, short_number, used_text
from structprune.versions import installed_versions

__all__ = ["AxisRow", "CostRow", "CurveRow", "LatencyRow", "QualityRow", "Report"]

FORMAT = Format("structprune-report", 1, "report")
COMPILED_AS = {
    "module": "the same module, smaller",
    "graph": "the exported graph, rewritten",
    "block-sparse": "block-sparse layers where they are faster",
    "masked": "a masked dense module: no smaller, no faster",
}
AXES_IN_TEXT = 6  # axes that str(report) names
LINE = 112  # characters per line of str(report)


@dataclass(frozen=True)
class AxisRow:
    """One axis: how many structures it had and has."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class CostRow:
    """One resource, in whole units.

    Attributes
    ----------
    before
        In the dense network.
    allowed
        The budget's cap; None for a resource that is shown and not capped.
    predicted
        For the selection, by the cost model that the solver used.
    counted
        On the compiled network; None where it cannot be counted.
    """

    resource: str
    before: int
    allowed: int | None
    predicted: int
    counted: int | None = None


@dataclass(frozen=True)
class LatencyRow:
    """Median time of one forward pass before and after, in nanoseconds, with the quartiles as its spread."""

    batch: int
    device: str
    before_ns: int
    before_low: int
    before_high: int
    after_ns: int
    after_low: int
    after_high: int

    @property
    def speedup(self) -> float:
        """How many times as fast the compiled network is."""
        return self.before_ns / self.after_ns if self.after_ns else math.inf

    @property
    def verdict(self) -> str:
        """The speed-up in words; spreads that overlap are said to."""
        if self.before_low <= self.after_high and self.after_low <= self.before_high:
            return f"{self.speedup:.2f}x (within the spread)"
        return f"{self.speedup:.2f}x faster" if self.speedup >= 1 else f"{1 / max(self.speedup, 1e-9):.2f}x slower"


@dataclass(frozen=True)
class CurveRow:
    """The estimated loss of an axis at each number of kept structures.

    Attributes
    ----------
    levels
        Numbers of kept structures, increasing.
    loss
        What keeping so many loses, in the report's unit of scores; one for each level.
    chosen
        The number of structures kept.
    """

    name: str
    levels: tuple[int, ...]
    loss: tuple[float, ...]
    chosen: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        object.__setattr__(self, "loss", tuple(float(loss) for loss in self.loss))
        if len(self.levels) != len(self.loss):
            got = f"{len(self.loss)} losses for {len(self.levels)} levels"
            raise ValueError(f"Expected one loss per level of {self.name}. Got {got}. Pass as many.")


@dataclass(frozen=True)
class QualityRow:
    """Mean loss and accuracy at a stage: 'dense', 'pruned' or 'fine-tuned'."""

    stage: str
    loss: float | None
    accuracy: float | None
    examples: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A frozen account of one run.

    Attributes
    ----------
    model_name, kind, criterion, score_unit
        The network, what was removed ('channels', 'blocks' ...), what scored it and in which unit.
    axes, costs
        Widths and resources, before and after.
    objective, bound, gap
        Kept value, the most any choice could keep, and (bound - objective) / (total - objective); the last two are
        None where no bound is known.
    predicted_loss
        What the criterion expects to lose, in its unit; None if it does not estimate losses.
    termination_text
        Why the solver stopped and what to do about it.
    latency, quality, per_class_recall
        Measured. Recall by stage, then by class.
    curves
        Loss by width of each axis, where the criterion gives it.
    compiled_as, max_error
        'module', 'graph', 'block-sparse' or 'masked', and the largest difference between the compiled and the masked
        network on the example inputs, relative to the largest output.
    limit_sentence
        What the kept fraction of the weights means beside the network's pruning limit; empty where none was given.
    notes
        What a reader must know besides.
    pinned
        Tensor dimensions that cannot be pruned: (tensor, dimension, reason).
    seed, seconds, versions
        To repeat it: the seed, time per phase in seconds, versions by name.
    """

    model_name: str
    kind: str
    criterion: str
    score_unit: str
    axes: tuple[AxisRow, ...]
    costs: tuple[CostRow, ...]
    objective: float
    bound: float | None = None
    gap: float | None = None
    predicted_loss: float | None = None
    termination_text: str = ""
    latency: LatencyRow | None = None
    quality: tuple[QualityRow, ...] = ()
    per_class_recall: Mapping[str, Mapping[str, float]] | None = None
    curves: tuple[CurveRow, ...] = ()
    compiled_as: str = "module"
    max_error: float = 0.0
    limit_sentence: str = ""
    notes: tuple[str, ...] = ()
    pinned: tuple[tuple[str, int, str], ...] = ()
    seed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __post_init__(self) -> None:
        if self.compiled_as not in COMPILED_AS:
            raise ValueError(
                f"Expected one of {', '.join(COMPILED_AS)} for compiled_as. Got {self.compiled_as!r}. Pass one of them."
            )
        for name in ("axes", "costs", "quality", "curves", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "pinned", tuple((tensor, int(dim), reason) for tensor, dim, reason in self.pinned))
        if self.per_class_recall is not None:
            # JSON's keys are text; so are these, whether they come from there or not.
            recall = {
                stage: {str(label): float(value) for label, value in classes.items()}
                for stage, classes in self.per_class_recall.items()
            }
            object.__setattr__(self, "per_class_recall", recall)

    # ------------------------------------------------------------ what follows from the fields

    @property
    def most_pruned(self) -> tuple[AxisRow, ...]:
        """The axes that lost something, those with the least fraction left first."""
        touched = (axis for axis in self.axes if axis.after < axis.before)
        return tuple(sorted(touched, key=lambda axis: (axis.after / axis.before, axis.after - axis.before)))

    @property
    def untouched(self) -> int:
        """Number of axes that kept everything."""
        return sum(axis.after >= axis.before for axis in self.axes)

    @property
    def pinned_by_reason(self) -> dict[str, tuple[str, ...]]:
        """Tensor dimensions such as 'fc.weight[0]' by the reason they are pinned for, the commonest reason first."""
        counts = Counter(reason for _, _, reason in self.pinned)
        return {
            reason: tuple(f"{tensor}[{dim}]" for tensor, dim, why in self.pinned if why == reason)
            for reason, _ in counts.most_common()
        }

    def facts(self) -> list[tuple[str, str]]:
        """Return the summary as pairs (label, sentence)."""
        facts = [
            ("model", f"{self.model_name}: {self.kind} by {self.criterion} ({self.score_unit})"),
            ("kept", self.kept_text()),
            *((row.resource, cost_text(row)) for row in self.costs),
            ("value", self.value_text()),
        ]
        if self.predicted_loss is not None:
            lost = f"{short_number(self.predicted_loss)} {self.score_unit} lost on the scoring data"
            facts.append(("predicted", lost))
        if self.limit_sentence:
            facts.append(("limit", self.limit_sentence))
        if self.termination_text:
            facts.append(("stopped", self.termination_text))
        if self.latency is not None:
            facts.append(("latency", latency_text(self.latency)))
        if self.quality:
            facts.append(("quality", " -> ".join(quality_text(row) for row in self.quality) + self.seen_text()))
        facts.append(("checked", f"compiled == masked to {self.max_error:.0e} ({COMPILED_AS[self.compiled_as]})"))
        facts += [("note", note) for note in self.notes]
        facts.append(("seed", f"{self.seed}{self.time_text()}"))
        return facts

    def kept_text(self) -> str:
        """Return how many structures are kept in all, and the widths of the most pruned axes."""
        after, before = sum(axis.after for axis in self.axes), sum(axis.before for axis in self.axes)
        text = f"{after:,} of {before:,} {self.kind} on {len(self.axes)} axes, {self.untouched} of them untouched"
        shown = [f"{axis.name} {axis.before} -> {axis.after}" for axis in self.most_pruned[:AXES_IN_TEXT]]
        more = len(self.most_pruned) - len(shown)
        if more:
            shown.append(f"and {more} pruned less")
        return f"{text}: {', '.join(shown)}" if shown else text

    def value_text(self) -> str:
        """Return the kept value with its bound and gap."""
        if self.bound is None or self.gap is None:
            return f"{self.objective:.6g} {self.score_unit} kept; no bound is known"
        return (
            f"{self.objective:.6g} {self.score_unit} kept, at most {self.bound:.6g} possible: "
            f"gap {fraction_text(self.gap)} of what is lost"
        )

    def seen_text(self) -> str:
        """Return on how many examples quality was measured, where that is one number."""
        counts = {row.examples for row in self.quality}
        return f" ({counts.pop():,} examples)" if len(counts) == 1 else ""

    def time_text(self) -> str:
        """Return the whole time and the phases that took it."""
        if not self.seconds:
            return ""
        slowest = sorted(self.seconds.items(), key=lambda phase: -phase[1])[:4]
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest)
        return f"; {sum(self.seconds.values()):.1f} s in all ({phases})"

    # ------------------------------------------------------------ text and console

    def __str__(self) -> str:
        facts = self.facts()
        width = max(len(label) for label, _ in facts)
        lines = []
        for label, sentence in facts:
            wrapped = textwrap.wrap(sentence, LINE, break_long_words=False, break_on_hyphens=False) or [""]
            lines.append(f"{label:<{width}}  {wrapped[0]}")
            lines += [f"{'':<{width}}  {line}" for line in wrapped[1:]]
        return "\n".join(lines)

    def print(self, console: Console | None = None) -> None:
        """Print to a rich console, in colour with tables; by default on the standard output."""
        print_report(self, console or Console())

    # ------------------------------------------------------------ files

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON text; with a path, write it there too, whole or not at all."""
        text = FORMAT.write(self)
        if path is not None:
            write_atomically(path, text.encode())
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Report:
        """Read a report from JSON text, or from the file of that name.

        Raises
        ------
        FileFormatError
            If it is truncated, no report, or of another version.
        """
        return FORMAT.read(source, report_from)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page, with plots and without any need of a network; returns its path."""
        return write_atomically(path, page(self).encode())


# ---------------------------------------------------------------- sentences


def cost_text(row: CostRow) -> str:
    """Return a resource before and after, and how much of the allowed amount is used."""
    after = row.predicted if row.counted is None else row.counted
    text = f"{quantity(row.resource, row.before)} -> {quantity(row.resource, after)}"
    if row.before:
        text += f" ({fraction_text(after / row.before)})"
    if row.allowed is not None:
        text += f", {used_text(row.predicted, row.allowed)} of the allowed {quantity(row.resource, row.allowed)}"
    if row.counted is not None:
        text += ", counted as predicted" if row.counted == row.predicted else f", {mismatch_text(row)}"
    return text


def mismatch_text(row: CostRow) -> str:
    """Return the counted and the predicted amount where they differ."""
    return f"counted {row.counted:,} and not the predicted {row.predicted:,}"


def latency_text(row: LatencyRow) -> str:
    """Return the measured latencies with their quartiles and the speed-up."""
    before, after = (
        f"{quantity('latency_ns', median)} [{quantity('latency_ns', low)}, {quantity('latency_ns', high)}]"
        for median, low, high in (
            (row.before_ns, row.before_low, row.before_high),
            (row.after_ns, row.after_low, row.after_high),
        )
    )
    return f"{before} -> {after}, {row.verdict} (batch {row.batch}, {row.device}, median and quartiles)"


def quality_text(row: QualityRow) -> str:
    """Return a stage's accuracy, or its loss where there is no accuracy."""
    if row.accuracy is not None:
        loss = f" (loss {short_number(row.loss)})" if row.loss is not None else ""
        return f"{row.stage} {accuracy_text(row.accuracy)}{loss}"
    return f"{row.stage} loss {short_number(row.loss)}" if row.loss is not None else f"{row.stage} not measured"


# ---------------------------------------------------------------- JSON


def report_from(content: dict[str, Any]) -> Report:
    """Build the report from its fields; reports from before there were limits have none."""
    rows: dict[str, type] = {"axes": AxisRow, "costs": CostRow, "quality": QualityRow, "curves": CurveRow}
    fields = dict(content)
    earlier = fields.pop("limit", None)  # what reports called it before they said anything there
    fields.setdefault("limit_sentence", earlier or "")
    for name, row in rows.items():
        fields[name] = tuple(row(**values) for values in fields[name])
    if fields["latency"] is not None:
        fields["latency"] = LatencyRow(**fields["latency"])
    return Report(**fields)
