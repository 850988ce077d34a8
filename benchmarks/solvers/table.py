"""Rows as tables: verdicts, a summary by suite and method, and every row."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.solvers.record import Record
from benchmarks.solvers.row import Row, Verdict
from benchmarks.solvers.trace import FACT as TRACE

__all__ = [
    "Reference",
    "Summary",
    "as_markdown",
    "excess",
    "reference",
    "references",
    "suite_of",
    "summaries",
    "verdict_table",
]

SEED = re.compile(r"[,;]?\s*(seed|instance|draw)\s*\d+\b")
HEADINGS = (
    "method",
    "n",
    "objective",
    "gap",
    "worst gap",
    "above the best known",
    "seconds",
    "slowest",
    "CPU s",
    "MiB",
    "medians of facts",
)
ROW_HEADINGS = ("instance", "method", "objective", "bound", "gap", "seconds", "MiB", "facts")


@dataclass(frozen=True)
class Reference:
    """What the methods on one instance are held against.

    Attributes
    ----------
    best
        The tightest bound that any method proved; where none did, the best objective.
    proven
        Whether it is a bound.
    maximised
        Whether objectives are to be large.
    total
        Where losses are counted from, as far as gaps tell.
    """

    best: float
    proven: bool
    maximised: bool
    total: float | None


@dataclass(frozen=True)
class Summary:
    """One method on the instances of a suite that differ in their seed alone: medians and worst."""

    suite: str
    method: str
    rows: tuple[Row, ...]
    excesses: tuple[float, ...]

    def cells(self) -> list[str]:
        """Return the table's cells, one for each of HEADINGS."""
        gaps = [row.gap for row in self.rows if row.gap is not None]
        objectives = [row.objective for row in self.rows if row.objective is not None]
        seconds = [row.seconds for row in self.rows]
        peaks = [row.peak_mib for row in self.rows if row.peak_mib is not None]
        found = len(objectives)
        return [
            self.method,
            str(len(self.rows)) if found == len(self.rows) else f"{len(self.rows)} ({len(self.rows) - found} without)",
            _median(objectives, lambda value: f"{value:.6g}"),
            _median(gaps, share),
            share(max(gaps)) if gaps else "none",
            _median(self.excesses, share),
            _median(seconds, duration),
            duration(max(seconds)),
            _median(self.numbers("cpu_seconds"), duration),
            _median(peaks, lambda value: f"{value:.3g}"),
            ", ".join(f"{name} {_median(self.numbers(name), lambda value: f'{value:.4g}')}" for name in self.shown()),
        ]

    def numbers(self, fact: str) -> list[float]:
        """Return a fact of those rows where it is a number."""
        found = (row.facts.get(fact) for row in self.rows)
        return [float(value) for value in found if isinstance(value, int | float) and not isinstance(value, bool)]

    def shown(self) -> list[str]:
        """Return the names of facts that are numbers and stand in no other column."""
        names = dict.fromkeys(name for row in self.rows for name in row.facts)
        return [name for name in names if name not in ("cpu_seconds", "total") and self.numbers(name)]


def _median(values: Sequence[float], text: Callable[[float], str]) -> str:
    return text(statistics.median(values)) if values else ""


def share(value: float) -> str:
    """Return a relative gap in words."""
    return "0" if value < 1e-12 else f"{value:.1e}" if value < 0.01 else f"{100 * value:.3g} %"


def duration(seconds: float) -> str:
    """Return seconds with two digits that count."""
    return f"{seconds:.2g}" if seconds < 9.95 else f"{seconds:.0f}"


def suite_of(instance: str) -> str:
    """Return an instance's name without its seed."""
    return SEED.sub("", instance).strip()


def suites_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by suite, in their order; what one method solved alone stands together, by method."""
    suites: dict[str, list[Row]] = {}
    for row in rows:
        suites.setdefault(suite_of(row.instance), []).append(row)
    compared: dict[str, list[Row]] = {}
    alone: dict[str, dict[str, list[Row]]] = {}
    for suite, group in suites.items():
        if len({row.method for row in group}) > 1:
            compared[suite] = group
        else:
            alone.setdefault(group[0].method, {})[suite] = group
    for method, groups in alone.items():
        group = [row for one in groups.values() for row in one]
        compared[f"{method}: {len(group)} instances" if len(groups) > 1 else next(iter(groups))] = group
    return compared


# ---------------------------------------------------------------- gaps against the best bound


def direction(rows: Iterable[Row]) -> bool | None:
    """Return whether objectives are to be large, as bounds on either side of them tell; None where none does."""
    above = {row.bound > row.objective for row in rows if _proves(row) and row.bound != row.objective}  # type: ignore[operator]
    return above.pop() if len(above) == 1 else None


def _proves(row: Row) -> bool:
    return row.bound is not None and row.objective is not None


def references(rows: Sequence[Row]) -> dict[str, Reference]:
    """Return what each instance's methods are held against; without those of which nothing tells what is better."""
    large = direction(rows)
    instances: dict[str, list[Row]] = {}
    for row in rows:
        instances.setdefault(row.instance, []).append(row)
    found = {instance: reference(group, large) for instance, group in instances.items()}
    return {instance: one for instance, one in found.items() if one is not None}


