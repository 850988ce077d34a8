"""Grouped layers on CUDA: plain functions that check their arguments and launch the Triton kernels.

All take the packed form of a weight of outputs x inputs: group r of G outputs multiplies the inputs
`columns[starts[r]:starts[r + 1]]` by the same rows of `values (C, G)`. `columns` and `starts` are trusted, as every
kernel's are: check them once, when the weight is packed.
"""

from __future__ import annotations

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from structprune.layers.activation import Activation, as_activation
from structprune.layers.triton_checks import (
    WIDEST_RUN,
    check_operands,
    check_rows,
    checked_out,
    checked_outputs,
    checked_positions,
    lists_of,
)
from structprune.layers.triton_kernels import kernels
from structprune.layers.triton_tiles import GradientTile, Tile, forward_tile, gradient_tile

__all__ = [
    "Precision",
    "available",
    "grouped_conv2d",
    "grouped_conv2d_weight_gradient",
    "grouped_linear",
    "grouped_linear_features",
    "grouped_weight_gradient",
]

Precision = Literal["ieee", "tf32", "tf32x3"]  # how float32 is multiplied; lower precisions have one way only
EVERY_TOKEN = (1, 1, 0, 0)  # image width and size, row and image stride of a matrix: it is no image
PARTIAL_SUMS = 264  # programs of a weight gradient, two for each multiprocessor of an H200


