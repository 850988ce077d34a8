"""What can be removed: channels, blocks, kernels and N:M entries as one kind of value.

:class:`Structures` is an ordered, frozen list of structures, each living or dying whole. It owns the map between a
structure's index and the weights it takes with it, and nothing else: scores, costs and choices are made of it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.axes import RULES, LabelledGraph, as_example, propagate, trace
from structprune.axes.discovery import FoundAxis, Pinned, find_axes
from structprune.axes.graph import Example, run
from structprune.tensors import named_tensors

__all__ = ["Axis", "ChannelAxis", "EntryAxis", "Member", "Pinned", "Structures", "blocks", "channels", "kernels", "nm"]


@dataclass(frozen=True)
class Member:
    """One tensor dimension of an axis: entry ``i`` takes the rows ``positions[i]`` along ``dim`` of ``tensor``."""

    tensor: str
    dim: int
    positions: np.ndarray


@dataclass(frozen=True)
class Axis:
    """A run of structures that are ranked against each other and kept as a prefix of one order.

    Attributes
    ----------
    name
        Dotted name of the module or tensor it is best known by.
    size
        Number of structures.
    start
        Index of its first structure in the whole list.
    levels
        How many of its structures may be kept, ``(K,)`` increasing.
    """

    name: str
    size: int
    start: int
    levels: np.ndarray

    @property
    def entries(self) -> slice:
        """Where its structures lie in the whole list."""
        return slice(self.start, self.start + self.size)

    def order(self, values: np.ndarray) -> np.ndarray:
        """Its structures, best first; ties go to the earlier one. ``values`` and result ``(size,)``."""
        return np.argsort(-values, kind="stable")

    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that lose entries."""
        raise TypeError("Expected a ChannelAxis or an EntryAxis. Got an Axis. Make one with channels() or blocks().")

    def sum(self, values: Mapping[str, Tensor]) -> np.ndarray:
        """Per structure, the sum of per-weight ``values`` over all its entries, ``(size,)`` float64."""
        raise TypeError("Expected a ChannelAxis or an EntryAxis. Got an Axis. Make one with channels() or blocks().")


@dataclass(frozen=True)
class ChannelAxis(Axis):
    """One dimension of the network: rows of several tensors that vanish together."""

    members: tuple[Member, ...] = ()

    def tensors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.tensor for member in self.members))

    def sum(self, values: Mapping[str, Tensor]) -> np.ndarray:
        total = np.zeros(self.size)
        for name in self.tensors():
            if name in values:
                mine = [member for member in self.members if member.tensor == name]
                total += _sum_rows(values[name].detach(), mine)
        return total


def _sum_rows(values: Tensor, members: Sequence[Member]) -> np.ndarray:
    """Sum over the union of the rows that each structure takes; entries in two of its dimensions count once."""
    values = values.double()
    total = np.zeros(len(members[0].positions))
    for member in members:
        others = [d for d in range(values.ndim) if d != member.dim]
        rows = (values.sum(dim=others) if others else values).cpu().numpy()
        total += rows[member.positions].sum(axis=1)
    for index, first in enumerate(members):
        for second in members[index + 1 :]:
            others = [d for d in range(values.ndim) if d not in (first.dim, second.dim)]
            plane = (values.sum(dim=others) if others else values).cpu().numpy()
            plane = plane if first.dim < second.dim else plane.T
            total -= plane[first.positions[:, :, None], second.positions[:, None, :]].sum(axis=(1, 2))
    return total


@dataclass(frozen=True)
class EntryAxis(Axis):
    """Structures inside one weight: ``index[entry]`` is the structure that the entry belongs to, -1 for none.

    With ``group`` = M the structures are single weights, ranked inside each run of M along the input dimension.
    """

    tensor: str = ""
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    group: int | None = None

    @property
    def weights_each(self) -> int:
        """Number of weights in each structure; all structures of an axis have equally many."""
        return int((self.index >= 0).sum()) // self.size

    def tensors(self) -> tuple[str, ...]:
        return (self.tensor,)

    def sum(self, values: Mapping[str, Tensor]) -> np.ndarray:
        if self.tensor not in values:
            return np.zeros(self.size)
        index = self.index.flatten()
        inside = index >= 0
        weights = values[self.tensor].detach().double().flatten().cpu()[inside]
        return torch.bincount(index[inside], weights=weights, minlength=self.size).numpy()

    def order(self, values: np.ndarray) -> np.ndarray:
        if self.group is None:
            return super().order(values)
        runs = values.reshape(-1, self.group)
        rank = np.argsort(np.argsort(-runs, axis=1, kind="stable"), axis=1).ravel()
        return np.lexsort((-values, rank))


