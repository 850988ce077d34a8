"""The torch operators of block-sparse layers: what autograd, torch.compile and torch.export see of them.

``structprune::grouped_linear`` and ``structprune::grouped_conv2d`` are opaque to the compiler: they take plain tensors,
numbers and texts, so that programs that hold them can be saved, and find their backend by its name. Their gradients are
operators too, and as opaque. A second derivative is refused by torch, since none is defined.

A call that nobody watches goes past them: see :mod:`structprune.layers.watching`.

The gradient of the input comes from the transposed weight by the same kernel where ``transposed`` is given, and from
the backend's own gradient otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from structprune.layers.activation import Activation, as_activation
from structprune.layers.backend import backend_named
from structprune.layers.geometry import Geometry, empty_channels_last
from structprune.layers.pack import Packed
from structprune.layers.watching import watched

__all__ = ["cast_for_autocast", "conv2d", "linear"]


def linear(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    activation: Activation = "none",
    *,
    backend: str,
    transposed: Sequence[Tensor] = (),
) -> Tensor:
    """Return ``activation(x W' + bias)`` for a packed ``W``, differentiable in ``x``, the values and ``bias``.

    Parameters
    ----------
    x
        ``(..., inputs)``.
    packed
        The weight.
    bias
        ``(outputs,)`` or None.
    activation
        Applied by the kernel.
    backend
        Name of a remembered backend.
    transposed
        ``(source, columns, starts)`` of the transposed pattern, or nothing.

    Returns
    -------
    Tensor
        ``(..., outputs)``, contiguous; under autocast of autocast's type, as ``F.linear``.

    Raises
    ------
    ValueError
        Shapes or types do not fit.
    """
    x, values, bias = cast_for_autocast(x, packed.values, bias)
    check_operands(x, x.shape[-1], packed.inputs, values, bias)
    if not watched(x, values, bias):
        given = packed if values is packed.values else replace(packed, values=values)
        return linear_product(x, given, bias, activation, backend)
    return grouped_linear(
        x,
        values,
        packed.columns,
        packed.starts,
        packed.order,
        bias,
        packed.outputs,
        activation,
        list(transposed),
        backend,
    )


def conv2d(
    x: Tensor,
    packed: Packed,
    geometry: Geometry,
    bias: Tensor | None = None,
    activation: Activation = "none",
    *,
    backend: str,
) -> Tensor:
    """Return the convolution of ``x (B, C, H, W)``, ``(B, outputs, Ho, Wo)``, as :func:`linear` does the product.

    Channels lie innermost in memory, whatever the layout of ``x``.
    """
    x, values, bias = cast_for_autocast(x, packed.values, bias)
    if x.dim() != 4:
        raise ValueError(f"Expected images of shape (B, C, H, W). Got {tuple(x.shape)}. Add the missing dimensions.")
    check_operands(x, x.shape[1] * geometry.taps, packed.inputs, values, bias)
    if not watched(x, values, bias):
        given = packed if values is packed.values else replace(packed, values=values)
        return backend_named(backend).conv2d(x, given, geometry, bias, as_activation(activation))
    return grouped_conv2d(
        x,
        values,
        packed.columns,
        packed.starts,
        packed.order,
        bias,
        packed.outputs,
        geometry.kernel,
        geometry.stride,
        geometry.padding,
        activation,
        backend,
    )


def cast_for_autocast(x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands in autocast's type where autocast is on, as they are elsewhere."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, values, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)


def check_operands(x: Tensor, given: int, expected: int, values: Tensor, bias: Tensor | None) -> None:
    """Refuse operands that do not fit."""
    if given != expected:
        raise ValueError(f"Expected an input that meets {expected} columns. Got {given}, shape {tuple(x.shape)}.")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and tensor.dtype != values.dtype:
            raise ValueError(
                f"Expected {name} of {values.dtype}, the values' type. Got {tensor.dtype}. Cast one of them."
            )


def linear_product(x: Tensor, packed: Packed, bias: Tensor | None, activation: str, backend: str) -> Tensor:
    """Return ``(..., outputs)`` by the backend of that name."""
    flat = x if x.dim() == 2 else x.reshape(-1, packed.inputs)
    y = backend_named(backend).linear(flat, packed, bias, as_activation(activation))
    return y if x.dim() == 2 else y.view(*x.shape[:-1], packed.outputs)


@torch.library.custom_op("structprune::grouped_linear", mutates_args=())
def grouped_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    activation: str,
    transposed: Sequence[Tensor],
    backend: str,
) -> Tensor:
    """Return ``(..., outputs)``; see :func:`linear`."""
    packed = Packed(values, columns, starts, order, outputs, x.shape[-1])
    return linear_product(x, packed, bias, activation, backend)


@grouped_linear.register_fake
def _(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    activation: str,
    transposed: Sequence[Tensor],
    backend: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


@torch.library.custom_op("structprune::grouped_linear_input_gradient", mutates_args=())
def grouped_linear_input_gradient(
    grad: Tensor, values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, inputs: int, backend: str
) -> Tensor:
    """Return ``dX (B, inputs)`` for ``dY (B, outputs)``."""
    packed = Packed(values, columns, starts, order, grad.shape[-1], inputs)
    return backend_named(backend).linear_input_gradient(grad, packed)


@grouped_linear_input_gradient.register_fake
def _(
    grad: Tensor, values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, inputs: int, backend: str
) -> Tensor:
    return grad.new_empty((grad.shape[0], inputs))


@torch.library.custom_op("structprune::grouped_weight_gradient", mutates_args=())
def grouped_weight_gradient(
    grad: Tensor, x: Tensor, values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, backend: str
) -> Tensor:
    """Return the gradient of ``values``, ``(C, G)``, for ``dY (B, outputs)`` and ``X (B, inputs)``."""
    packed = Packed(values, columns, starts, order, grad.shape[-1], x.shape[-1])
    return backend_named(backend).linear_weight_gradient(grad, x, packed)


@grouped_weight_gradient.register_fake
def _(
    grad: Tensor, x: Tensor, values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, backend: str
) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("structprune::grouped_conv2d", mutates_args=())
def grouped_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    backend: str,
) -> Tensor:
    """Return ``(B, outputs, Ho, Wo)``; see :func:`conv2d`."""
    geometry = geometry_of(kernel, stride, padding)
    packed = Packed(values, columns, starts, order, outputs, x.shape[1] * geometry.taps)
    return backend_named(backend).conv2d(x, packed, geometry, bias, as_activation(activation))


@grouped_conv2d.register_fake
def _(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    activation: str,
    backend: str,
) -> Tensor:
    return empty_channels_last(x, outputs, geometry_of(kernel, stride, padding))


@torch.library.custom_op("structprune::grouped_conv2d_input_gradient", mutates_args=())
def grouped_conv2d_input_gradient(
    grad: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    channels: int,
    height: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str,
) -> Tensor:
    """Return ``dX (B, channels, height, width)``, channels innermost, for ``dY (B, outputs, Ho, Wo)``."""
    geometry = geometry_of(kernel, stride, padding)
    packed = Packed(values, columns, starts, order, grad.shape[1], channels * geometry.taps)
    return backend_named(backend).conv2d_input_gradient(grad, packed, geometry, (height, width))


@grouped_conv2d_input_gradient.register_fake
def _(
    grad: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    channels: int,
    height: int,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str,
) -> Tensor:
    size = (grad.shape[0], channels, height, width)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


@torch.library.custom_op("structprune::grouped_conv2d_weight_gradient", mutates_args=())
def grouped_conv2d_weight_gradient(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str,
) -> Tensor:
    """Return the gradient of ``values``, ``(C, G)``, for ``dY (B, outputs, Ho, Wo)`` and ``X (B, channels, H, W)``."""
    geometry = geometry_of(kernel, stride, padding)
    packed = Packed(values, columns, starts, order, grad.shape[1], x.shape[1] * geometry.taps)
    return backend_named(backend).conv2d_weight_gradient(grad, x, packed, geometry)


@grouped_conv2d_weight_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str,
) -> Tensor:
    return torch.empty_like(values)


def geometry_of(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Geometry:
    """Return the geometry that an operator's lists are."""
    return Geometry((kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1]))


