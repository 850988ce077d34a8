"""Block pruning of the first layer of a click-rate network on Criteo: the paper's table 2 beside ours.

    python -m benchmarks.criteo --dry-run                               # the grid, bounds and cost; needs no data
    python -m benchmarks.criteo --data DIR --work DIR                   # prepare, measure, report; stop and --resume
    python -m benchmarks.criteo prepare --data DIR --work DIR           # the memory-mapped arrays alone
    python -m benchmarks.criteo report --out DIR                        # table.md and report.html from measured rows

Needs the rows of Criteo_x1, of the Kaggle challenge, or of the 1TB click logs, and `pip install
'structprune[bench,train]'`. There is no substitute for absent data.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.cifar import MissingDataError
from benchmarks.criteo.arrays import Prepared, open_prepared
from benchmarks.criteo.coverage import reach
from benchmarks.criteo.dry_run import ROWS, dry_run
from benchmarks.criteo.find import default_preprocessing, default_split, found_files, instructions
from benchmarks.criteo.layouts import FIELDS, LAYOUTS
from benchmarks.criteo.measure import ClickBenchmark
from benchmarks.criteo.prepare import Request, prepare
from benchmarks.criteo.recipes import Numbers, Preprocessing
from benchmarks.criteo.reference import name_of
from benchmarks.criteo.report import report
from benchmarks.criteo.training import RECIPES, Recipe
from benchmarks.grid.cell import Cell, cells_of
from benchmarks.grid.options import add_grid, add_running, leftover, run_processes
from benchmarks.grid.pages import Page, as_markdown
from benchmarks.grid.problems import DataFileError, DiskFullError
from benchmarks.grid.queue import Queue
from benchmarks.grid.report import write_page
from benchmarks.grid.row import join_rows, read_rows, take_apart
from benchmarks.grid.run import Origin, rank, run_queue
from benchmarks.provenance import ROOT

MODULE = "benchmarks.criteo"
RESULTS = ROOT / "benchmarks" / "results" / "criteo"
WORK = ROOT / "out" / "criteo"
CODE = ("structprune", "solvers", "benchmarks/criteo", "benchmarks/grid")
PACKAGES = ("torch", "numpy", "pyarrow", "accelerate", "scikit-learn")
BLOCKS, SPARSITIES, SEEDS = (5, 10, 20), (0.90, 0.95, 0.97, 0.98, 0.99), 3
WRONG, INTERRUPTED, WIDTH = 2, 130, 160


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Block pruning of a click-rate network on Criteo, the paper's table beside ours.",
        epilog=f"data (--data names a folder or a file):\n{instructions()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", nargs="?", choices=["run", "prepare", "report"], default="run")
    rows = made.add_argument_group("rows")
    rows.add_argument("--data", type=Path, help="folder or file of rows; see below")
    rows.add_argument("--layout", choices=[layout.name for layout in LAYOUTS], help="of files with other names")
    rows.add_argument("--work", type=Path, default=WORK, help=f"folder for the prepared arrays (default: {WORK})")
    rows.add_argument("--numbers", choices=[one.value for one in Numbers], help="what becomes of I1 ... I13")
    rows.add_argument("--min-count", type=int, metavar="N", help="rarer categories share an identity")
    rows.add_argument(
        *("--last-rows",), nargs=2, type=float, metavar=("V", "T"), help="validate and test on the last rows, in order"
    )
    rows.add_argument("--any-checksum", action="store_true", help="take other files than the published Criteo_x1")
    names = [recipe.name for recipe in RECIPES]
    made.add_argument("--recipe", nargs="+", choices=names, default=names, help="how the network is trained")
    made.add_argument("--whole-network", action="store_true", help="prune all dense layers instead of the first")
    made.add_argument("--reference", action="store_true", help="also dense networks on the best m fields")
    add_grid(made, BLOCKS, SPARSITIES, SEEDS)
    add_running(made, RESULTS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 if a cell diverged, 2 for wrong arguments or data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        return act(options, given, console)
    except (MissingDataError, DataFileError, DiskFullError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print(f"Interrupted. What is done is in {options.out}; go on with --resume.", file=sys.stderr)
        return INTERRUPTED


def act(options: argparse.Namespace, given: Sequence[str], console: Console) -> int:
    """Do what is asked for."""
    if options.action == "report":
        return written(options.out, console)
    recipes = [
        recipe.changed(options.epochs, options.batch_size, options.lr)
        for recipe in RECIPES
        if recipe.name in options.recipe
    ]
    names = [recipe.name for recipe in recipes]
    cells = cells_of(names, options.methods, options.blocks, options.sparsity, range(options.seeds))
    cells += reference_cells(cells) if options.reference else []
    if options.dry_run:
        console.print(Markdown(as_markdown(dry_page(options, recipes, cells), "")[0]))
        return 0
    if options.data is None:
        raise MissingDataError(
            f"Expected rows. Got none: name them with --data. Any of these will do:\n{instructions()}"
        )
    prepared = prepared_rows(options, console)
    if options.action == "prepare":
        return 0
    if options.resume and rank() == 0:
        take_apart(options.out)
    elif not options.resume and (rows := read_rows(options.out)):
        raise ValueError(
            f"Expected no rows in {options.out}. Got {len(rows)}. Go on with --resume, or name another --out."
        )
    if options.processes > 1:
        rest = [one for one in given if one != "--resume"]
        where = rest.index("--processes")
        status = run_processes(MODULE, [*rest[:where], *rest[where + 2 :], "--resume"], options.processes)
        return status or written(options.out, console)
    return measured(options, recipes, cells, prepared, given, console)


def reference_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return a cell for each number of fields that a mask of the grid can read at most, where that is not all."""
    most = {(cell.network, cell.seed, reach(cell.block, cell.sparsity).fields) for cell in cells if cell.block}
    return [
        Cell(network, name_of(count), 0, 0.0, seed)
        for network, seed, count in sorted(most, key=lambda one: (one[1], one[0], one[2]))
        if count < len(FIELDS)
    ]


