"""Rows of the one-shot benchmark: one JSON file each, and the table they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, stdev

from rich.box import SIMPLE_HEAD
from rich.table import Table

from structprune.files import write_atomically

__all__ = ["Row", "Settings", "as_markdown", "as_table", "read_row", "write_row", "write_tables"]

HEADINGS = ("method", "batch norm", "accuracy", "loss", "macs", "of the cap", "params", "gap", "s")
LEFT = 2  # columns of words


@dataclass(frozen=True)
class Settings:
    """What two rows must share to stand in one table.

    Attributes
    ----------
    images
        Number of test images, the first ones.
    calibration
        Number of training images that methods may look at.
    seed
        What draws these images, and whatever else is drawn.
    """

    images: int
    calibration: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What one method made of one network under one cap, with what it takes to repeat it.

    Attributes
    ----------
    macs_cap
        Fraction of the dense network's macs that was allowed; 1.0 for the dense network itself.
    accuracy, loss
        On the test images; loss in nats per image. None if the method failed.
    accuracy_std
        Standard deviation of the accuracy over seeds, where the row is a mean over several.
    macs, macs_dense
        By torch's own counter, for every method.
    own_fraction
        macs / macs_dense by the method's own counter.
    seconds
        To prune; on a shared machine an indication.
    gap, predicted_loss
        What the method claims: see :class:`structprune.report.Report`.
    failure
        What went wrong, if the row has no figures.
    """

    network: str
    macs_cap: float
    method: str
    label: str
    software: str
    batch_norm: str
    settings: Settings
    accuracy: float | None = None
    loss: float | None = None
    macs: int | None = None
    macs_dense: int | None = None
    own_fraction: float | None = None
    params: int | None = None
    params_dense: int | None = None
    seconds: float | None = None
    gap: float | None = None
    predicted_loss: float | None = None
    failure: str | None = None
    accuracy_std: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    command: str = ""
    machine: str = ""

    @property
    def macs_fraction(self) -> float | None:
        """Macs used, as a fraction of the dense network's."""
        return None if self.macs is None or not self.macs_dense else self.macs / self.macs_dense

    def cells(self) -> tuple[str, ...]:
        """Return the table's cells, one for each of HEADINGS."""
        words = (f"{self.software} {self.label}".strip(), self.batch_norm)
        fraction = self.macs_fraction
        if self.accuracy is None or fraction is None or self.params is None:
            return (*words, "failed", *[""] * (len(HEADINGS) - LEFT - 1))
        spread = "" if self.accuracy_std is None else f" ± {100 * self.accuracy_std:.2f}"
        return (
            *words,
            f"{100 * self.accuracy:.2f}{spread} %",
            "" if self.loss is None else f"{self.loss:.3f}",
            f"{fraction:.4f}",
            f"{fraction / self.macs_cap:.4f}",
            f"{self.params / 1e3:.1f} k",
            "" if self.gap is None else f"{100 * self.gap:.2f} %",
            "" if self.seconds is None else f"{self.seconds:.1f}",
        )


# ---------------------------------------------------------------- files


def row_path(folder: Path, network: str, macs_cap: float, method: str, seed: int = 0) -> Path:
    """Return the name of a row's file."""
    return folder / "rows" / f"{network}_{macs_cap:g}_{method}{f'_seed{seed}' if seed else ''}.json"


def write_row(folder: Path, row: Row) -> Path:
    """Write a row, whole or not at all."""
    path = row_path(folder, row.network, row.macs_cap, row.method, row.settings.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, text_of(asdict(row)))


