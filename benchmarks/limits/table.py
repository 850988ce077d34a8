"""The page of a task: estimates beside the retrained truth, and what it takes to read and repeat them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.limits.row import Retrained, Row
from structprune.limit import Interval, Limit, LimitEstimate

__all__ = ["as_markdown", "as_table"]

POINT_HEADINGS = ("kept", "rise of the loss (nats)", "accuracy", "held-out loss", "held-out accuracy", "best start")
LEFT = 1  # columns of words
READING = (
    "Keep fractions count all parameters; differences are in percentage points. A truth is the smallest support *on "
    "the estimators' own path* whose survivors, retrained on the loss and data that epsilon refers to, lose no more "
    "than epsilon. It is an upper estimate of the least size and falls as survivors are trained longer, or other "
    "supports are tried; where a short training ends above the constructive bound, which was measured too, that one "
    "holds. Where the network is no minimum of the loss, retraining also gains something that pruning may spend. "
    "'Chained' retraining starts from the next larger retrained support too. Seconds are those of a shared machine."
)


def headings(row: Row) -> tuple[str, ...]:
    """Return the headings of a row's table."""
    truths = [f"minus truth, {one.label}" for one in row.truths]
    return "estimator", "keep fraction", "interval", *truths, "kind"


def cells(row: Row, estimate: LimitEstimate) -> tuple[str, ...]:
    """Return a line of the table, one cell for each heading."""
    kept = estimate.keep_fraction
    return (
        estimate.name,
        percent(kept.value),
        "" if kept.low == kept.high else f"{percent(kept.low)} to {percent(kept.high)}",
        *(f"{100 * (kept.value - one.size.keep_fraction):+.1f}" for one in row.truths),
        "upper bound on these data" if estimate.is_upper_bound else "estimate",
    )


def truth_cells(row: Row, truth: Retrained) -> tuple[str, ...]:
    """Return a truth's line of the table."""
    failed = truth.at(truth.failed)
    below = "" if failed is None else f"{percent(failed.keep_fraction)} failed"
    others = (f"{100 * (truth.size.keep_fraction - one.size.keep_fraction):+.1f}" for one in row.truths)
    return f"truth, {truth.label}", percent(truth.size.keep_fraction), below, *others, "measured: upper estimate"


def percent(fraction: float) -> str:
    """Return a fraction in words."""
    return f"{100 * fraction:.1f} %"


def title(row: Row) -> str:
    """Return a heading such as 'digits-5e-4, channels, epsilon 0.0023 nats'."""
    epsilon = row.limit.epsilon
    source = "" if isinstance(row.asked, float | int) else " (batch_std)"
    return f"{row.task}, {row.structures}, epsilon {epsilon.value:.3g} nats{source}"


def lines_of(row: Row) -> list[tuple[str, ...]]:
    """Return all lines of a row's table: the truths, then the estimates."""
    estimates = [cells(row, estimate) for estimate in row.limit.estimates]
    return [*(truth_cells(row, truth) for truth in row.truths), *estimates]


