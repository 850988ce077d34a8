"""Gradients of block-sparse layers in plain torch operators: one pair of matrix products per group of outputs.

With ``X_r`` the columns of ``X`` that group ``r`` reads and ``V_r`` its ``(n_r, G)`` values, ``Y_r = X_r V_r``, so

    dV_r = X_r' dY_r,        dX = sum_r dY_r V_r'  added into the columns that the group reads.

Both are computed feature-major, where a column is one contiguous run: gathering and adding rows of a matrix costs a
small part of the products, adding columns costs several times the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.layers.geometry import Geometry
from structprune.layers.groups import Gatherer, group_slices
from structprune.layers.pack import Packed
from structprune.layers.planes import Planes

__all__ = [
    "conv2d_input_gradient",
    "conv2d_weight_gradient",
    "linear_input_gradient",
    "linear_weight_gradient",
]


def stored_outputs(grad: Tensor, packed: Packed) -> Tensor:
    """Return ``dY`` feature-major in stored rows, ``(outputs, B)`` contiguous, for ``(B, outputs)``."""
    if packed.order is None:
        return grad.t().contiguous()
    return grad.t().index_select(0, packed.order)


def linear_input_gradient(grad: Tensor, packed: Packed) -> Tensor:
    """Return ``dX (B, inputs)`` for ``dY (B, outputs)``."""
    stored = stored_outputs(grad, packed)
    total = grad.new_zeros(packed.inputs, grad.shape[0])
    for kept, rows in group_slices(packed):
        values = packed.values[kept, : rows.stop - rows.start]
        total.index_add_(0, packed.columns[kept], values @ stored[rows])
    return total.t().contiguous()


def linear_weight_gradient(grad: Tensor, x: Tensor, packed: Packed) -> Tensor:
    """Return the gradient of ``values``, ``(C, G)``, for ``dY (B, outputs)`` and ``X (B, inputs)``."""
    stored, gather = stored_outputs(grad, packed), Gatherer(x.t().contiguous(), 0)
    total = torch.zeros_like(packed.values)
    for kept, rows in group_slices(packed):
        total[kept, : rows.stop - rows.start] = gather(packed.columns[kept]) @ stored[rows].t()
    return total


def conv2d_input_gradient(grad: Tensor, packed: Packed, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Return ``dX (B, channels, *size)`` for ``dY (B, outputs, Ho, Wo)``."""
    planes = Planes(grad.shape[0], packed.inputs // geometry.taps, size, geometry)
    stored = planes.from_output(grad, packed)
    total = grad.new_zeros(planes.count, planes.length)
    for kept, rows in group_slices(packed):
        values = packed.values[kept, : rows.stop - rows.start]
        planes.add(total, values @ stored[rows], packed.columns[kept])
    return planes.to_image(total)


def conv2d_weight_gradient(grad: Tensor, x: Tensor, packed: Packed, geometry: Geometry) -> Tensor:
    """Return the gradient of ``values``, ``(C, G)``, for ``dY (B, outputs, Ho, Wo)`` and ``X (B, channels, H, W)``."""
    planes = Planes(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]), geometry)
    stored = planes.from_output(grad, packed)
    gather, source = Gatherer(planes.runs(planes.from_image(x)), 0), planes.rows(packed.columns)
    total = torch.zeros_like(packed.values)
    for kept, rows in group_slices(packed):
        total[kept, : rows.stop - rows.start] = gather(source[kept]) @ stored[rows].t()
    return total