@dataclass(frozen=True)
class Structures:
    """An ordered, frozen list of structures and the weights that each takes with it.

    Attributes
    ----------
    kind
        'channels', 'blocks', 'kernels' or 'nm'.
    axes
        The axes, one after the other; structure indices run through them.
    shapes
        Shape of every parameter and float buffer that some structure takes entries of.
    pinned
        Dimensions that cannot be pruned, each with the reason.
    labelled
        The traced network; None when no example was given (costs then know parameters only).
    """

    kind: str
    axes: tuple[Axis, ...]
    shapes: Mapping[str, tuple[int, ...]]
    pinned: tuple[Pinned, ...] = ()
    labelled: LabelledGraph | None = None
    found: tuple[FoundAxis, ...] = ()

    @property
    def n(self) -> int:
        """Number of structures."""
        return sum(axis.size for axis in self.axes)

    @cached_property
    def axis_of(self) -> np.ndarray:
        """Axis index of every structure, ``(n,)``."""
        return np.repeat(np.arange(len(self.axes)), [axis.size for axis in self.axes])

    def widths(self, selection: np.ndarray) -> list[int]:
        """Number of kept structures per axis."""
        selection = self.check(selection)
        return [int(selection[axis.entries].sum()) for axis in self.axes]

    def check(self, selection: np.ndarray) -> np.ndarray:
        """``selection`` as a boolean array ``(n,)``.

        Raises
        ------
        ValueError
            If it has another shape or type.
        """
        selection = np.asarray(selection)
        if selection.shape != (self.n,) or selection.dtype != bool:
            raise ValueError(
                f"Expected a boolean selection of shape ({self.n},). Got {selection.dtype} of shape {selection.shape}. "
                "Pass True for every structure to keep."
            )
        return selection

    def sum(self, values: Mapping[str, Tensor]) -> np.ndarray:
        """Per structure, the sum of per-weight ``values`` over all its entries, ``(n,)`` float64."""
        return np.concatenate([axis.sum(values) for axis in self.axes]) if self.axes else np.zeros(0)

    @cached_property
    def tensor_labels(self) -> dict[str, tuple[np.ndarray, ...]]:
        """For channels: the label of every dimension of every traced parameter and buffer, by any of its names."""
        assert self.labelled is not None
        return {
            self.labelled.graph.tensors[node.name]: value.labels
            for node, value in self.labelled.values.items()
            if node.op == "placeholder" and node.name in self.labelled.graph.tensors
        }

    @cached_property
    def count(self) -> np.ndarray:
        """Number of weights (parameters and float buffers) that each structure takes, ``(n,)`` int64."""
        return self.sum({name: torch.ones(shape) for name, shape in self.shapes.items()}).astype(np.int64)

    def kept_rows(self, selection: np.ndarray) -> dict[str, list[np.ndarray]]:
        """For channels: per tensor and dimension, the boolean mask of rows that stay."""
        selection = self.check(selection)
        rows = {name: [np.ones(size, dtype=bool) for size in shape] for name, shape in self.shapes.items()}
        for axis in self.axes:
            removed = ~selection[axis.entries]
            for member in axis.members if isinstance(axis, ChannelAxis) else ():
                rows[member.tensor][member.dim][member.positions[removed].ravel()] = False
        return rows

    def masks(self, selection: np.ndarray) -> dict[str, Tensor]:
        """Per tensor that loses entries, a boolean mask of its full shape, True = kept."""
        selection = self.check(selection)
        masks: dict[str, Tensor] = {}
        for name, rows in self.kept_rows(selection).items():
            if all(kept.all() for kept in rows):
                continue
            mask = torch.ones(self.shapes[name], dtype=torch.bool)
            for dim, kept in enumerate(rows):
                mask &= torch.from_numpy(kept).view([-1 if d == dim else 1 for d in range(len(rows))])
            masks[name] = mask
        for axis in self.axes:
            stays = torch.from_numpy(selection[axis.entries])
            if isinstance(axis, EntryAxis) and not bool(stays.all()):
                mask = (axis.index < 0) | stays[axis.index.clamp(min=0)]
                masks[axis.tensor] = masks[axis.tensor] & mask if axis.tensor in masks else mask
        return masks

    @torch.no_grad()
    def apply_masks(self, model: nn.Module, selection: np.ndarray, refit: Mapping[str, Tensor] | None = None) -> None:
        """Write ``refit`` weights into ``model`` and zero every entry of the removed structures, in place."""
        named = named_tensors(model)
        for name, weight in (refit or {}).items():
            named[name].copy_(weight)
        for name, mask in self.masks(selection).items():
            named[name].masked_fill_(~mask.to(named[name].device), 0)


