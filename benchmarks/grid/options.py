"""What both commands ask for: the grid, where it runs, and what is told before it starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.grid.cell import DENSE, Cell
from benchmarks.grid.methods import METHODS

__all__ = ["add_grid", "add_running", "duration", "fraction", "leftover", "run_processes"]

PER_HOUR = 3600
DEFAULT_METHODS = (DENSE, "random", "magnitude", "powerprop", "acdc", "acdc-sparsify", "sa++")


def fraction(text: str) -> float:
    """Read a sparsity: 0.9 or 90 for 90 %.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is none.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"Expected a sparsity such as 0.9 or 90. Got {text!r}.") from error
    value = value / 100 if value >= 1 else value
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"Expected a sparsity between 0 and 1, or in percent. Got {text!r}.")
    return value


def add_grid(made: argparse.ArgumentParser, blocks: Sequence[int], sparsities: Sequence[float], seeds: int) -> None:
    """Add what makes up the grid."""
    grid = made.add_argument_group("grid")
    names = [one.name for one in METHODS]
    grid.add_argument(
        *("--methods",),
        nargs="+",
        choices=names,
        default=list(DEFAULT_METHODS),
        metavar="NAME",
        help=f"some of: {', '.join(names)} (default: {' '.join(DEFAULT_METHODS)})",
    )
    grid.add_argument("--blocks", nargs="+", type=int, default=list(blocks), metavar="B", help="sides of square blocks")
    grid.add_argument(
        "--sparsity", nargs="+", type=fraction, default=list(sparsities), metavar="S", help="0.9 or 90 for 90 %%"
    )
    grid.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"runs of each cell (default: {seeds})")
    grid.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    grid.add_argument("--batch-size", type=int, metavar="N", help="instead of the recipe's")
    grid.add_argument("--lr", type=float, help="instead of the recipe's")
    grid.add_argument("--min-phase-steps", type=int, default=50, metavar="N", help="refuse runs with shorter phases")


def add_running(made: argparse.ArgumentParser, out: Path) -> None:
    """Add where it runs."""
    running = made.add_argument_group("running")
    running.add_argument("--dry-run", action="store_true", help="print the grid and what it costs; needs no data")
    running.add_argument("--out", type=Path, default=out, help=f"folder of rows and reports (default: {out})")
    running.add_argument("--resume", action="store_true", help="go on with the rows and checkpoints in OUT")
    running.add_argument(
        "--processes", type=int, default=1, metavar="N", help="cells at once, each on a GPU of its own"
    )
    running.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    running.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load data, per cell")


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 1.5 * PER_HOUR else f"{seconds / PER_HOUR:.1f} h"


def run_processes(module: str, arguments: Sequence[str], count: int) -> int:
    """Start the same command ``count`` times on the same queue, a GPU for each where there are any.

    Returns the worst exit status. Ctrl-C reaches all of them.
    """
    devices = torch.cuda.device_count()
    started = []
    for number in range(count):
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % devices)
        started.append(subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment))
    try:
        return max(abs(process.wait()) for process in started)
    except KeyboardInterrupt:
        for process in started:
            process.wait()
        return 130


def leftover(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Return the cells that have no row yet."""
    return [cell for cell in cells if not (folder / "rows" / f"{cell.key}.json").exists()]
