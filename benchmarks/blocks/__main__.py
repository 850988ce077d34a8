"""Every block pruning method on the same tasks, at equal epochs.

    python -m benchmarks.blocks --preset small                    # 2 CPU cores; stop and go on with --resume
    python -m benchmarks.blocks --preset cifar --minutes 8 --resume
    python -m benchmarks.blocks --preset small --dry-run          # the grid and about how long it takes
    python -m benchmarks.blocks report                            # table.md and report.html from measured rows

Needs real data (``--data``); there is no substitute for absent ones.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.blocks.measure import BlockBenchmark
from benchmarks.blocks.presets import PRESETS
from benchmarks.blocks.report import report
from benchmarks.blocks.tasks import TASKS
from benchmarks.cifar import MissingDataError, data_folder
from benchmarks.grid.cell import Cell
from benchmarks.grid.methods import METHODS
from benchmarks.grid.options import duration, leftover
from benchmarks.grid.pages import as_markdown
from benchmarks.grid.queue import Queue
from benchmarks.grid.report import write_page
from benchmarks.grid.row import join_rows, read_rows, take_apart
from benchmarks.grid.run import Origin, rank, ranks, run_queue, started
from benchmarks.provenance import ROOT

MODULE = "benchmarks.blocks"
RESULTS = ROOT / "benchmarks" / "results" / "blocks"
CODE = ("structprune", "solvers", "benchmarks/blocks", "benchmarks/grid", "benchmarks/cifar.py")
PACKAGES = ("torch", "numpy", "accelerate", "scikit-learn")
WRONG, INTERRUPTED, WIDTH = 2, 130, 160
UNFINISHED = 75  # EX_TEMPFAIL: run again, with --resume


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Every block pruning method on the same tasks, at equal epochs.",
        epilog="tasks:\n" + "\n".join(f"  {task.name:<14}{task.about}" for task in TASKS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", nargs="?", choices=["run", "report"], default="run")
    grid = made.add_argument_group("grid")
    presets, methods = [one.name for one in PRESETS], [one.name for one in METHODS]
    about = "; ".join(f"{one.name}: {one.about}" for one in PRESETS)
    grid.add_argument("--preset", choices=presets, default=presets[0], help=f"{about} (default: {presets[0]})")
    grid.add_argument("--tasks", nargs="+", choices=[one.name for one in TASKS], metavar="NAME", help="some of below")
    grid.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, metavar="NAME", help=f"of: {', '.join(methods)}"
    )
    grid.add_argument("--seeds", type=int, metavar="N", help="runs of each cell (default: the preset's)")
    running = made.add_argument_group("running")
    running.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    running.add_argument("--out", type=Path, default=RESULTS, help=f"folder of rows and pages (default: {RESULTS})")
    running.add_argument("--resume", action="store_true", help="go on with the rows and checkpoints in OUT")
    told = f"begin no cell after so many minutes; status {UNFINISHED} if any is left"
    running.add_argument("--minutes", type=float, metavar="N", help=told)
    running.add_argument("--dry-run", action="store_true", help="print the grid and about how long it takes")
    running.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0, 1 if a cell diverged, 2 for wrong arguments or data, 75 if the minutes are over and cells are left.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        return written(options.out, console) if options.action == "report" else act(options, given, console)
    except (MissingDataError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print(f"Interrupted. What is done is in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED


def act(options: argparse.Namespace, given: Sequence[str], console: Console) -> int:
    """Measure what is left of the grid, and write the page."""
    preset = next(one for one in PRESETS if one.name == options.preset)
    tasks = {task.name: task for task in preset.tasks if options.tasks is None or task.name in options.tasks}
    cells = preset.cells(list(tasks), options.methods, preset.seeds if options.seeds is None else options.seeds)
    if options.resume and rank() == 0:
        take_apart(options.out)
    elif not options.resume and not options.dry_run and (rows := read_rows(options.out)):
        raise ValueError(
            f"Expected no rows in {options.out}. Got {len(rows)}. Go on with --resume, or name another --out."
        )
    waiting = leftover(cells, options.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    benchmark = BlockBenchmark(tasks, data_folder(options.data), torch.device(device), progress=console.is_terminal)

    def settings(cell: Cell) -> dict[str, object]:
        task = tasks[cell.network]
        return {"training": asdict(task.training), "batch size": task.batch_size, "device": device}

    if rank() == 0:
        about = duration(benchmark.seconds(waiting))
        console.print(f"{len(cells)} cells, {len(waiting)} of them to be measured: about {about} on this machine.")
    if options.dry_run:
        for cell in waiting:
            console.print(cell.asked, markup=False, highlight=False)
        return 0
    command = shlex.join(["python", "-m", MODULE, *given])
    queue, origin = Queue(options.out, settings), Origin(command, CODE, PACKAGES, "")
    until, diverged = monotonic() + 60 * (options.minutes or float("inf")), 0
    for cell in cells:
        if over(until):
            break
        diverged += len(run_queue(queue, [cell], benchmark.measure, origin, console))
    if rank() == 0:
        written(options.out, console)
    if over(until) and (left := len(leftover(cells, options.out))):
        console.print(f"{options.minutes:g} minutes are over, {left} cells are left. Go on with --resume.")
        return UNFINISHED
    return int(bool(diverged))


def over(until: float) -> bool:
    """Whether the time is over; of several ranks the first one's clock decides, so that all stop at the same cell."""
    late = torch.tensor([monotonic() >= until])
    if ranks() > 1:
        started()
        torch.distributed.broadcast(late, 0)
    return bool(late)


def written(out: Path, console: Console) -> int:
    """Write the page of all rows, and print it."""
    rows = read_rows(out)
    page = report(rows)
    paths = [*write_page(out, page), join_rows(out, rows)]
    console.print(Markdown(as_markdown(page, "curves")[0]))
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
