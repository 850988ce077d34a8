"""Block-sparse layers on CUDA by the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry, padded_nhwc
from structprune.layers.pack import Packed
from structprune.layers.triton_checks import Indices, checked_lists
from structprune.layers.triton_launch import (
    Precision,
    available,
    grouped_conv2d,
    grouped_conv2d_weight_gradient,
    grouped_linear,
    grouped_linear_features,
    grouped_weight_gradient,
)

__all__ = ["CUDA_TRITON", "CudaTriton"]

# Row-major loads below so many bytes are slower than transposing X once, if there are tokens enough to share the launch
# of the transposition. Both numbers follow from the compiled code (narrower loads are not asynchronous or move less
# than half of the 16 bytes), not from timings.
NARROW_BYTES = 8
TOKENS_TO_TRANSPOSE = 64


@final
@dataclass(frozen=True)
class CudaTriton(Backend):
    """Gathered columns on the tensor cores; float32, float16 and bfloat16, summed in float32.

    The gradient of the values has a kernel of its own. That of the input is this backend's product with the transposed
    weight where a layer keeps it, else the plain torch form.

    Attributes
    ----------
    precision
        How float32 is multiplied: "ieee" exactly, without tensor cores; "tf32" on them with 10 bits; "tf32x3" on them
        in three products.
    """

    precision: Precision = "ieee"

    @property
    def name(self) -> str:
        """Return ``"cuda-triton"``, with the precision where it is not exact."""
        return "cuda-triton" if self.precision == "ieee" else f"cuda-triton-{self.precision}"

    def available(self) -> str:
        """Return why the kernels do not run here, '' where they do."""
        return available()

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Read rows by runs of columns, or features where the runs are short."""
        arrays = (packed.values, packed.columns, packed.starts, packed.order)
        if not reads_features(x, packed, packed.outputs):
            rows = x.contiguous()
            return grouped_linear(rows, *arrays, bias, activation, outputs=packed.outputs, precision=self.precision)
        y = x.new_empty(x.shape[0], packed.outputs)
        features = x.t().contiguous()
        grouped_linear_features(
            features, *arrays, bias, activation, outputs=packed.outputs, out=y.t(), precision=self.precision
        )
        return y

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Read windows of the padded image by runs of channels."""
        y = grouped_conv2d(
            padded_nhwc(x, geometry),
            packed.values,
            packed.columns,
            packed.starts,
            packed.order,
            bias,
            activation,
            outputs=packed.outputs,
            kernel=geometry.kernel,
            stride=geometry.stride,
            precision=self.precision,
        )
        return y.permute(0, 3, 1, 2)

    def linear_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed) -> Tensor:
        """Multiply gathered columns of X by dY, summed in float32."""
        features = reads_features(x, packed, grad.shape[1])
        total = grouped_weight_gradient(
            (x.t() if features else x).contiguous(),
            (grad.t() if features else grad).contiguous(),
            packed.columns,
            packed.starts,
            packed.order,
            height=packed.height,
            features=features,
            precision=self.precision,
        )
        return total.to(packed.values.dtype)

    def conv2d_weight_gradient(self, grad: Tensor, x: Tensor, packed: Packed, geometry: Geometry) -> Tensor:
        """Multiply gathered windows of the padded image by dY, summed in float32."""
        total = grouped_conv2d_weight_gradient(
            padded_nhwc(x, geometry),
            grad.permute(0, 2, 3, 1).contiguous(),
            packed.columns,
            packed.starts,
            packed.order,
            height=packed.height,
            kernel=geometry.kernel,
            stride=geometry.stride,
            precision=self.precision,
        )
        return total.to(packed.values.dtype)


def reads_features(x: Tensor, packed: Packed, outputs: int) -> bool:
    """Return whether a layer on X (tokens, inputs) should read X feature-major: it lies so, or its runs are short."""
    tokens, inputs = x.shape
    if tokens > 1 and inputs > 1 and x.stride(0) == 1:
        return True
    indices = Indices(packed.columns, packed.starts, packed.order)
    run = checked_lists(indices, x, outputs, inputs, packed.height).run
    return tokens >= TOKENS_TO_TRANSPOSE and run * x.element_size() < NARROW_BYTES


CUDA_TRITON = CudaTriton()
