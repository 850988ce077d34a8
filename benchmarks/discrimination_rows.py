"""Rows of the benchmark of channel selections: one JSON file each, and the tables they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev

from structprune.files import write_atomically

__all__ = ["Row", "Settings", "as_markdown", "chosen_lam", "read_row", "write_row", "write_tables"]

HELD_OUT = "held out"
"""What the rows are called that ``lam`` is chosen by; they know no test images."""

HEADINGS = (
    "selection",
    "before fine-tuning",
    "after fine-tuning",
    "CPU s to choose",
    "ms per kept channel",
    "weakness",
)
PUBLISHED = (
    "Published beside it, measured by its authors on other networks with far longer training: ResNet-50 on ImageNet, "
    "30 % of the channels removed, +0.39 points of top-1 (Zhuang et al. 2018, abstract)."
)


@dataclass(frozen=True)
class Settings:
    """What two rows must share to stand in one table.

    Attributes
    ----------
    chosen_on, pass_images
        Training images of the selection, and of each pass through the network.
    tuned_on, epochs
        Training images and epochs of the fine-tuning; 0 images for none.
    images
        Test images, the first ones; for rows that ``lam`` is chosen by, held-out training images.
    """

    chosen_on: int
    pass_images: int
    tuned_on: int
    epochs: int
    images: int


@dataclass(frozen=True)
class Row:
    """What one selection made of one network, with what it takes to repeat it.

    Attributes
    ----------
    kept
        Fraction of every inner axis that stays.
    lam, steps
        Weight of the discriminative loss, and fits per axis, 0 for one after each pick.
    before, after
        Accuracy behind the re-fit, and behind the fine-tuning; None where there was none.
    loss_before, loss_after
        Nats per image.
    macs, params
        Fractions of the dense network's.
    channels
        How many are kept.
    choose_seconds, tune_seconds
        Processor time of the choice with its fits (training with heads not included), and of the fine-tuning.
    looked_at
        Examples that went forwards and backwards through some part of the network for the choice.
    weakness
        See :attr:`solvers.group_omp.GroupPath.weakness`; the least over axes.
    """

    network: str
    kept: float
    method: str
    label: str
    seed: int
    settings: Settings
    lam: float = 0.0
    steps: int = 0
    before: float | None = None
    after: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    macs: float | None = None
    params: float | None = None
    channels: int | None = None
    choose_seconds: float | None = None
    tune_seconds: float | None = None
    looked_at: int | None = None
    weakness: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    command: str = ""
    machine: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        search = f"_lam{self.lam:g}" if self.label == HELD_OUT else ""
        return f"{self.network}_{self.kept:g}_{self.method}{search}_seed{self.seed}.json"


# ---------------------------------------------------------------- files


def write_row(folder: Path, row: Row) -> None:
    """Write a row, whole or not at all."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "rows" / row.name, _text(asdict(row)))


