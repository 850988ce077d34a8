"""A training step of a linear layer: the product, the gradient of the input and that of the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.contenders import ALLOWED_ERROR, runnable, weight_of
from benchmarks.kernels.parts import Cell, Training
from benchmarks.kernels.row import Row
from benchmarks.kernels.timing import medians
from structprune.layers import DENSE_ONEDNN, Packed, operator, pack, unpack
from structprune.layers.onednn import packed_linear, packed_weight
from structprune.layers.pack import pattern_of, transposed_tensors

__all__ = ["measured"]

Step = Callable[[], tuple[Tensor, Tensor, Tensor]]  # output, gradient of the input, gradient of the weight

TRANSPOSED_WIDTH = 16  # pieces as wide as this are worth the transposed pattern


def measured(cell: Cell, rounds: int) -> Row:
    """Check every contender's output and gradients, then time all in turns.

    Raises
    ------
    ArithmeticError
        If one is not that of the dense layer.
    """
    torch.manual_seed(0)
    layer = cell.layer
    assert isinstance(layer, Training)
    x = torch.randn(layer.tokens, layer.inputs, requires_grad=True)
    upstream = torch.randn(layer.tokens, layer.outputs)
    packed = weight_of(cell, layer.outputs, layer.inputs, torch.float32)
    steps = contenders(x, upstream, packed, cell.width)
    check(cell, steps, packed)
    found = medians(steps, rounds, {})
    return Row(
        *(str(cell), str(layer), cell.dtype, cell.height, cell.width, cell.density),
        kind="training",
        shape=(layer.outputs, layer.inputs),
        tokens=layer.tokens,
        times_us={name: one.us for name, one in found.items()},
        samples={name: one.samples for name, one in found.items()},
    )


def contenders(x: Tensor, upstream: Tensor, packed: Packed, width: int) -> dict[str, Step]:
    """Return the steps by name."""
    weight = unpack(packed).requires_grad_()
    steps: dict[str, Step] = {"F.linear": partial(through_autograd, partial(F.linear, x, weight), x, weight, upstream)}
    if not DENSE_ONEDNN.available():
        steps["oneDNN packed"] = partial(by_onednn, x.detach(), weight.detach(), upstream)
    values = packed.values.requires_grad_()
    transposed: tuple[Tensor, ...] = ()
    if width >= TRANSPOSED_WIDTH:
        transposed = transposed_tensors(pattern_of(packed, width).transpose(), x.device)
    for backend in runnable():
        product = partial(operator.linear, x, packed, backend=backend.name, transposed=transposed)
        steps[backend.name] = partial(through_autograd, product, x, values, upstream)
    return steps


def through_autograd(
    product: Callable[[], Tensor], x: Tensor, weight: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the gradients that autograd finds."""
    y = product()
    dx, dweight = torch.autograd.grad(y, (x, weight), upstream)
    return y.detach(), dx, dweight


def by_onednn(x: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three products by oneDNN, which packs one operand of each in every step, as weights change.

    torch does not train so; it is what its own library could do, without autograd's time.
    """
    y = packed_linear(x, packed_weight(weight), None, "none")
    dx = packed_linear(upstream, packed_weight(weight.t().contiguous()), None, "none")
    dweight = packed_linear(upstream.t().contiguous(), packed_weight(x.t().contiguous()), None, "none")
    return y, dx, dweight


def check(cell: Cell, steps: Mapping[str, Step], packed: Packed) -> None:
    """Compare every result with that of the first dense step."""
    pattern = pattern_of(packed, cell.width)
    dense = steps["F.linear"]()
    expected = (*dense[:2], pack(dense[2], pattern).values)
    for name, step in steps.items():
        *others, dweight = step()
        found = (*others, dweight if dweight.shape == packed.values.shape else pack(dweight, pattern).values)
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        if not error <= ALLOWED_ERROR["float32"]:
            raise ArithmeticError(
                f"Expected {name} within {ALLOWED_ERROR['float32']:g} of the dense step. Got {error:.2g}. "
                f"Do not trust its time in {cell}."
            )
