"""The gradient of a packed weight's values on the CPU by generated machine code.

The kernel is that of :mod:`structprune.layers.jit_gradient_ir`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structprune.layers.jit import corners, row_bases
from structprune.layers.jit_call import Indices, Prepared, deal_gradient, threads_for
from structprune.layers.jit_engine import compiled, isa_of_this_machine
from structprune.layers.jit_key import GradientKey, Isa
from structprune.layers.jit_lists import checked_lists

__all__ = ["grouped_conv2d_weight_gradient", "grouped_weight_gradient"]


def grouped_weight_gradient(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    *,
    out: Tensor | None = None,
    isa: Isa | None = None,
) -> Tensor:
    """Return the gradient of the values: ``dV[s:e] = X[:, columns[s:e]]' dY[:, order[r*G : (r+1)*G]]`` per group.

    Parameters
    ----------
    grad
        ``dY (B, outputs)`` float32.
    x
        ``X (B, inputs)`` float32.
    values
        ``(C, G)`` float32; its shape alone is used.
    columns, starts, order, isa
        As for :func:`structprune.layers.jit.grouped_linear`.
    out
        ``(C, G)`` contiguous tensor to write to.

    Returns
    -------
    Tensor
        ``(C, G)``; rows of a group beyond the last output are zero.

    Raises
    ------
    ValueError
        If a shape, type or index is not as above.
    RuntimeError
        If this machine cannot run the kernels.
    """
    for name, given in (("grad", grad), ("x", x)):
        if given.dim() != 2 or not given.is_cpu or given.dtype != torch.float32 or given.shape[0] != grad.shape[0]:
            raise ValueError(
                f"Expected {name} as a float32 matrix of {grad.shape[0]} tokens on the CPU. Got {given.dtype} "
                f"{tuple(given.shape)} on {given.device}. Flatten the leading dimensions."
            )
    (tokens, inputs), outputs = x.shape, grad.shape[1]
    lists = checked_lists(values, columns, starts, order, outputs, inputs)
    out = checked_gradient(values, out)
    if not tokens:
        return out.zero_()
    x = x if x.stride(1) == 1 else x.contiguous()
    request = ("gradient", x.shape, x.stride(), values.shape, outputs, isa, torch.get_num_threads())
    call = lists.calls.get(request)
    if call is None:
        indices = Indices(columns, starts, order, row_bases(tokens, x.stride(0) if tokens > 1 else inputs))
        call = prepared_gradient(values, indices, inputs, (tokens, outputs), isa)
        lists.keep(request, call)
    call.run(x, out, None, grad.contiguous())
    return out


def grouped_conv2d_weight_gradient(
    grad: Tensor,
    image: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    out: Tensor | None = None,
    isa: Isa | None = None,
) -> Tensor:
    """Return the gradient of the values of a convolution, from the padded image as it is.

    Parameters
    ----------
    grad
        ``dY (N, Ho, Wo, outputs)`` float32.
    image
        ``(N, Hp, Wp, C)`` contiguous, padded, float32.
    values, columns, starts, order, out, isa
        As for :func:`grouped_weight_gradient`.
    kernel, stride
        Vertical and horizontal.

    Returns
    -------
    Tensor
        ``(C, G)``; rows of a group beyond the last output are zero.

    Raises
    ------
    ValueError
        If a shape, type or index is not as above.
    RuntimeError
        If this machine cannot run the kernels.
    """
    for name, given in (("grad", grad), ("image", image)):
        if given.dim() != 4 or not given.is_cpu or given.dtype != torch.float32:
            raise ValueError(
                f"Expected {name} as float32 of four dimensions, channels last, on the CPU. Got {given.dtype} "
                f"{tuple(given.shape)} on {given.device}. Permute it."
            )
    number, high, wide, channels = image.shape
    size = ((high - kernel[0]) // stride[0] + 1, (wide - kernel[1]) // stride[1] + 1)
    if not image.is_contiguous() or grad.shape[:3] != (number, *size):
        raise ValueError(
            f"Expected a contiguous image and a gradient of {(number, *size)} places. Got strides {image.stride()} and "
            f"{tuple(grad.shape)}. Use structprune.layers.geometry.padded_nhwc."
        )
    outputs = grad.shape[3]
    lists = checked_lists(values, columns, starts, order, outputs, kernel[0] * kernel[1] * channels)
    out = checked_gradient(values, out)
    if not grad.numel():
        return out.zero_()
    request = ("gradient", image.shape, values.shape, outputs, isa, torch.get_num_threads(), kernel, stride)
    call = lists.calls.get(request)
    if call is None:
        bases = corners(number, high, wide, channels, size, stride)
        indices = Indices(lists.offsets(columns, kernel[1], channels, wide), starts, order, bases)
        numbers = channels * stride[0] * stride[1]
        call = prepared_gradient(values, indices, numbers, tuple(grad.shape), isa)
        lists.keep(request, call)
    call.run(image, out, None, grad.contiguous())
    return out


def checked_gradient(values: Tensor, out: Tensor | None) -> Tensor:
    """Return the tensor for the gradient of the values: ``out`` if it fits, a new one where it is None."""
    if out is None:
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if out.shape != values.shape or out.dtype != torch.float32 or not out.is_contiguous() or not out.is_cpu:
        raise ValueError(
            f"Expected the gradient as contiguous float32 {tuple(values.shape)} on the CPU. Got {out.dtype} "
            f"{tuple(out.shape)}. Leave out to have it made, and give float32 values."
        )
    return out


def prepared_gradient(
    values: Tensor, indices: Indices, numbers: int, shape: tuple[int, ...], isa: Isa | None
) -> Prepared:
    """Return the call; one more token takes ``numbers`` activations of cache."""
    code = compiled(GradientKey(values.shape[1], isa or isa_of_this_machine()))
    token_bytes = 4 * max(1, numbers)
    deal = deal_gradient(indices.groups, token_bytes, threads_for(indices.tokens * values.numel()))
    return Prepared(code, deal, indices, token_bytes, shape, torch.float32)
