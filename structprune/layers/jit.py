"""Block-sparse layers on the CPU by generated machine code, at a time proportional to what is kept.

The kernels are those of :mod:`structprune.layers.jit_ir`. Here tensors are checked, once where they cannot change, and
turned into addresses. Indices are checked before the kernel reads by them, so that no call reads or writes outside its
tensors.
"""

from __future__ import annotations

import weakref
from functools import lru_cache

import torch
from torch import Tensor

from structprune.layers.activation import as_activation
from structprune.layers.jit_engine import Worker, available, compiled, has_bfloat16, isa_of_this_machine, run
from structprune.layers.jit_key import Isa, KernelKey, Storage

__all__ = ["available", "grouped_conv2d", "grouped_linear"]

HEIGHTS = (16, 32, 64, 128, 256)
PANEL_BYTES = 384 << 10  # activations of one panel: with the values of a group they share a second-level cache
LEAST_WORK = 1 << 19  # multiply-adds below which waking other threads costs more than they save
TASKS_PER_THREAD = 4


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
    if x.dim() != 2 or not x.is_cpu:
        raise ValueError(
            f"Expected x as a matrix (tokens, inputs) on the CPU. Got shape {tuple(x.shape)} on {x.device}. "
            "Flatten the leading dimensions."
        )
    tokens, inputs = x.shape
    record = _checked(values, columns, starts, order, outputs, inputs)
    worker, key = record.kernel(x.dtype, values.dtype, activation, isa, even=True)
    out = _result(out, (tokens, outputs), x.dtype)
    if not tokens:
        return out
    if key.storage is Storage.WIDENED:
        x = x.float()
    if x.stride(1) != 1:
        x = x.contiguous()
    bases = _row_bases(tokens, x.stride(0) if tokens > 1 else inputs)
    _launch(worker, key, x, tokens, bases, (values, columns, starts, order), bias, out, max(1, inputs))
    return out


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
    record = _checked(values, columns, starts, order, outputs, kernel[0] * kernel[1] * channels)
    worker, key = record.kernel(image.dtype, values.dtype, activation, isa, even=channels % 2 == 0)
    size = ((high - kernel[0]) // stride[0] + 1, (wide - kernel[1]) // stride[1] + 1)
    out = _result(out, (number, *size, outputs), image.dtype)
    if not number:
        return out
    if key.storage is Storage.WIDENED:
        image = image.float()
    bases = _corners(number, high, wide, channels, size, stride)
    packed = (values, record.offsets(columns, kernel[1], channels, wide), starts, order)
    _launch(worker, key, image, bases.numel(), bases, packed, bias, out, channels * stride[0] * stride[1])
    return out


class _Checked:
    """Index lists of one packed weight that were found in order, and what follows from them.

    It holds the lists weakly and remembers their versions, so that changed or other lists are checked anew.
    """

    def __init__(self, lists: tuple[Tensor | None, ...], outputs: int, inputs: int, height: int) -> None:
        columns, starts, order = lists
        assert columns is not None and starts is not None
        self.paired = _check_indices(columns, starts, order, outputs, inputs, height)
        self.size = (outputs, inputs, height)
        key = id(columns)
        self.references = tuple(None if t is None else weakref.ref(t, lambda _: _records.pop(key, None)) for t in lists)
        self.stamps = tuple(_stamp(t) for t in lists)
        self.steady = not any(t is not None and t.is_inference() for t in lists)
        self._kernels: dict[tuple[object, ...], tuple[Worker, KernelKey]] = {}
        self._offsets: dict[tuple[int, int, int], Tensor] = {}

    def holds(self, lists: tuple[Tensor | None, ...], size: tuple[int, int, int]) -> bool:
        """Return whether these are the lists that were checked, unchanged."""
        if self.size != size:
            return False
        for reference, stamp, given in zip(self.references, self.stamps, lists, strict=True):
            if reference is None or given is None:
                if reference is not given:
                    return False
            elif reference() is not given or stamp != (given.data_ptr(), given._version):
                return False
        return True

    def kernel(
        self, dtype: torch.dtype, of_values: torch.dtype, activation: str, isa: Isa | None, even: bool
    ) -> tuple[Worker, KernelKey]:
        """Return the code for these types; pairs of columns lie in one word where channels are ``even``."""
        request = (dtype, of_values, activation, isa, even)
        known = self._kernels.get(request)
        if known is None:
            if dtype not in (torch.float32, torch.bfloat16) or of_values != dtype:
                raise ValueError(
                    f"Expected activations and values of one type, float32 or bfloat16. Got {dtype} and {of_values}. "
                    "Cast one of them."
                )
            chosen = isa or isa_of_this_machine()
            storage = Storage.FLOAT if dtype == torch.float32 else _storage(chosen, self.paired and even)
            key = KernelKey(self.size[2], storage, chosen, as_activation(activation))
            known = self._kernels[request] = (compiled(key), key)
        return known

    def offsets(self, columns: Tensor, kernel_width: int, channels: int, padded_width: int) -> Tensor:
        """Return where each column lies in a padded image, in elements from a corner, ``(C,)`` int32."""
        key = (kernel_width, channels, padded_width)
        if key not in self._offsets:
            wide = columns.long()
            tap, channel = wide // channels, wide % channels
            place = (tap // kernel_width * padded_width + tap % kernel_width) * channels + channel
            if place.numel() and int(place.max()) > torch.iinfo(torch.int32).max:
                raise ValueError(
                    f"Expected a window of fewer than 2^31 elements. Got an image of width {padded_width} and "
                    f"{channels} channels. Cut the image into tiles."
                )
            self._offsets[key] = place.to(torch.int32)
        return self._offsets[key]


_records: dict[int, _Checked] = {}


def _stamp(tensor: Tensor | None) -> tuple[int, int] | None:
    """What changes when a tensor is written to or given other memory."""
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _checked(
    values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, outputs: int, inputs: int
) -> _Checked:
    """Check the packed weight, its index lists only where they are new or were written to."""
    if values.dim() != 2 or values.shape[1] not in HEIGHTS or not values.is_contiguous() or not values.is_cpu:
        raise ValueError(
            f"Expected contiguous values (C, G) with G in {HEIGHTS}. Got shape {tuple(values.shape)}, strides "
            f"{values.stride()}. Pack the weight with one of these heights."
        )
    if columns.shape[0] != values.shape[0]:
        raise ValueError(
            f"Expected one column per row of values, {values.shape[0]}. Got {tuple(columns.shape)}. "
            "Take values and columns from one packed weight."
        )
    lists, size = (columns, starts, order), (outputs, inputs, values.shape[1])
    known = _records.get(id(columns))
    if known is not None and known.holds(lists, size):
        return known
    record = _Checked(lists, *size)
    if record.steady:
        _records[id(columns)] = record
    return record


def _check_indices(
    columns: Tensor, starts: Tensor, order: Tensor | None, outputs: int, inputs: int, height: int
) -> bool:
    """Check every index that the kernel reads by; return whether the columns come as pairs 2i, 2i + 1."""
    groups = -(-outputs // height)
    expected = {"columns": (columns, columns.numel()), "starts": (starts, groups + 1)}
    if order is not None:
        expected["order"] = (order, outputs)
    for name, (given, length) in expected.items():
        if given.dtype != torch.int32 or given.shape != (length,) or not given.is_contiguous() or not given.is_cpu:
            raise ValueError(
                f"Expected {name} as contiguous int32 ({length},) on the CPU. Got {given.dtype} "
                f"{tuple(given.shape)} on {given.device}. Use the lists of the packed weight for {outputs} outputs."
            )
    count = columns.numel()
    if int(starts[0]) != 0 or int(starts[-1]) != count or bool((starts.diff() < 0).any()):
        raise ValueError(
            f"Expected starts that rise from 0 to {count}. Got {int(starts[0])} to {int(starts[-1])}, "
            f"smallest step {int(starts.diff().min())}. Pack the weight again."
        )
    if count and not (0 <= int(columns.min()) and int(columns.max()) < inputs):
        raise ValueError(
            f"Expected columns from 0 to {inputs - 1}. Got {int(columns.min())} to {int(columns.max())}. "
            "Compare the activations' width with that of the packed weight."
        )
    if order is not None and not torch.equal(order.sort().values.long(), torch.arange(outputs)):
        raise ValueError(f"Expected order to name each of {outputs} outputs once. Got others. Pack the weight again.")
    if count % 2 or bool((starts % 2).any()):
        return False
    first, second = columns[::2], columns[1::2]
    return bool((first % 2 == 0).all()) and bool((second == first + 1).all())


def _result(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype)
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous() or not out.is_cpu:
        raise ValueError(
            f"Expected out as contiguous {dtype} {shape} on the CPU. Got {out.dtype} {tuple(out.shape)}, strides "
            f"{out.stride()}. Leave it out to have one made."
        )
    return out


@lru_cache(maxsize=64)
def _row_bases(tokens: int, stride: int) -> Tensor:
    """First element of each row, ``(tokens,)`` int64."""
    return torch.arange(tokens) * stride


@lru_cache(maxsize=64)
def _corners(
    number: int, high: int, wide: int, channels: int, size: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """First element of each window of an image ``(number, high, wide, channels)``, ``(number * Ho * Wo,)`` int64."""
    image = torch.arange(number).view(-1, 1, 1) * high
    down = torch.arange(size[0]).view(1, -1, 1) * stride[0]
    across = torch.arange(size[1]).view(1, 1, -1) * stride[1]
    return (((image + down) * wide + across) * channels).flatten()


def _storage(isa: Isa, paired: bool) -> Storage:
    """Return how bfloat16 is computed."""
    if isa is not Isa.AVX512 or not has_bfloat16():
        return Storage.WIDENED
    return Storage.PAIRS if paired else Storage.LOOSE


@lru_cache(maxsize=256)
def _shares(tokens: int, groups: int, tile: int, token_bytes: int, threads: int) -> tuple[int, int]:
    """Return the tokens of a panel and the groups of a chunk: the work is dealt in panels times chunks."""
    panel = max(1, PANEL_BYTES // token_bytes // tile) * tile
    if threads > 1:
        panel = min(panel, -(-tokens // threads // tile) * tile)
    panel = max(1, min(panel, tokens))
    if threads == 1:
        return panel, groups
    panels = -(-tokens // panel)
    return panel, max(1, groups // -(-TASKS_PER_THREAD * threads // panels))


def _launch(
    worker: Worker,
    key: KernelKey,
    x: Tensor,
    tokens: int,
    bases: Tensor,
    packed: tuple[Tensor, Tensor, Tensor, Tensor | None],
    bias: Tensor | None,
    out: Tensor,
    numbers: int,
) -> None:
    """Hand the addresses to the kernel. One more token of a panel takes ``numbers`` more activations of cache."""
    values, columns, starts, order = packed
    outputs = out.shape[-1]
    groups = starts.numel() - 1
    if bias is not None:
        if bias.shape != (outputs,) or not bias.is_cpu:
            raise ValueError(
                f"Expected a bias of shape ({outputs},) on the CPU. Got {tuple(bias.shape)} on {bias.device}. "
                "Give one per output."
            )
        bias = bias.float().contiguous()
    threads = torch.get_num_threads() if tokens * values.numel() > LEAST_WORK else 1
    panel, chunk = _shares(tokens, groups, key.tokens, numbers * x.element_size(), threads)
    tasks, chunks = -(-tokens // panel) * -(-groups // chunk), -(-groups // chunk)
    fields = (
        0, tasks, chunks, chunk, panel, tokens, groups, outputs,
        x.data_ptr(), values.data_ptr(), columns.data_ptr(), starts.data_ptr(),
        0 if order is None else order.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
        bases.data_ptr(), numbers * x.element_size(),
    )  # fmt: skip
    run(worker, fields, threads)
