"""The page of results: verdicts, then a table per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kernels.row import DENSE, LIBRARIES, NUMBA, OURS, Row
from benchmarks.kernels.targets import verdicts

__all__ = ["page", "verdict_table"]

ANSWER = {True: "yes", False: "NO", None: "not measured"}


def page(head: Mapping[str, Any], rows: Sequence[Row], failures: Mapping[str, str], picture: str | None = None) -> str:
    """Return the whole page in Markdown."""
    lines = [
        "# Block-sparse kernels",
        "",
        f"`{head['command']}` at commit {head['commit']}, {head['rounds']} rounds, {head['device']}, "
        f"{head['threads']} thread; {', '.join(f'{name} {one}' for name, one in head['versions'].items())}.",
        "",
        "Times are shares of the best dense layer's; below 1 is faster. Medians, contenders in turns; thread "
        "CPU time on CPUs. Blocks are outputs x inputs. Sparse matrices of libraries have the same pattern and are "
        "given feature-major activations, which is faster for them; torch's BSR product takes square blocks only, the "
        "largest that divide ours. At one token `cpu-jit module` is the layer as a network calls it, with the "
        "module's checks; `cpu-jit` and `numba` are both calls from Python with a new result each and without bias. A "
        "training step is the product and both gradients: through autograd, except oneDNN's, which are its three "
        "products alone, an operand packed in each. † one sample only, because the call is slow.",
        "",
    ]
    lines += ["## Verdicts", "", verdict_table(rows, head["kind"]), ""]
    if picture:
        lines += [f"![time against density]({picture})", ""]
    if failures:
        lines += ["## Failures", "", *(f"- {name}: {reason}" for name, reason in failures.items()), ""]
    layers = dict.fromkeys((row.layer, row.dtype) for row in rows)
    for layer, dtype in layers:
        lines += [f"## {layer}, {dtype}", "", layer_table([r for r in rows if (r.layer, r.dtype) == (layer, dtype)])]
        lines.append("")
    return "\n".join(lines)


def verdict_table(rows: Sequence[Row], device: str) -> str:
    """Return targets beside the worst measured cell."""
    lines = ["| target | asked | worst | where | cells | holds |", "|---|---|---|---|---|---|"]
    for one in verdicts(rows, device):
        worst = "" if one.worst is None else f"{one.worst:.3f}"
        cells = f"{one.holding} of {one.measured}"
        lines.append(f"| {one.name} | {one.asked} | {worst} | {one.where} | {cells} | {ANSWER[one.holds]} |")
    return "\n".join(lines)


def layer_table(rows: Sequence[Row]) -> str:
    """Return a line per block and density, a column per contender."""
    names = [name for name in (*DENSE, *OURS, *LIBRARIES, NUMBA) if any(name in row.times_us for row in rows)]
    lines = ["| block | density | best dense, us | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        shares = " | ".join(share(row, name) for name in names)
        lines.append(f"| {row.height}x{row.width} | {row.density:g} | {row.dense_us:.0f} | {shares} |")
    return "\n".join(lines)


def share(row: Row, name: str) -> str:
    """Return a contender's time as a share of the best dense layer's; empty if it did not run."""
    if name not in row.times_us:
        return ""
    mark = "†" if row.samples.get(name) == 1 and name in (*LIBRARIES, NUMBA) else ""
    return f"{row.times_us[name] / row.dense_us:.2f}{mark}"
