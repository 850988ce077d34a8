"""A convolution as a matrix product whose columns are places in a padded image.

With ``inputs = kernel_height * kernel_width * channels`` columns in the order (tap_y, tap_x, channel), the output at
``(oy, ox)`` multiplies column ``(ty, tx, c)`` by the padded image at ``(oy * sy + ty, ox * sx + tx, c)``. In memory
that is the address of the output's corner plus an offset that depends on the column alone, so kernels read the image
itself and nothing is unfolded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Geometry", "columns_of_weight", "empty_channels_last", "padded_nhwc", "weight_of_columns"]


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride and zero padding of a convolution, each ``(vertical, horizontal)``; dilation 1, one group."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def taps(self) -> int:
        """Number of positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the output of an image of ``height x width``."""
        size = (height, width)
        vertical, horizontal = (
            (size[i] + 2 * self.padding[i] - self.kernel[i]) // self.stride[i] + 1 for i in range(2)
        )
        return vertical, horizontal

    def offsets(self, columns: Tensor, channels: int, padded_width: int) -> Tensor:
        """Return ``(C,)`` int32: where each column lies in a padded NHWC image, in elements from an output's corner."""
        tap, channel = columns // channels, columns % channels
        tap_y, tap_x = tap // self.kernel[1], tap % self.kernel[1]
        return ((tap_y * padded_width + tap_x) * channels + channel).to(torch.int32)


def padded_nhwc(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the contiguous, zero-padded ``(B, Hp, Wp, C)`` image of ``(B, C, H, W)``."""
    vertical, horizontal = geometry.padding
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical)).contiguous()


def columns_of_weight(weight: Tensor) -> Tensor:
    """Return the ``(outputs, taps * channels)`` matrix of an ``(outputs, channels, kh, kw)`` weight or mask."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def weight_of_columns(matrix: Tensor, geometry: Geometry) -> Tensor:
    """Return the ``(outputs, channels, kh, kw)`` weight of a matrix of :func:`columns_of_weight`."""
    return matrix.view(matrix.shape[0], *geometry.kernel, -1).permute(0, 3, 1, 2)


def empty_channels_last(x: Tensor, outputs: int, geometry: Geometry) -> Tensor:
    """Return an unwritten ``(B, outputs, Ho, Wo)``, channels innermost: the layout of every convolution's output."""
    size = (x.shape[0], outputs, *geometry.output_size(x.shape[2], x.shape[3]))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