def channels(
    model: nn.Module, example: Any, *, keep_whole: Iterable[str | nn.Module] = (), multiple_of: int = 1
) -> Structures:
    """Every prunable dimension of the network: channels, heads, head dimensions, hidden units.

    Found by tracing, never declared per module: all tensor dimensions that must lose the same entries together form
    one axis. Outputs keep their shape.

    Parameters
    ----------
    model
        Any network that ``torch.export`` or one recorded forward pass can read.
    example
        A tensor, a tuple of positional or a dict of keyword arguments of one forward call.
    keep_whole
        Modules, or patterns of parameter or module names ('layer1.*'), whose dimensions are left alone.
    multiple_of
        Widths are multiples of this number, or whole.

    Raises
    ------
    TraceError
        If the network cannot be recorded.
    """
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"Expected an integer multiple_of >= 1. Got {multiple_of!r}. Use 8 for GPUs, 1 for none.")
    patterns = _patterns(model, keep_whole)
    example = _with_two_examples(model, as_example(example))
    labelled = propagate(trace(model, example), model, RULES)
    found, pinned, shapes = find_axes(
        labelled, model, lambda name: any(fnmatch.fnmatch(name, p) for p in patterns), multiple_of
    )
    axes: list[ChannelAxis] = []
    start = 0
    for axis in found:
        levels = np.unique([w for w in range(1, axis.size + 1) if w % multiple_of == 0 or w == axis.size])
        members = tuple(Member(*member) for member in axis.members)
        axes.append(ChannelAxis(axis.name, axis.size, start, levels, members))
        start += axis.size
    return Structures("channels", tuple(axes), shapes, tuple(pinned), labelled, tuple(found))


def _patterns(model: nn.Module, given: Iterable[str | nn.Module], argument: str = "keep_whole") -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    tensors = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    patterns: list[str] = []
    for item in [given] if isinstance(given, (str, nn.Module)) else given:
        if isinstance(item, nn.Module):
            if item not in names:
                raise ValueError(
                    f"Expected {argument} to hold modules of the model. Got a foreign {type(item).__name__}. "
                    "Pass model.get_submodule(name) or the name itself."
                )
            item = names[item] or "*"
        matching = [pattern for pattern in (item, f"{item}.*") if fnmatch.filter(tensors, pattern)]
        if not matching:
            raise ValueError(
                f"Expected {argument} to match a parameter or module. Got {item!r}, which matches none. "
                f"Names look like {tensors[:3]}."
            )
        patterns.extend(matching)
    return patterns


def _with_two_examples(model: nn.Module, example: Example) -> Example:
    """Repeat a batch of one, so that the batch can be told from a broadcast dimension; keep it if that fails."""
    leaves = [leaf for leaf in example.flat() if isinstance(leaf, Tensor)]
    if not leaves or any(leaf.ndim == 0 or leaf.shape[0] != 1 for leaf in leaves):
        return example
    args, kwargs = torch.utils._pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf, (example.args, dict(example.kwargs))
    )
    twice = Example(args, kwargs)
    try:
        run(model, twice)
    except Exception:  # a network for single examples only: trace it as it is used
        return example
    return twice


def _weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, Tensor]]:
    """Distinct weights of the modules of some kinds, by name."""
    seen: set[int] = set()
    found = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, kinds) and isinstance(weight, Tensor) and id(weight) not in seen:
            seen.add(id(weight))
            found.append((f"{name}.weight" if name else "weight", weight))
    return found


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def block_weights(model: nn.Module, layers: Iterable[str | nn.Module] | None = None) -> list[tuple[str, Tensor]]:
    """Distinct weights of linear layers and convolutions, by name: all, or those of modules or patterns of names.

    Raises
    ------
    ValueError
        If ``layers`` names something that is no part of the model, or holds no such weight.
    """
    weights = _weights(model, (nn.Linear, *CONVOLUTIONS))
    if layers is None:
        return weights
    patterns = _patterns(model, layers, "layers")
    chosen = [(name, weight) for name, weight in weights if any(fnmatch.fnmatch(name, p) for p in patterns)]
    if not chosen:
        raise ValueError(
            "Expected layers to match a linear layer or convolution. "
            f"Got {patterns[0].removesuffix('.*')!r}, which matches none. "
            f"Names look like {[name.removesuffix('.weight') for name, _ in weights[:3]]}."
        )
    return chosen


def _entry_structures(
    kind: str, model: nn.Module, weights: list[tuple[str, Tensor]], maps: list[Tensor], example: Any, keep_whole: Any
) -> Structures:
    patterns = _patterns(model, keep_whole)
    axes: list[EntryAxis] = []
    start = 0
    for (name, _), index in zip(weights, maps, strict=True):
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        sizes = torch.bincount(index.flatten())
        # Blocks cut by the edge of the matrix cost less: an axis holds blocks of one size, so that costs are exact.
        for size in torch.unique(sizes[sizes > 0]).flip(0).tolist():
            chosen = torch.nonzero(sizes == size).flatten()
            local = torch.full((len(sizes),), -1, dtype=torch.int64)
            local[chosen] = torch.arange(len(chosen))
            label = name.removesuffix(".weight") + ("" if len(torch.unique(sizes)) == 1 else f" ({size} weights)")
            levels = np.arange(len(chosen) + 1)
            axes.append(EntryAxis(label, len(chosen), start, levels, name, local[index]))
            start += len(chosen)
    labelled = propagate(trace(model, example), model, RULES) if example is not None else None
    shapes = {name: tuple(weight.shape) for name, weight in weights}
    return Structures(kind, tuple(axes), shapes, (), labelled)


