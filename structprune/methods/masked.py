"""A network seen through its masks: what every training method trains.

The network itself stays as it is. Each forward pass runs it with weights that are computed from its own: every
structure's entries times the structure's gate. At the end :meth:`Masked.fold` writes those weights down, and a plain
network is left.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from structprune.data import device_of
from structprune.methods.groups import Group, by_layer
from structprune.methods.parts import Part, Rows, entry_part
from structprune.structures import ChannelAxis, Structures
from structprune.tensors import first_names

__all__ = ["Masked", "Place"]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group of structures meets one parameter.

    Attributes
    ----------
    tensor
        Name of the parameter, the first where it has several.
    group
        The structures.
    part
        Their entries.
    gated
        Whether a gate scales them; where not, only the mask does. All entries of a block are gated. Of a channel's
        tensors those are that read it, so that a gate scales the channel once however many layers make it.
    """

    tensor: str
    group: Group
    part: Part
    gated: bool


class Masked(nn.Module):
    """A network with one mask entry per structure.

    Parameters
    ----------
    model
        The network, whose own parameters are trained.
    structures
        What may be removed.

    Raises
    ------
    ValueError
        If that is nothing.
    """

    mask: Tensor

    def __init__(self, model: nn.Module, structures: Structures) -> None:
        super().__init__()
        if not structures.n:
            raise ValueError(
                f"Expected structures of {type(model).__name__} to choose from. Got none. "
                "Look for layers that are kept whole, or at structures.pinned."
            )
        self.inner = model
        self.size = structures.n
        self.groups = by_layer(structures)
        self.places = tuple(place for group in self.groups for place in _places(group, model))
        self.dense_gradients = False
        self.register_buffer("mask", torch.ones(structures.n, device=device_of(model)))
        self._whole = True
        self._moved: dict[tuple[Place, torch.device], Part] = {}

    @property
    def kept(self) -> np.ndarray:
        """The mask as a boolean array, ``(n,)``."""
        return self.mask.bool().cpu().numpy()

    @torch.no_grad()
    def keep(self, selection: np.ndarray) -> None:
        """Set the mask, ``(n,)`` boolean."""
        self.mask.copy_(torch.from_numpy(np.asarray(selection, dtype=np.float32)))
        self._whole = bool(np.all(selection))

    def part(self, place: Place, device: torch.device) -> Part:
        """A place's entries, with indices on a device; moved there once."""
        key = (place, device)
        if key not in self._moved:
            self._moved[key] = place.part.to(device)
        return self._moved[key]

    def gates(self) -> Tensor | None:
        """One factor per structure, ``(n,)`` with its graph; None where weights are used as they are."""
        return None

    def effective(self) -> dict[str, Tensor]:
        """Return the weights that the network runs with, by name; those that no structure touches are left out."""
        gates = self.gates()
        if self._whole and gates is None:
            return {}
        named = dict(self.inner.named_parameters())
        both = self.mask if gates is None else gates * self.mask
        found: dict[str, Tensor] = {}
        for place in self.places:
            factors = both if place.gated else self.mask
            if self._whole and not (place.gated and gates is not None):
                continue
            weight = found.get(place.tensor, named[place.tensor])
            own = factors[place.group.entries]
            found[place.tensor] = self.part(place, weight.device).scale(weight, own.to(weight.dtype))
        if self.dense_gradients:
            # The values are those above; the gradient reaches removed entries as if they were there.
            return {name: named[name] + (weight - named[name]).detach() for name, weight in found.items()}
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with its effective weights."""
        return functional_call(self.inner, self.effective(), args, kwargs)

    def entry_masks(self, selection: np.ndarray) -> dict[str, Tensor]:
        """Per parameter, a boolean mask of its shape, True where ``selection`` keeps the entry."""
        kept = torch.from_numpy(np.asarray(selection, dtype=np.float32))
        named = dict(self.inner.named_parameters())
        found: dict[str, Tensor] = {}
        for place in self.places:
            weight = named[place.tensor]
            before = found.get(place.tensor, torch.ones_like(weight, requires_grad=False))
            own = kept[place.group.entries].to(weight)
            found[place.tensor] = self.part(place, weight.device).scale(before, own)
        return {name: mask != 0 for name, mask in found.items()}

    def sums(self, values: dict[str, Tensor], gated_only: bool = True) -> Tensor:
        """Per structure, the sum of per-weight ``values`` over its entries, ``(n,)``, with its graph.

        With ``gated_only`` a channel's entries are those that its gate scales.
        """
        totals: dict[int, Tensor] = {}
        for place in self.places:
            if place.tensor in values and (place.gated or not gated_only):
                own = self.part(place, values[place.tensor].device).sum(values[place.tensor])
                start = place.group.start
                totals[start] = totals[start] + own if start in totals else own
        device = self.mask.device
        return torch.cat([totals.get(group.start, torch.zeros(group.size, device=device)) for group in self.groups])

    @torch.no_grad()
    def norms(self, gated_only: bool = False) -> np.ndarray:
        """Euclidean norm of the effective entries of each structure, masks left aside, ``(n,)`` float64."""
        selection = self.kept
        self.keep(np.ones(self.size, dtype=bool))
        weights = {**dict(self.inner.named_parameters()), **self.effective()}
        self.keep(selection)
        touched = {place.tensor for place in self.places}
        squares = {name: weights[name].detach().double().square() for name in touched}
        return self.sums(squares, gated_only).sqrt().cpu().numpy()

    @torch.no_grad()
    def fold(self, structures: Structures) -> nn.Module:
        """Return a copy of the network with the effective weights as its own, removed entries exactly zero."""
        plain = copy.deepcopy(self.inner)
        named = dict(plain.named_parameters())
        for name, weight in self.effective().items():
            named[name].copy_(weight)
        structures.apply_masks(plain, self.kept)
        plain.zero_grad(set_to_none=True)
        return plain


def _places(group: Group, model: nn.Module) -> list[Place]:
    first = first_names(model)
    parameters = dict(model.named_parameters())
    axis = group.axes[0]
    if not isinstance(axis, ChannelAxis):
        (name,) = {name for axis in group.axes for name in axis.tensors()}
        return [Place(first[name], group, entry_part(group.axes), True)]
    members = [(first[member.tensor], member) for member in axis.members if first[member.tensor] in parameters]
    readers = {(name, member.dim) for name, member in members if _reads(name, member.dim, parameters, model)}
    if not readers and members:
        owner = members[0][0].rpartition(".")[0]
        readers = {(name, member.dim) for name, member in members if name.rpartition(".")[0] == owner}
    return [
        Place(name, group, Rows(member.dim, torch.from_numpy(member.positions)), (name, member.dim) in readers)
        for name, member in members
    ]


def _reads(name: str, dim: int, parameters: dict[str, nn.Parameter], model: nn.Module) -> bool:
    """Whether a parameter sums over this dimension: inputs of a layer, not rows that an embedding hands out."""
    first = first_names(model)
    owners = {model.get_submodule(every.rpartition(".")[0]) for every, one in first.items() if one == name}
    if parameters[name].ndim < 2 or any(isinstance(owner, nn.Embedding | nn.EmbeddingBag) for owner in owners):
        return False
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return dim == (0 if any(isinstance(owner, transposed) for owner in owners) else 1)
