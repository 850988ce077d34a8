"""Nested supports: from nothing but what always stays to the whole network, one unit at a time.

Single weights come back by size; structures by energy per weight, best first, in the steps that their axis allows (an
N:M layer turns dense at once). A weight stays if all structures that it belongs to stay.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from structprune.axes.linear_maps import linear_maps
from structprune.limit.layout import Layout
from structprune.structures import ChannelAxis, EntryAxis, Structures

__all__ = ["Path", "axis_path", "input_dimensions", "removal_path"]

IntArray = np.ndarray


@dataclass(frozen=True, eq=False)
class Path:
    """Which weights are kept at each position 0 ... ``last``.

    Attributes
    ----------
    layout
        The order of the weights.
    birth
        The first position at which each weight is kept, ``(D,)`` int32; 0 for weights that always stay.
    active
        The same, counting only the entries whose removal alone cuts a structure off, ``(D,)``: of a channel those by
        which later layers read it. Removing the rest as well changes nothing.
    structures
        Number of kept structures at each position, ``(last + 1,)``.
    """

    layout: Layout
    birth: IntArray
    active: IntArray
    structures: IntArray

    @property
    def last(self) -> int:
        """The position at which nothing is removed."""
        return len(self.structures) - 1

    @property
    def free(self) -> int:
        """Number of weights that always stay."""
        return int((self.birth == 0).sum())

    def counts(self, which: np.ndarray | None = None) -> np.ndarray:
        """Kept weights at every position, ``(last + 1,)``; of some of them with a boolean ``which`` ``(D,)``."""
        birth = self.birth if which is None else self.birth[which]
        return np.cumsum(np.bincount(birth, minlength=self.last + 1)).astype(np.float64)

    def energy(self, weights: Tensor) -> np.ndarray:
        """R^2, the energy of the removed weights at every position, ``(last + 1,)``."""
        squares = np.bincount(self.birth, weights.double().square().cpu().numpy(), minlength=self.last + 1)
        # Summed from the end, so that the last is exactly zero and small ones are not lost.
        return np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)

    def kept(self, position: int) -> Tensor:
        """Boolean ``(D,)``: the weights that stay."""
        return torch.from_numpy(self.birth <= self._checked(position))

    def cut(self, position: int) -> Tensor:
        """Boolean ``(D,)``: the removed weights that the loss notices."""
        return torch.from_numpy(self.active > self._checked(position))

    def kept_mask(self, position: int) -> dict[str, Tensor]:
        """:meth:`kept` as one boolean mask per parameter."""
        return self.layout.split(self.kept(position))

    def _checked(self, position: int) -> int:
        if not 0 <= position <= self.last:
            raise ValueError(f"Expected a position between 0 and {self.last}. Got {position}. Clip it.")
        return position


def removal_path(
    model: nn.Module,
    structures: Structures | None = None,
    free: Iterable[str] = (),
    seen: Collection[str] | None = None,
    entire: Collection[int] = (),
) -> Path:
    """The path of a network.

    Parameters
    ----------
    model
        The trained network.
    structures
        What is removed whole; None for single weights.
    free
        Patterns of parameter or module names whose weights always stay. One-dimensional parameters always do, unless a
        structure takes them along.
    seen
        For single weights: the parameters that may lose some, None for all.
    entire
        Indices of axes of which all entries are active, because not only weights read them.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or nothing can be removed.
    """
    layout = Layout.of(model)
    kept_whole = _matching(layout, free)
    if structures is None:
        path = _by_magnitude(model, layout, kept_whole, seen)
    else:
        protected = [bool(kept_whole & set(axis.tensors())) for axis in structures.axes]
        path = _by_structure(model, layout, structures, _energy(model, structures), protected, entire)
    if path.last == 0:
        raise ValueError("Expected something that can be removed. Got nothing. Pass fewer free= or other structures=.")
    return path


def axis_path(model: nn.Module, structures: Structures, index: int) -> Path:
    """The path on which one axis alone loses its structures, in any order that its levels allow."""
    protected = [other != index for other in range(len(structures.axes))]
    return _by_structure(model, Layout.of(model), structures, np.ones(structures.n), protected)


def _matching(layout: Layout, free: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [free] if isinstance(free, str) else free:
        names = [name for p in (pattern, f"{pattern}.*") for name in fnmatch.filter(layout.names, p)]
        if not names:
            raise ValueError(
                f"Expected free to match a parameter or module. Got {pattern!r}, which matches none. "
                f"Names look like {list(layout.names[:3])}."
            )
        found.update(names)
    return found


def _by_magnitude(model: nn.Module, layout: Layout, kept_whole: set[str], seen: Collection[str] | None) -> Path:
    removable = np.zeros(layout.size, dtype=bool)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) > 1 and name not in kept_whole and (seen is None or name in seen):
            removable[layout.place(name)] = True
    sizes = layout.weights(model).abs().double().cpu().numpy()[removable]
    count = len(sizes)
    rank = np.empty(count, dtype=np.int32)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1, dtype=np.int32)
    birth = np.zeros(layout.size, dtype=np.int32)
    birth[removable] = rank
    return Path(layout, birth, birth, np.arange(count + 1))


def _energy(model: nn.Module, structures: Structures) -> np.ndarray:
    """Mean square of each structure's weights, ``(n,)``."""
    named = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    squares = {name: named[name].double().square() for name in structures.shapes if name in named}
    counts = structures.sum({name: torch.ones_like(square) for name, square in squares.items()})
    return np.asarray(structures.sum(squares) / np.maximum(counts, 1))


