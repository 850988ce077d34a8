"""Index lists of packed weights: checked once, then known by their identity until they are written to.

A kernel reads and writes wherever its indices say, so no call may reach it with lists that were not checked. The check
costs more than a small product, hence what it found is remembered as long as the lists live.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import torch
from torch import Tensor

from structprune.layers.activation import as_activation
from structprune.layers.jit_call import Prepared
from structprune.layers.jit_engine import Code, compiled, has_bfloat16, isa_of_this_machine
from structprune.layers.jit_key import Isa, KernelKey, Storage

__all__ = ["HEIGHTS", "IndexLists", "checked_lists", "known_lists"]

HEIGHTS = (16, 32, 64, 128, 256)
MOST_PREPARED = 64  # calls of one weight, such as of many numbers of tokens, that are kept ready


class IndexLists:
    """Index lists of one packed weight that were found in order, and what follows from them.

    It holds the lists weakly and remembers their versions, so that changed or other lists are checked anew.

    Attributes
    ----------
    size
        ``(outputs, inputs, G)``.
    paired
        Whether the columns come as pairs 2i, 2i + 1.
    steady
        Whether changes of the lists can be seen; tensors made in inference mode count none.
    calls
        Calls by what was asked of them, see `keep`.
    """

    def __init__(self, columns: Tensor, starts: Tensor, order: Tensor | None, size: tuple[int, int, int]) -> None:
        self.paired = check_indices(columns, starts, order, *size)
        self.size = size
        self.steady = not (
            columns.is_inference() or starts.is_inference() or (order is not None and order.is_inference())
        )
        key = id(columns)
        self._columns = weakref.ref(columns, lambda _: _known.pop(key, None))
        self._starts = weakref.ref(starts, lambda _: _known.pop(key, None))
        self._order = none if order is None else weakref.ref(order, lambda _: _known.pop(key, None))
        self._columns_at, self._columns_version = stamp(columns)
        self._starts_at, self._starts_version = stamp(starts)
        self._order_at, self._order_version = stamp(order)
        self.calls: dict[Hashable, Prepared] = {}
        self._kernels: dict[Hashable, tuple[Code, KernelKey]] = {}
        self._offsets: dict[tuple[int, int, int], Tensor] = {}

    def hold(self, columns: Tensor, starts: Tensor, order: Tensor | None) -> bool:
        """Return whether these are the lists that were checked, unchanged; every call asks, so it is written flat."""
        return (
            self._columns() is columns
            and self._starts() is starts
            and self._order() is order
            and columns._version == self._columns_version
            and columns.data_ptr() == self._columns_at
            and starts._version == self._starts_version
            and starts.data_ptr() == self._starts_at
            and (order is None or (order._version == self._order_version and order.data_ptr() == self._order_at))
        )

    def keep(self, request: Hashable, call: Prepared) -> None:
        """Keep a call for the next like it."""
        if len(self.calls) >= MOST_PREPARED:
            self.calls.clear()
        self.calls[request] = call

    def kernel(
        self, dtype: torch.dtype, of_values: torch.dtype, activation: str, isa: Isa | None, even: bool
    ) -> tuple[Code, KernelKey]:
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
            storage = Storage.FLOAT if dtype == torch.float32 else storage_of_bfloat16(chosen, self.paired and even)
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


_known: dict[int, IndexLists] = {}


def known_lists(columns: Tensor, starts: Tensor, order: Tensor | None) -> IndexLists | None:
    """Return what is known of these lists, None where they are new or were written to."""
    known = _known.get(id(columns))
    return known if known is not None and known.hold(columns, starts, order) else None


def checked_lists(
    values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, outputs: int, inputs: int
) -> IndexLists:
    """Check the packed weight, its index lists only where they are new, were written to or meet other sizes.

    Raises
    ------
    ValueError
        If a shape, type or index is not that of a packed weight of these sizes.
    """
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
    size = (outputs, inputs, values.shape[1])
    known = known_lists(columns, starts, order)
    if known is not None and known.size == size:
        return known
    lists = IndexLists(columns, starts, order, size)
    if lists.steady:
        _known[id(columns)] = lists
    return lists


def none() -> None:
    """Stand in for the reference to an order where there is none."""


def stamp(tensor: Tensor | None) -> tuple[int, int]:
    """Return what changes when a tensor is given other memory or is written to: its address and its version."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def check_indices(
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


def storage_of_bfloat16(isa: Isa, paired: bool) -> Storage:
    """Return how bfloat16 is computed."""
    if isa is not Isa.AVX512 or not has_bfloat16():
        return Storage.WIDENED
    return Storage.PAIRS if paired else Storage.LOOSE