def available() -> str:
    """Return '' if the kernels run here, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton on Linux."
    if not (interpreted() or torch.cuda.is_available()):
        return "torch sees no CUDA device; TRITON_INTERPRET=1 runs the kernels slowly on the CPU."
    return ""


def interpreted() -> bool:
    """Return whether Triton runs kernels on the CPU, one operation after another."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def grouped_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: Activation,
    out: Tensor | None = None,
    *,
    outputs: int | None = None,
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(X W' + bias) for row-major X.

    Parameters
    ----------
    x
        (tokens, inputs), unit stride along the inputs.
    values, columns, starts
        The packed weight, (C, G), (C,) and (R + 1,).
    order
        (outputs,): the output of each stored row; None if they are in order. Outputs that are far apart in memory
        are stored one by one: where the next layer reads a list of columns anyway, permute that list instead.
    bias
        (outputs,) or None.
    activation
        "none", "relu" or "gelu".
    out
        Where to write, (tokens, outputs) with unit stride along the outputs; a new tensor by default.
    outputs
        Number of outputs, where neither `order`, `bias` nor `out` tells; by default R * G.
    tile
        What a program owns; by rule if not given.
    precision
        How float32 is multiplied.

    Raises
    ------
    ValueError
        An argument that the kernels cannot take.
    """
    outputs = checked_outputs(x, values, columns, starts, order, bias, out, outputs)
    if x.dim() != 2 or (x.stride(1) != 1 and x.shape[1] > 1):
        raise ValueError(
            f"Expected X of shape (tokens, inputs) with the inputs side by side. Got shape {tuple(x.shape)}, strides "
            f"{x.stride()}. Call contiguous(), or grouped_linear_features for feature-major X."
        )
    y = checked_out(out, x, (x.shape[0], outputs))
    launch_rows(
        x, (x.stride(0), *EVERY_TOKEN), values, columns, starts, order, bias, activation, y, outputs, tile, precision
    )
    return y


def grouped_conv2d(
    image: Tensor,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: Activation,
    out: Tensor | None = None,
    *,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    outputs: int | None = None,
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(convolution + bias), (N, *size, outputs), of a padded image; nothing is unfolded.

    Parameters
    ----------
    image
        (N, padded height, padded width, channels), contiguous, its zero padding included.
    offsets
        (C,) int32: the place of each column in the image, in elements from the corner of an output's window:
        (tap_y * padded width + tap_x) * channels + channel.
    size
        Height and width of the output.
    stride
        Vertical and horizontal step of the window.

    All else is as in :func:`grouped_linear`; `out` is contiguous.
    """
    outputs = checked_outputs(image, values, offsets, starts, order, bias, out, outputs)
    positions = checked_positions(image, size, stride)
    y = checked_out(out, image, (image.shape[0], *size, outputs))
    if not y.is_contiguous():
        raise ValueError(f"Expected a contiguous out. Got strides {y.stride()}. Leave out to be made.")
    launch_rows(
        image, positions, values, offsets, starts, order, bias, activation, y, outputs, tile, precision, image=True
    )
    return y


def grouped_linear_features(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: Activation,
    out: Tensor | None = None,
    *,
    outputs: int | None = None,
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(W X + bias[:, None]), (outputs, tokens), for feature-major X (inputs, tokens).

    Both have unit stride along the tokens: loads are wide whatever the columns, and an order of the outputs is free.
    All else is as in :func:`grouped_linear`.
    """
    outputs = checked_outputs(x, values, columns, starts, order, bias, out, outputs)
    if x.dim() != 2 or (x.stride(1) != 1 and x.shape[1] > 1):
        raise ValueError(
            f"Expected X of shape (inputs, tokens) with the tokens side by side. Got shape {tuple(x.shape)}, strides "
            f"{x.stride()}. Call contiguous(), or grouped_linear for row-major X."
        )
    tokens = x.shape[1]
    y = checked_out(out, x, (outputs, tokens))
    if y.numel() == 0:
        return y
    height = values.shape[1]
    tile = tile or forward_tile(height, outputs, tokens, x.dtype, shared_bytes(x))
    check_rows(tile.rows, height)
    grid = (-(-outputs // tile.rows) * -(-tokens // tile.tokens),)
    with on_device(x):
        kernels().feature_major[grid](
            x, values, columns, starts, columns if order is None else order, values if bias is None else bias, y,
            tokens, outputs, y.stride(0), x.stride(0),
            HEIGHT=height, ROWS=tile.rows, TOKENS=tile.tokens, STEP=tile.step, ORDER=order is not None,
            BIAS=bias is not None, ACTIVATION=as_activation(activation), PRECISION=precision, UPCAST=upcast(x),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y


def grouped_weight_gradient(
    x: Tensor,
    gradient: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    height: int,
    *,
    features: bool = False,
    tile: GradientTile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return d loss / d values, (C, G) float32, of a grouped linear layer.

    Parameters
    ----------
    x
        (tokens, inputs) row-major, or (inputs, tokens) with `features`.
    gradient
        d loss / d (X W' + bias) in X's layout and dtype: (tokens, outputs), or (outputs, tokens) with `features`.
    columns, starts, order
        The packed weight's.
    height
        G, the number of outputs in a group.
    features
        Whether both matrices are feature-major.

    Raises
    ------
    ValueError
        An argument that the kernels cannot take.
    """
    for name, matrix in (("X", x), ("the gradient", gradient)):
        if matrix.dim() != 2 or (matrix.stride(1) != 1 and matrix.shape[1] > 1):
            raise ValueError(
                f"Expected {name} as a matrix with unit stride along its second dimension. "
                f"Got shape {tuple(matrix.shape)}, strides {matrix.stride()}. Call contiguous()."
            )
    axis = 1 if features else 0
    if x.shape[axis] != gradient.shape[axis]:
        raise ValueError(
            f"Expected as many tokens in the gradient as in X, {x.shape[axis]}. Got {gradient.shape[axis]}. "
            "Give both in one layout."
        )
    positions = (x.stride(0), *EVERY_TOKEN)
    outputs, tokens, pitch = gradient.shape[1 - axis], gradient.shape[axis], gradient.stride(0)
    return launch_gradient(
        x, positions, gradient, pitch, tokens, outputs, columns, starts, order, height, tile, precision,
        features=features,
    )  # fmt: skip


def grouped_conv2d_weight_gradient(
    image: Tensor,
    gradient: Tensor,
    offsets: Tensor,
    starts: Tensor,
    order: Tensor | None,
    height: int,
    *,
    stride: tuple[int, int] = (1, 1),
    tile: GradientTile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return d loss / d values, (C, G) float32, of a grouped convolution.

    `image` and `offsets` are those of :func:`grouped_conv2d`; `gradient` is (N, output height, output width, outputs),
    contiguous. All else is as in :func:`grouped_weight_gradient`.
    """
    if gradient.dim() != 4 or not gradient.is_contiguous() or gradient.shape[0] != image.shape[0]:
        raise ValueError(
            f"Expected a contiguous gradient ({image.shape[0]}, height, width, outputs). Got shape "
            f"{tuple(gradient.shape)}, strides {gradient.stride()}. Permute the channels to the end."
        )
    outputs = gradient.shape[3]
    positions = checked_positions(image, (gradient.shape[1], gradient.shape[2]), stride)
    tokens = gradient.numel() // max(1, outputs)
    return launch_gradient(
        image, positions, gradient, outputs, tokens, outputs, offsets, starts, order, height, tile, precision,
        image=True,
    )  # fmt: skip


def launch_rows(
    x: Tensor,
    positions: tuple[int, int, int, int, int],
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    activation: Activation,
    y: Tensor,
    outputs: int,
    tile: Tile | None,
    precision: Precision,
    image: bool = False,
) -> None:
    """Launch the row-major kernel; `positions` are the token's stride, image width and size, row and image stride."""
    if y.numel() == 0:
        return
    height, tokens = values.shape[1], y.numel() // outputs
    tile = tile or forward_tile(height, outputs, tokens, x.dtype, shared_bytes(x))
    check_rows(tile.rows, height)
    grid = (-(-outputs // tile.rows) * -(-tokens // tile.tokens),)
    with on_device(x):
        kernels().row_major[grid](
            x, values, columns, starts, columns if order is None else order, values if bias is None else bias, y,
            tokens, outputs, outputs if image else y.stride(0), *positions,
            HEIGHT=height, ROWS=tile.rows, TOKENS=tile.tokens, STEP=tile.step,
            RUN=common_run(x, positions, columns, starts), IMAGE=image, ORDER=order is not None,
            BIAS=bias is not None, ACTIVATION=as_activation(activation), PRECISION=precision, UPCAST=upcast(x),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def launch_gradient(
    x: Tensor,
    positions: tuple[int, int, int, int, int],
    gradient: Tensor,
    pitch: int,
    tokens: int,
    outputs: int,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    height: int,
    tile: GradientTile | None,
    precision: Precision,
    image: bool = False,
    features: bool = False,
) -> Tensor:
    """Launch the weight gradient and add up its shares of the tokens."""
    check_operands(x, columns, starts, order, outputs, height)
    if gradient.dtype != x.dtype or gradient.device != x.device:
        raise ValueError(f"Expected a gradient as X is, {x.dtype}. Got {gradient.dtype}. Convert one of them.")
    entries, groups = columns.shape[0], starts.shape[0] - 1
    if entries == 0 or tokens == 0:
        return x.new_zeros(entries, height, dtype=torch.float32)
    tile = tile or gradient_tile(height, x.dtype)
    check_rows(tile.rows, height)
    # Programs past the end of a list that is shorter than the longest leave at once.
    longest = lists_of(columns, starts).longest
    blocks = groups * (height // tile.rows)
    busy = blocks * -(-entries // (groups * tile.entries))
    shares = max(1, min(PARTIAL_SUMS // busy, -(-tokens // (4 * tile.step))))
    share = -(-tokens // (shares * tile.step)) * tile.step
    shares = -(-tokens // share)
    partial = x.new_empty(shares, entries, height, dtype=torch.float32)
    with on_device(x):
        kernels().weight_gradient[(blocks * -(-longest // tile.entries), shares)](
            x, gradient, columns, starts, columns if order is None else order, partial,
            tokens, outputs, entries, share, pitch, *positions,
            HEIGHT=height, ROWS=tile.rows, ENTRIES=tile.entries, STEP=tile.step,
            RUN=1 if features else common_run(x, positions, columns, starts), IMAGE=image, FEATURES=features,
            ORDER=order is not None, PRECISION=precision, UPCAST=upcast(x),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return partial[0] if shares == 1 else partial.sum(0)


def common_run(x: Tensor, positions: tuple[int, int, int, int, int], columns: Tensor, starts: Tensor) -> int:
    """Return the elements that one load of X may take: a run of columns, where X's strides and address allow it."""
    stride_token, _, _, stride_row, stride_image = positions
    address = x.data_ptr() // x.element_size() if x.data_ptr() % x.element_size() == 0 else 1
    return math.gcd(lists_of(columns, starts).run, stride_token, stride_row, stride_image, address, WIDEST_RUN)


def upcast(x: Tensor) -> bool:
    """Return whether a dot must be given float32: the interpreter's bfloat16 dot is wrong without an error."""
    return interpreted() and x.dtype == torch.bfloat16


def shared_bytes(x: Tensor) -> int:
    """Return the shared memory that one program may take on X's device."""
    return shared_bytes_of(x.device) if x.is_cuda else 64 * 1024


@cache
def shared_bytes_of(device: torch.device) -> int:
    """Return the shared memory that one program may take on a CUDA device."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 * 1024)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which launches go to X's device.

    Raises
    ------
    ValueError
        No kernel can run on X's device.
    """
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if interpreted():
        return nullcontext()
    raise ValueError(f"Expected tensors on a CUDA device. Got {x.device}. Choose a backend for that device.")
