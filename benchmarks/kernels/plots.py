"""A picture of the results: time against density, one panel per layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.kernels.row import LIBRARIES, NUMBA, Row

__all__ = ["PICTURE", "draw"]

PICTURE = "ratios.png"
MOST_PANELS = 6
TOKENS = 128  # a panel of a linear layer shows the number of tokens that is nearest to this
LEAST, MOST = 0.02, 20.0  # of the best dense layer's time, logarithmic


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write ``ratios.png``: our kernel for each block, and the fastest library, as shares of the best dense layer."""
    panels = panels_of(rows)
    if not panels:
        return
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * lines), layout="constrained")
    for place, found in enumerate(panels, 1):
        panel(figure.add_subplot(lines, columns, place), found)
    figure.savefig(folder / PICTURE, dpi=110)


def panels_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each layer that gets a panel: linear ones once for each shape and type."""
    panels: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        same = [other.tokens for other in rows if (other.shape, other.dtype, other.kind) == what(row)]
        if row.kind == "conv" or row.tokens == min(same, key=lambda tokens: abs(tokens - TOKENS)):
            panels.setdefault(what(row), []).append(row)
    chosen = list(panels.values())
    # float32 of a layer first: bfloat16 looks much the same.
    chosen.sort(key=lambda found: found[0].dtype != "float32")
    return chosen[:MOST_PANELS]


def what(row: Row) -> tuple[object, ...]:
    """Return what the rows of a panel share."""
    return row.shape, row.dtype, row.kind


def panel(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw one layer."""
    rows = [row for row in rows if row.layer == rows[0].layer]
    for block in dict.fromkeys((row.height, row.width) for row in rows):
        mine = sorted((row.density, row.ratio) for row in rows if (row.height, row.width) == block)
        axes.plot(*zip(*mine, strict=True), marker="o", markersize=4, label=f"ours, {block[0]}x{block[1]}")
    for label, names, line in (("fastest library", LIBRARIES, "--"), ("loop in numba", (NUMBA,), ":")):
        theirs: dict[float, float] = {}
        for row in rows:
            for name in names:
                if name in row.times_us:
                    share = row.times_us[name] / row.dense_us
                    theirs[row.density] = min(share, theirs.get(row.density, share))
        if theirs:
            axes.plot(*zip(*sorted(theirs.items()), strict=True), marker="x", linestyle=line, color="grey", label=label)
    densities = sorted({row.density for row in rows})
    axes.plot(densities, densities, color="black", linewidth=0.8, label="density")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(LEAST, MOST)
    axes.set_xticks(densities, [f"{density:g}" for density in densities])
    axes.minorticks_off()
    axes.set_xlabel("density")
    axes.set_ylabel("time / best dense")
    axes.set_title(f"{rows[0].layer}, {rows[0].dtype}", fontsize=9)
    axes.legend(fontsize=7)
