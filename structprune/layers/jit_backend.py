"""Block-sparse layers on CPUs by generated machine code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry, padded_nhwc
from structprune.layers.jit import grouped_conv2d, grouped_linear
from structprune.layers.jit_engine import available
from structprune.layers.pack import Packed

__all__ = ["CPU_JIT", "CpuJit"]


@final
@dataclass(frozen=True)
class CpuJit(Backend):
    """Machine code made by llvmlite for x86-64 processors, float32 and bfloat16, heights 16 to 256.

    The gradients are the pure torch ones, save that of an input through the transposed pattern, which is a forward
    product.
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
        lists = (packed.values.contiguous(), packed.columns, packed.starts, packed.order)
        return grouped_linear(x, *lists, bias, activation, outputs=packed.outputs)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Read the padded image by offsets; nothing is unfolded and no padded position is computed."""
        image = padded_nhwc(x, geometry) if any(geometry.padding) else x.permute(0, 2, 3, 1).contiguous()
        lists = (packed.values.contiguous(), packed.columns, packed.starts, packed.order)
        kernel, stride = geometry.kernel, geometry.stride
        y = grouped_conv2d(image, *lists, bias, activation, outputs=packed.outputs, kernel=kernel, stride=stride)
        return y.permute(0, 3, 1, 2)


CPU_JIT = CpuJit()
