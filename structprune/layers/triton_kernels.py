"""Triton kernels of the grouped layers: gather a group's few inputs, multiply them densely.

Output group r multiplies the inputs that `columns[starts[r]:starts[r + 1]]` lists by the rows of `values` beside them.
A program owns `ROWS` outputs of one group and `TOKENS` tokens, and walks through the group's list `STEP` entries at a
time: it gathers a tile of X through the list and gives two dense tiles to the tensor cores. Work is proportional to
the stored entries; what a group lacks is never touched.

How fast that is depends on the loads. Feature-major X (inputs, tokens) is contiguous along the tokens, so that every
list entry starts a wide load. Row-major X (tokens, inputs) is contiguous along the inputs, so that a load is as wide
as the runs of consecutive columns: `RUN` tells the compiler their length, and the masks are written as constants of a
run, else the compiler would fall back to single elements.

The functions are plain Python until `kernels()` hands them to Triton: this file imports without Triton, and the
environment variable TRITON_INTERPRET is read when the first kernel is asked for. They keep three rules of Triton's
interpreter, which runs them on a CPU: bfloat16 is converted before `tl.dot` (there it would be silently wrong), a loop
index is never treated as a tensor (there it is a Python int), and all addresses come from one pointer plus integers.

Gathering thin tiles to multiply them densely is the idea of Zheng et al., "PIT: Optimization of Dynamic Sparse Deep
Learning Models via Permutation Invariant Transformation", SOSP 2023, https://arxiv.org/abs/2301.10936.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

# Triton's names, bound to the real ones when `kernels` loads them; annotations of kernels may use no others.
tl: Any = None  # triton.language
tensor = Any  # tl.tensor: what a program knows when it runs, pointers and numbers alike
constexpr = Any  # tl.constexpr: what is known when the program is compiled


@dataclass(frozen=True)
class Kernels:
    """The kernels as Triton launches them: `kernel[grid](...)`."""

    row_major: Any
    feature_major: Any
    weight_gradient: Any


@cache
def kernels() -> Kernels:
    """Return the kernels, compiled on their first launch.

    Raises
    ------
    ImportError
        Triton is not installed.
    """
    try:
        jit = importlib.import_module("triton").jit
    except ImportError as missing:
        raise ImportError(
            "Expected Triton. Got none. Run `pip install triton`, or choose another backend."
        ) from missing
    # A kernel finds what it calls among the globals of its file: the language, and other functions given to Triton.
    helpers = {helper.__name__: jit(helper) for helper in (token_bases, group_bounds, epilogue, multiply)}
    language = importlib.import_module("triton.language")
    globals().update(helpers, tl=language, tensor=language.tensor, constexpr=language.constexpr)
    return Kernels(jit(row_major), jit(feature_major), jit(weight_gradient))


def token_bases(
    token: tensor,
    stride_token: tensor,
    image_width: tensor,
    image_size: tensor,
    stride_row: tensor,
    stride_image: tensor,
    IMAGE: constexpr,
    RUN: constexpr,
) -> tensor:
    """Return where the gathered inputs of each token begin in X, counted in elements.

    A token of a convolution is one output position: its window begins at the same place of the padded image.
    """
    if IMAGE:
        image = token // image_size
        position = token - image * image_size
        row = position // image_width
        base = image.to(tl.int64) * stride_image + row * stride_row + (position - row * image_width) * stride_token
    else:
        base = token.to(tl.int64) * stride_token
    # The launch makes sure of it: all strides are multiples of RUN.
    return tl.multiple_of(base, RUN)


def group_bounds(starts: tensor, block: tensor, HEIGHT: constexpr, ROWS: constexpr) -> tensor:
    """Return a group's first entry, the number of its entries, and the stored rows that the block owns."""
    group = block // (HEIGHT // ROWS)
    start = tl.load(starts + group)
    count = tl.load(starts + group + 1) - start
    row = block * ROWS + tl.arange(0, ROWS)
    return start, count, row


def epilogue(total: tensor, bias: tensor, ACTIVATION: constexpr) -> tensor:
    """Return activation(total + bias) in float32; GELU is the exact one."""
    total += bias
    if ACTIVATION == "relu":
        total = tl.where(total < 0, 0.0, total)  # Not a maximum: nan stays nan, as in torch.
    elif ACTIVATION == "gelu":
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    return total


