"""oneDNN's matrix products, which torch reaches on CPUs only through its packed linear layers.

``F.linear`` in float32 goes to the machine's BLAS, which on some CPUs runs at half of oneDNN's speed. The operators
used here are torch's own, made for its compiler; they have no public name, so their presence is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.layers.activation import Activation

__all__ = ["missing", "multiplies", "multiply", "packed_linear", "packed_weight"]

OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")


def missing() -> str:
    """Return why oneDNN's linear layers cannot be used, '' where they can."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN. Use another backend."
    absent = [name for name in OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    return f"this release of torch has no mkldnn::{absent[0]}. Use another backend." if absent else ""


def multiplies(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices like this one."""
    if x.device.type != "cpu" or missing():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right`` for ``(m, k)`` and ``(k, n)``, at least one of each."""
    # A matrix with gaps between its rows would be multiplied by oneDNN's reference code, a hundred times slower.
    if not (right.is_contiguous() or right.t().is_contiguous()):
        right = right.contiguous()
    return torch.ops.mkldnn._linear_pointwise(left.contiguous(), right.t(), None, "none", [], "")


def packed_weight(weight: Tensor) -> Tensor:
    """Return the ``(outputs, inputs)`` weight in the layout that oneDNN likes best."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """Return ``activation(x W' + bias)`` for a weight of :func:`packed_weight`."""
    # gelu's "none" says: without the approximation by tanh.
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none" if activation == "gelu" else "")
