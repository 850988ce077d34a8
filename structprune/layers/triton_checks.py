"""What the Triton kernels can take, said before they run, and what their launches want to know of a pattern's lists."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from structprune.layers.geometry import Geometry
from structprune.layers.pattern import HEIGHTS

__all__ = [
    "WIDEST_RUN",
    "Indices",
    "Lists",
    "check_image",
    "check_matrix",
    "check_rows",
    "checked_lists",
    "checked_out",
    "checked_values",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_RUN = 16  # elements; a load takes 16 bytes at most


@dataclass(frozen=True)
class Indices:
    """The index lists of a packed weight: `columns (C,)`, `starts (R + 1,)` and `order (outputs,)` or None, int32."""

    columns: Tensor
    starts: Tensor
    order: Tensor | None

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return what changes when a list is exchanged, written to or given other memory."""
        return tuple((one.data_ptr(), one._version) for one in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the lists that there are."""
        return (self.columns, self.starts) if self.order is None else (self.columns, self.starts, self.order)


@dataclass(frozen=True)
class Lists:
    """What was found when the index lists were read.

    Attributes
    ----------
    run
        A power of two up to 16: every group's list is made of runs of so many consecutive columns that begin at
        multiples of it, so that one load may take a run. It comes from the numbers themselves.
    longest
        Entries of the longest list.
    inputs
        The least number of inputs that the columns can mean.
    offsets
        The columns' places in images met so far, by kernel width, channels and image width.
    """

    run: int
    longest: int
    inputs: int
    offsets: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def places(self, columns: Tensor, kernel: tuple[int, int], channels: int, width: int) -> Tensor:
        """Return where each column lies in a padded image, (C,) int32, in elements from a window's corner."""
        key = (kernel[1], channels, width)
        if key not in self.offsets:
            self.offsets[key] = Geometry(kernel).offsets(columns, channels, width)
        return self.offsets[key]


@dataclass(frozen=True)
class Reading:
    """What was read from which state of the lists."""

    stamp: tuple[tuple[int, int], ...]
    starts: weakref.ref[Tensor]
    outputs: int
    lists: Lists


_readings = WeakIdKeyDictionary()


def checked_lists(indices: Indices, x: Tensor, outputs: int, inputs: int, height: int) -> Lists:
    """Return what the lists say, after checking that the kernels read and write nothing outside their tensors by them.

    The lists are read when they are new or were written to, which waits for the device: run a layer once before
    capturing a CUDA graph of it. Lists made in inference mode do not tell when they are written to and are read always.

    Raises
    ------
    ValueError
        Lists that are not those of a packed weight of `outputs` outputs in groups of `height` and `inputs` inputs.
    """
    check_shapes(indices, x, outputs, height)
    steady = not any(one.is_inference() for one in indices.tensors())
    known: Reading | None = _readings.get(indices.columns) if steady else None
    if known and known.outputs == outputs and known.starts() is indices.starts and known.stamp == indices.stamp():
        lists = known.lists
    else:
        lists = read_lists(indices, outputs)
        if steady:
            _readings[indices.columns] = Reading(indices.stamp(), weakref.ref(indices.starts), outputs, lists)
    if lists.inputs > inputs:
        raise ValueError(
            f"Expected columns below {inputs}, the number of inputs. Got {lists.inputs - 1}. "
            "Compare the width of the activations with that of the packed weight."
        )
    return lists


def check_shapes(indices: Indices, x: Tensor, outputs: int, height: int) -> None:
    """Refuse index lists by what is known without reading them."""
    if x.dtype not in DTYPES:
        raise ValueError(f"Expected X of float32, float16 or bfloat16. Got {x.dtype}. Convert X and the weight.")
    if height not in HEIGHTS:
        raise ValueError(f"Expected a height in {HEIGHTS}. Got {height}. Pack the weight in such groups.")
    if indices.columns.shape[0] * height >= 2**31:
        raise ValueError(
            f"Expected fewer than 2**31 values. Got {indices.columns.shape[0]} x {height}. Split the outputs."
        )
    groups = -(-outputs // height)
    lengths = {"columns": indices.columns.shape[0], "starts": groups + 1, "order": outputs}
    for (name, length), one in zip(lengths.items(), indices.tensors(), strict=False):
        if one.dtype != torch.int32 or one.shape != (length,) or not one.is_contiguous() or one.device != x.device:
            raise ValueError(
                f"Expected {name} as contiguous int32 ({length},) on {x.device}. Got {one.dtype} {tuple(one.shape)} "
                f"on {one.device}. Use the lists of a weight packed for {outputs} outputs in groups of {height}."
            )


def read_lists(indices: Indices, outputs: int) -> Lists:
    """Return what the numbers of the lists tell; waits for the device."""
    columns, starts = indices.columns.cpu().long(), indices.starts.cpu().long()
    lengths = starts.diff()
    if int(starts[0]) != 0 or int(starts[-1]) != columns.numel() or bool((lengths < 0).any()):
        raise ValueError(
            f"Expected starts that rise from 0 to {columns.numel()}. Got {int(starts[0])} to {int(starts[-1])}, least "
            f"step {int(lengths.min())}. Pack the weight again."
        )
    if columns.numel() and int(columns.min()) < 0:
        raise ValueError(f"Expected columns from 0. Got {int(columns.min())}. Pack the weight again.")
    if indices.order is not None:
        order = indices.order.cpu().long()
        if not torch.equal(order.sort().values, torch.arange(outputs)):
            raise ValueError(f"Expected an order that names each of {outputs} outputs once. Got others. Pack again.")
    inputs = int(columns.max()) + 1 if columns.numel() else 0
    return Lists(run_length(columns, starts), int(lengths.max()), inputs)


def run_length(columns: Tensor, starts: Tensor) -> int:
    """Return the greatest power of two up to 16 in whose aligned runs the columns of every group come."""
    run = WIDEST_RUN
    while run > 1:
        if not bool((starts % run).any()):
            pieces = columns.view(-1, run)
            first = pieces[:, :1]
            if not bool((first % run).any()) and torch.equal(pieces, first + torch.arange(run)):
                break
        run //= 2
    return run


def checked_values(x: Tensor, values: Tensor, columns: Tensor, bias: Tensor | None, outputs: int) -> int:
    """Return the height of the groups after checking values and bias."""
    if values.dim() != 2 or not values.is_contiguous() or values.dtype != x.dtype or values.device != x.device:
        raise ValueError(
            f"Expected contiguous values (C, G) of {x.dtype} on {x.device}. Got shape {tuple(values.shape)} of "
            f"{values.dtype} on {values.device}. Convert X or the values."
        )
    if columns.shape[0] != values.shape[0]:
        raise ValueError(
            f"Expected {values.shape[0]} columns, one a row of values. Got {columns.shape[0]}. Pack the weight again."
        )
    if bias is not None and (bias.shape != (outputs,) or not bias.is_contiguous() or bias.device != x.device):
        raise ValueError(
            f"Expected a contiguous bias ({outputs},) on {x.device}. Got {tuple(bias.shape)} on {bias.device}. "
            "Give one number an output."
        )
    return values.shape[1]


def check_matrix(matrix: Tensor, name: str, meaning: str) -> None:
    """Refuse what is no matrix with unit stride along its second dimension."""
    if matrix.dim() != 2 or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
        raise ValueError(
            f"Expected {name} as a matrix {meaning} with unit stride last. Got shape {tuple(matrix.shape)}, strides "
            f"{matrix.stride()}. Flatten the leading dimensions and call contiguous()."
        )


def check_image(image: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """Refuse images that the kernels cannot address."""
    if image.dim() != 4 or not image.is_contiguous():
        raise ValueError(
            f"Expected a contiguous padded image (N, height, width, channels). Got shape {tuple(image.shape)}, strides "
            f"{image.stride()}. Use structprune.layers.geometry.padded_nhwc."
        )
    _, height, width, channels = image.shape
    if not (1 <= kernel[0] <= height and 1 <= kernel[1] <= width and min(stride) >= 1):
        raise ValueError(
            f"Expected a kernel within the padded image of {height} x {width} and strides of at least 1. Got kernel "
            f"{kernel}, stride {stride}. Pad the image first."
        )
    if height * width * channels >= 2**31:
        raise ValueError(f"Expected images of fewer than 2**31 numbers. Got {height} x {width} x {channels}. Cut them.")


def checked_out(out: Tensor | None, x: Tensor, shape: tuple[int, ...], transposed: bool = False) -> Tensor:
    """Return the tensor to write to; with `transposed`, the first dimension may be the one of unit stride."""
    if out is None:
        return x.new_empty(shape)
    unit = shape[-1] <= 1 or out.stride(-1) == 1 or (transposed and out.stride(0) == 1)
    if out.shape != shape or out.dtype != x.dtype or out.device != x.device or not unit:
        raise ValueError(
            f"Expected out of shape {shape} of {x.dtype} on {x.device}, unit stride last. Got {tuple(out.shape)} of "
            f"{out.dtype} on {out.device}, strides {out.stride()}. Leave out to be made."
        )
    return out


def check_rows(rows: int, height: int) -> None:
    """Refuse a tile that does not divide the groups."""
    if height % rows:
        raise ValueError(f"Expected a tile whose rows divide the height {height}. Got {rows}. Take forward_tile's.")