def multiply(left: tensor, right: tensor, total: tensor, PRECISION: constexpr, UPCAST: constexpr) -> tensor:
    """Return total + left @ right, accumulated in float32."""
    if UPCAST:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


def row_major(
    x: tensor,
    values: tensor,
    columns: tensor,
    starts: tensor,
    order: tensor,
    bias: tensor,
    y: tensor,
    tokens: tensor,
    outputs: tensor,
    stride_y: tensor,
    stride_token: tensor,
    image_width: tensor,
    image_size: tensor,
    stride_row: tensor,
    stride_image: tensor,
    HEIGHT: constexpr,
    ROWS: constexpr,
    TOKENS: constexpr,
    STEP: constexpr,
    RUN: constexpr,
    IMAGE: constexpr,
    ORDER: constexpr,
    BIAS: constexpr,
    ACTIVATION: constexpr,
    PRECISION: constexpr,
    UPCAST: constexpr,
) -> None:
    """Y (tokens, outputs) of X with a token's inputs side by side: a matrix, or a padded image with IMAGE."""
    blocks = tl.cdiv(outputs, ROWS)
    # Neighbouring programs share their tokens, so that X comes from the second-level cache after its first reader.
    block = tl.program_id(0) % blocks
    token = tl.program_id(0) // blocks * TOKENS + tl.arange(0, TOKENS)
    start, count, row = group_bounds(starts, block, HEIGHT, ROWS)
    base = token_bases(token, stride_token, image_width, image_size, stride_row, stride_image, IMAGE, RUN)

    step = tl.arange(0, STEP)
    run = step // RUN * RUN  # Entries of a run share its first one's mask.
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for entry in range(0, count, STEP):
        column = tl.load(columns + start + entry + step, mask=entry + run < count, other=0)
        column = tl.multiple_of(tl.max_contiguous(column, RUN), RUN)
        weight = tl.load(
            values + (start + entry + step)[:, None] * HEIGHT + (row % HEIGHT)[None, :],
            mask=(entry + step < count)[:, None],
            other=0.0,
        )
        inside = (token < tokens)[:, None] & (entry + run < count)[None, :]
        gathered = tl.load(x + base[:, None] + column[None, :], mask=inside, other=0.0)
        total = multiply(gathered, weight, total, PRECISION, UPCAST)

    place = row
    if ORDER:
        place = tl.load(order + row, mask=row < outputs, other=0)
    offset = tl.zeros((ROWS,), dtype=tl.float32)
    if BIAS:
        offset = tl.load(bias + place, mask=row < outputs, other=0.0).to(tl.float32)
    result = epilogue(total, offset[None, :], ACTIVATION)
    target = y + token.to(tl.int64)[:, None] * stride_y + place[None, :]
    tl.store(target, result.to(y.dtype.element_ty), mask=(token < tokens)[:, None] & (row < outputs)[None, :])


def feature_major(
    x: tensor,
    values: tensor,
    columns: tensor,
    starts: tensor,
    order: tensor,
    bias: tensor,
    y: tensor,
    tokens: tensor,
    outputs: tensor,
    stride_y: tensor,
    stride_y_token: tensor,
    stride_x: tensor,
    HEIGHT: constexpr,
    ROWS: constexpr,
    TOKENS: constexpr,
    STEP: constexpr,
    ORDER: constexpr,
    BIAS: constexpr,
    ACTIVATION: constexpr,
    PRECISION: constexpr,
    UPCAST: constexpr,
) -> None:
    """Y (outputs, tokens) of X (inputs, tokens); Y may be the transpose of a row-major matrix, X may not."""
    blocks = tl.cdiv(outputs, ROWS)
    block = tl.program_id(0) % blocks
    token = tl.program_id(0) // blocks * TOKENS + tl.arange(0, TOKENS)
    start, count, row = group_bounds(starts, block, HEIGHT, ROWS)

    step = tl.arange(0, STEP)
    # Warp-group matrix instructions want at least 64 rows of the result: outputs if there are so many, else tokens.
    TALL: tl.constexpr = ROWS >= 64
    total = tl.zeros((ROWS, TOKENS) if TALL else (TOKENS, ROWS), dtype=tl.float32)
    for entry in range(0, count, STEP):
        inside = (entry + step < count)[:, None]
        column = tl.load(columns + start + entry + step, mask=entry + step < count, other=0)
        weight = tl.load(
            values + (start + entry + step)[:, None] * HEIGHT + (row % HEIGHT)[None, :], mask=inside, other=0.0
        )
        source = x + column.to(tl.int64)[:, None] * stride_x + token[None, :]
        gathered = tl.load(source, mask=inside & (token < tokens)[None, :], other=0.0)
        if TALL:
            total = multiply(tl.trans(weight), gathered, total, PRECISION, UPCAST)
        else:
            total = multiply(tl.trans(gathered), weight, total, PRECISION, UPCAST)
    if not TALL:
        total = tl.trans(total)

    place = row
    if ORDER:
        place = tl.load(order + row, mask=row < outputs, other=0)
    offset = tl.zeros((ROWS,), dtype=tl.float32)
    if BIAS:
        offset = tl.load(bias + place, mask=row < outputs, other=0.0).to(tl.float32)
    result = epilogue(total, offset[:, None], ACTIVATION)
    target = y + place.to(tl.int64)[:, None] * stride_y + token.to(tl.int64)[None, :] * stride_y_token
    tl.store(target, result.to(y.dtype.element_ty), mask=(row < outputs)[:, None] & (token < tokens)[None, :])


