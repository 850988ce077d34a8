"""The generated kernel of the values' gradient against sums in float64, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structprune.layers import CPU_JIT, Geometry, Packed, jit, jit_call, jit_engine
from structprune.layers.gradients import linear_weight_gradient
from structprune.layers.jit_gradient import grouped_conv2d_weight_gradient, grouped_weight_gradient
from structprune.layers.jit_gradient_ir import gradient_ir
from structprune.layers.jit_key import GradientKey, Isa
from tests.layers.test_jit import ISAS, needs_kernels, packed, poisoned


def gathered(
    dense: Tensor, values: Tensor, columns: Tensor, starts: Tensor, order: Tensor | None, outputs: int
) -> Tensor:
    """Return the entries of a ``(outputs, inputs)`` gradient where the packed weight has values, zeros elsewhere."""
    height = values.shape[1]
    stored = dense if order is None else dense[order.long()]
    full = torch.zeros((len(starts) - 1) * height, dense.shape[1], dtype=dense.dtype)
    full[:outputs] = stored
    expected = torch.empty(values.shape, dtype=dense.dtype)
    for group, (start, end) in enumerate(zip(starts.tolist(), starts.tolist()[1:], strict=False)):
        rows = full[group * height : (group + 1) * height]
        expected[start:end] = rows[:, columns[start:end].long()].T
    return expected


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("height", jit.HEIGHTS)
@pytest.mark.parametrize("ordered", [False, True])
def test_gradient_equals_float64(isa: Isa, height: int, ordered: bool) -> None:
    """Every height, ragged outputs, an empty group, any number of tokens and of columns: the float64 products."""
    outputs, inputs = 2 * height + 37, 75
    for tokens in (1, 2, 63, 64, 65, 131):
        values, columns, starts, order, _ = packed(outputs, inputs, height, 1, 0.3, ordered, seed=tokens)
        x, grad, out = torch.randn(tokens, inputs), torch.randn(tokens, outputs), poisoned(*values.shape)
        grouped_weight_gradient(grad, x, values, columns, starts, order, out=out, isa=isa)
        expected = gathered(grad.double().T @ x.double(), values, columns, starts, order, outputs)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=5e-5)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kept", range(1, 18))
def test_every_number_of_columns_has_its_tiles(isa: Isa, kept: int) -> None:
    """One to many columns in a group, which make tiles of every size, are all written."""
    for height in (16, 64):
        values = poisoned(kept, height)
        columns = torch.arange(kept, dtype=torch.int32) * 2
        starts = torch.tensor([0, kept], dtype=torch.int32)
        x, grad = torch.randn(9, 40), torch.randn(9, height)
        found = grouped_weight_gradient(grad, x, values, columns, starts, None, isa=isa)
        expected = (grad.double().T @ x.double())[:, columns.long()].T
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@needs_kernels
def test_wide_inputs_shorten_the_panel() -> None:
    """Inputs of many columns go through the cache in panels of fewer tokens, with the same sums."""
    values, columns, starts, _, _ = packed(96, 12_000, 32, 8, 0.02)
    assert jit_call.deal_gradient(3, 4 * 12_000, 1).panel < jit_call.deal_gradient(3, 4 * 100, 1).panel
    x, grad = torch.randn(75, 12_000), torch.randn(75, 96)
    found = grouped_weight_gradient(grad, x, values, columns, starts, None)
    expected = gathered(grad.double().T @ x.double(), values, columns, starts, None, 96)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=5e-5)


@needs_kernels
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    """Several threads share the groups and give the very same numbers."""
    values, columns, starts, order, _ = packed(500, 1024, 64, 1, 0.3, ordered=True)
    x, grad, before = torch.randn(203, 1024), torch.randn(203, 500), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = grouped_weight_gradient(grad, x, values, columns, starts, order)
        torch.set_num_threads(threads)
        out = poisoned(*values.shape)
        grouped_weight_gradient(grad, x, values, columns, starts, order, out=out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, alone)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize(("kernel", "width"), [((3, 3), 1), ((1, 1), 2), ((2, 5), 4)])
def test_convolution_equals_float64(isa: Isa, stride: tuple[int, int], kernel: tuple[int, int], width: int) -> None:
    """Offsets into the padded image give the gradient of a convolution's weight."""
    channels, outputs = 10, 70
    values, columns, starts, order, _ = packed(outputs, kernel[0] * kernel[1] * channels, 32, width, 0.5, ordered=True)
    image = torch.randn(2, 9, 8, channels)
    size = ((9 - kernel[0]) // stride[0] + 1, (8 - kernel[1]) // stride[1] + 1)
    grad, out = torch.randn(2, *size, outputs), poisoned(*values.shape)
    lists = (values, columns, starts, order)
    grouped_conv2d_weight_gradient(grad, image, *lists, kernel=kernel, stride=stride, out=out, isa=isa)
    weight = torch.zeros(outputs, channels, *kernel, dtype=torch.float64, requires_grad=True)
    F.conv2d(image.double().permute(0, 3, 1, 2), weight, stride=stride).backward(grad.double().permute(0, 3, 1, 2))
    assert weight.grad is not None
    expected = gathered(weight.grad.permute(0, 2, 3, 1).flatten(1), *lists, outputs)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=5e-5)