def blocks(
    model: nn.Module,
    shape: tuple[int, int] = (16, 16),
    *,
    example: Any = None,
    keep_whole: Iterable[str | nn.Module] = (),
    layers: Iterable[str | nn.Module] | None = None,
    orders: Mapping[str, np.ndarray] | None = None,
) -> Structures:
    """Tiles of ``shape`` (outputs, inputs) of every linear and convolution weight, tap by tap in convolutions.

    Sizes that do not divide give smaller tiles at the edge. With ``example`` the multiplications are known too.

    Parameters
    ----------
    layers
        Modules, or patterns of names, whose weights are cut into tiles; None for all.
    orders
        For modules by name, an order of the outputs ``(outputs,)``: with ``h`` outputs to a tile, tile row ``i`` holds
        the outputs ``order[i h : (i + 1) h]``, as ``arrange(model, ...).orders`` gives them.

    Raises
    ------
    ValueError
        If the shape is not one of tiles, names match nothing, or an order is no permutation of the outputs.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"Expected a block shape of two positive sizes. Got {shape}. Use for instance (16, 16).")
    weights = block_weights(model, layers)
    places = _places(weights, orders or {})
    maps = []
    for name, weight in weights:
        rows = places[name] // shape[0]
        columns = torch.arange(weight.shape[1]) // shape[1]
        tile = rows[:, None] * int(columns[-1] + 1) + columns[None, :]
        taps = prod(weight.shape[2:])
        index = tile[:, :, None] * taps + torch.arange(taps)
        maps.append(index.reshape(weight.shape))
    return _entry_structures("blocks", model, weights, maps, example, keep_whole)


def _places(weights: Sequence[tuple[str, Tensor]], orders: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The stored row of every output of every weight, ``(outputs,)`` int64."""
    places = {name: torch.arange(weight.shape[0]) for name, weight in weights}
    for module, order in orders.items():
        name = f"{module}.weight" if module else "weight"
        order = np.asarray(order)
        if name not in places or not np.array_equal(np.sort(order), np.arange(len(places[name]))):
            wanted = f"each of 0 ... {len(places[name]) - 1} once" if name in places else "a layer that has tiles"
            raise ValueError(
                f"Expected in orders {wanted}. Got {module!r}: an array of shape {order.shape}. "
                "Pass arrange(model, ...).orders with its model and the same layers."
            )
        places[name][torch.from_numpy(order.astype(np.int64))] = torch.arange(len(order))
    return places


def kernels(model: nn.Module, *, example: Any = None, keep_whole: Iterable[str | nn.Module] = ()) -> Structures:
    """The k x k kernels of every convolution: one structure per pair of output and input channel."""
    weights = [(name, w) for name, w in _weights(model, CONVOLUTIONS) if prod(w.shape[2:]) > 1]
    maps = []
    for _, weight in weights:
        pairs = weight.shape[0] * weight.shape[1]
        maps.append(torch.arange(pairs).repeat_interleave(prod(weight.shape[2:])).reshape(weight.shape))
    return _entry_structures("kernels", model, weights, maps, example, keep_whole)


def nm(
    model: nn.Module, n: int = 2, m: int = 4, *, example: Any = None, keep_whole: Iterable[str | nn.Module] = ()
) -> Structures:
    """N:M sparsity of linear weights: at most ``n`` of every ``m`` consecutive inputs, or the layer stays dense.

    The budget decides which layers become sparse. Layers whose inputs are no multiple of ``m`` are left out.
    """
    if not 0 < n < m:
        raise ValueError(f"Expected 0 < n < m. Got n={n}, m={m}. Use 2 and 4 for sparse tensor cores.")
    weights = [(name, w) for name, w in _weights(model, (nn.Linear,)) if w.shape[1] % m == 0]
    maps = [torch.arange(weight.numel()).reshape(weight.shape) for _, weight in weights]
    whole = _entry_structures("nm", model, weights, maps, example, keep_whole)
    axes = []
    for axis in whole.axes:
        assert isinstance(axis, EntryAxis)
        levels = np.array([axis.size // m * n, axis.size])
        axes.append(EntryAxis(axis.name, axis.size, axis.start, levels, axis.tensor, axis.index, group=m))
    return Structures("nm", tuple(axes), whole.shapes, (), whole.labelled)
