"""The weights that count: parameters of which some structure takes entries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from structprune.structures import Structures

__all__ = ["distinct", "weights"]


def weights(model: nn.Module, structures: Structures) -> dict[str, nn.Parameter]:
    """Parameters of ``model`` that structures take entries of, by the names in ``structures.shapes``.

    Buffers, such as the statistics of batch norm, go with their structure but are worth nothing by themselves.
    A parameter with several names (tied weights) is there once.

    Raises
    ------
    ValueError
        If a parameter is missing or has another shape, because the structures are those of another network.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, shape in structures.shapes.items():
        tensor = named.get(name, buffers.get(name))
        if tensor is None or tuple(tensor.shape) != tuple(shape):
            got = "none of that name" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ValueError(
                f"Expected the network that the structures were found in, with {name!r} of shape {tuple(shape)}. "
                f"Got {type(model).__name__} with {got}. Find the structures of this network first."
            )
    return {name: named[name] for name in structures.shapes if name in named and named[name].is_floating_point()}


def distinct(tensors: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Those of ``tensors`` that lie in memory of their own: two parameters over one memory count once."""
    found: dict[object, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        found.setdefault(place if place[0] else name, name)
    return {name: tensors[name].detach() for name in found.values()}
