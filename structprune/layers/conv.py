"""A convolution that stores and multiplies kept blocks only, over all taps, without unfolding the image."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from structprune.layers import operator
from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry, columns_of_weight, weight_of_columns
from structprune.layers.layer import BlockSparseLayer, masked_weight, pattern_from, with_activation
from structprune.layers.pack import unpack
from structprune.layers.pattern import GroupedColumns
from structprune.layers.rowloop import ROWLOOP

__all__ = ["BlockSparseConv2d"]


class BlockSparseConv2d(BlockSparseLayer):
    """A convolution with a block-sparse weight, of dilation 1 and one group; outputs have channels innermost.

    The weight is a matrix of ``outputs x (kernel_height * kernel_width * channels)``, columns in the order (tap_y,
    tap_x, channel): a block is ``height`` filters by ``width`` channels of one tap. A convolution of 1 x 1 without
    padding is a linear layer over pixels and runs as one.

    Parameters
    ----------
    geometry
        Kernel, stride and padding.

    Others and Raises are those of :class:`BlockSparseLayer`; ``transposed`` serves 1 x 1 convolutions only.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        pattern: GroupedColumns,
        geometry: Geometry,
        *,
        activation: Activation,
        backend: Backend,
        transposed: bool,
    ) -> None:
        self_contained = geometry.taps == 1 and geometry.padding == (0, 0)
        channels = pattern.inputs // geometry.taps
        if geometry.taps > 1 and channels % pattern.width:
            raise ValueError(
                f"Expected a width that divides the {channels} channels, so that no piece crosses taps. "
                f"Got {pattern.width}. Use a smaller one, such as 1."
            )
        if transposed and not self_contained:
            raise ValueError(
                "Expected transposed=False for a convolution of more than one pixel. Got True. "
                "Leave it out: the gradient of the input has a form of its own."
            )
        super().__init__(weight, bias, pattern, activation=activation, backend=backend, transposed=transposed)
        self.geometry = geometry
        self.channels = channels
        self.pointwise = self_contained

    @classmethod
    def from_dense(
        cls,
        module: nn.Conv2d,
        mask: Tensor | np.ndarray,
        height: int,
        width: int,
        order: Tensor | np.ndarray | None = None,
        *,
        activation: Activation = "none",
        backend: Backend = ROWLOOP,
        transposed: bool = False,
    ) -> Self:
        """Return a layer that equals ``module`` with the weights outside ``mask`` zero.

        Parameters
        ----------
        module
            The dense convolution: dilation 1, groups 1, padding with zeros. It is not changed.
        mask
            True = kept: of the weight's shape ``(outputs, channels, kh, kw)`` for entries, whose blocks are completed
            by zeros, or ``(ceil(outputs / height), ceil(kh * kw * channels / width))`` for blocks in stored rows.
        height, width, order, activation, backend, transposed
            As :meth:`BlockSparseLinear.from_dense`.

        Raises
        ------
        ValueError
            The convolution is dilated, grouped or padded otherwise, or ``width`` does not divide its channels.
        """
        geometry = geometry_of_module(module)
        weight = masked_weight(module.weight, mask)
        if tuple(mask.shape) == tuple(weight.shape):
            mask = columns_of_weight(torch.as_tensor(mask))
        matrix = columns_of_weight(weight)
        pattern = pattern_from(mask, matrix.shape[0], matrix.shape[1], height, width, order)
        layer = cls(
            matrix.detach().requires_grad_(weight.requires_grad),
            module.bias,
            pattern,
            geometry,
            activation=activation,
            backend=backend,
            transposed=transposed,
        )
        return layer.train(module.training)

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer with the same weights, zeros included; an activation becomes a module behind it."""
        kernel, stride, padding = self.geometry.kernel, self.geometry.stride, self.geometry.padding
        with torch.device("meta"):
            dense = nn.Conv2d(self.channels, self.outputs, kernel, stride, padding, bias=self.bias is not None)
        weight = weight_of_columns(unpack(self.packed).detach(), self.geometry).contiguous()
        dense.weight = nn.Parameter(weight, requires_grad=self.values.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return with_activation(dense, self.activation).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, outputs, Ho, Wo)``, channels innermost in memory, for ``(B, C, H, W)``."""
        activation, backend = self.kernel_activation(), self._backend_name
        if not self.pointwise:
            return self.finish(operator.conv2d(x, self.packed, self.geometry, self.bias, activation, backend=backend))
        down, right = self.geometry.stride
        pixels = x.permute(0, 2, 3, 1)[:, ::down, ::right]
        y = operator.linear(pixels, self.packed, self.bias, activation, backend=backend, transposed=self.transposed)
        return self.finish(y.permute(0, 3, 1, 2))

    def extra_repr(self) -> str:
        """Return the sizes for printing."""
        shape = self.geometry
        return f"{super().extra_repr()}, kernel={shape.kernel}, stride={shape.stride}, padding={shape.padding}"


def geometry_of_module(module: nn.Conv2d) -> Geometry:
    """Return the geometry of a convolution, or say what about it is not supported."""
    if tuple(module.dilation) != (1, 1) or module.groups != 1 or module.padding_mode != "zeros":
        raise ValueError(
            "Expected a convolution of dilation 1, groups 1 and padding with zeros. Got "
            f"dilation {tuple(module.dilation)}, groups {module.groups}, {module.padding_mode}. Leave it dense."
        )
    height, width = module.kernel_size[0], module.kernel_size[1]
    stride = (module.stride[0], module.stride[1])
    if module.padding == "valid":
        return Geometry((height, width), stride)
    if module.padding == "same":
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"Expected an odd kernel with padding 'same'. Got {height} x {width}. Leave it dense.")
        return Geometry((height, width), stride, (height // 2, width // 2))
    return Geometry((height, width), stride, (int(module.padding[0]), int(module.padding[1])))
