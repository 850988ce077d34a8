"""The page of a task: estimates beside the retrained truth, and what it takes to read and repeat them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.limits.row import Row
from structprune.limit import Interval, Limit, LimitEstimate

__all__ = ["as_markdown", "as_table"]

HEADINGS = ("estimator", "keep fraction", "interval", "truth", "difference (points)", "kind")
POINT_HEADINGS = ("kept", "rise of the loss (nats)", "accuracy", "held-out loss", "held-out accuracy", "best start")
LEFT = 1  # columns of words


def cells(row: Row, estimate: LimitEstimate) -> tuple[str, ...]:
    """Return a line of the table, one cell for each of HEADINGS."""
    truth = row.point(row.truth)
    kept = estimate.keep_fraction
    difference = "" if truth is None else f"{100 * (kept.value - truth.keep_fraction):+.1f}"
    return (
        estimate.name,
        percent(kept.value),
        "" if kept.low == kept.high else f"{percent(kept.low)} to {percent(kept.high)}",
        "" if truth is None else percent(truth.keep_fraction),
        difference,
        "upper bound on these data" if estimate.is_upper_bound else "estimate",
    )


def percent(fraction: float) -> str:
    """Return a fraction in words."""
    return f"{100 * fraction:.1f} %"


def title(row: Row) -> str:
    """Return a heading such as 'digits-5e-4, channels, epsilon 0.0023 nats'."""
    epsilon = row.limit.epsilon
    source = "" if isinstance(row.asked, float | int) else " (batch_std)"
    return f"{row.task}, {row.structures}, epsilon {epsilon.value:.3g} nats{source}"


def as_table(row: Row) -> Table:
    """Return a row as a table for the console."""
    table = Table(
        title=title(row), title_justify="left", caption=truth_text(row), caption_justify="left", box=SIMPLE_HEAD
    )
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < LEFT else "right", no_wrap=True)
    for estimate in row.limit.estimates:
        table.add_row(*cells(row, estimate))
    return table


def truth_text(row: Row) -> str:
    """Return a sentence about the retrained truth."""
    truth, failed, whole = row.point(row.truth), row.point(row.failed), row.point(0)
    if truth is None or whole is None:
        return "No truth: supports were not retrained."
    limit = row.limit
    below = f"{percent(failed.keep_fraction)} failed" if failed is not None else "nothing smaller is on the path"
    gained = limit.loss - whole.loss
    text = (
        f"Truth, an upper estimate: {percent(truth.keep_fraction)} of all parameters, retrained to a loss of "
        f"{truth.loss:.4g} nats; {below}. Retraining with everything kept lowers the loss by {gained:.3g} nats "
        f"({gained / limit.epsilon.value:.2g} epsilon)."
    )
    return text if truth.accuracy is None else f"{text} Accuracy {percent(truth.accuracy)}{_held_out(row)}."


def _held_out(row: Row) -> str:
    truth, whole = row.point(row.truth), row.point(0)
    if truth is None or whole is None or truth.held_out_accuracy is None or whole.held_out_accuracy is None:
        return ""
    return (
        f", held out {percent(truth.held_out_accuracy)} (everything kept and retrained: "
        f"{percent(whole.held_out_accuracy)})"
    )


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
    lines += [f"{note}.  " for note in dict.fromkeys(note for row in rows for note in row.notes)]
    lines += [
        "Keep fractions count all parameters. The truth is the smallest support *on the estimators' own path* whose "
        "survivors, retrained on the same loss and data, lose no more than epsilon: an upper estimate, since other "
        "supports and longer training may do better. Differences are estimate minus truth in percentage points. "
        "Seconds are those of one shared machine, an indication only.  ",
        f"Versions: {versions}. Commit: {', '.join(dict.fromkeys(row.commit for row in rows))}. "
        f"Machine: {', '.join(dict.fromkeys(row.machine for row in rows))}.",
    ]
    if plot is not None:
        lines += ["", f"![rise of the loss over the keep fraction]({plot})"]
    for row in rows:
        lines += ["", f"## {title(row)}", "", *facts(row), ""]
        lines += grid(HEADINGS, [cells(row, estimate) for estimate in row.limit.estimates])
        lines += ["", truth_text(row)]
    seen: set[str] = set()
    for row in rows:
        if row.points and row.structures not in seen:
            seen.add(row.structures)
            lines += [
                "",
                f"## {row.task}, {row.structures}: retrained supports",
                "",
                *grid(POINT_HEADINGS, points(row)),
            ]
    return "\n".join(lines) + "\n"


def facts(row: Row) -> list[str]:
    """Return what a row's figures rest on, as Markdown lines."""
    limit = row.limit
    lines = [
        f"Loss {limit.loss:.5g} nats on {limit.examples:,} examples; epsilon {_epsilon(limit.epsilon)} "
        f"({limit.epsilon_source}). {limit.weights:,} parameters, {limit.free:,} always kept, {limit.dead:,} dead; "
        f"{limit.structures:,} structures. Curvature {limit.curvature}, effective dimension "
        f"{limit.dimension.value:.4g}. {limit.seconds:.1f} s for the limits, {row.truth_seconds:.1f} s for the truth, "
        f"largest Lanczos basis {limit.memory_bytes / 1e6:.1f} MB."
    ]
    lines += [f"{_checks(limit)}"] if _checks(limit) else []
    return ["  \n".join(lines + [f"Warning: {text}." for text in limit.warnings])]


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


def points(row: Row) -> list[tuple[str, ...]]:
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
        for point in row.points
    ]


def grid(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table; numbers to the right."""
    marks = ["---" if number < LEFT else "---:" for number in range(len(headings))]
    return ["| " + " | ".join(line) + " |" for line in (headings, marks, *body)]
