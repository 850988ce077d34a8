"""What could be removed from a network and what that would save, before anything is decided."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from solvers.problem import Term
from structprune.account import amount
from structprune.costs import costs
from structprune.structures import Structures
from structprune.units import fraction_text, quantity

__all__ = ["AxisSavings", "Inspection", "PinnedReason", "inspect"]

FORMAT = "structprune-inspection"
FORMAT_VERSION = 1
SHOWN = 3  # pinned dimensions that a table names for each reason


@dataclass(frozen=True)
class AxisSavings:
    """One axis with the fractions of the dense costs that go when it is halved or removed.

    Attributes
    ----------
    members
        Tensor dimensions such as 'conv1.weight[0]' that lose entries together.
    least
        The smallest width that may be kept.
    halved, removed
        By resource, for the axis alone, all others whole.
    """

    name: str
    size: int
    least: int
    members: tuple[str, ...]
    halved: Mapping[str, float]
    removed: Mapping[str, float]


@dataclass(frozen=True)
class PinnedReason:
    """Why some dimensions stay whole."""

    reason: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """All axes of a network with what they cost, and what stands in the way of others.

    Attributes
    ----------
    dense
        Macs of one example, params and bytes of the whole network.
    pinned
        The commonest reason first.
    without_rule
        Operators that tracing knows nothing about -> the module of their first use.
    """

    model_name: str
    structures: int
    dense: Mapping[str, int]
    axes: tuple[AxisSavings, ...]
    pinned: tuple[PinnedReason, ...]
    without_rule: Mapping[str, str]

    def to_json(self) -> str:
        """Return the inspection as JSON text."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)

    def print(self, console: Console) -> None:
        """Print the tables."""
        dense = ", ".join(
            f"{quantity(resource, used)}{'' if resource in ('macs', 'bytes') else ' ' + resource}"
            for resource, used in self.dense.items()
        )
        console.print(f"[bold]{self.model_name}[/bold]: {dense}", highlight=False)
        console.print(f"{self.structures:,} structures on {len(self.axes)} axes", highlight=False)
        console.print(self._axes_table())
        if self.pinned:
            console.print(self._pinned_table())
        for operator, module in self.without_rule.items():
            where = f" in {module}" if module else ""
            console.print(Text(f"no rule for {operator}{where}: what flows through it stays whole", style="yellow"))
        if not self.without_rule:
            console.print("Every operator has a rule.")

    def _axes_table(self) -> Table:
        title = "What goes from the dense cost when one axis is halved or removed"
        caption = "members are the tensor dimensions that shrink together; --json names them"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", caption=caption)
        table.add_column("axis", style="cyan", overflow="fold")
        table.add_column("size", justify="right")
        table.add_column("members", justify="right")
        resources = ("macs", "params")
        for resource in resources:
            table.add_column(f"{resource}\nhalved", justify="right", no_wrap=True)
            table.add_column("\nremoved", justify="right", no_wrap=True)
        for axis in self.axes:
            shares = [fraction_text(part[resource]) for resource in resources for part in (axis.halved, axis.removed)]
            table.add_row(Text(axis.name), str(axis.size), str(len(axis.members)), *shares)
        return table

    def _pinned_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="Kept whole, and why", title_justify="left", title_style="bold")
        table.add_column("reason", overflow="fold")
        table.add_column("count", justify="right")
        table.add_column("dimensions", style="cyan", overflow="fold")
        for row in self.pinned:
            table.add_row(Text(row.reason), str(len(row.dimensions)), Text(shortened(row.dimensions)))
        return table


def shortened(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" +{more}" if more > 0 else "")


def inspect(model: nn.Module, structures: Structures) -> Inspection:
    """Look at the channels of a network: what each axis is made of and saves, and why other dimensions are pinned."""
    terms = {resource: costs(structures, model, resource) for resource in ("macs", "params", "bytes")}
    full = [axis.size for axis in structures.axes]
    dense = {resource: amount(of, structures, full) for resource, of in terms.items()}
    axes = []
    for number, axis in enumerate(structures.axes):
        members = dict.fromkeys(f"{m.tensor}[{m.dim}]" for m in getattr(axis, "members", ()))
        halved, removed = (
            savings(terms, dense, structures, [*full[:number], width, *full[number + 1 :]])
            for width in (axis.size // 2, 0)
        )
        axes.append(AxisSavings(axis.name, axis.size, int(axis.levels.min()), tuple(members), halved, removed))
    counts = Counter(pinned.reason for pinned in structures.pinned)
    reasons = tuple(
        PinnedReason(reason, tuple(f"{p.tensor}[{p.dim}]" for p in structures.pinned if p.reason == reason))
        for reason, _ in counts.most_common()
    )
    without_rule = dict(structures.labelled.unknown) if structures.labelled is not None else {}
    return Inspection(type(model).__name__, structures.n, dense, tuple(axes), reasons, without_rule)


def savings(
    terms: Mapping[str, tuple[Term, ...]], dense: Mapping[str, int], structures: Structures, widths: Sequence[int]
) -> dict[str, float]:
    """Return by resource the fraction of the dense cost that is gone at ``widths``."""
    return {
        resource: 1 - amount(of, structures, widths) / dense[resource] if dense[resource] else 0.0
        for resource, of in terms.items()
    }