def before_activation(grad: Tensor, y: Tensor, activation: str, product: Any) -> Tensor:
    """Return the gradient before the activation, given the one behind it and the output.

    relu's is read off the output. gelu's is not, so the product is computed again: in training, layers apply the
    activation outside of the operator instead.
    """
    if activation == "relu":
        return torch.where(y > 0, grad, 0)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, product())
    return grad


def save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients need."""
    x, values, columns, starts, order, bias, outputs, activation, transposed, backend = inputs
    kept = output if activation == "relu" else None
    ctx.save_for_backward(x, values, columns, starts, order, bias, kept, *transposed)
    ctx.rest = (outputs, activation, backend)


def linear_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    """Return the gradients of ``x``, the values and the bias."""
    x, values, columns, starts, order, bias, y, *transposed = ctx.saved_tensors
    outputs, activation, backend = ctx.rest

    def product() -> Tensor:
        return grouped_linear(x, values, columns, starts, order, bias, outputs, "none", [], backend)

    grad = before_activation(grad, y, activation, product)
    flat = grad.reshape(-1, outputs)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        if transposed:
            dx = through_transposed(flat, values, order, x.shape[-1], transposed, backend)
        else:
            dx = grouped_linear_input_gradient(flat, values, columns, starts, order, x.shape[-1], backend)
        dx = dx.view(x.shape)
    if ctx.needs_input_grad[1]:
        tokens = x.reshape(-1, x.shape[-1])
        dvalues = grouped_weight_gradient(flat, tokens, values, columns, starts, order, backend)
    if bias is not None and ctx.needs_input_grad[5]:
        dbias = flat.sum(0)
    return dx, dvalues, None, None, None, dbias, None, None, [None] * len(transposed), None


def through_transposed(
    grad: Tensor, values: Tensor, order: Tensor | None, inputs: int, transposed: Sequence[Tensor], backend: str
) -> Tensor:
    """Return ``dX = dY W`` by the forward kernel on the transposed pattern."""
    source, columns, starts = transposed
    flat = F.pad(values.reshape(-1), (0, 1))  # the last one is the zero that sources outside the pattern read
    gathered = flat.index_select(0, source.view(-1)).view(source.shape)
    stored = grad if order is None else grad.index_select(1, order)
    return grouped_linear(stored, gathered, columns, starts, None, None, inputs, "none", [], backend)


def save_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients need."""
    x, values, columns, starts, order, bias, outputs, kernel, stride, padding, activation, backend = inputs
    kept = output if activation == "relu" else None
    ctx.save_for_backward(x, values, columns, starts, order, bias, kept)
    ctx.rest = (outputs, list(kernel), list(stride), list(padding), activation, backend)


def conv2d_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``x``, the values and the bias."""
    x, values, columns, starts, order, bias, y = ctx.saved_tensors
    outputs, *shape, activation, backend = ctx.rest

    def product() -> Tensor:
        return grouped_conv2d(x, values, columns, starts, order, bias, outputs, *shape, "none", backend)

    grad = before_activation(grad, y, activation, product)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = grouped_conv2d_input_gradient(grad, values, columns, starts, order, *x.shape[1:], *shape, backend)
    if ctx.needs_input_grad[1]:
        dvalues = grouped_conv2d_weight_gradient(grad, x, values, columns, starts, order, *shape, backend)
    if bias is not None and ctx.needs_input_grad[5]:
        dbias = grad.sum((0, 2, 3))
    return dx, dvalues, None, None, None, dbias, None, None, None, None, None, None


grouped_linear.register_autograd(linear_gradients, setup_context=save_linear)
grouped_conv2d.register_autograd(conv2d_gradients, setup_context=save_conv2d)
