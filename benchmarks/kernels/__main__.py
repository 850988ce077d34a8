"""Times of block-sparse layers beside the best dense layer and sparse libraries: ``python -m benchmarks.kernels``.

On a CPU it is one thread's processor time, all contenders of a cell in turns and in random order. Results are written
after every cell; ``--minutes`` stops in time and ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import provenance
from benchmarks.kernels import contenders, parts, training
from benchmarks.kernels.cuda import CudaGrid
from benchmarks.kernels.plots import PICTURE, draw
from benchmarks.kernels.row import Row
from benchmarks.kernels.table import page, verdict_table
from benchmarks.kernels_cpu import processor
from structprune.files import write_atomically

RESULTS = Path(__file__).resolve().parent.parent / "results" / "kernels"
CODE = ("structprune/layers", "benchmarks/kernels", "benchmarks/gpu_kernels.py")
PACKAGES = ("torch", "numpy", "scipy", "llvmlite", "numba", "triton")
UNFINISHED = 75  # EX_TEMPFAIL: run again, with --resume
ROUNDS = 9
QUICK_ROUNDS = 3


@dataclass(frozen=True)
class Job:
    """A cell by name and how to measure it."""

    name: str
    measure: Callable[[], Row]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cells whose name holds one of these")
    made.add_argument("--without", nargs="+", default=[], metavar="TEXT", help="but none whose name holds one of these")
    made.add_argument("--quick", action="store_true", help="a few cells in a few rounds: to see that all works")
    made.add_argument("--rounds", type=int, metavar="N", help=f"samples of each contender (default: {ROUNDS})")
    made.add_argument("--resume", action="store_true", help="keep the rows that OUT has with the same settings")
    made.add_argument("--again", action="store_true", help="with --resume: measure the cells anew that OUT has")
    made.add_argument("--minutes", type=float, metavar="N", help=f"stop after them, with status {UNFINISHED}")
    made.add_argument("--roofs", action="store_true", help="on a CUDA device measure its rates alone")
    made.add_argument("--tune", action="store_true", help="on a CUDA device time candidate tiles too")
    made.add_argument("--out", type=Path, help=f"folder of rows.json and table.md (default: {RESULTS}/DEVICE)")
    made.add_argument("--list", action="store_true", help="print the names of the cells and measure nothing")
    return made


def main(arguments: Sequence[str] | None = None, jobs: Sequence[Job] | None = None) -> int:
    """Measure, print and write; returns 0, 1 after a failure, 2 without the device, or 75 if time ran out."""
    options = parser().parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    grid = CudaGrid(options.tune) if options.device == "cuda" else None
    jobs = list(jobs) if jobs is not None else all_jobs(grid, options.quick, rounds)
    jobs = [job for job in jobs if not options.only or any(text in job.name for text in options.only)]
    jobs = [job for job in jobs if not any(text in job.name for text in options.without)]
    if options.list:
        print(*(job.name for job in jobs), sep="\n")
        return 0
    if grid is not None and (reason := grid.missing()):
        print(f"Expected a CUDA device and Triton. {reason}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.kernels", *(sys.argv[1:] if arguments is None else arguments)])
    out = options.out or RESULTS / options.device
    store = Store(out, head_of(command, options.device, rounds, options.tune, grid), options.resume)
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    return run([] if options.roofs else jobs, store, grid, deadline, options.again)


def all_jobs(grid: CudaGrid | None, quick: bool, rounds: int) -> list[Job]:
    """Return every cell of the device's grid."""
    if grid is not None:
        return [Job(grid.name(cell), partial(grid.measured, cell)) for cell in grid.cells(quick)]
    return [Job(str(cell), partial(measure_of(cell), cell, rounds)) for cell in parts.cells(quick)]


def measure_of(cell: parts.Cell) -> Callable[[parts.Cell, int], Row]:
    """Return what measures this kind of cell."""
    return training.measured if isinstance(cell.layer, parts.Training) else contenders.measured


def head_of(command: str, device: str, rounds: int, tune: bool, grid: CudaGrid | None) -> dict[str, Any]:
    """Return what it takes to repeat the measurement."""
    return {
        "command": command,
        "commit": provenance.commit(CODE),
        "device": processor() if grid is None else torch.cuda.get_device_name(grid.device),
        "kind": device,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "tuned": tune,
        "versions": provenance.versions(PACKAGES),
    }


class Store:
    """The folder of results: rows by name, failures by name, written whole after every change.

    Rows that an earlier run left are kept if ``resume`` and it was made on this device, with these rounds.
    """

    def __init__(self, out: Path, head: dict[str, Any], resume: bool) -> None:
        self.out, self.head, self.now = out, head, head
        self.rows: dict[str, Row] = {}
        self.failures: dict[str, str] = {}
        self.roofs: dict[str, float] = {}
        file = out / "rows.json"
        if resume and file.is_file():
            known = json.loads(file.read_text())
            if all(known[key] == head[key] for key in ("device", "rounds", "tuned")):
                self.rows = {record["name"]: Row.from_json(record) for record in known["rows"]}
                self.failures = known["failures"]
                self.roofs = known["roofs"]
                self.head = {key: known[key] for key in head}

    def add(self, row: Row) -> None:
        """Keep a row and write all; the commits and commands of all rows are named."""
        joined = {}
        for key, between in (("commit", ", "), ("command", " && ")):
            parts = [*self.head[key].split(between), self.now[key]] if self.rows else [self.now[key]]
            joined[key] = between.join(dict.fromkeys(parts))
        self.head = {**self.now, **joined}
        self.rows[row.name] = row
        self.failures.pop(row.name, None)
        self.write()

    def write(self) -> None:
        """Write rows.json and table.md, which shows the picture that is drawn in the end."""
        self.out.mkdir(parents=True, exist_ok=True)
        rows = list(self.rows.values())
        content = {**self.head, "roofs": self.roofs, "failures": self.failures, "rows": [row.to_json() for row in rows]}
        write_atomically(self.out / "rows.json", (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(
            self.out / "table.md", (page(self.head, rows, self.failures, PICTURE if rows else None) + "\n").encode()
        )


def run(jobs: Sequence[Job], store: Store, grid: CudaGrid | None, deadline: float | None, again: bool = False) -> int:
    """Measure what the store lacks, or all if ``again``; cells that failed before come last."""
    if grid is not None and not store.roofs:
        store.roofs = grid.roofs()
        store.write()
        print(json.dumps(store.roofs), flush=True)
    missing = sorted(
        (job for job in jobs if again or job.name not in store.rows), key=lambda job: job.name in store.failures
    )
    for done, job in enumerate(missing):
        if deadline is not None and time.monotonic() > deadline:
            print(f"{len(missing) - done} cells are left. Go on with --resume.", file=sys.stderr)
            return UNFINISHED
        try:
            store.add(job.measure())
        except (ArithmeticError, RuntimeError) as error:
            store.failures[job.name] = str(error)
            store.write()
            print(f"{job.name}: FAILED: {error}", file=sys.stderr)
            if grid is not None:  # an error may leave the device's context useless
                return 1
        else:
            print(store.rows[job.name], flush=True)
    store.write()
    draw(list(store.rows.values()), store.out)
    print(f"\n{verdict_table(list(store.rows.values()), store.head['kind'])}\n\nWritten to {store.out}")
    return 1 if store.failures else 0


if __name__ == "__main__":
    sys.exit(main())
