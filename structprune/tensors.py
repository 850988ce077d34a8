"""A network's parameters and buffers by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["first_names", "named_tensors", "under_every_name"]


def named_tensors(model: nn.Module, *, every_name: bool = True) -> dict[str, Tensor]:
    """Parameters, then buffers; a tensor that has several names is there under each, or under the first only."""
    return {
        **dict(model.named_parameters(remove_duplicate=not every_name)),
        **dict(model.named_buffers(remove_duplicate=not every_name)),
    }


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer, to the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model).items()}


def under_every_name(values: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``values`` of tensors of ``model`` by any of their names, under all of their names."""
    first = first_names(model)
    of_first = {first[name]: value for name, value in values.items()}
    return {name: of_first[one] for name, one in first.items() if one in of_first}
