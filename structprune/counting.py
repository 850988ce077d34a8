"""Count what a network costs, from its own trace."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from structprune.axes import RULES, as_example, propagate, trace

__all__ = ["count_macs", "count_memory"]


def count_macs(model: nn.Module, example: Any) -> int:
    """Multiplications per example in every convolution and matrix product, attention and recurrent layers included.

    Per example of the batch that all inputs share; of the whole call where they share none.
    """
    labelled = propagate(trace(model, as_example(example)), model, RULES)
    total = 0
    for contraction in labelled.contractions:
        amount = contraction.factor * prod(len(label) for label in contraction.dims)
        if any(labelled.has_batch(label) for label in contraction.dims):
            amount //= len(labelled.batch)
        total += amount
    return total


def count_memory(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters and of bytes of parameters and buffers; tied tensors count once."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*parameters, *buffers])
    return {"params": sum(tensor.numel() for tensor in parameters), "bytes": size}
