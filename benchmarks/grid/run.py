"""Go through a queue of cells, alone, beside other processes, or as one of the ranks that share a cell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console

from benchmarks.grid.cell import Cell
from benchmarks.grid.problems import telling_disk_full
from benchmarks.grid.queue import Queue
from benchmarks.grid.row import DIVERGED, Row
from benchmarks.provenance import commit, machine, versions

__all__ = ["Measured", "Origin", "run_queue"]


@dataclass(frozen=True)
class Measured:
    """What a cell gave.

    Attributes
    ----------
    values, notes, recalls
        See :class:`benchmarks.grid.row.Row`.
    """

    values: Mapping[str, float | None]
    notes: tuple[str, ...] = ()
    recalls: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What every row says of where it comes from.

    Attributes
    ----------
    command
        As it was typed.
    code
        Folders that decide the figures, for git.
    packages
        Whose versions stand in rows.
    sample
        What must be said beside the figures.
    """

    command: str
    code: tuple[str, ...]
    packages: tuple[str, ...]
    sample: str


def run_queue(
    queue: Queue, cells: Sequence[Cell], measure: Callable[[Cell, Path], Measured], origin: Origin, console: Console
) -> list[Cell]:
    """Measure all cells that wait, and return those that diverged.

    A cell's training keeps its state in a folder of its own, from which a killed run goes on; the folder goes when the
    row is written.
    """
    diverged = []
    first = rank() == 0
    for cell in _taken(queue, cells):
        if first:
            console.print(f"{cell.asked} ... ", end="", markup=False)
        start, folder = perf_counter(), queue.checkpoints(cell)
        with telling_disk_full(queue.folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found = measure(cell, folder)
            except FloatingPointError as error:  # a run that diverges is a result, as in the paper's table
                found = Measured({DIVERGED: 1.0}, (f"diverged: {error}",))
                diverged.append(cell)
            seconds = perf_counter() - start
            if first:
                queue.finish(_row(cell, found, seconds, queue, origin))
                shutil.rmtree(folder, ignore_errors=True)
        if first:
            console.print(f"{'diverged, ' if cell in diverged else ''}{seconds:.1f} s", markup=False)
    return diverged


def _row(cell: Cell, found: Measured, seconds: float, queue: Queue, origin: Origin) -> Row:
    threads = f"{torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    return Row(
        cell=cell,
        values=dict(found.values),
        settings=queue.settings(cell),
        sample=origin.sample,
        notes=found.notes,
        recalls=dict(found.recalls),
        seconds=seconds,
        command=origin.command,
        commit=commit(origin.code),
        machine=f"{device}, {threads}, {ranks()} processes per cell",
        versions=versions(origin.packages),
    )


def _taken(queue: Queue, cells: Sequence[Cell]) -> Iterator[Cell]:
    """Yield the cells that wait; of several ranks the first takes them, and all follow."""
    if ranks() == 1:
        yield from queue.take(cells)
        return
    started()
    places = {cell: place for place, cell in enumerate(cells)}
    mine = queue.take(cells) if rank() == 0 else iter(())
    while True:
        cell = next(mine, None)
        place = torch.tensor([-1 if cell is None else places[cell]])
        torch.distributed.broadcast(place, 0)
        if int(place) < 0:
            return
        yield cells[int(place)]


def started() -> None:
    """Join the ranks, for messages between processors; the engine uses what is there."""
    if not torch.distributed.is_initialized():
        kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(kind)


def rank() -> int:
    """Return this process's number under ``torchrun`` or ``accelerate launch``."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """Return how many processes share a cell."""
    return int(os.environ.get("WORLD_SIZE", "1"))
