"""The table of a task: methods down, block sizes and sparsities across; and how ours stand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.blocks.tasks import TASKS, Task
from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.methods import METHODS
from benchmarks.grid.pages import Page, Part, Table
from benchmarks.grid.report import by_cell, distortion, panels_of, picture, provenance, shown, warning_of
from benchmarks.grid.row import Row, Summary, summary

__all__ = ["OURS", "Standing", "report", "standings"]

#: SequentialAttention++ and what this project adds to it or puts in its place.
OURS = ("sa++", "sa++-no-sparsify", "sa++-caps", "sa++-gradual", "swaps-whitened")

READING = (
    "Mean ± standard deviation (n - 1) over seeds, their number in brackets. All methods train for the same epochs "
    "with the same settings, which were chosen for the dense network on validation examples. 'Real sparsity' counts "
    "all parameters. 'Alive' are rows and columns of blocks that keep something. Recall distortion: mean absolute "
    "change of the classes' recalls, in points, against the dense network of the same seed, and in brackets the "
    "largest fall. The ResNets come with weights that were trained on all training images of CIFAR-10, those for "
    "validation among them: their validation figures are too high, and serve for choices alone."
)
CHOSEN = (
    "Of ours, the one with the best mean on validation examples is taken in each cell, and its test figure is held "
    "against the best test figure of all methods, ours among them: 'within' says whether the difference is at most the "
    "latter's standard deviation."
)


def report(rows: Sequence[Row]) -> Page:
    """Return the page of all rows.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not rows:
        raise ValueError("Expected measured rows. Got none. Run the benchmark first, with the same --out.")
    parts = []
    for task in TASKS:
        own = [row for row in rows if row.cell.network == task.name]
        if own:
            title = f"{task.name}: test {task.measure} over sparsity"
            panels = panels_of(own, f"test {task.measure}", {}, factor=100.0)
            parts.append(
                Part(
                    f"{task.about}",
                    (
                        dense_words(task, own),
                        table_of(task, own),
                        *picture(title, panels, f"test {task.measure} (%)"),
                        details_of(task, own),
                    ),
                )
            )
    found = [one for task in TASKS for one in standings(task, [row for row in rows if row.cell.network == task.name])]
    if found:
        parts.append(Part("Ours beside the best", (CHOSEN, words_of(found), standing_table(found))))
    parts += [
        Part("Reading", (READING,)),
        Part("Methods", (methods_table(),)),
        Part("Repeating it", (provenance(rows),)),
    ]
    return Page("Block pruning while training", warning_of(rows), tuple(parts))


def dense_words(task: Task, rows: Sequence[Row]) -> str:
    """Return the dense network's figures."""
    dense = [row for row in rows if row.cell.method == DENSE]
    if not dense:
        return "The dense network was not measured: pruned figures have nothing to stand beside."
    loss, figure = summary(dense, "test loss"), summary(dense, f"test {task.measure}")
    return (
        f"Dense network, trained alike: test {task.measure} {shown(figure, 2, factor=100.0)} %, "
        f"loss {shown(loss, 4)} nats."
    )


def _columns(rows: Sequence[Row]) -> list[tuple[int, float]]:
    return sorted({(row.cell.block, row.cell.sparsity) for row in rows if row.cell.method != DENSE})


def _of(rows: Sequence[Row], task: Task, method: str, at: tuple[int, float]) -> list[Row]:
    return by_cell(rows).get(Cell(task.name, method, *at, 0), [])


def table_of(task: Task, rows: Sequence[Row]) -> Table:
    """Return test figures in per cent."""
    columns = _columns(rows)
    lines = []
    for method in (one.name for one in METHODS if one.name != DENSE):
        found = [_of(rows, task, method, at) for at in columns]
        if any(found):
            lines.append((method, *(shown(summary(one, f"test {task.measure}"), 2, factor=100.0) for one in found)))
    heads = (f"{block} x {block}, {sparsity:.0%}" for block, sparsity in columns)
    return Table((f"test {task.measure} (%)", *heads), tuple(lines))


def details_of(task: Task, rows: Sequence[Row]) -> Table:
    """Return the other figures of each cell."""
    lines = []
    for block, sparsity in _columns(rows):
        for method in (one.name for one in METHODS if one.name != DENSE):
            found = _of(rows, task, method, (block, sparsity))
            if not found:
                continue
            change = distortion(found, rows)
            lines.append(
                (
                    method,
                    f"{block}",
                    f"{sparsity:.0%}",
                    shown(summary(found, "test loss"), 4),
                    shown(summary(found, f"validation {task.measure}"), 2, factor=100.0),
                    _short(summary(found, "real sparsity of the model"), "{:.1%}"),
                    _short(summary(found, "inputs alive"), "{:.0%}"),
                    _short(summary(found, "outputs alive"), "{:.0%}"),
                    "" if change is None else f"{change[0]:.1f} ({change[1]:.1f})",
                    f"{sum(row.seconds for row in found) / len(found):.0f}",
                )
            )
    heads = (
        *("method", "block", "s", "test loss (nats)", f"validation {task.measure} (%)", "real sparsity"),
        *("inputs alive", "outputs alive", "recall distortion", "seconds"),
    )
    return Table(heads, tuple(lines))


def _short(one: Summary, style: str) -> str:
    return "" if one.mean is None else style.format(one.mean)


class Standing(tuple[Cell, str, Summary, str, Summary, bool]):
    """A cell, our method there with its test figure, the best method with its, and whether ours is within."""


def standings(task: Task, rows: Sequence[Row]) -> list[Standing]:
    """Return how ours stand in each cell in which all of ours and some others were measured."""
    found = []
    for at in _columns(rows):
        measured = {one.name: own for one in METHODS if one.name != DENSE and (own := _of(rows, task, one.name, at))}
        tests = {name: summary(own, f"test {task.measure}") for name, own in measured.items()}
        known = {name: one.mean for name, one in tests.items() if one.mean is not None}
        ours = {
            name: value
            for name in OURS
            if name in known and (value := summary(measured[name], f"validation {task.measure}").mean) is not None
        }
        if len(ours) < len(OURS) or len(known) == len(ours):
            continue
        chosen, best = max(ours, key=lambda name: ours[name]), max(known, key=lambda name: known[name])
        within = known[best] - known[chosen] <= (tests[best].spread or 0.0)
        found.append(Standing((Cell(task.name, chosen, *at, 0), chosen, tests[chosen], best, tests[best], within)))
    return found


def words_of(found: Sequence[Standing]) -> str:
    """Return the count."""
    within = sum(one[5] for one in found)
    return f"Best, or within one standard deviation of the best, in {within} of {len(found)} cells."


def standing_table(found: Sequence[Standing]) -> Table:
    """Return the cells one by one."""
    lines = []
    for cell, ours, own, best, top, within in found:
        where = f"{cell.network}, {cell.block} x {cell.block}, {cell.sparsity:.0%}"
        lines.append(
            (where, ours, shown(own, 2, factor=100.0), best, shown(top, 2, factor=100.0), "yes" if within else "no")
        )
    return Table(
        ("cell", "ours, by validation", "its test figure", "best on test", "its figure", "within"), tuple(lines)
    )


def methods_table() -> Table:
    """Return what the names mean."""
    return Table(("method", "what it does"), tuple((one.name, one.about) for one in METHODS))
