"""What block-sparse linear layers and convolutions share: their state, their pattern and who computes them."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from structprune.layers.activation import Activation, activate, as_activation
from structprune.layers.backend import Backend, remember, require
from structprune.layers.pack import Packed, pack, pattern_of, transposed_tensors
from structprune.layers.pattern import GroupedColumns

__all__ = ["BlockSparseLayer", "pattern_from"]


class BlockSparseLayer(nn.Module):
    """The kept weights of a layer as one parameter, the pattern as buffers, and a backend that multiplies.

    ``values`` is an ordinary dense parameter, so optimizers, weight decay, FSDP, ``state_dict`` and autocast treat it
    as any other; what was pruned is not there to be trained. In training mode the activation is applied behind the
    product, where autograd keeps what its gradient needs; otherwise the kernel applies it.

    Parameters
    ----------
    weight
        ``(outputs, inputs)``; entries outside the pattern are left behind.
    bias
        ``(outputs,)`` or None.
    pattern
        What is kept.
    activation
        ``"none"``, ``"relu"`` or ``"gelu"``, applied to the outputs.
    backend
        Who computes; :meth:`use` changes it.
    transposed
        Whether to keep the transposed pattern and use it for the gradient of the input. Worth its memory for training
        with backends that have kernels of their own, and pieces of 16 columns or more.

    Raises
    ------
    ValueError
        Shapes do not fit, or the backend does not run here.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    columns: Tensor
    starts: Tensor
    order: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        pattern: GroupedColumns,
        *,
        activation: Activation,
        backend: Backend,
        transposed: bool,
    ) -> None:
        super().__init__()
        packed = pack(weight.detach(), pattern)
        self.outputs, self.inputs, self.width = pattern.outputs, pattern.inputs, pattern.width
        self.values = nn.Parameter(packed.values, requires_grad=weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        for name in ("columns", "starts", "order"):
            self.register_buffer(name, getattr(packed, name))
        kept = transposed_tensors(pattern.transpose(), weight.device) if transposed else (None, None, None)
        for name, tensor in zip(("source", "transposed_columns", "transposed_starts"), kept, strict=True):
            self.register_buffer(name, tensor)
        self.activation = as_activation(activation)
        self.use(backend)

    def use(self, backend: Backend) -> Self:
        """Compute by this backend from now on; return the layer.

        Raises
        ------
        ValueError
            The backend does not run on this machine; the message says why.
        """
        self._backend_name = remember(require(backend))
        self._backend = backend
        return self

    @property
    def backend(self) -> Backend:
        """Who computes."""
        return self._backend

    @property
    def packed(self) -> Packed:
        """The weight as kernels take it."""
        return Packed(self.values, self.columns, self.starts, self.order, self.outputs, self.inputs)

    @property
    def pattern(self) -> GroupedColumns:
        """What is kept, read from the buffers, and so checked whenever it is asked for."""
        return pattern_of(self.packed, self.width)

    @property
    def transposed(self) -> list[Tensor]:
        """The transposed pattern's tensors, or none; without gradients nobody reads them."""
        if not torch.is_grad_enabled():
            return []
        kept = (self.source, self.transposed_columns, self.transposed_starts)
        return [each for each in kept if isinstance(each, Tensor)]

    def in_training(self) -> bool:
        """Whether gradients of this call will be wanted, as far as can be told."""
        return self.training and torch.is_grad_enabled()

    def kernel_activation(self) -> Activation:
        """Return what the kernel applies."""
        return "none" if self.in_training() else self.activation

    def finish(self, y: Tensor) -> Tensor:
        """Apply what the kernel left."""
        return activate(y, self.activation) if self.in_training() else y

    def extra_repr(self) -> str:
        """Return the sizes for printing."""
        columns, height = self.values.shape
        dense = self.packed.groups * self.inputs
        return (
            f"{self.inputs} -> {self.outputs}, blocks {height}x{self.width}, kept {columns} of {dense} columns, "
            f"bias={self.bias is not None}, activation={self.activation}, backend={self._backend_name}"
        )


def pattern_from(
    mask: Tensor | np.ndarray,
    outputs: int,
    inputs: int,
    height: int,
    width: int,
    order: Tensor | np.ndarray | None,
) -> GroupedColumns:
    """Return the pattern of a mask of entries ``(outputs, inputs)`` or of blocks, told apart by their shapes."""
    kept = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    rows = order.detach().cpu().numpy() if isinstance(order, Tensor) else order
    if kept.shape == (outputs, inputs):
        return GroupedColumns.from_entries(kept, height, width, rows)
    return GroupedColumns.from_blocks(kept, outputs, inputs, height, width, rows)


def masked_weight(weight: Tensor, mask: Tensor | np.ndarray) -> Tensor:
    """Return the weight with zeros where a mask of its entries is False; a mask of blocks leaves it as it is."""
    if tuple(mask.shape) != tuple(weight.shape):
        return weight
    kept = torch.as_tensor(mask, device=weight.device)
    return torch.where(kept, weight, torch.zeros_like(weight)).requires_grad_(weight.requires_grad)


def with_activation(dense: nn.Module, activation: Activation) -> nn.Module:
    """Return the dense layer followed by the activation's module, alone where there is none."""
    if activation == "none":
        return dense
    return nn.Sequential(dense, nn.ReLU() if activation == "relu" else nn.GELU())