def weight_gradient(
    x: tensor,
    gradient: tensor,
    columns: tensor,
    starts: tensor,
    order: tensor,
    partial: tensor,
    tokens: tensor,
    outputs: tensor,
    entries: tensor,
    share: tensor,
    stride_gradient: tensor,
    stride_token: tensor,
    image_width: tensor,
    image_size: tensor,
    stride_row: tensor,
    stride_image: tensor,
    HEIGHT: constexpr,
    ROWS: constexpr,
    ENTRIES: constexpr,
    STEP: constexpr,
    RUN: constexpr,
    IMAGE: constexpr,
    FEATURES: constexpr,
    ORDER: constexpr,
    PRECISION: constexpr,
    UPCAST: constexpr,
) -> None:
    """d loss / d values (entries, HEIGHT) from X and d loss / d Y, one partial sum for each `share` of the tokens.

    A program owns ENTRIES entries of one group, ROWS of its outputs and `share` tokens. Both matrices are row-major, or
    both feature-major with FEATURES: then `stride_token` and `stride_gradient` step from feature to feature.
    """
    # Rows that a ragged last group stores beyond the outputs are owned too: their gradient, zero, must be written.
    blocks = tl.cdiv(outputs, HEIGHT) * (HEIGHT // ROWS)
    block = tl.program_id(0) % blocks
    first = tl.program_id(0) // blocks * ENTRIES
    start, count, row = group_bounds(starts, block, HEIGHT, ROWS)
    if first >= count:
        return
    lane = tl.arange(0, ENTRIES)
    run = lane // RUN * RUN
    column = tl.load(columns + start + first + lane, mask=first + run < count, other=0)
    column = tl.multiple_of(tl.max_contiguous(column, RUN), RUN)
    place = row
    if ORDER:
        place = tl.load(order + row, mask=row < outputs, other=0)

    step = tl.arange(0, STEP)
    total = tl.zeros((ENTRIES, ROWS), dtype=tl.float32)
    for past in range(0, share, STEP):
        token = tl.program_id(1) * share + past + step
        known = token < tokens
        if FEATURES:
            source = x + column.to(tl.int64)[:, None] * stride_token + token[None, :]
            gathered = tl.load(source, mask=(first + lane < count)[:, None] & known[None, :], other=0.0)
            source = gradient + place.to(tl.int64)[:, None] * stride_gradient + token[None, :]
            slope = tl.trans(tl.load(source, mask=(row < outputs)[:, None] & known[None, :], other=0.0))
        else:
            base = token_bases(token, stride_token, image_width, image_size, stride_row, stride_image, IMAGE, RUN)
            inside = known[:, None] & (first + run < count)[None, :]
            gathered = tl.trans(tl.load(x + base[:, None] + column[None, :], mask=inside, other=0.0))
            source = gradient + token.to(tl.int64)[:, None] * stride_gradient + place[None, :]
            slope = tl.load(source, mask=known[:, None] & (row < outputs)[None, :], other=0.0)
        total = multiply(gathered, slope, total, PRECISION, UPCAST)

    entry = tl.program_id(1).to(tl.int64) * entries + start + first + lane
    target = partial + entry[:, None] * HEIGHT + (row % HEIGHT)[None, :]
    tl.store(target, total, mask=(first + lane < count)[:, None])