def read_row(folder: Path, like: Row) -> Row | None:
    """Read the row of the same question back; None if there is none, or one with other settings.

    Raises
    ------
    ValueError
        If the file holds no row.
    """
    path = folder / "rows" / like.name
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(content) - {one.name for one in fields(Row)}
        if unknown:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        row = Row(**{**content, "settings": Settings(**content["settings"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"Expected a row in {path}. Got something else ({error}). Remove the file.") from error
    return row if (row.settings, row.lam, row.steps) == (like.settings, like.lam, like.steps) else None


def write_tables(folder: Path, rows: Sequence[Row], command: str) -> None:
    """Write the rows as ``rows.json`` and ``table.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "rows.json", _text([asdict(row) for row in rows]))
    write_atomically(folder / "table.md", as_markdown(rows, command).encode())


def _text(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


# ---------------------------------------------------------------- tables


def chosen_lam(rows: Sequence[Row], network: str, method: str) -> float:
    """The ``lam`` of least loss on held-out training images; of equals the least.

    Raises
    ------
    LookupError
        If no row tells.
    """
    told = [
        (row.loss_before, row.lam)
        for row in rows
        if row.label == HELD_OUT and row.loss_before is not None and (row.network, row.method) == (network, method)
    ]
    if not told:
        raise LookupError(f"Expected rows of {network}, {method} on held-out images. Got none. Make them first.")
    return min(told)[1]


def as_markdown(rows: Sequence[Row], command: str) -> str:
    """All tables as one Markdown page, with what one must know to read and to repeat them."""
    lines = ["# Discrimination-aware channel selection on CIFAR-10", "", f"Command: `{command}`  "]
    tested = [row for row in rows if row.label != HELD_OUT]
    if rows:
        first = rows[0]
        versions = ", ".join(f"{name} {version}" for name, version in sorted(first.versions.items()))
        commits = ", ".join(sorted({row.commit for row in rows}))
        images = max((row.settings.images for row in tested), default=first.settings.images)
        lines += [
            f"Accuracy on the first {images:,} CIFAR-10 test images; where there are several seeds, mean ± standard "
            "deviation over them (images of the selection, heads, order of the fine-tuning). Every selection starts "
            "from the same network, trained with its heads on the images of the selection, keeps the same fraction of "
            "every inner axis (channels between the two convolutions of a block), is re-fitted in the same way (least "
            "squares on the dense layer's outputs, then batch norm statistics) and fine-tuned in the same way. The row "
            "'own fit' alone keeps the weights of the selection's own fits, which discriminate too.  ",
            "Nothing was chosen on test images. CPU seconds are processor time on one thread; they leave out the "
            "training with heads, which all rows share. 'By expansion': two looks at the network per axis, then an "
            "exact local search on the expanded loss; 'gains': the paper's greedy picks. The weakness is the least "
            "gain of a picked channel over the largest when its batch began: 1 when each pick is followed by a fit.  ",
            f"{first.machine}. Versions: {versions}. Commit: {commits}.  ",
            PUBLISHED,
        ]
    lines += _search(rows)
    parts = dict.fromkeys((row.network, row.kept) for row in tested)
    for network, kept in sorted(parts, key=lambda part: (part[0], part[1] == 1.0, part[1])):
        group = [row for row in tested if (row.network, row.kept) == (network, kept)]
        lines += ["", f"## {_title(group, tested)}", ""]
        lines.append("| " + " | ".join(HEADINGS) + " |")
        lines.append("|---|" + "---:|" * (len(HEADINGS) - 1))
        if kept == 1:
            lines += _line(group)
            continue
        by_method = {method: [row for row in group if row.method == method] for method in _methods(group)}
        lines += [cells for found in by_method.values() for cells in _line(found)]
        lines += ["", *_sentences(by_method)]
    return "\n".join(lines) + "\n"


def _methods(group: Sequence[Row]) -> list[str]:
    means = {row.method: _mean([one.after for one in group if one.method == row.method]) for row in group}
    return sorted(means, key=lambda method: -(means[method] or 0.0))


def _title(group: Sequence[Row], tested: Sequence[Row]) -> str:
    first = group[0]
    if first.kept == 1:
        return f"{first.network}, dense"
    dense = next((row.before for row in tested if row.network == first.network and row.kept == 1), None)
    against = "" if dense is None else f"; dense {100 * dense:.2f} %"
    return (
        f"{first.network}, {1 - first.kept:.0%} of the inner channels removed ({first.macs or 0:.3f} of the macs, "
        f"{first.params or 0:.3f} of the parameters; chosen on {first.settings.chosen_on:,} images{against})"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _percent(values: Sequence[float | None]) -> str:
    mean = _mean(values)
    if mean is None:
        return ""
    spread = f" ± {100 * stdev(value for value in values if value is not None):.2f}" if len(values) > 1 else ""
    return f"{100 * mean:.2f}{spread} %"


def _line(found: Sequence[Row]) -> list[str]:
    first = found[0]
    seconds = _mean([row.choose_seconds for row in found])
    weakness = min((row.weakness for row in found if row.weakness is not None), default=None)
    cells = (
        first.label,
        _percent([row.before for row in found]),
        _percent([row.after for row in found]),
        "" if seconds is None else f"{seconds:.1f}",
        "" if seconds is None or not first.channels else f"{1000 * seconds / first.channels:.0f}",
        "" if weakness is None else f"{weakness:.2f}",
    )
    return ["| " + " | ".join(cells) + " |"]


def _search(rows: Sequence[Row]) -> list[str]:
    """What ``lam`` was chosen by."""
    found = [row for row in rows if row.label == HELD_OUT]
    if not found:
        return []
    first = found[0]
    lines = [
        "",
        f"## lam, chosen on {first.settings.images:,} held-out training images ({1 - first.kept:.0%} removed, before "
        "fine-tuning)",
        "",
        "The networks were trained on these images too: only the order counts.",
        "",
        "| network | selection | lam | accuracy | loss | taken |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in found:
        taken = "yes" if row.lam == chosen_lam(found, row.network, row.method) else ""
        told = (row.network, row.method, f"{row.lam:g}", f"{100 * (row.before or 0):.2f} %", f"{row.loss_before:.4f}")
        lines.append("| " + " | ".join((*told, taken)) + " |")
    return lines


def _sentences(by_method: dict[str, list[Row]]) -> list[str]:
    """Differences of the discrimination-aware selection from the others, and what not asking the network saves."""
    found = []
    mine = by_method.get("dcp-expansion")
    if mine is None:
        return []
    for method in ("reconstruction", "dcp-batches", "magnitude", "random"):
        other = by_method.get(method)
        if other is None or len(other) != len(mine):
            continue
        parts = []
        for what, name in (("before", "before"), ("after", "after")):
            pairs = [(getattr(a, what), getattr(b, what)) for a, b in zip(mine, other, strict=True)]
            if any(None in pair for pair in pairs):
                continue
            points = [100 * (a - b) for a, b in pairs]
            spread = f" ± {stdev(points):.2f}" if len(points) > 1 else ""
            parts.append(f"{fmean(points):+.2f}{spread} points {name} fine-tuning")
        found.append(f"Discrimination-aware, by expansion, against {other[0].label}: {', '.join(parts)}.  ")
    one = by_method.get("dcp-one", [])
    for method in ("dcp-expansion", "dcp-batches", "dcp-two"):
        found += _faster(by_method.get(method, []), one)
    return found


def _faster(quick: Sequence[Row], one: Sequence[Row]) -> list[str]:
    """What a quicker selection saves, and what it costs, over the seeds that both have."""
    both = sorted({row.seed for row in quick} & {row.seed for row in one})
    pairs = [tuple(next(row for row in rows if row.seed == seed) for rows in (quick, one)) for seed in both]
    if not pairs:
        return []
    times = sum(other.choose_seconds or 0 for _, other in pairs) / sum(row.choose_seconds or 1e-9 for row, _ in pairs)
    parts = []
    for what in ("before", "after"):
        values = [(getattr(row, what), getattr(other, what)) for row, other in pairs]
        if not any(None in pair for pair in values):
            points = [100 * (mine - theirs) for mine, theirs in values]
            spread = f" ± {stdev(points):.2f}" if len(points) > 1 else ""
            parts.append(f"{fmean(points):+.2f}{spread} points {what}")
    label = quick[0].label.removeprefix("discrimination-aware, ").capitalize()
    return [f"{label}, against gains one at a time: {times:.1f} times less time, {', '.join(parts)}.  "]
