"""Block-sparse layers on the CPU by generated machine code, at a time proportional to what is kept.

The kernels are those of :mod:`structprune.layers.jit_ir`. Here tensors are checked, once where they cannot change, and
handed on as addresses. Indices are checked before the kernel reads by them, so that no call reads or writes outside
its tensors.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from structprune.layers.jit_call import Indices, Prepared, deal_product, threads_for
from structprune.layers.jit_engine import Code, available
from structprune.layers.jit_key import Isa, KernelKey, Storage
from structprune.layers.jit_lists import HEIGHTS, checked_lists, known_lists

__all__ = ["HEIGHTS", "available", "corners", "grouped_conv2d", "grouped_linear", "row_bases"]


def grouped_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: str = "none",
    *,
    outputs: int,
    out: Tensor | None = None,
    isa: Isa | None = None,
) -> Tensor:
    """Return ``activation(x W' + bias)`` for a weight packed in groups of columns.

    ``Y[:, order[r*G : (r+1)*G]] = X[:, columns[s:e]] @ values[s:e] + bias`` with ``s, e = starts[r], starts[r+1]``.

    Parameters
    ----------
    x
        ``(B, inputs)`` float32 or bfloat16.
    values
        ``(C, G)`` of the same type, G in 16, 32, 64, 128, 256.
    columns, starts
        ``(C,)`` and ``(R + 1,)`` int32, ``R = ceil(outputs / G)``.
    order
        ``(outputs,)`` int32, the output of each stored row, or None.
    bias
        ``(outputs,)`` of the type of ``x``, or None.
    activation
        "none", "relu" or "gelu" (exact).
    outputs
        Columns of the result.
    out
        ``(B, outputs)`` contiguous tensor to write to.
    isa
        Instructions to use; None takes the widest of this machine.

    Raises
    ------
    ValueError
        If a shape, type or index is not as above.
    RuntimeError
        If this machine cannot run the kernels, see `available`.

    Notes
    -----
    Sums are float32. bfloat16 uses vdpbf16ps where the processor has it, best for pieces of even width, and widens to
    float32 elsewhere. Nothing is differentiated here.
    """
    lists = known_lists(columns, starts, order)
    call = None
    if lists is not None and x.is_cpu and values.is_cpu and values.is_contiguous():
        threads = torch.get_num_threads()
        call = lists.calls.get(
            (x.shape, x.stride(), x.dtype, values.shape, values.dtype, outputs, activation, isa, threads, False)
        )
    if call is None:
        x, call = _prepared_linear(x, values, columns, starts, order, activation, outputs, isa)
    return call.run(x, values, bias, out)


def _prepared_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    activation: str,
    outputs: int,
    isa: Isa | None,
) -> tuple[Tensor, Prepared]:
    """Check everything, and return the activations as the kernel reads them with the call, which is kept."""
    if x.dim() != 2 or not x.is_cpu:
        raise ValueError(
            f"Expected x as a matrix (tokens, inputs) on the CPU. Got shape {tuple(x.shape)} on {x.device}. "
            "Flatten the leading dimensions."
        )
    dtype, (tokens, inputs) = x.dtype, x.shape
    lists = checked_lists(values, columns, starts, order, outputs, inputs)
    code, key = lists.kernel(dtype, values.dtype, activation, isa, even=True)
    changed = key.storage is Storage.WIDENED or x.stride(1) != 1
    if changed:
        x = x.to(torch.float32 if key.storage is Storage.WIDENED else dtype).contiguous()
    threads = torch.get_num_threads()
    request = (x.shape, x.stride(), dtype, values.shape, values.dtype, outputs, activation, isa, threads, changed)
    call = lists.calls.get(request)
    if call is None:
        bases = row_bases(tokens, x.stride(0) if tokens > 1 else inputs)
        indices = Indices(columns, starts, order, bases)
        call = _product(code, key, indices, max(1, inputs), values.numel(), (tokens, outputs), dtype)
        lists.keep(request, call)
    return x, call


def grouped_conv2d(
    image: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: str = "none",
    *,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    out: Tensor | None = None,
    isa: Isa | None = None,
) -> Tensor:
    """Return the convolution of a zero-padded image, without unfolding it: a column is an offset into the image.

    Parameters
    ----------
    image
        ``(N, Hp, Wp, C)`` contiguous, padded; float32 or bfloat16.
    values, columns, starts, order, bias, activation, outputs, isa
        As for `grouped_linear`, the columns in the order (tap_y, tap_x, channel).
    kernel, stride
        Vertical and horizontal.
    out
        ``(N, Ho, Wo, outputs)`` contiguous tensor to write to.

    Returns
    -------
    ``(N, Ho, Wo, outputs)``.

    Raises
    ------
    ValueError
        If a shape, type or index is not as above.
    RuntimeError
        If this machine cannot run the kernels, see `available`.
    """
    if image.dim() != 4 or not image.is_contiguous() or not image.is_cpu:
        raise ValueError(
            f"Expected a contiguous image (N, Hp, Wp, C) on the CPU. Got shape {tuple(image.shape)}, strides "
            f"{image.stride()} on {image.device}. Use structprune.layers.geometry.padded_nhwc."
        )
    number, high, wide, channels = image.shape
    if not (1 <= kernel[0] <= high and 1 <= kernel[1] <= wide and min(stride) >= 1):
        raise ValueError(
            f"Expected a kernel within the padded image of {high} x {wide} and strides of at least 1. "
            f"Got kernel {kernel}, stride {stride}. Pad the image first."
        )
    dtype = image.dtype
    lists = checked_lists(values, columns, starts, order, outputs, kernel[0] * kernel[1] * channels)
    code, key = lists.kernel(dtype, values.dtype, activation, isa, even=channels % 2 == 0)
    threads = torch.get_num_threads()
    request = (image.shape, dtype, values.shape, outputs, activation, isa, threads, kernel, stride)
    call = lists.calls.get(request)
    if call is None:
        size = ((high - kernel[0]) // stride[0] + 1, (wide - kernel[1]) // stride[1] + 1)
        bases = corners(number, high, wide, channels, size, stride)
        indices = Indices(lists.offsets(columns, kernel[1], channels, wide), starts, order, bases)
        numbers = channels * stride[0] * stride[1]
        call = _product(code, key, indices, numbers, values.numel(), (number, *size, outputs), dtype)
        lists.keep(request, call)
    return call.run(image.float() if key.storage is Storage.WIDENED else image, values, bias, out)


def _product(
    code: Code,
    key: KernelKey,
    indices: Indices,
    numbers: int,
    entries: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Prepared:
    """Return a product to be called, of ``entries`` values; one more token takes ``numbers`` activations of cache."""
    token_bytes = numbers * (4 if key.storage.activation == "float" else 2)
    threads = threads_for(indices.tokens * entries)
    deal = deal_product(indices.tokens, indices.groups, key.tokens, token_bytes, threads)
    return Prepared(code, deal, indices, token_bytes, shape, dtype)


@lru_cache(maxsize=64)
def row_bases(tokens: int, stride: int) -> Tensor:
    """First element of each row, ``(tokens,)`` int64."""
    return torch.arange(tokens) * stride


@lru_cache(maxsize=64)
def corners(number: int, high: int, wide: int, channels: int, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """First element of each window of an image ``(number, high, wide, channels)``, ``(number * Ho * Wo,)`` int64."""
    image = torch.arange(number).view(-1, 1, 1) * high
    down = torch.arange(size[0]).view(1, -1, 1) * stride[0]
    across = torch.arange(size[1]).view(1, 1, -1) * stride[1]
    return (((image + down) * wide + across) * channels).flatten()
