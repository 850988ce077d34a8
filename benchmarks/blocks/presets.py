"""Which cells are measured, the most telling first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.blocks.tasks import TASKS, Task
from benchmarks.grid.cell import DENSE, Cell, cells_of
from benchmarks.grid.methods import METHODS

__all__ = ["PRESETS", "Grid", "Preset"]

FIRST = (DENSE, "sa++", "acdc", "acdc-sparsify", "swaps", "magnitude")


@dataclass(frozen=True)
class Grid:
    """Tasks, each with every block size at every sparsity.

    Attributes
    ----------
    tasks
        By name.
    blocks
        Sides of the square blocks.
    sparsities
        Fractions of the blocks of each eligible layer.
    methods
        By name; empty for all.
    """

    tasks: tuple[str, ...]
    blocks: tuple[int, ...]
    sparsities: tuple[float, ...]
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """Grids in the order in which they are measured.

    Attributes
    ----------
    name, about
        On the command line.
    grids
        A cell of several grids is measured once.
    seeds
        Runs of each cell.
    """

    name: str
    about: str
    grids: tuple[Grid, ...]
    seeds: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All that are asked for."""
        names = {name for grid in self.grids for name in grid.tasks}
        return tuple(task for task in TASKS if task.name in names)

    def cells(self, tasks: Sequence[str], methods: Sequence[str], seeds: int) -> list[Cell]:
        """Return the cells of these tasks and methods, each once."""
        found: dict[Cell, None] = {}
        for grid in self.grids:
            names = [name for name in grid.methods or [one.name for one in METHODS] if name in methods]
            # Task by task: a task that is done has its whole table.
            for task in (name for name in grid.tasks if name in tasks):
                found |= dict.fromkeys(cells_of([task], names, grid.blocks, grid.sparsities, range(seeds)))
        return list(found)


PRESETS: tuple[Preset, ...] = (
    Preset(
        "small",
        "for 2 CPU cores",
        (
            Grid(("fashion",), (4, 8), (0.9, 0.95)),
            Grid(("criteo-10k",), (5, 10), (0.9, 0.97)),
            Grid(("resnet20-10k",), (8,), (0.9,)),
        ),
        3,
    ),
    Preset(
        "cifar",
        "for a GPU: all of CIFAR-10",
        (
            Grid(("resnet20",), (8,), (0.95,), FIRST),
            Grid(("resnet56",), (8,), (0.95,), FIRST),
            Grid(("resnet20", "resnet56"), (4, 8, 16), (0.9, 0.95, 0.97)),
        ),
        3,
    ),
)
