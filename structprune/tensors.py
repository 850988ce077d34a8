"""A network's parameters and buffers by name."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["named_tensors"]


def named_tensors(model: nn.Module, *, every_name: bool = True) -> dict[str, Tensor]:
    """Parameters, then buffers; a tensor that has several names is there under each, or under the first only."""
    return {
        **dict(model.named_parameters(remove_duplicate=not every_name)),
        **dict(model.named_buffers(remove_duplicate=not every_name)),
    }
