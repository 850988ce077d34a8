"""Block-sparse layers in plain torch operators: per group of outputs, gather its inputs and multiply densely.

What is gathered is a small dense matrix, and the product runs at the speed of the machine's dense products. The cost
per group is that of a few calls, so tall groups and many tokens are needed: this is the way for machines without a
compiler, not the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from structprune.layers.activation import Activation, activate
from structprune.layers.backend import Backend
from structprune.layers.geometry import Geometry
from structprune.layers.groups import Gatherer, group_slices
from structprune.layers.onednn import multiplies, multiply
from structprune.layers.pack import Packed
from structprune.layers.planes import Planes

__all__ = ["ROWLOOP", "RowLoop"]

# Below so many tokens the calls cost more than oneDNN's faster product saves (measured at 16, 64 and 128).
TOKENS_FOR_ONEDNN = 48


@final
@dataclass(frozen=True)
class RowLoop(Backend):
    """A loop over groups of outputs on any device that torch knows."""

    @property
    def name(self) -> str:
        """Return ``"rowloop"``."""
        return "rowloop"

    def linear(self, x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation) -> Tensor:
        """Gather features where entries are short and there are many tokens, entries of rows otherwise."""
        many = x.shape[0] >= TOKENS_FOR_ONEDNN
        if many and x.element_size() == 2:
            # Picking single entries of two bytes out of rows is slower than two transposed copies.
            stored = by_features(x.t().contiguous(), packed.columns, packed).t()
        else:
            stored = by_rows(x, packed, many and multiplies(x))
        y = in_order(stored, packed)
        return activate(y if bias is None else y.add_(bias), activation)

    def conv2d(
        self, x: Tensor, packed: Packed, geometry: Geometry, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Gather runs of pixels, one per kept column."""
        planes = Planes(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]), geometry)
        runs = planes.runs(planes.from_image(x))
        stored = by_features(runs, planes.rows(packed.columns), packed)
        y = planes.to_output(stored, packed)
        return activate(y if bias is None else y.add_(bias[:, None, None]), activation)


def by_rows(x: Tensor, packed: Packed, onednn: bool) -> Tensor:
    """Return ``(B, outputs)`` in stored rows for ``x (B, inputs)``."""
    stored = x.new_zeros(x.shape[0], packed.outputs)
    gather = Gatherer(x, 1)
    for kept, rows in group_slices(packed):
        gathered = gather(packed.columns[kept])
        values = packed.values[kept, : rows.stop - rows.start]
        if onednn:
            stored[:, rows] = multiply(gathered, values)
        else:
            torch.mm(gathered, values, out=stored[:, rows])
    return stored


def by_features(features: Tensor, source: Tensor, packed: Packed) -> Tensor:
    """Return ``(outputs, L)`` in stored rows; column ``c`` of the weight reads row ``source[c]`` of ``features``."""
    stored = features.new_zeros(packed.outputs, features.shape[1])
    gather = Gatherer(features, 0)
    for kept, rows in group_slices(packed):
        gathered = gather(source[kept])
        values = packed.values[kept, : rows.stop - rows.start]
        if multiplies(features) and features.shape[1] >= TOKENS_FOR_ONEDNN:
            stored[rows] = multiply(values.t(), gathered)
        else:
            torch.mm(values.t(), gathered, out=stored[rows])
    return stored


def in_order(stored: Tensor, packed: Packed) -> Tensor:
    """Return a contiguous ``(B, outputs)`` in the order of the outputs."""
    if packed.order is None:
        return stored.contiguous()
    inverse = torch.empty_like(packed.order)
    inverse[packed.order.long()] = torch.arange(packed.outputs, dtype=torch.int32, device=packed.order.device)
    return stored.index_select(1, inverse)


ROWLOOP = RowLoop()
