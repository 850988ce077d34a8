"""What a mask looks like: how it changed, which inputs and outputs it reaches, and what is really gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, prod

import numpy as np
from torch import nn

from structprune.methods.grids import table
from structprune.methods.groups import by_layer
from structprune.structures import EntryAxis, Structures

__all__ = [
    "Coverage",
    "coverage",
    "coverage_note",
    "jaccard",
    "real_sparsity",
    "sparsity_note",
    "stability",
    "stability_note",
    "uniform_sparsity",
]


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Kept by both as a fraction of kept by either, of two masks ``(n,)``; 1 where neither keeps anything."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def stability(supports: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Fraction of each mask that the one before did not keep; one number less than there are masks."""
    return tuple(
        float((later & ~earlier).sum() / max(1, later.sum()))
        for earlier, later in zip(supports, supports[1:], strict=False)
    )


def stability_note(supports: Sequence[np.ndarray]) -> tuple[str, ...]:
    """A sentence on how the mask changed between sparse phases; none where there was one phase."""
    changes = stability(supports)
    if not changes:
        return ()
    text = "mask changed between sparse phases by " + ", ".join(f"{100 * change:.1f} %" for change in changes)
    if len(changes) >= 3 and not any(changes[-3:]):
        text += "; it stood still over the last three, so that the search had ended: fewer cycles would do"
    return (text,)


@dataclass(frozen=True)
class Coverage:
    """Rows and columns of blocks of one layer that keep something, of how many.

    Attributes
    ----------
    rows, columns
        Alive. A row reads one run of inputs, at one tap of a convolution; a column writes one run of outputs.
    all_rows, all_columns
        In the dense layer.
    """

    rows: int
    columns: int
    all_rows: int
    all_columns: int


def coverage(structures: Structures, selection: np.ndarray) -> dict[str, Coverage]:
    """Coverage of every layer of blocks or kernels, by its name; channels have no rows and columns."""
    found = {}
    for group in by_layer(structures):
        axis = group.axes[0]
        if isinstance(axis, EntryAxis) and axis.group is None:
            places, kept = table(group), selection[group.entries]
            rows, columns = len(np.unique(places.rows[kept])), len(np.unique(places.columns[kept]))
            found[group.name] = Coverage(rows, columns, *places.shape)
    return found


def coverage_note(structures: Structures, selection: np.ndarray) -> tuple[str, ...]:
    """A sentence on rows and columns alive, naming the layer that reaches least."""
    found = coverage(structures, selection)
    if not found:
        return ()
    rows = sum(layer.rows for layer in found.values()), sum(layer.all_rows for layer in found.values())
    columns = sum(layer.columns for layer in found.values()), sum(layer.all_columns for layer in found.values())
    name, least = min(
        found.items(), key=lambda item: min(item[1].rows / item[1].all_rows, item[1].columns / item[1].all_columns)
    )
    return (
        f"coverage: {rows[0]} of {rows[1]} block rows (inputs) and {columns[0]} of {columns[1]} block columns "
        f"(outputs) are alive; least in {name}: {least.rows} of {least.all_rows} and "
        f"{least.columns} of {least.all_columns}",
    )


def real_sparsity(sizes: Mapping[str, int], removed: Mapping[str, float]) -> float:
    """Removed entries as a fraction of all, over the tensors in ``sizes`` (entries of each, by name)."""
    return sum(removed.get(name, 0) for name in sizes) / max(1, sum(sizes.values()))


def uniform_sparsity(
    shapes: Mapping[str, tuple[int, ...]], side: int, sparsity: float, min_structures: int = 100
) -> float:
    """Real sparsity of linear and convolution weights that uniform sparsity by blocks leads to, from shapes alone.

    Layers with fewer than ``min_structures`` blocks stay dense: large blocks remove less than they are asked to.

    Parameters
    ----------
    shapes
        Of the weights, (outputs, inputs, taps ...), by name.
    side
        Of a square block.
    sparsity
        Fraction of the blocks of every other layer that goes.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    removed: dict[str, float] = {}
    for name, (outputs, inputs, *taps) in shapes.items():
        count = -(-outputs // side) * -(-inputs // side) * prod(taps)
        if count >= min_structures:
            kept = max(1, floor((1 - sparsity) * count + 0.5))
            removed[name] = (1 - kept / count) * sizes[name]
    return real_sparsity(sizes, removed)


def sparsity_note(model: nn.Module, structures: Structures, selection: np.ndarray) -> tuple[str, ...]:
    """A sentence on nominal sparsity, of structures, and real sparsity, of weights."""
    removed = {name: int((~mask).sum()) for name, mask in structures.masks(selection).items()}
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    prunable = {name: size for name, size in parameters.items() if name in structures.shapes}
    layers = {
        f"{name}.weight" if name else "weight": module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    return (
        f"sparsity: {100 * float((~selection).mean()):.1f} % of structures (nominal), "
        f"{100 * real_sparsity(prunable, removed):.1f} % of prunable weights, "
        f"{100 * real_sparsity(layers, removed):.1f} % of linear and convolution weights, "
        f"{100 * real_sparsity(parameters, removed):.1f} % of all weights",
    )
