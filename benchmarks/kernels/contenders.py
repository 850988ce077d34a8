"""Who competes in a cell on a CPU: dense layers, our backends, and libraries that take the pattern."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.numba_product import installed, numba_product
from benchmarks.kernels.parts import Cell, Convolution, Linear
from benchmarks.kernels.row import DENSE, LIBRARIES, MODULE, NUMBA, Row
from benchmarks.kernels.timing import medians
from benchmarks.kernels_cpu import pattern
from structprune.layers import (
    CPU_JIT,
    DENSE_ONEDNN,
    ROWLOOP,
    Backend,
    BlockSparseLinear,
    Geometry,
    Packed,
    pack,
    unpack,
)
from structprune.layers.geometry import weight_of_columns
from structprune.layers.onednn import packed_linear, packed_weight

__all__ = ["measured"]

Call = Callable[[], object]

OURS_ON_CPU: tuple[Backend, ...] = (CPU_JIT, ROWLOOP)
LIBRARY_NS = 300_000_000  # all samples of a library together; slower ones are sampled less often
ALLOWED_ERROR = {"float32": 1e-4, "bfloat16": 3e-2}  # relative to the largest number of the dense result
PADDED = Geometry((3, 3), padding=(1, 1))


def measured(cell: Cell, rounds: int) -> Row:
    """Check every contender's result, then time all in turns.

    Raises
    ------
    ArithmeticError
        If a result is not that of the dense layer.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's sparse tensors are announced as a beta
        # Not in inference mode: index lists made there count no changes, so the kernels would check them in every call.
        calls, packed = linear(cell) if isinstance(cell.layer, Linear) else convolution(cell)
        with torch.inference_mode():
            check(cell, calls)
            found = medians(calls, rounds, {name: LIBRARY_NS for name in calls if name in (*LIBRARIES, NUMBA)})
    return Row(
        *(str(cell), str(cell.layer), cell.dtype, cell.height, cell.width, cell.density),
        kind="conv" if isinstance(cell.layer, Convolution) else "linear",
        shape=(packed.outputs, packed.inputs),
        tokens=cell.layer.tokens,
        times_us={name: one.us for name, one in found.items()},
        samples={name: one.samples for name, one in found.items()},
    )


def linear(cell: Cell) -> tuple[dict[str, Call], Packed]:
    """Return the contenders of a linear layer by name, and the weight."""
    layer, dtype = cell.layer, getattr(torch, cell.dtype)
    assert isinstance(layer, Linear)
    x = torch.randn(layer.tokens, layer.inputs).to(dtype)
    packed = weight_of(cell, layer.outputs, layer.inputs, dtype)
    weight = unpack(packed)
    calls: dict[str, Call] = {"F.linear": partial(F.linear, x, weight)}
    if not DENSE_ONEDNN.available():
        calls["oneDNN packed"] = partial(packed_linear, x, packed_weight(weight), None, "none")
    for backend in runnable():
        calls[backend.name] = partial(backend.linear, x, packed, None, "none")
    if layer.tokens == 1 and CPU_JIT in runnable():
        pieces = pattern(layer.outputs, layer.inputs, cell.height, cell.width, cell.density)
        module = BlockSparseLinear(weight, None, pieces, activation="none", backend=CPU_JIT, transposed=False)
        calls[MODULE] = partial(module.eval(), x)
    if cell.dtype == "float32":  # the libraries multiply no bfloat16
        calls |= libraries(x, packed, weight, cell)
    return calls, packed


def convolution(cell: Cell) -> tuple[dict[str, Call], Packed]:
    """Return the contenders of a convolution by name, and the weight as a matrix; padding the image is counted."""
    layer, dtype = cell.layer, getattr(torch, cell.dtype)
    assert isinstance(layer, Convolution)
    packed = weight_of(cell, layer.channels, PADDED.taps * layer.channels, dtype)
    weight = weight_of_columns(unpack(packed), PADDED).contiguous()
    x = torch.randn(layer.images, layer.channels, layer.size, layer.size).to(dtype)
    last = torch.channels_last
    x_last, weight_last = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    calls: dict[str, Call] = {
        "NCHW": partial(F.conv2d, x, weight, padding=1),
        "NHWC": partial(F.conv2d, x_last, weight_last, padding=1),
    }
    for backend in runnable():
        calls[backend.name] = partial(backend.conv2d, x_last, packed, PADDED, None, "none")
    return calls, packed


def runnable() -> list[Backend]:
    """Return our backends that run on this machine."""
    return [backend for backend in OURS_ON_CPU if not backend.available()]


def weight_of(cell: Cell, outputs: int, inputs: int, dtype: torch.dtype) -> Packed:
    """Return a random weight with the cell's pattern."""
    weight = torch.randn(outputs, inputs) / (cell.density * inputs) ** 0.5
    return pack(weight.to(dtype), pattern(outputs, inputs, cell.height, cell.width, cell.density))


def libraries(x: Tensor, packed: Packed, weight: Tensor, cell: Cell) -> dict[str, Call]:
    """Return the libraries' products, sparse matrices' with feature-major activations: faster than row-major."""
    features = x.t().contiguous()
    array, side = features.numpy(), math.gcd(cell.height, cell.width)
    compressed = weight.to_sparse_csr()
    calls: dict[str, Call] = {"torch CSR": lambda: compressed @ features}
    if side > 1:
        blocked = weight.to_sparse_bsr((side, side))
        calls["torch BSR"] = lambda: blocked @ features
    blocks = scipy.sparse.bsr_array(weight.numpy(), blocksize=(cell.height, cell.width))
    calls["scipy BSR"] = lambda: blocks @ array
    if installed():
        lists = (packed.values.numpy(), packed.columns.numpy(), packed.starts.numpy())
        calls[NUMBA] = partial(numba_product, x.numpy(), *lists)
    return calls


def check(cell: Cell, calls: Mapping[str, Call]) -> None:
    """Compare every result with that of the first dense layer."""
    expected = as_tensor(next(calls[name] for name in DENSE if name in calls)())
    largest = float(expected.abs().max())
    for name, call in calls.items():
        result = as_tensor(call())
        # The libraries are given features and return them.
        result = result.t() if name in LIBRARIES else result
        error = float((result - expected).abs().max()) / largest
        if not error <= ALLOWED_ERROR[cell.dtype]:
            raise ArithmeticError(
                f"Expected {name} within {ALLOWED_ERROR[cell.dtype]:g} of the dense layer. Got {error:.2g}. "
                f"Do not trust its time in {cell}."
            )


def as_tensor(result: object) -> Tensor:
    """Return a contender's result as a float32 tensor."""
    tensor = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
    assert isinstance(tensor, Tensor)
    return tensor.float()
