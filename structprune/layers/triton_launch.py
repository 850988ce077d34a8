"""Grouped layers on CUDA: plain functions that check their arguments and launch the Triton kernels.

All take the packed form of a weight of outputs x inputs: group r of G outputs multiplies the inputs
`columns[starts[r]:starts[r + 1]]` by the same rows of `values (C, G)`. Nothing is differentiated here.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor

from structprune.layers.activation import as_activation
from structprune.layers.triton_checks import (
    WIDEST_RUN,
    Indices,
    Lists,
    check_image,
    check_matrix,
    check_rows,
    checked_lists,
    checked_out,
    checked_values,
)
from structprune.layers.triton_kernels import Kernels, kernels
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

Precision = Literal["ieee", "tf32", "tf32x3"]  # how float32 is multiplied; narrower types have one way only
ROW_MAJOR, FEATURE_MAJOR = attrgetter("row_major"), attrgetter("feature_major")
PARTIAL_SUMS = 264  # programs of a weight gradient, two for each multiprocessor of an H200


@dataclass(frozen=True)
class Positions:
    """Where the inputs of each token begin in X, in elements; by default a matrix's, one row after another."""

    token: int
    image_width: int = 1
    image_size: int = 1
    row: int = 0
    image: int = 0

    def strides(self) -> tuple[int, int, int, int, int]:
        """Return the numbers in the kernels' order."""
        return self.token, self.image_width, self.image_size, self.row, self.image


