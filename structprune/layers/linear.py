"""A linear layer that stores and multiplies kept blocks only."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from structprune.layers import operator
from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.layer import BlockSparseLayer, masked_weight, pattern_from, with_activation
from structprune.layers.pack import unpack
from structprune.layers.rowloop import ROWLOOP

__all__ = ["BlockSparseLinear"]


class BlockSparseLinear(BlockSparseLayer):
    """``activation(x W' + bias)`` with a block-sparse ``W`` of ``outputs x inputs``, for ``x (..., inputs)``.

    Parameters and Raises are those of :class:`BlockSparseLayer`.
    """

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
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
            The dense layer; it is not changed.
        mask
            True = kept: ``(outputs, inputs)`` for entries, whose blocks are completed by zeros, or
            ``(ceil(outputs / height), ceil(inputs / width))`` for blocks in stored rows.
        height, width
            Size of a block.
        order
            ``(outputs,)``, the output that each stored row is; None for as they are.
        activation, backend, transposed
            As the layer's own.
        """
        pattern = pattern_from(mask, module.out_features, module.in_features, height, width, order)
        layer = cls(
            masked_weight(module.weight, mask),
            module.bias,
            pattern,
            activation=activation,
            backend=backend,
            transposed=transposed,
        )
        return layer.train(module.training)

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer with the same weights, zeros included; an activation becomes a module behind it."""
        with torch.device("meta"):
            dense = nn.Linear(self.inputs, self.outputs, bias=self.bias is not None)
        dense.weight = nn.Parameter(unpack(self.packed).detach(), requires_grad=self.values.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return with_activation(dense, self.activation).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., outputs)`` for ``(..., inputs)``."""
        y = operator.linear(
            x,
            self.packed,
            self.bias,
            self.kernel_activation(),
            backend=self._backend_name,
            transposed=self.transposed,
        )
        return self.finish(y)