@needs_kernels
def test_rows_may_lie_apart() -> None:
    """Slices and transposed tensors are read where they lie or copied."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.5)
    wide, tall = torch.randn(12, 100), torch.randn(64, 12)
    x, grad = wide[:, 30:70], tall.t()
    expected = grouped_weight_gradient(grad.contiguous(), x.contiguous(), values, columns, starts, None)
    for given in (x, x.t().contiguous().t()):
        assert torch.equal(grouped_weight_gradient(grad, given, values, columns, starts, None), expected)


@needs_kernels
def test_no_tokens_give_zeros() -> None:
    """The gradient of an empty batch is zero, and that of a weight that keeps nothing is empty."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.5)
    found = grouped_weight_gradient(
        torch.empty(0, 64), torch.empty(0, 40), values, columns, starts, None, out=poisoned(*values.shape)
    )
    assert not found.any()
    nothing = (torch.empty(0, 16), columns[:0].clone(), torch.zeros(5, dtype=torch.int32), None)
    assert grouped_weight_gradient(torch.randn(3, 64), torch.randn(3, 40), *nothing).shape == (0, 16)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 39)}, "Expected columns from 0 to 38"),
        ({"x": torch.randn(4, 40)}, "Expected x as a float32 matrix of 3 tokens"),
        ({"grad": torch.randn(3, 64).double()}, "Expected grad as a float32 matrix"),
        ({"grad": torch.randn(3, 80)}, "Expected starts as contiguous int32"),
        ({"values": torch.randn(7, 16).bfloat16()}, "Expected one column per row"),
        ({"out": torch.empty(3, 16)}, "Expected the gradient as contiguous float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    """Shapes, types and indices that do not fit are refused before the kernel sees them."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.9)
    given: dict[str, Any] = {"grad": torch.randn(3, 64), "x": torch.randn(3, 40), "values": values}
    given |= {"columns": columns, "starts": starts, "order": None} | change
    with pytest.raises(ValueError, match=message):
        grouped_weight_gradient(**given)


@needs_kernels
def test_a_convolution_that_does_not_fit_is_refused() -> None:
    """A gradient of other places than the convolution has is refused."""
    values, columns, starts, _, _ = packed(64, 90, 16, 1, 0.5)
    image, grad = torch.randn(1, 6, 6, 10), torch.randn(1, 4, 5, 64)
    with pytest.raises(ValueError, match=r"a gradient of \(1, 4, 4\) places"):
        grouped_conv2d_weight_gradient(grad, image, values, columns, starts, None, kernel=(3, 3))
    with pytest.raises(ValueError, match="Expected grad as float32 of four dimensions"):
        grouped_conv2d_weight_gradient(grad.double(), image, values, columns, starts, None, kernel=(3, 3))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backend_agrees_with_torch(dtype: torch.dtype) -> None:
    """The backend's gradient is the one of plain torch, in float32 by the kernel and in bfloat16 by torch itself."""
    values, columns, starts, order, _ = packed(150, 64, 64, 4, 0.5, ordered=True)
    weight = Packed(values.to(dtype), columns, starts, order, 150, 64)
    x, grad = torch.randn(33, 64).to(dtype), torch.randn(33, 150).to(dtype)
    found = CPU_JIT.linear_weight_gradient(grad, x, weight)
    assert found.dtype == dtype
    torch.testing.assert_close(found, linear_weight_gradient(grad, x, weight), rtol=1e-4, atol=1e-4)
    image, places = torch.randn(2, 16, 7, 6).to(dtype), torch.randn(2, 150, 6, 5).to(dtype)
    geometry = Geometry((2, 2))
    found = CPU_JIT.conv2d_weight_gradient(places, image, weight, geometry)
    expected = super(type(CPU_JIT), CPU_JIT).conv2d_weight_gradient(places, image, weight, geometry)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("height", [16, 32, 64])
def test_sums_stay_in_registers(height: int) -> None:
    """No vector register is spilled in the loop over tokens."""
    key = GradientKey(height, jit_engine.isa_of_this_machine())
    text = jit_engine.assembly(key).split(f"\ntile{key.columns}:")[1].split("\n.Lfunc_end")[0]
    assert "Spill" not in "".join(line for line in text.splitlines(True) if "mm" in line)


def test_text_needs_no_compiler() -> None:
    """The IR is plain text: it can be written where llvmlite is missing."""
    assert "define void @worker(ptr %arguments)" in gradient_ir(GradientKey(64, Isa.AVX512))


def test_a_panel_is_never_longer_than_its_copy() -> None:
    """A panel has at least one token and no more than the scratch of the kernel holds."""
    for token_bytes in np.geomspace(4, 1e9, 50).astype(int):
        panel = jit_call.deal_gradient(7, int(token_bytes), 3).panel
        assert 1 <= panel <= jit_call.MOST_TOKENS
