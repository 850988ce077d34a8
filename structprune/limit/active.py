"""Which entries of a removed structure the loss notices, checked by running the network.

Of a channel that later layers read by their weights alone, those weights are all that matters. What is read otherwise
as well (queries and keys by each other, embeddings by a dot product) matters whole. The graph does not tell the two
apart reliably, so every axis is tried: its structures are removed by both ways, and the outputs compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from structprune.limit.curvature import LossAt
from structprune.limit.path import Path, axis_path, removal_path
from structprune.structures import ChannelAxis, Structures

__all__ = ["checked_path"]


def checked_path(
    at: LossAt,
    here: Tensor,
    structures: Structures | None = None,
    free: Iterable[str] = (),
    seen: Collection[str] | None = None,
) -> tuple[Path, list[str]]:
    """The path of :func:`structprune.limit.path.removal_path`, its active part checked, and notes for a reader.

    Removing the active part alone gives the same outputs on the first batch as removing all, axis by axis and together.

    Raises
    ------
    ValueError
        If a pattern of ``free`` matches nothing, or nothing can be removed.
    """
    entire = [] if structures is None else _read_otherwise(at, here, structures)
    path = removal_path(at.model, structures, free, seen, entire)
    if _is_enough(at, here, path, [path.last * quarter // 4 for quarter in range(4)]):
        return path, []
    note = "later layers read removed structures in ways that are not seen: all their weights count"
    return replace(path, active=path.birth), [note]


def _read_otherwise(at: LossAt, here: Tensor, structures: Structures) -> list[int]:
    """Indices of the axes of which the active part alone does not do."""
    found = []
    for index, axis in enumerate(structures.axes):
        if isinstance(axis, ChannelAxis):
            alone = axis_path(at.model, structures, index)
            if not _is_enough(at, here, alone, [0, alone.last // 2]):
                found.append(index)
    return found


def _is_enough(at: LossAt, here: Tensor, path: Path, positions: Iterable[int]) -> bool:
    """Whether removing the active part gives the same outputs as removing all, at some positions."""
    for position in dict.fromkeys(positions):
        everything, active = path.kept(position).to(here.device), ~path.cut(position).to(here.device)
        if bool((everything != active).any()) and not _same_outputs(at, here * everything, here * active):
            return False
    return True


@torch.no_grad()
def _same_outputs(at: LossAt, one: Tensor, other: Tensor) -> bool:
    outputs = [at.output(at.layout.split(weights), at.batches[0][0]) for weights in (one, other)]
    pairs = zip(*(torch.utils._pytree.tree_leaves(output) for output in outputs), strict=True)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
        for a, b in pairs
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel()
    )