def as_table(row: Row) -> Table:
    """Return a row as a table for the console."""
    table = Table(title=title(row), caption=truth_text(row), box=SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    for number, heading in enumerate(headings(row)):
        table.add_column(heading, justify="left" if number < LEFT else "right")
    for line in lines_of(row):
        table.add_row(*line)
    return table


def truth_text(row: Row) -> str:
    """Return sentences about the retrained truths."""
    if not row.truths:
        return "No truth: supports were not retrained."
    epsilon = row.limit.epsilon.value
    said = []
    for truth in row.truths:
        whole, size = truth.at(0), truth.size
        text = f"Retrained for {truth.label}: loss {size.loss:.3g} nats at {percent(size.keep_fraction)}"
        if size.held_out_accuracy is not None:
            text += f", held-out accuracy {percent(size.held_out_accuracy)}"
        if whole is not None:
            gained = row.limit.loss - whole.loss
            text += f"; with everything kept the loss falls by {gained:.3g} nats ({gained / epsilon:.2g} epsilon)"
        if whole is not None and whole.held_out_accuracy is not None:
            text += f", held-out accuracy {percent(whole.held_out_accuracy)}"
        said.append(text + ".")
    return " ".join(said)


def as_markdown(rows: Sequence[Row], plot: str | None) -> str:
    """Return the page of one task.

    Parameters
    ----------
    rows
        All of one task.
    plot
        File name of its picture.
    """
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(first.versions.items()))
    quick = ["**A quick run, to see that all works: the network is hardly trained, and no figure means anything.**", ""]
    lines = [f"# Pruning limit: {first.about}", "", *(quick if first.settings.get("quick") else [])]
    lines += [f"Command: `{command}`  " for command in dict.fromkeys(row.command for row in rows)]
    lines += [f"{note[0].upper()}{note[1:]}.  " for note in dict.fromkeys(note for row in rows for note in row.notes)]
    lines += [
        f"{READING}  ",
        f"Versions: {versions}. Commit: {', '.join(dict.fromkeys(row.commit for row in rows))}. "
        f"Machine: {', '.join(dict.fromkeys(row.machine for row in rows))}.",
    ]
    if plot is not None:
        lines += ["", f"![rise of the loss over the keep fraction]({plot})"]
    for row in rows:
        lines += ["", f"## {title(row)}", "", *facts(row), "", *grid(headings(row), lines_of(row)), "", truth_text(row)]
    shown: set[str] = set()
    for row in rows:
        for truth in row.truths if row.structures not in shown else ():
            shown.add(row.structures)
            heading = f"## {row.task}, {row.structures}: supports retrained for {truth.label}"
            lines += ["", heading, "", *grid(POINT_HEADINGS, points(row, truth))]
    return "\n".join(lines) + "\n"


def facts(row: Row) -> list[str]:
    """Return what a row's figures rest on, as Markdown lines."""
    limit = row.limit
    lines = [
        f"Loss {limit.loss:.5g} nats on {limit.examples:,} examples; epsilon {_epsilon(limit.epsilon)} "
        f"({limit.epsilon_source}). {limit.weights:,} parameters, {limit.free:,} always kept, {limit.dead:,} dead; "
        f"{limit.structures:,} structures. Curvature {limit.curvature}, effective dimension "
        f"{limit.dimension.value:.4g}. {limit.seconds:.1f} s for the estimates, "
        f"{_seconds(row)}largest Lanczos basis {limit.memory_bytes / 1e6:.1f} MB."
    ]
    lines += [f"{_checks(limit)}"] if _checks(limit) else []
    return ["  \n".join(lines + [f"Warning: {text}." for text in limit.warnings])]


def _seconds(row: Row) -> str:
    return "".join(f"{truth.seconds:.1f} s to retrain for {truth.label}, " for truth in row.truths)


def _epsilon(epsilon: Interval) -> str:
    text = f"{epsilon.value:.3g}"
    return text if epsilon.low == epsilon.high else f"{text} [{epsilon.low:.3g}, {epsilon.high:.3g}]"


def _checks(limit: Limit) -> str:
    parts = [
        ("one second-order step lowers the loss by {:.2g} nats", limit.stationarity),
        ("the unbounded update moves the survivors by {:.2g} of their length", limit.movement),
        ("model error {:.2g} epsilon at the constructive limit", limit.model_error),
    ]
    said = [text.format(value) for text, value in parts if value is not None]
    return f"Checks: {'; '.join(said)}." if said else ""


def points(row: Row, truth: Retrained) -> list[tuple[str, ...]]:
    """Return the retrained supports, one tuple for each, with POINT_HEADINGS."""
    own = row.limit.loss

    def shown(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    return [
        (
            percent(point.keep_fraction),
            f"{point.loss - own:+.4g}",
            shown(point.accuracy, "{:.2%}"),
            shown(point.held_out_loss, "{:.4g}"),
            shown(point.held_out_accuracy, "{:.2%}"),
            point.start,
        )
        for point in truth.points
    ]


def grid(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table; numbers to the right."""
    marks = ["---" if number < LEFT else "---:" for number in range(len(headings))]
    return ["| " + " | ".join(line) + " |" for line in (headings, marks, *body)]
