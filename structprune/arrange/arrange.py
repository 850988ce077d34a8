"""The call that reorders a network for tall blocks, and what it answers.

Blocks that are tall are fast and keep less of a weight than narrow ones at the same density: all rows of a block keep
the same columns. Rows that want the same columns are therefore put next to each other before anything is selected.
Afterwards it is too late: rows of a selection that was made without it cannot be merged. What rises is the kept
score; what that is worth to the network's loss is the score's affair, and is to be measured.

References
----------
Ji et al., "TETRIS: tile-matching the tremendous irregular sparsity", NeurIPS 2018: reordering for blocks, by exchanges.
Pool, Yu, "Channel permutations for N:M sparsity", NeurIPS 2021, section 3: orders folded into the neighbouring layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from structprune.arrange.fold import Fold, proved
from structprune.arrange.freedom import Part, free_axes, parts, rows_to_order
from structprune.arrange.search import best_orders, kept_share
from structprune.example import find_example
from structprune.progress import Phases, track
from structprune.structures import channels

__all__ = ["ArrangedLayer", "Arrangement", "arrange"]


@dataclass(frozen=True)
class ArrangedLayer:
    """One layer's gain.

    Attributes
    ----------
    name
        Of its module.
    before, after
        Share of the layer's score in its best blocks, in the given order and in the new one.
    order
        'folded' into the neighbouring layers, 'indexed' (the layer stores its rows so), or 'as it was'.
    """

    name: str
    before: float
    after: float
    order: Literal["folded", "indexed", "as it was"]


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A network whose rows stand so that blocks keep much.

    Attributes
    ----------
    model
        The reordered network: it computes what the given one does.
    shape, keep_fraction
        The blocks, and the fraction of them in each layer, that it was reordered for.
    layers
        What each layer gained.
    orders
        For ``blocks(..., orders=)``: by module, ``(outputs,)``, the output in each stored row where the order could
        not be folded.
    folded
        By axis of the network, ``(size,)``, the entry that came to each place.
    error
        Largest relative difference between the outputs of the two networks.
    """

    model: nn.Module
    shape: tuple[int, int]
    keep_fraction: float
    layers: tuple[ArrangedLayer, ...]
    orders: Mapping[str, np.ndarray]
    folded: Mapping[str, np.ndarray]
    error: float

    @property
    def before(self) -> float:
        """Mean kept share over the layers, in the given order."""
        return float(np.mean([layer.before for layer in self.layers]))

    @property
    def after(self) -> float:
        """Mean kept share over the layers, in the new order."""
        return float(np.mean([layer.after for layer in self.layers]))

    def __str__(self) -> str:
        """Return a line for all layers and one for each."""
        tall, wide = self.shape
        width = max(len(layer.name) for layer in self.layers)
        head = (
            f"{tall}x{wide} blocks at {self.keep_fraction:g} keep {self.after:.3f} of the score, "
            f"{self.before:.3f} as it was"
        )
        lines = [f"  {one.name:<{width}}  {one.before:.3f} -> {one.after:.3f}  {one.order}" for one in self.layers]
        return "\n".join([head, *lines])


def arrange(
    model: nn.Module,
    shape: tuple[int, int],
    keep_fraction: float,
    *,
    example: Any = None,
    layers: Iterable[str | nn.Module] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Arrangement:
    """Reorder the outputs of weights so that blocks of ``shape`` keep as much of their score as can be found.

    An order is folded where the network's own axis allows it: rows of the layer, its bias and batch norm, and the
    columns of whatever reads it move together, and the network computes what it did, which is proved by running it.
    Layers that share an axis get one order that serves them together. Elsewhere the order is the layer's own: compiled
    block-sparse layers then write each row to its output's place. With blocks wider than 1 the columns follow the
    orders of the layers before. The sum of the kept shares of all layers never falls; with shared orders one layer may
    gain at another's cost.

    Examples
    --------
    ::

        arranged = arrange(model, (64, 1), 0.25, example=images)
        structures = blocks(arranged.model, (64, 1), orders=arranged.orders)
        pruned = solve(arranged.model, Budget(density=0.25), structures=structures, example=images)

    Parameters
    ----------
    model
        A trained network; left untouched.
    shape
        Outputs and inputs of a block, such as ``(64, 1)``.
    keep_fraction
        Fraction of the blocks of each layer that are to be kept, in (0, 1]; the order is made for it.
    example
        Arguments of one forward call; guessed from the model where possible.
    layers
        Modules, or patterns of names, whose rows are ordered; by default all linear layers and ungrouped convolutions.
    scores
        By name of the weight, a score per weight, higher = keep; by default |w|^2.
    seed
        Of the search.
    progress
        Show what is being done, on standard error.

    Raises
    ------
    TraceError
        If the network cannot be recorded.
    CompileError
        If the reordered network does not compute what the given one does.
    ValueError
        If an argument is not what it must be.
    """
    check(shape, keep_fraction)
    phases = Phases(progress)
    rows = rows_to_order(model, layers, scores)
    with phases.phase("tracing"):
        example = find_example(model, example, None)
        structures = channels(model, example)
    folds: list[Fold] = []
    orders: dict[str, np.ndarray] = {}
    found: dict[str, ArrangedLayer] = {}
    with phases.phase("ordering"):
        for part in track(parts(rows, free_axes(structures, rows, shape[1]), shape, keep_fraction), "ordering"):
            best = best_orders(part, seed)
            folds += [(axis, best[i]) for i, axis in enumerate(part.axes) if axis is not None and moved(best[i])]
            found |= gains(part, best)
            orders |= {
                row.name: best[matrix.axes[0]]
                for row, matrix in zip(part.rows, part.matrices, strict=True)
                if found[row.name].order == "indexed"
            }
    with phases.phase("proving"):
        reordered, error = proved(model, structures, folds, example) if folds else (copy.deepcopy(model), 0.0)
    return Arrangement(
        *(reordered, shape, keep_fraction, tuple(found[row.name] for row in rows), orders),
        folded={axis.name: order for axis, order in folds},
        error=error,
    )


def check(shape: tuple[int, int], keep_fraction: float) -> None:
    """Refuse what is no shape or no fraction."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"Expected a block shape of two positive sizes. Got {shape}. Use for instance (64, 1).")
    if not 0 < keep_fraction <= 1:
        raise ValueError(f"Expected a keep_fraction above 0 and up to 1. Got {keep_fraction!r}. Use the budget's.")


def moved(order: np.ndarray) -> bool:
    """Return whether the order is another than the given one."""
    return not np.array_equal(order, np.arange(len(order)))


def gains(part: Part, best: tuple[np.ndarray, ...]) -> dict[str, ArrangedLayer]:
    """Return what each layer keeps in the given orders and in the best ones."""
    given = tuple(np.arange(len(order)) for order in best)
    found = {}
    for row, matrix in zip(part.rows, part.matrices, strict=True):
        axis = matrix.axes[0]
        order: Literal["folded", "indexed", "as it was"] = "folded" if part.axes[axis] is not None else "indexed"
        order = order if moved(best[axis]) else "as it was"
        found[row.name] = ArrangedLayer(row.name, kept_share(matrix, given), kept_share(matrix, best), order)
    return found
