"""Cut a network's own modules down: smaller tensors first, then the integers that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.axes.graph import module_of
from structprune.structures import ChannelAxis, Structures

__all__ = ["Sizes", "repair_attributes", "shrink_tensors"]


@dataclass
class Sizes:
    """Old and new sizes of tensor dimensions and axes, by the tensor they were seen in."""

    changed: dict[str, set[tuple[int, int]]] = field(default_factory=dict)

    def note(self, tensor: str, old: int, new: int) -> None:
        """Remember that something of size ``old`` in ``tensor`` now has size ``new``."""
        self.changed.setdefault(tensor, set()).add((old, new))

    def below(self, module: str) -> dict[int, set[int]]:
        """Old size -> new sizes over all tensors inside ``module``."""
        found: dict[int, set[int]] = {}
        for tensor, pairs in self.changed.items():
            if not module or tensor.startswith(f"{module}."):
                for old, new in pairs:
                    found.setdefault(old, set()).add(new)
        return found


@torch.no_grad()
def shrink_tensors(model: nn.Module, structures: Structures, selection: np.ndarray) -> Sizes:
    """Replace every parameter and buffer of ``model`` by its kept rows; tied names stay tied."""
    sizes = Sizes()
    rows = structures.kept_rows(selection)
    named: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first_name = {id(tensor): name for name, tensor in reversed(list(named.items()))}
    cut: dict[str, Tensor] = {}
    for name, tensor in named.items():
        first = first_name[id(tensor)]
        if first not in rows or all(kept.all() for kept in rows[first]):
            continue
        if first not in cut:
            cut[first] = _cut(tensor, rows[first])
        for mask in rows[first]:
            sizes.note(name, len(mask), int(mask.sum()))
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            setattr(module, leaf, cut[first])
        else:
            module._buffers[leaf] = cut[first]
    for axis in structures.axes:
        kept = int(selection[axis.entries].sum())
        for member in axis.members if isinstance(axis, ChannelAxis) else ():
            sizes.note(member.tensor, axis.size, kept)
    return sizes


def _cut(tensor: Tensor, rows: list[np.ndarray]) -> Tensor:
    small = tensor.detach()
    for dim, kept in enumerate(rows):
        if not kept.all():
            small = small.index_select(dim, torch.from_numpy(np.flatnonzero(kept)).to(tensor.device))
    small = small.contiguous()
    return nn.Parameter(small, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def repair_attributes(model: nn.Module, rewritten: fx.GraphModule, sizes: Sizes, *, own_integers: bool) -> None:
    """Make the integers of torch's layers agree with their tensors; with ``own_integers`` those of user modules too.

    A user module's integer is replaced when it equals one old size of an axis or dimension inside the module and
    that size has one new value only: ``self.heads = 12`` follows the heads that are left.
    """
    groups = _conv_groups(rewritten)
    for name, module in model.named_modules():
        repair(module, groups.get(name))
        if own_integers and not isinstance(module, KNOWN):
            replacements = sizes.below(name)
            for attribute, value in list(vars(module).items()):
                if type(value) is int and len(replacements.get(value, ())) == 1:
                    setattr(module, attribute, next(iter(replacements[value])))


def _conv_groups(rewritten: fx.GraphModule) -> Mapping[str, int]:
    """Groups of every convolution in the rewritten graph, by module name."""
    return {
        module_of(node): int(node.args[8])  # type: ignore[arg-type]
        for node in rewritten.graph.nodes
        if node.target == torch.ops.aten.convolution.default and isinstance(node.args[8], int)
    }


@singledispatch
def repair(module: nn.Module, groups: int | None) -> None:
    """Set the integers of one layer from its tensors. Layers that hold no sizes need nothing."""


@repair.register
def _(module: nn.Linear, groups: int | None) -> None:
    module.out_features, module.in_features = module.weight.shape


@repair.register
def _(module: nn.modules.conv._ConvNd, groups: int | None) -> None:
    module.groups = module.groups if groups is None else groups
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


@repair.register
def _(module: nn.modules.batchnorm._NormBase, groups: int | None) -> None:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            module.num_features = len(tensor)


@repair.register
def _(module: nn.GroupNorm, groups: int | None) -> None:
    if module.weight is not None:
        per_group = module.num_channels // module.num_groups
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // per_group


@repair.register
def _(module: nn.Embedding, groups: int | None) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@repair.register
def _(module: nn.EmbeddingBag, groups: int | None) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@repair.register
def _(module: nn.PReLU, groups: int | None) -> None:
    module.num_parameters = module.weight.numel()


@repair.register
def _(module: nn.RNNBase, groups: int | None) -> None:
    weight_ih, weight_hh = module.weight_ih_l0, module.weight_hh_l0
    assert isinstance(weight_ih, Tensor) and isinstance(weight_hh, Tensor)
    module.input_size, module.hidden_size = weight_ih.shape[1], weight_hh.shape[1]


KNOWN = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
    nn.RNNBase,
)