def prepared_rows(options: argparse.Namespace, console: Console) -> Prepared:
    """Prepare the rows, or open those that are prepared."""
    layout, files = found_files(options.data, options.layout)
    usual = default_preprocessing(layout)
    numbers = usual.numbers if options.numbers is None else Numbers(options.numbers)
    recipe = Preprocessing(numbers, usual.min_count if options.min_count is None else options.min_count)
    split = default_split(layout, files, options.last_rows, seed=0)
    request = Request(layout, files, split, recipe, check_md5=not options.any_checksum)
    options.work.parent.mkdir(parents=True, exist_ok=True)
    return prepare(request, options.work, lambda text: console.print(text, markup=False, highlight=False))


def measured(
    options: argparse.Namespace,
    recipes: Sequence[Recipe],
    cells: Sequence[Cell],
    prepared: Prepared,
    given: Sequence[str],
    console: Console,
) -> int:
    """Measure what is left of the grid, and write the report."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    benchmark = ClickBenchmark(
        prepared=prepared,
        recipes={recipe.name: recipe for recipe in recipes},
        whole_network=options.whole_network,
        min_phase_steps=options.min_phase_steps,
        device=torch.device(device),
        workers=options.workers,
        progress=console.is_terminal,
    )

    def settings(cell: Cell) -> dict[str, object]:
        recipe = benchmark.recipes[cell.network]
        return {
            "training": {**asdict(recipe.training), "batch_size": recipe.batch_size, "dropout": recipe.dropout},
            "rows": prepared.manifest["request"],
            "counts": prepared.manifest["rows"],
            "whole network": options.whole_network,
            "device": device,
        }

    command = shlex.join(["python", "-m", MODULE, *given])
    if prepared.sample:
        console.print(f"These are {prepared.sample}: no figure will be one of Criteo.", style="yellow")
    queue = Queue(options.out, settings)
    diverged = run_queue(queue, cells, benchmark.measure, Origin(command, CODE, PACKAGES, prepared.sample), console)
    status = written(options.out, console) if rank() == 0 else 0
    return status or int(bool(diverged))


def written(out: Path, console: Console) -> int:
    """Write the report of all rows, and print its table."""
    rows = read_rows(out)
    page = report(rows)
    paths = [*write_page(out, page), join_rows(out, rows)]
    console.print(Markdown(as_markdown(page, "curves")[0]))
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)
    return 0


def dry_page(options: argparse.Namespace, recipes: Sequence[Recipe], cells: Sequence[Cell]) -> Page:
    """Return what --dry-run prints: with prepared rows or measured cells, what they say takes the place of guesses."""
    done = read_rows(options.out)
    rates = [rate for row in done if (rate := row.values.get("rows per second")) is not None]
    prepared = open_prepared(options.work) if options.work.exists() else None
    rows = ROWS if prepared is None else len(prepared.parts["train"])
    return dry_run(
        cells,
        len(leftover(cells, options.out)),
        recipes,
        rows,
        statistics.median(rates) if rates else None,
        options.processes,
        None if prepared is None else prepared.sizes,
    )


if __name__ == "__main__":
    sys.exit(main())