def _by_structure(
    model: nn.Module,
    layout: Layout,
    structures: Structures,
    energy: np.ndarray,
    protected: list[bool],
    entire: Collection[int] = (),
) -> Path:
    rank, kept = _ranks(structures, energy, protected)
    first = _first_names(model)
    birth, active = np.zeros(layout.size, dtype=np.int32), np.zeros(layout.size, dtype=np.int32)
    inputs = input_dimensions(structures)
    for number, axis in enumerate(structures.axes):
        own = rank[axis.entries]
        if isinstance(axis, EntryAxis):
            if (name := first.get(axis.tensor)) in layout.names:
                index = axis.index.cpu().numpy()
                grown = np.where(index >= 0, own[np.maximum(index, 0)], 0).reshape(-1)
                for target in (birth, active):
                    np.maximum(target[layout.place(name)], grown, out=target[layout.place(name)])
        elif isinstance(axis, ChannelAxis) and own.any():
            reads = any((member.tensor, member.dim) in inputs for member in axis.members) and number not in entire
            for member in axis.members:
                if (name := first.get(member.tensor)) not in layout.names:
                    continue
                grown = _along(member.dim, member.positions, own, structures.shapes[member.tensor])
                place = layout.place(name)
                np.maximum(birth[place], grown, out=birth[place])
                if not reads or (member.tensor, member.dim) in inputs:
                    np.maximum(active[place], grown, out=active[place])
    return Path(layout, birth, active if bool((active != birth).any()) else birth, kept)


def _first_names(model: nn.Module) -> dict[str, str]:
    own = {id(p): name for name, p in reversed(list(model.named_parameters()))}
    return {name: own[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _ranks(structures: Structures, energy: np.ndarray, protected: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Position at which each structure comes back, ``(n,)``, and how many structures are there at each position.

    Units are the steps between an axis' levels. Within an axis they come in order, whatever their energy.
    """
    units: list[tuple[float, np.ndarray]] = []
    always = np.zeros(structures.n, dtype=bool)
    for axis, stays in zip(structures.axes, protected, strict=True):
        order = axis.start + axis.order(energy[axis.entries])
        levels = np.unique(np.concatenate([axis.levels, [axis.size]])).astype(int)
        if stays:
            always[order] = True
            continue
        always[order[: levels[0]]] = True
        worst = np.inf
        for low, high in zip(levels[:-1], levels[1:], strict=True):
            # Never better than the step before it, so that a prefix of the path is a prefix on every axis.
            worst = min(worst, float(energy[order[low:high]].mean()))
            units.append((worst, order[low:high]))
    units.sort(key=lambda unit: -unit[0])
    rank = np.zeros(structures.n, dtype=np.int32)
    sizes = [int(always.sum())]
    for position, (_, members) in enumerate(units, start=1):
        rank[members] = position
        sizes.append(len(members))
    return rank, np.cumsum(sizes)


def _along(dim: int, positions: np.ndarray, rank: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The rank of the structure that takes each entry of a tensor along ``dim``, flat; 0 for rows that none takes."""
    rows = np.zeros(shape[dim], dtype=np.int32)
    np.maximum.at(rows, positions, np.broadcast_to(rank[:, None], positions.shape))
    return np.broadcast_to(rows.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape).reshape(-1)


def input_dimensions(structures: Structures) -> set[tuple[str, int]]:
    """Which (parameter, dimension) a linear map reads its input by."""
    if structures.labelled is None:
        return set()
    found: set[tuple[str, int]] = set()
    for one in linear_maps(structures.labelled):
        dim = 0 if one.transposed else 1
        found.update((name, dim) for name in structures.shapes if name == one.weight)
    return found
