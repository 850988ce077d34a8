"""Measure every family of selection problems, ours beside plain re-implementations of what others do.

python -m benchmarks.solvers                                # everything; the tables in results/ come from this
python -m benchmarks.solvers --families allocation --quick --out /tmp/solvers
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console

from benchmarks.provenance import ROOT, commit, machine, versions
from benchmarks.solvers import allocation, comparison, knapsack, nm, pairwise, permutation, refit
from benchmarks.solvers.plots import gap_against_time
from benchmarks.solvers.record import Record, read_records, write_records
from benchmarks.solvers.row import Family, Verdict
from benchmarks.solvers.table import as_markdown, verdict_table
from structprune.files import write_atomically

RESULTS = ROOT / "benchmarks" / "results" / "solvers"
CODE = ("structprune", "solvers", "benchmarks")  # what decides the figures, for git
PACKAGES = ("numpy", "scipy", "ortools", "cvxpy", "torch")
INTERRUPTED = 130
WIDTH = 160  # of what is printed into files, in characters


@dataclass(frozen=True)
class Named:
    """A family with its name on the command line and a sentence about it."""

    name: str
    about: str
    family: Family


FAMILIES: tuple[Named, ...] = (
    Named("allocation", "widths of whole networks: gaps, every coupling, 50 instances, a front", allocation),
    Named("knapsack", "independent layers and up to ten million blocks", knapsack),
    Named("refit", "layers with least-squares refit of what stays", refit),
    Named("pairwise", "hidden units with pairwise loss, no refit", pairwise),
    Named("nm", "N:M masks, along one axis and both", nm),
    Named("permutation", "block pruning after rows and columns are reordered", permutation),
    Named("comparison", "widths, real scores among them: ours, CP-SAT, HiGHS and every rule", comparison),
)


def parser(families: Sequence[Named] = FAMILIES) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.solvers",
        description="Every family of selection problems: our solvers beside plain re-implementations, interleaved.",
        epilog="families:\n" + "\n".join(f"  {one.name:<14} {one.about}" for one in families),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in families]
    made.add_argument(
        *("--families",),
        nargs="+",
        default=names,
        choices=names,
        metavar="NAME",
        help="some of those listed below (default: all); the others' rows in OUT stay",
    )
    made.add_argument("--quick", action="store_true", help="small instances and few repeats, to see that all works")
    made.add_argument(
        "--out", type=Path, default=RESULTS, help=f"folder of rows, tables and plots (default: {RESULTS})"
    )
    made.add_argument("--resume", action="store_true", help="leave out families that OUT has, quick or not as asked")
    return made


def main(arguments: Sequence[str] | None = None, families: Sequence[Named] = FAMILIES) -> int:
    """Run the benchmark; returns the exit status: 0, 1 if a family failed, 2 for a wrong OUT, 130 if interrupted."""
    options = parser(families).parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.solvers", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        records = read_records(options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    kept = {name for name, record in records.items() if record.quick != options.quick}
    if kept:
        print(
            f"Expected rows of the same kind in {options.out}. Got {'full' if options.quick else 'quick'} ones of "
            f"{', '.join(sorted(kept))}. Name another folder with --out.",
            file=sys.stderr,
        )
        return 2
    asked = [one for one in families if one.name in options.families]
    failed = []
    try:
        for number, one in enumerate(asked, start=1):
            console.print(f"[{number}/{len(asked)}] {one.name} ... ", end="", markup=False)
            if options.resume and one.name in records:
                console.print("already there")
                continue
            try:
                records[one.name] = run(one, options.quick, command)
            except Exception as error:  # one family's failure must not cost the others' rows; the exit status tells
                failed.append(one.name)
                console.print(f"failed: {type(error).__name__}: {error}", markup=False, style="red")
                continue
            write_records(options.out, records)
            console.print(f"{len(records[one.name].rows)} rows, {records[one.name].seconds:.0f} s")
    except KeyboardInterrupt:
        print(f"Interrupted. The finished families are in {options.out}; go on with --resume.", file=sys.stderr)
        finish(options.out, records, families, console)
        return INTERRUPTED
    finish(options.out, records, families, console)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def run(one: Named, quick: bool, command: str) -> Record:
    """Measure one family."""
    start = perf_counter()
    before = os.getloadavg()[0]
    rows = tuple(one.family.rows(quick))
    load = max(before, os.getloadavg()[0])
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return Record(
        family=one.name,
        quick=quick,
        rows=rows,
        seconds=perf_counter() - start,
        command=command,
        commit=commit(CODE),
        machine=f"{machine()}, OMP_NUM_THREADS {threads}, load up to {load:.1f} with this benchmark",
        versions=versions(PACKAGES),
    )


def finish(folder: Path, records: dict[str, Record], families: Sequence[Named], console: Console) -> None:
    """Judge the rows that are there, draw them, write the page and print the verdicts."""
    known = {one.name: one for one in families}
    records = {name: records[name] for name in known if name in records}
    if not records:
        return
    folder.mkdir(parents=True, exist_ok=True)
    verdicts: dict[str, list[Verdict]] = {}
    plots: dict[str, str] = {}
    for name, record in records.items():
        verdicts[name] = known[name].family.verdicts(list(record.rows))
        if gap_against_time(folder / f"{name}.png", name, record.rows):
            plots[name] = f"{name}.png"
        console.print(verdict_table(name, verdicts[name]))
    write_atomically(folder / "table.md", as_markdown(records, verdicts, plots).encode())
    console.print(f"Written to {folder}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