def available() -> str:
    """Return '' if the kernels run here, else why not."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed."
    if not (interpreted() or torch.cuda.is_available()):
        return "torch sees no CUDA device."
    return ""


def interpreted() -> bool:
    """Return whether Triton runs kernels on the CPU, one operation after another: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


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
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(X W' + bias), (tokens, outputs), for row-major X.

    Loads of X are as wide as the runs of consecutive columns: below 8 of them :func:`grouped_linear_features` is the
    faster one for many tokens.

    Parameters
    ----------
    x
        (tokens, inputs) float32, float16 or bfloat16, unit stride along the inputs.
    values, columns, starts
        The packed weight: (C, G) of X's type, (C,) int32, (R + 1,) int32.
    order
        (outputs,) int32: the output of each stored row; None if they are in order. Outputs that are far apart in memory
        are stored one by one: where the next layer reads a list of columns anyway, permute that list instead.
    bias
        (outputs,) or None.
    activation
        "none", "relu" or "gelu" (exact).
    outputs
        Number of outputs.
    out
        (tokens, outputs) with unit stride along the outputs, to write to; a new tensor by default.
    tile
        What a program owns; by rule if not given.
    precision
        How float32 is multiplied.

    Raises
    ------
    ValueError
        An argument that the kernels cannot take.
    """
    check_matrix(x, "X", "(tokens, inputs)")
    y = checked_out(out, x, (x.shape[0], outputs))
    height, indices = checked_values(x, values, columns, bias, outputs), Indices(columns, starts, order)
    lists = checked_lists(indices, x, outputs, x.shape[1], height)
    positions = Positions(x.stride(0))
    constants = {"RUN": common_run(x, lists.run, positions), "IMAGE": False}
    strides = (x.shape[0], outputs, y.stride(0), *positions.strides())
    launch_forward(ROW_MAJOR, x, values, indices, bias, y, strides, constants, activation, tile, precision)
    return y


def grouped_linear_features(
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
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(W X + bias[:, None]), (outputs, tokens), for feature-major X (inputs, tokens).

    X has unit stride along the tokens: loads are wide whatever the columns are. `out` has unit stride along the tokens,
    then an order of the outputs costs nothing, or along the outputs, as the transpose of a row-major matrix has. All
    else is as in :func:`grouped_linear`.
    """
    check_matrix(x, "X", "(inputs, tokens)")
    tokens = x.shape[1]
    y = checked_out(out, x, (outputs, tokens), transposed=True)
    height, indices = checked_values(x, values, columns, bias, outputs), Indices(columns, starts, order)
    checked_lists(indices, x, outputs, x.shape[0], height)
    strides = (tokens, outputs, y.stride(0), y.stride(1), x.stride(0))
    launch_forward(FEATURE_MAJOR, x, values, indices, bias, y, strides, {}, activation, tile, precision)
    return y


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
    tile: Tile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return activation(convolution + bias), (N, output height, output width, outputs); nothing is unfolded.

    Parameters
    ----------
    image
        (N, padded height, padded width, channels), contiguous, its zero padding included.
    columns
        (C,) int32 in the order (tap_y, tap_x, channel).
    kernel, stride
        Vertical and horizontal.
    out
        Contiguous, to write to; a new tensor by default.

    All else is as in :func:`grouped_linear`.
    """
    check_image(image, kernel, stride)
    positions, size = image_positions(image, kernel, stride)
    y = checked_out(out, image, (image.shape[0], *size, outputs))
    if not y.is_contiguous():
        raise ValueError(f"Expected a contiguous out. Got strides {y.stride()}. Leave out to be made.")
    height, indices = checked_values(image, values, columns, bias, outputs), Indices(columns, starts, order)
    channels = image.shape[3]
    lists = checked_lists(indices, image, outputs, kernel[0] * kernel[1] * channels, height)
    places = Indices(lists.places(columns, kernel, channels, image.shape[2]), starts, order)
    constants = {"RUN": common_run(image, math.gcd(lists.run, channels), positions), "IMAGE": True}
    strides = (image.shape[0] * positions.image_size, outputs, outputs, *positions.strides())
    launch_forward(ROW_MAJOR, image, values, places, bias, y, strides, constants, activation, tile, precision)
    return y


def grouped_weight_gradient(
    x: Tensor,
    gradient: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    *,
    height: int,
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
        d loss / d (X W' + bias) in X's layout and type: (tokens, outputs), or (outputs, tokens) with `features`.
    columns, starts, order
        The packed weight's.
    height
        G, the outputs of a group.
    features
        Whether both matrices are feature-major: then loads are wide whatever the columns are.

    Raises
    ------
    ValueError
        An argument that the kernels cannot take.
    """
    check_matrix(x, "X", "(inputs, tokens)" if features else "(tokens, inputs)")
    check_matrix(gradient, "the gradient", "(outputs, tokens)" if features else "(tokens, outputs)")
    axis = 1 if features else 0
    if x.shape[axis] != gradient.shape[axis]:
        raise ValueError(
            f"Expected as many tokens in the gradient as in X, {x.shape[axis]}. Got {gradient.shape[axis]}. "
            "Give both in one layout."
        )
    outputs, inputs = gradient.shape[1 - axis], x.shape[1 - axis]
    indices, positions = Indices(columns, starts, order), Positions(x.stride(0))
    lists = checked_lists(indices, x, outputs, inputs, height)
    constants = {
        "RUN": 1 if features else common_run(x, lists.run, positions),
        "IMAGE": False,
        "FEATURES": features,
        "HEIGHT": height,
    }
    sizes = (x.shape[axis], outputs, gradient.stride(0))
    return launch_gradient(x, gradient, indices, lists, sizes, positions, constants, tile, precision)


def grouped_conv2d_weight_gradient(
    image: Tensor,
    gradient: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    *,
    height: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    tile: GradientTile | None = None,
    precision: Precision = "ieee",
) -> Tensor:
    """Return d loss / d values, (C, G) float32, of a grouped convolution.

    `image`, `columns`, `kernel` and `stride` are those of :func:`grouped_conv2d`; `gradient` is contiguous, (N, output
    height, output width, outputs). All else is as in :func:`grouped_weight_gradient`.
    """
    check_image(image, kernel, stride)
    positions, size = image_positions(image, kernel, stride)
    if gradient.dim() != 4 or not gradient.is_contiguous() or gradient.shape[:3] != (image.shape[0], *size):
        raise ValueError(
            f"Expected a contiguous gradient ({image.shape[0]}, {size[0]}, {size[1]}, outputs). Got shape "
            f"{tuple(gradient.shape)}, strides {gradient.stride()}. Permute the channels to the end."
        )
    channels, outputs = image.shape[3], gradient.shape[3]
    lists = checked_lists(Indices(columns, starts, order), image, outputs, kernel[0] * kernel[1] * channels, height)
    places = Indices(lists.places(columns, kernel, channels, image.shape[2]), starts, order)
    run = common_run(image, math.gcd(lists.run, channels), positions)
    constants = {"RUN": run, "IMAGE": True, "FEATURES": False, "HEIGHT": height}
    sizes = (image.shape[0] * positions.image_size, outputs, outputs)
    return launch_gradient(image, gradient, places, lists, sizes, positions, constants, tile, precision)


def launch_forward(
    kernel: Callable[[Kernels], Any],
    x: Tensor,
    values: Tensor,
    indices: Indices,
    bias: Tensor | None,
    y: Tensor,
    strides: tuple[int, ...],
    constants: Mapping[str, object],
    activation: str,
    tile: Tile | None,
    precision: Precision,
) -> None:
    """Launch a forward kernel; `strides` begins with the numbers of tokens and outputs."""
    tokens, outputs = strides[:2]
    if tokens == 0:
        return
    height = values.shape[1]
    tile = tile or forward_tile(height, outputs, tokens, x.dtype, shared_bytes(x))
    check_rows(tile.rows, height)
    columns, starts, order = indices.columns, indices.starts, indices.order
    # A kernel without order or bias reads neither: any tensor may stand there.
    operands = (columns, starts, columns if order is None else order, values if bias is None else bias)
    with on_device(x):
        kernel(kernels())[(-(-outputs // tile.rows) * -(-tokens // tile.tokens),)](
            x, values, *operands, y, *strides, **constants,
            HEIGHT=height, ROWS=tile.rows, TOKENS=tile.tokens, STEP=tile.step, ORDER=order is not None,
            BIAS=bias is not None, ACTIVATION=as_activation(activation), PRECISION=precision, UPCAST=upcast(x),
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip


def launch_gradient(
    x: Tensor,
    gradient: Tensor,
    indices: Indices,
    lists: Lists,
    sizes: tuple[int, int, int],
    positions: Positions,
    constants: Mapping[str, Any],
    tile: GradientTile | None,
    precision: Precision,
) -> Tensor:
    """Launch the weight gradient and add up its shares; `sizes` are tokens, outputs and the gradient's stride."""
    if gradient.dtype != x.dtype or gradient.device != x.device:
        raise ValueError(
            f"Expected a gradient as X is, {x.dtype} on {x.device}. Got {gradient.dtype} on {gradient.device}. "
            "Convert one of them."
        )
    (tokens, outputs, pitch), height = sizes, constants["HEIGHT"]
    columns, starts, order = indices.columns, indices.starts, indices.order
    entries, groups = columns.shape[0], starts.shape[0] - 1
    if entries == 0 or tokens == 0:
        return x.new_zeros(entries, height, dtype=torch.float32)
    tile = tile or gradient_tile(height, x.dtype)
    check_rows(tile.rows, height)
    # Programs past the end of a list that is shorter than the longest leave at once; the others share the tokens.
    blocks = groups * (height // tile.rows)
    busy = blocks * -(-entries // (groups * tile.entries))
    shares = max(1, min(PARTIAL_SUMS // busy, -(-tokens // (4 * tile.step))))
    share = -(-tokens // (shares * tile.step)) * tile.step
    shares = -(-tokens // share)
    partial = x.new_empty(shares, entries, height, dtype=torch.float32)
    with on_device(x):
        kernels().weight_gradient[(blocks * -(-lists.longest // tile.entries), shares)](
            x, gradient, columns, starts, columns if order is None else order, partial,
            tokens, outputs, entries, share, pitch, *positions.strides(), **constants,
            ROWS=tile.rows, ENTRIES=tile.entries, STEP=tile.step, ORDER=order is not None, PRECISION=precision,
            UPCAST=upcast(x), num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return partial[0] if shares == 1 else partial.sum(0)


def image_positions(
    image: Tensor, kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[Positions, tuple[int, int]]:
    """Return where the windows of a padded image begin, and the size of the output."""
    _, height, width, channels = image.shape
    size = ((height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1)
    row, whole = width * channels, height * width * channels
    return Positions(stride[1] * channels, size[1], size[0] * size[1], stride[0] * row, whole), size


def common_run(x: Tensor, run: int, positions: Positions) -> int:
    """Return the elements that one load of X may take: a run of columns, where X's strides and address allow it."""
    address = x.data_ptr() // x.element_size() if x.data_ptr() % x.element_size() == 0 else 1
    return math.gcd(run, positions.token, positions.row, positions.image, address, WIDEST_RUN)


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
