"""Which orders are free: rows of blocks that the network's own axes may permute, and rows of one layer alone.

An axis of the network that is wholly the outputs of a weight can be permuted in every tensor it runs through, and the
network computes what it did. Weights that share the axis, as all writers of a residual stream do, get one joint order.
What no such axis covers (outputs of the network, heads, normalised dimensions) can still be stored in another order by
the layer itself. The columns of a block of width 1 have no order at all: a kept block is one column, wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from solvers.permutation import BlockMatrix
from structprune.structures import ChannelAxis, Structures, block_weights
from structprune.tensors import first_names

__all__ = ["Part", "Row", "free_axes", "parts", "rows_to_order"]


@dataclass(frozen=True, eq=False)
class Row:
    """A weight whose rows are put in order.

    Attributes
    ----------
    name
        Of its module.
    tensor
        First name of the weight.
    scores
        ``(outputs, inputs, taps)`` float64: each weight's share of the layer's score.
    """

    name: str
    tensor: str
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """Weights whose orders depend on each other, as one problem of permuted blocks.

    Attributes
    ----------
    rows
        The weights.
    matrices
        Their scores, one :class:`BlockMatrix` each, with rows and columns in the order of the axes' entries.
    axes
        The network's axis behind each axis of the problem; None where it is a layer's own.
    fixed
        Axes of the problem that keep their order.
    """

    rows: tuple[Row, ...]
    matrices: tuple[BlockMatrix, ...]
    axes: tuple[ChannelAxis | None, ...]
    fixed: frozenset[int]


def rows_to_order(
    model: nn.Module, layers: Iterable[str | nn.Module] | None, scores: Mapping[str, Tensor] | None
) -> list[Row]:
    """Return the weights of linear layers and ungrouped convolutions with their scores; |w|^2 where none are given.

    Raises
    ------
    ValueError
        No such layers, or scores that are missing, of another shape or not finite.
    """
    names = first_names(model)
    found = []
    for name, weight in block_weights(model, layers):
        module = name.removesuffix("weight").removesuffix(".")
        if getattr(model.get_submodule(module), "groups", 1) != 1:
            continue
        values = weight.detach().double().square() if scores is None else given_scores(name, weight, scores)
        shares = values.reshape(*weight.shape[:2], -1).cpu().numpy()
        found.append(Row(module, names[name], shares / (np.abs(shares).sum() or 1.0)))
    if not found:
        raise ValueError("Expected linear layers or convolutions of one group. Got none. Name others in layers.")
    return found


def given_scores(name: str, weight: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
    """Return the caller's scores of one weight."""
    values = scores.get(name)
    if not isinstance(values, Tensor) or values.shape != weight.shape or not bool(values.isfinite().all()):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"{type(values).__name__}"
        raise ValueError(
            f"Expected finite scores of {name} of shape {tuple(weight.shape)}. Got {got}. "
            "Pass a score for every weight of every layer, or name fewer layers."
        )
    return values.detach().double()


def free_axes(structures: Structures, rows: Sequence[Row], width: int) -> dict[tuple[str, int], ChannelAxis]:
    """Return the axes that may be permuted, by the weight and dimension that each is the whole of.

    An axis that runs through part of some weight's rows, through them several times, or (for blocks wider than 1)
    through rows and columns of the same weight, is left as it is.
    """
    sizes = {(row.tensor, dim): row.scores.shape[dim] for row in rows for dim in ((0,) if width == 1 else (0, 1))}
    free: dict[tuple[str, int], ChannelAxis] = {}
    for axis in structures.axes:
        assert isinstance(axis, ChannelAxis)
        touched = [member for member in axis.members if (member.tensor, member.dim) in sizes]
        whole = all(member.positions.shape == (sizes[member.tensor, member.dim], 1) for member in touched)
        once = len({member.tensor for member in touched}) == len(touched)
        if whole and once:
            free |= {(member.tensor, member.dim): axis for member in touched}
    return free


def parts(
    rows: Sequence[Row],
    free: Mapping[tuple[str, int], ChannelAxis],
    shape: tuple[int, int],
    keep_fraction: float,
) -> list[Part]:
    """Return the problems that can be solved one by one: weights are together if a free axis runs through both."""
    groups: list[tuple[set[str], list[Row]]] = []
    for row in rows:
        mine = {free[row.tensor, dim].name for dim in (0, 1) if (row.tensor, dim) in free}
        joined = [group for group in groups if group[0] & mine]
        groups = [group for group in groups if not group[0] & mine]
        names = mine.union(*(group[0] for group in joined))
        groups.append((names, [*(one for group in joined for one in group[1]), row]))
    return [part_of(members, free, shape, keep_fraction) for _, members in groups]


def part_of(
    rows: Sequence[Row],
    free: Mapping[tuple[str, int], ChannelAxis],
    shape: tuple[int, int],
    keep_fraction: float,
) -> Part:
    """Return the problem of some weights: their axes are numbered, their entries in the axes' own order."""
    axes: list[ChannelAxis | None] = []
    numbers: dict[str, int] = {}
    fixed: set[int] = set()
    matrices = []
    for row in rows:
        values, two = row.scores, []
        for dim in (0, 1):
            axis = free.get((row.tensor, dim))
            if axis is None or axis.name not in numbers:
                axes.append(axis)
                number = len(axes) - 1
                if axis is not None:
                    numbers[axis.name] = number
                elif dim == 1:
                    fixed.add(number)
            else:
                number = numbers[axis.name]
            if axis is not None:
                values = values.take(places(axis, row.tensor, dim), axis=dim)
            two.append(number)
        grid = -(-values.shape[0] // shape[0]) * -(-values.shape[1] // shape[1]) * values.shape[2]
        keep = max(1, round(keep_fraction * grid))
        matrices.append(BlockMatrix(values, shape, keep, (two[0], two[1])))
    return Part(tuple(rows), tuple(matrices), tuple(axes), frozenset(fixed))


def places(axis: ChannelAxis, tensor: str, dim: int) -> np.ndarray:
    """Return the row of the tensor that each entry of the axis is, ``(size,)``."""
    (member,) = [one for one in axis.members if (one.tensor, one.dim) == (tensor, dim)]
    return np.asarray(member.positions[:, 0])
