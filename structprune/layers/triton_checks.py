"""What the Triton kernels can take, said before they run, and what their launches want to know of a pattern's lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from structprune.layers.pattern import HEIGHTS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_RUN = 16  # elements; a load takes 16 bytes at most


def checked_outputs(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
    outputs: int | None,
) -> int:
    """Check the operands against each other and return the number of outputs."""
    if values.dim() != 2 or not values.is_contiguous() or values.dtype != x.dtype or values.device != x.device:
        raise ValueError(
            f"Expected contiguous values (C, G) of {x.dtype} on {x.device}. Got shape {tuple(values.shape)} of "
            f"{values.dtype} on {values.device}. Convert X or the values."
        )
    height, groups = values.shape[1], starts.shape[0] - 1
    if outputs is None:
        told = [order, bias, None if out is None else out[(0,) * (out.dim() - 1)]]
        outputs = next((one.numel() for one in told if one is not None), groups * height)
    if outputs <= (groups - 1) * height or outputs > groups * height:
        raise ValueError(
            f"Expected {groups} groups of {height} outputs to hold all outputs. Got {outputs} outputs. "
            "Give the pattern's own number of outputs."
        )
    check_operands(x, columns, starts, order, outputs, height)
    if columns.shape[0] != values.shape[0]:
        raise ValueError(
            f"Expected {values.shape[0]} columns, one a row of values. Got {columns.shape[0]}. Pack again."
        )
    if bias is not None and (bias.shape != (outputs,) or not bias.is_contiguous() or bias.device != x.device):
        raise ValueError(
            f"Expected a contiguous bias ({outputs},) on {x.device}. Got {tuple(bias.shape)} on {bias.device}. "
            "Give one number an output."
        )
    return outputs


def check_operands(x: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, outputs: int, height: int) -> None:
    """Refuse what the kernels would read wrongly."""
    if x.dtype not in DTYPES:
        raise ValueError(f"Expected X of float32, float16 or bfloat16. Got {x.dtype}. Convert X and the weight.")
    if height not in HEIGHTS:
        raise ValueError(f"Expected a height in {HEIGHTS}. Got {height}. Pack the weight in such groups.")
    if columns.shape[0] * height >= 2**31:
        raise ValueError(f"Expected fewer than 2**31 values. Got {columns.shape[0]} x {height}. Split the outputs.")
    for name, indices in (("columns", columns), ("starts", starts), ("order", order)):
        if indices is None:
            continue
        if indices.dtype != torch.int32 or indices.dim() != 1 or not indices.is_contiguous():
            raise ValueError(
                f"Expected {name} as contiguous int32 in one dimension. Got {indices.dtype} {tuple(indices.shape)}. "
                "Pack the weight again."
            )
        if indices.device != x.device:
            raise ValueError(f"Expected {name} on {x.device}, with X. Got {indices.device}. Move the module.")
    if order is not None and order.shape[0] != outputs:
        raise ValueError(f"Expected an order of {outputs} outputs. Got {order.shape[0]}. Pack the weight again.")


def checked_positions(image: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """Return stride of a token, width and size of an output image, stride of a row and of an image."""
    if image.dim() != 4 or not image.is_contiguous():
        raise ValueError(
            f"Expected a contiguous padded image (N, height, width, channels). Got shape {tuple(image.shape)}, strides "
            f"{image.stride()}. Permute the channels to the end and pad."
        )
    _, height, width, channels = image.shape
    if (size[0] - 1) * stride[0] >= height or (size[1] - 1) * stride[1] >= width:
        raise ValueError(
            f"Expected an output whose windows begin in the image of {height} x {width}. Got {size} with stride "
            f"{stride}. Pad the image first."
        )
    if height * width * channels >= 2**31:
        raise ValueError(f"Expected images of fewer than 2**31 numbers. Got {height} x {width} x {channels}. Cut them.")
    return (
        stride[1] * channels,
        size[1],
        size[0] * size[1],
        stride[0] * width * channels,
        height * width * channels,
    )


def checked_out(out: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor to write to."""
    if out is None:
        return x.new_empty(shape)
    if out.shape != shape or out.dtype != x.dtype or out.device != x.device or (out.stride(-1) != 1 and shape[-1] > 1):
        raise ValueError(
            f"Expected out of shape {shape} of {x.dtype} on {x.device}, unit stride last. Got {tuple(out.shape)} of "
            f"{out.dtype} on {out.device}, strides {out.stride()}. Leave out to be made."
        )
    return out


def check_rows(rows: int, height: int) -> None:
    """Refuse a tile that does not divide the groups."""
    if height % rows:
        raise ValueError(f"Expected a tile whose rows divide the height {height}. Got {rows}. Take forward_tile's.")


@dataclass(frozen=True)
class Lists:
    """What the launches want to know of the groups' lists of columns.

    Attributes
    ----------
    run
        A power of two up to 16: every list is made of runs of so many consecutive columns that begin at multiples of
        it, so that a load may take a run at once.
    longest
        Entries of the longest list.
    """

    run: int
    longest: int


def lists_of(columns: Tensor, starts: Tensor) -> Lists:
    """Return what the numbers themselves tell, kept as long as `columns` lives unchanged.

    The first call waits for the device: run a layer once before capturing a CUDA graph of it.
    """
    known = _lists.get(columns)
    if known is None or known[0] != columns._version:
        known = (columns._version, measured_lists(columns.cpu().long(), starts.cpu().long()))
        _lists[columns] = known
    return known[1]


_lists = WeakIdKeyDictionary()


def measured_lists(columns: Tensor, starts: Tensor) -> Lists:
    """Return what :func:`lists_of` tells."""
    longest = int(starts.diff().max())
    run = WIDEST_RUN
    while run > 1:
        if not bool((starts % run).any()):
            heads = columns.view(-1, run)
            first = heads[:, :1]
            if not bool((first % run).any()) and torch.equal(heads, first + torch.arange(run)):
                break
        run //= 2
    return Lists(run, longest)