def reference(rows: Sequence[Row], large: bool | None = None) -> Reference | None:
    """Return what rows of one instance are held against.

    Parameters
    ----------
    large
        Whether objectives are to be large, where the rows' own bounds do not tell.
    """
    own = direction(rows)
    large = large if own is None else own
    proven = [(row.objective, row.bound, row.gap or 0.0) for row in rows if _proves(row)]
    objectives = [row.objective for row in rows if row.objective is not None]
    if not objectives or (large is None and not proven):
        return None
    large = True if large is None else large  # bounds that equal their objectives: either way
    if not proven:
        return Reference(max(objectives) if large else min(objectives), False, large, None)
    bounds = [bound for _, bound, _ in proven if bound is not None]
    # gap = difference / lost tells what is lost, hence the total; the largest gap tells it best.
    objective, bound, gap = max(proven, key=lambda one: one[2])
    total = objective + (bound - objective) / gap if gap > 0 and objective is not None and bound is not None else None
    return Reference(min(bounds) if large else max(bounds), True, large, total)


def excess(row: Row, to: Reference) -> float | None:
    """Return how far a row is from the reference, relative to what the row loses; at least 0."""
    if row.objective is None:
        return None
    difference = (to.best - row.objective) if to.maximised else (row.objective - to.best)
    lost = abs(to.best) if to.total is None else abs(to.total - row.objective)
    return max(0.0, difference / lost) if lost > 0 else 0.0


def summaries(rows: Sequence[Row]) -> dict[str, list[Summary]]:
    """Return what each method reached, by suite, in the order of the rows."""
    known = references(rows)
    found: dict[str, list[Summary]] = {}
    for suite, rows_of_suite in suites_of(rows).items():
        methods: dict[str, list[Row]] = {}
        for row in rows_of_suite:
            methods.setdefault(row.method, []).append(row)
        found[suite] = [Summary(suite, one, tuple(group), _excesses(group, known)) for one, group in methods.items()]
    return found


def _excesses(group: Sequence[Row], known: Mapping[str, Reference]) -> tuple[float, ...]:
    found = []
    for row in group:
        to = known.get(row.instance)
        value = None if to is None else excess(row, to)
        if value is not None:
            found.append(value)
    return tuple(found)


# ---------------------------------------------------------------- pages


def verdict_table(family: str, verdicts: Sequence[Verdict]) -> Table:
    """Return the targets as a table for the console."""
    table = Table(title=family, title_justify="left", box=SIMPLE_HEAD)
    for heading in ("target", "asked", "measured", "holds"):
        table.add_column(heading)
    for one in verdicts:
        table.add_row(
            one.target, one.asked, one.measured, "yes" if one.holds else "NO", style=None if one.holds else "red"
        )
    return table


def as_markdown(
    records: Mapping[str, Record], verdicts: Mapping[str, Sequence[Verdict]], plots: Mapping[str, str]
) -> str:
    """Return one page: how to read it, verdicts, a section per family with its plot, summary and rows.

    Parameters
    ----------
    plots
        Name of each family's picture, relative to the page.
    """
    lines = [
        "# Solvers",
        "",
        "Objectives are in the family's own measure. A *gap* is what the method itself proves: (bound - objective) "
        "relative to what is lost; *none* means that it proves nothing. *Above the best known* is the distance from "
        "the tightest bound that any method proved on the instance or, where none did, from the best objective, "
        "relative to what is lost. Methods ran interleaved; "
        "seconds are medians of wall time, MiB the most that Python and numpy held at once, counted in a separate run. "
        "Scores called synthetic are drawn from a seed.",
        "",
        "| target | asked | measured | holds |",
        "|---|---|---|---|",
    ]
    for found in verdicts.values():
        lines += [_line([one.target, one.asked, one.measured, "yes" if one.holds else "**no**"]) for one in found]
    for name, record in records.items():
        versions = ", ".join(f"{package} {version}" for package, version in sorted(record.versions.items()))
        lines += [
            "",
            f"## {name}{' (quick)' if record.quick else ''}",
            "",
            f"Command: `{record.command}`, {duration(record.seconds)} s  ",
            f"Commit {record.commit}; {record.machine}; {versions}.",
        ]
        if name in plots:
            lines += ["", f"![gap against time]({plots[name]})"]
        for suite, group in summaries(record.rows).items():
            lines += ["", f"### {suite}", "", _line(HEADINGS), "|---|" + "---:|" * (len(HEADINGS) - 2) + "---|"]
            lines += [_line(one.cells()) for one in group]
        lines += _every_row(record.rows)
    return "\n".join(lines) + "\n"


def _every_row(rows: Sequence[Row]) -> list[str]:
    lines = ["", f"<details><summary>All {len(rows)} rows</summary>", "", _line(ROW_HEADINGS)]
    lines.append("|" + "---|" * len(ROW_HEADINGS))
    for row in rows:
        cells = [row.instance, row.method, _number(row.objective), _number(row.bound)]
        cells += ["" if row.gap is None else share(row.gap), duration(row.seconds)]
        cells += ["" if row.peak_mib is None else f"{row.peak_mib:.3g}"]
        cells.append(", ".join(f"{name} {_fact(value)}" for name, value in row.facts.items() if name != TRACE))
        lines.append(_line(cells))
    return [*lines, "", "</details>"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _fact(value: float | int | str | bool | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
