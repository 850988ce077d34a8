"""From weights to the norms of their groups, and the proximal step back on the weights.

Groups are an integer tensor in the shape of the weights: ``groups[entry]`` is the group that the entry belongs to, -1
for none. A group may reach over several tensors; weights and groups are then mappings by name with equal keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

import numpy as np
import torch
from torch import Tensor

from structprune.regularizers.regularizer import Regularizer
from structprune.structures import Axis, ChannelAxis, EntryAxis

__all__ = ["axis_groups", "group_norms", "prox", "spread"]


def group_norms(
    values: Tensor | Mapping[str, Tensor], groups: Tensor | Mapping[str, Tensor], count: int | None = None
) -> Tensor:
    """The Euclidean norm of each group, shape ``(count,)``; differentiable, with gradient 0 where the norm is 0.

    Parameters
    ----------
    values
        Weights of any shape, or several by name.
    groups
        Group of each entry, -1 for none; integers in the shape of ``values``.
    count
        Number of groups; one more than the largest index when not given.

    Raises
    ------
    ValueError
        Shapes or names that do not match, indices outside ``-1 .. count - 1``.
    """
    pairs = _paired(values, groups)
    count = _count(pairs, count)
    kind = torch.promote_types(pairs[0][0].dtype, torch.float32)
    squares = torch.zeros(count + 1, dtype=kind, device=pairs[0][0].device)
    for tensor, index in pairs:
        # Entries of no group go to one group more, which is dropped.
        target = torch.where(index < 0, count, index).flatten()
        squares = squares.index_add(0, target, tensor.to(kind).square().flatten())
    squares = squares[:count]
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, torch.ones_like(squares)).sqrt(), 0.0)


@overload
def prox(regularizer: Regularizer, values: Tensor, groups: Tensor, step: float | Tensor) -> Tensor: ...


@overload
def prox(
    regularizer: Regularizer, values: Mapping[str, Tensor], groups: Mapping[str, Tensor], step: float | Tensor
) -> dict[str, Tensor]: ...


@torch.no_grad()
def prox(
    regularizer: Regularizer,
    values: Tensor | Mapping[str, Tensor],
    groups: Tensor | Mapping[str, Tensor],
    step: float | Tensor,
) -> Tensor | dict[str, Tensor]:
    """The weights that minimise ``||v - values||^2 / 2 + step * regularizer``, new tensors.

    A penalty of norms alone pulls every group along its own direction: each is scaled to its new norm, and entries of
    no group stay as they are. Arguments are those of `group_norms`.
    """
    norms = group_norms(values, groups).double()
    shrunk = regularizer.prox_norms(norms, step)
    scales = torch.where(norms > 0, shrunk / torch.where(norms > 0, norms, torch.ones_like(norms)), 0.0)
    if isinstance(values, Tensor):
        assert isinstance(groups, Tensor)
        return (values * spread(scales, groups)).to(values.dtype)
    assert isinstance(groups, Mapping)
    return {name: (tensor * spread(scales, groups[name])).to(tensor.dtype) for name, tensor in values.items()}


def spread(per_group: Tensor, groups: Tensor) -> Tensor:
    """One number per group ``(n,)`` to every entry of it, 1 to entries of no group; in the shape of ``groups``."""
    return torch.cat([per_group, per_group.new_ones(1)])[torch.where(groups < 0, len(per_group), groups)]


def axis_groups(axis: Axis, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The groups that an axis of `structprune.Structures` makes of the tensors in ``shapes``; group i is structure i.

    Parameters
    ----------
    axis
        One of ``structures.axes``.
    shapes
        Shape of each tensor to penalise, by name: ``structures.shapes``, or fewer, for instance without biases.

    Raises
    ------
    ValueError
        No tensor of the axis is in ``shapes``, or two structures share a weight.
    """
    if isinstance(axis, EntryAxis):
        found = {axis.tensor: axis.index.clone()} if axis.tensor in shapes else {}
    elif isinstance(axis, ChannelAxis):
        found = {name: _channel_groups(axis, name, shapes[name]) for name in axis.tensors() if name in shapes}
    else:
        raise TypeError(f"Expected a ChannelAxis or an EntryAxis. Got {type(axis).__name__}. Take one of structures.")
    if not found:
        raise ValueError(
            f"Expected a tensor of the axis {axis.name!r}: {', '.join(axis.tensors())}. Got {', '.join(shapes)}. "
            "Pass structures.shapes."
        )
    return found


def _channel_groups(axis: ChannelAxis, name: str, shape: tuple[int, ...]) -> Tensor:
    """Groups of one tensor. Where the axis runs along two of its dimensions, an entry would be in two groups."""
    groups = np.full(shape, -1, dtype=np.int64)
    for member in axis.members:
        if member.tensor != name:
            continue
        lines = np.moveaxis(groups, member.dim, 0)
        for structure, rows in enumerate(member.positions):
            taken = lines[rows]
            if bool(((taken >= 0) & (taken != structure)).any()):
                raise ValueError(
                    f"Expected weights of {name} that belong to one structure of the axis {axis.name!r} each. "
                    "Got a weight with the axis along two dimensions, and the proximal map of overlapping groups is "
                    f"not one of their norms. Leave {name} out of shapes."
                )
            lines[rows] = structure
    return torch.from_numpy(groups)


def _paired(
    values: Tensor | Mapping[str, Tensor], groups: Tensor | Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Weights with their groups, checked."""
    if isinstance(values, Tensor) != isinstance(groups, Tensor):
        raise ValueError("Expected two tensors or two mappings. Got one of each. Pass groups like the weights.")
    if isinstance(values, Tensor):
        assert isinstance(groups, Tensor)
        named, indices = {"the weights": values}, {"the weights": groups}
    else:
        assert isinstance(groups, Mapping)
        named, indices = dict(values), dict(groups)
    if not named or named.keys() != indices.keys():
        raise ValueError(
            f"Expected groups for {', '.join(named) or 'at least one tensor'}. Got them for {', '.join(indices)}. "
            "Use equal names."
        )
    for name, tensor in named.items():
        index = indices[name]
        if index.shape != tensor.shape or index.dtype != torch.int64:
            raise ValueError(
                f"Expected int64 groups of shape {tuple(tensor.shape)} for {name}. Got {index.dtype} of shape "
                f"{tuple(index.shape)}. Give the group of every entry, -1 for none."
            )
    return [(tensor, indices[name]) for name, tensor in named.items()]


def _count(pairs: list[tuple[Tensor, Tensor]], count: int | None) -> int:
    """The number of groups; raises where an index is outside."""
    sizes = [index for _, index in pairs if index.numel()]
    lowest = min((int(index.min()) for index in sizes), default=-1)
    highest = max((int(index.max()) for index in sizes), default=-1)
    if lowest < -1 or (count is not None and highest >= count):
        raise ValueError(
            f"Expected groups from -1 to {'any number' if count is None else count - 1}. Got {lowest} .. {highest}. "
            "Use -1 for entries of no group."
        )
    return highest + 1 if count is None else count
