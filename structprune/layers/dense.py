"""The dense layers that a block-sparse one must beat: torch's own, and oneDNN's with the weight packed beforehand.

Both unpack the weight once and keep it until the values change. A change is seen by torch's count of in-place changes;
writes through ``values.data`` escape that count, as they escape autograd: call :func:`forget` after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from structprune.layers.activation import Activation, activate
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry, empty_channels_last, weight_of_columns
from structprune.layers.onednn import missing, multiplies, packed_linear, packed_weight
from structprune.layers.pack import Packed, unpack

__all__ = ["DENSE", "DENSE_ONEDNN", "Dense", "DenseOneDNN", "forget"]


@dataclass(frozen=True)
class Kept:
    """A weight made of values, and what tells whether they are the same still."""

    weight: Tensor
    stamp: tuple[object, ...]


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def forget() -> None:
    """Drop all unpacked weights; the next calls make them anew."""
    _kept.clear()


def unpacked(packed: Packed, form: str, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``make`` of the unpacked weight, the one of the last call if nothing changed since."""
    values = packed.values
    if values.is_inference():  # such tensors do not count their changes
        return make(unpack(packed))
    # The count of the index lists stands for their content: a loaded state writes into them in place.
    lists = [packed.columns, packed.starts, *([] if packed.order is None else [packed.order])]
    stamp: tuple[object, ...] = (form, packed.outputs, packed.inputs, values.data_ptr(), values._version)
    stamp += tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in lists)
    known = _kept.get(values)
    if known is None or known.stamp != stamp:
        known = _kept[values] = Kept(make(unpack(packed)), stamp)
    return known.weight


@final
@dataclass(frozen=True)
class Dense(Backend):
    """torch's own dense products with the zeros stored."""

    @property
    def name(self) -> str:
        """Return ``"dense"``."""
        return "dense"

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Return the dense linear layer."""
        return activate(F.linear(x, unpacked(packed, "matrix", same), bias), activation)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Return the dense convolution, channels innermost."""

        def kernels(matrix: Tensor) -> Tensor:
            return weight_of_columns(matrix, geometry).contiguous(memory_format=torch.channels_last)

        weight = unpacked(packed, f"kernels {geometry.kernel}", kernels)
        image = x.contiguous(memory_format=torch.channels_last)
        y = activate(F.conv2d(image, weight, bias, geometry.stride, geometry.padding), activation)
        expected = empty_channels_last(x, packed.outputs, geometry)
        # One channel or one pixel leaves the layout open to torch's choice; the operator promises one layout.
        return y if y.stride() == expected.stride() else expected.copy_(y)


@final
@dataclass(frozen=True)
class DenseOneDNN(Backend):
    """oneDNN's dense linear layer with the weight packed beforehand: the fastest dense layer on many CPUs."""

    @property
    def name(self) -> str:
        """Return ``"dense-onednn"``."""
        return "dense-onednn"

    def available(self) -> str:
        """Return why this torch cannot, '' if it can."""
        return missing()

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Return the dense linear layer.

        Raises
        ------
        ValueError
            The input is not on the CPU, or of a type that oneDNN does not multiply here.
        """
        if not multiplies(x):
            raise ValueError(
                f"Expected float32 or bfloat16 on a CPU that has it. Got {x.dtype} on {x.device}. "
                "Use the backend DENSE for others."
            )
        return packed_linear(x.contiguous(), unpacked(packed, "onednn", packed_weight), bias, activation)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Return torch's convolution, which is oneDNN's already on the CPU."""
        return DENSE.conv2d(x, packed, geometry, bias, activation)


def same(matrix: Tensor) -> Tensor:
    """Return the matrix itself."""
    return matrix


DENSE = Dense()
DENSE_ONEDNN = DenseOneDNN()