def read_row(folder: Path, network: str, macs_cap: float, method: str, seed: int = 0) -> Row | None:
    """Read a row back; None if there is no such file.

    Raises
    ------
    ValueError
        If the file holds no row.
    """
    path = row_path(folder, network, macs_cap, method, seed)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(content) - {one.name for one in fields(Row)}
        if unknown:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        return Row(**{**content, "settings": Settings(**content["settings"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"Expected a row in {path}. Got something else ({error}). Remove the file.") from error


def write_tables(folder: Path, rows: Sequence[Row], command: str) -> None:
    """Write the rows as ``rows.json`` and ``table.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "rows.json", text_of([asdict(row) for row in rows]))
    write_atomically(folder / "table.md", as_markdown(rows, command).encode())


def text_of(content: object) -> bytes:
    """Return JSON that reads well in a diff."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


# ---------------------------------------------------------------- tables


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return one row per network, cap and method: the mean over its seeds, a failure if it failed with any of them."""
    found: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.network, row.macs_cap, row.method), []).append(row)
    return [_mean(group) for group in found.values()]


def _mean(group: list[Row]) -> Row:
    failed = [row for row in group if row.failure or row.accuracy is None]
    if failed or len(group) == 1:
        return (failed or group)[0]

    def mean(name: str) -> float | None:
        values = [getattr(row, name) for row in group]
        return None if None in values else fmean(values)

    of = {name: mean(name) for name in ("accuracy", "loss", "own_fraction", "seconds", "gap", "predicted_loss")}
    counts = {name: round(mean(name) or 0) for name in ("macs", "macs_dense", "params", "params_dense")}
    return replace(group[0], accuracy_std=stdev(row.accuracy or 0.0 for row in group), **of, **counts)  # type: ignore[arg-type]


def parts(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Return the rows by network and cap, means over seeds, the best accuracy first, failures last."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in over_seeds(rows):
        found.setdefault((row.network, row.macs_cap), []).append(row)
    for key, group in found.items():
        found[key] = sorted(group, key=lambda row: -1.0 if row.accuracy is None else row.accuracy, reverse=True)
    return found


def dense_of(rows: Sequence[Row], network: str) -> Row | None:
    """Return the row of the network as it was trained."""
    return next((row for row in rows if row.network == network and row.macs_cap == 1.0), None)


def title(rows: Sequence[Row], network: str, cap: float) -> str:
    """Return a heading such as 'resnet20, at most 0.7 of the macs (dense: 91.73 %)'."""
    dense = dense_of(rows, network)
    reached = "" if dense is None or dense.accuracy is None else f" (dense: {100 * dense.accuracy:.2f} %)"
    return f"{network}, at most {cap:g} of the macs{reached}"


def as_table(rows: Sequence[Row], network: str, cap: float) -> Table:
    """Return one network under one cap as a table for the console."""
    group = parts(rows).get((network, cap), [])
    below = "\n".join([*margins(group), *failures(group)])
    table = Table(
        title=title(rows, network, cap), title_justify="left", caption=below, caption_justify="left", box=SIMPLE_HEAD
    )
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < LEFT else "right", no_wrap=True)
    for row in group:
        style = "red" if row.failure else "bold" if row.software == "structprune" else None
        table.add_row(*row.cells(), style=style)
    return table


def as_markdown(rows: Sequence[Row], command: str) -> str:
    """Return all tables as one Markdown page, with what one must know to read and to repeat them."""
    lines = ["# One-shot pruning of CIFAR-10 ResNets, without fine-tuning", ""]
    if rows:
        first = rows[0]
        versions = ", ".join(f"{name} {version}" for name, version in sorted(first.versions.items()))
        commits = ", ".join(sorted({row.commit for row in rows}))
        used = first.settings
        numbers = sorted({row.settings.seed for row in rows})
        seeds = f"seed {numbers[0]}" if len(numbers) == 1 else f"seeds {', '.join(map(str, numbers))}: mean ± std"
        lines += [
            f"Command: `{command}`  ",
            f"Accuracy and loss (nats per image) on the first {used.images:,} CIFAR-10 test images; the standard error "
            f"of an accuracy of 90 % is {100 * (0.09 / used.images) ** 0.5:.1f} points. Every method may look at the "
            f"same {used.calibration:,} training images ({seeds}) and at no test image. Batch norm "
            "'recalibrated' means that its statistics are measured anew on these images, 're-fitted' that the "
            "surviving weights are fitted on them too.  ",
            "'Inner channels' are those within blocks. Torch-Pruning takes the residual stream too ('all channels') "
            "when only the classifier is ignored, but misaligns the padded shortcut then; inner channels are its best "
            "chance. 'Global' is one threshold for all layers, 'uniform' the same fraction of each; either lands as "
            "close below the cap as bisection of its ratio gets it, or with its own loop of steps.  ",
            "Macs are counted by torch's flop counter for every method. The gap is (bound - objective) / "
            "(total - objective) of the value kept; Torch-Pruning knows none. Seconds are those of pruning (scoring, "
            f"search, re-fit) on {first.machine}, shared with other work: an indication only.  ",
            f"Versions: {versions}. Commit: {commits}.",
        ]
    for network, cap in parts(rows):
        if cap == 1.0:
            continue
        lines += ["", f"## {title(rows, network, cap)}", ""]
        lines.append("| " + " | ".join(HEADINGS) + " |")
        lines.append("|" + "|".join("---" if number < LEFT else "---:" for number in range(len(HEADINGS))) + "|")
        lines += ["| " + " | ".join(one(row)) + " |" for row in parts(rows)[network, cap]]
        lines += ["", *margins(parts(rows)[network, cap]), *failures(parts(rows)[network, cap])]
    return "\n".join(lines) + "\n"


def one(row: Row) -> list[str]:
    """Return a row's cells for Markdown: bars escaped, those of structprune in bold."""
    cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row.cells()]
    return [f"**{cell}**" if cell and row.software == "structprune" else cell for cell in cells]


def margins(group: Sequence[Row]) -> list[str]:
    """Return the sentence that compares the best of structprune with the best of everything else."""
    reached = [row for row in group if row.accuracy is not None]
    mine = [row for row in reached if row.software == "structprune"]
    others = [row for row in reached if row.software != "structprune"]
    if not mine or not others:
        return []
    best, other = mine[0], others[0]
    assert best.accuracy is not None and other.accuracy is not None
    points = 100 * (best.accuracy - other.accuracy)
    verdict = f"{abs(points):.2f} points {'above' if points >= 0 else 'below'}"
    return [
        f"Best of structprune ({best.label}): {verdict} the best of {other.software} ({other.label}, batch norm "
        f"{other.batch_norm})."
    ]


def failures(group: Sequence[Row]) -> list[str]:
    """Return a sentence for each method that failed."""
    return [f"Failed, {row.method}: {row.failure}" for row in group if row.failure]
