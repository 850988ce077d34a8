"""Block-sparse layers on CPUs by generated machine code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry, padded_nhwc
from structprune.layers.jit import grouped_conv2d, grouped_linear
from structprune.layers.jit_engine import available
from structprune.layers.jit_gradient import grouped_conv2d_weight_gradient, grouped_weight_gradient
from structprune.layers.pack import Packed

__all__ = ["CPU_JIT", "CpuJit"]


@final
@dataclass(frozen=True)
class CpuJit(Backend):
    """Machine code made by llvmlite for x86-64 processors, float32 and bfloat16, heights 16 to 256.

    The gradient of the values has a kernel of its own in float32. That of an input is a forward product where the
    layer keeps the transposed pattern; all else is pure torch.
    """

    @property
    def name(self) -> str:
        """Return ``"cpu-jit"``."""
        return "cpu-jit"

    def available(self) -> str:
        """Return why the kernels cannot run here, '' where they can."""
        return available()

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Read the activations by the kept columns, bias and activation while the sums are in registers."""
        values, columns, starts, order = packed.values.contiguous(), packed.columns, packed.starts, packed.order
        return grouped_linear(x, values, columns, starts, order, bias, activation, outputs=packed.outputs)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Read the padded image by offsets; nothing is unfolded and no padded position is computed."""
        image = image_of(x, geometry)
        lists = (packed.values.contiguous(), packed.columns, packed.starts, packed.order)
        kernel, stride = geometry.kernel, geometry.stride
        y = grouped_conv2d(image, *lists, bias, activation, outputs=packed.outputs, kernel=kernel, stride=stride)
        return y.permute(0, 3, 1, 2)

    def linear_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed) -> Tensor:
        """Sum over tokens in registers, by the kept columns; types other than float32 by torch's products."""
        if not all_float(grad, x, packed.values):
            return super().linear_weight_gradient(grad, x, packed)
        lists = (packed.values.contiguous(), packed.columns, packed.starts, packed.order)
        return grouped_weight_gradient(grad, x, *lists)

    def conv2d_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed, geometry: Geometry) -> Tensor:
        """Read the padded image by offsets, as forwards."""
        if not all_float(grad, x, packed.values):
            return super().conv2d_weight_gradient(grad, x, packed, geometry)
        lists = (packed.values.contiguous(), packed.columns, packed.starts, packed.order)
        places, kernel, stride = grad.permute(0, 2, 3, 1), geometry.kernel, geometry.stride
        return grouped_conv2d_weight_gradient(places, image_of(x, geometry), *lists, kernel=kernel, stride=stride)


def image_of(x: Tensor, geometry: Geometry) -> Tensor:
    """Return images ``(B, C, H, W)`` as the kernels read them: padded, channels innermost, contiguous."""
    return padded_nhwc(x, geometry) if any(geometry.padding) else x.permute(0, 2, 3, 1).contiguous()


def all_float(*tensors: Tensor) -> bool:
    """Whether all are float32."""
    return all(tensor.dtype == torch.float32 for tensor in tensors)


CPU_JIT = CpuJit()
