"""Block-sparse modules on the generated CPU kernels: equal to their dense twins, in training and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structprune.layers import BlockSparseConv2d, BlockSparseLinear, jit_engine, jit_lists
from structprune.layers.jit_backend import CPU_JIT, CpuJit

pytestmark = pytest.mark.skipif(bool(jit_engine.available()), reason=jit_engine.available())


def linear_layer(transposed: bool = False, order: bool = True) -> BlockSparseLinear:
    """Return a layer of 70 outputs in groups of 32, permuted, with pieces of 16 of 96 inputs and a GELU."""
    torch.manual_seed(0)
    mask = torch.rand(3, 6) < 0.5
    rows = torch.randperm(70) if order else None
    return BlockSparseLinear.from_dense(
        nn.Linear(96, 70), mask, 32, 16, rows, activation="gelu", backend=CPU_JIT, transposed=transposed
    )


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of the sum of squares in the input, the weight as a matrix and the bias."""
    x = x.clone().requires_grad_()
    module(x).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("training", [True, False])
def test_linear_equals_its_dense_twin(training: bool) -> None:
    """The layer computes what its dense twin computes, for any leading dimensions."""
    layer = linear_layer().train(training)
    x = torch.randn(2, 5, 96)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [True, False])
def test_gradients_equal_those_of_the_dense_twin(transposed: bool) -> None:
    """The gradients are those of the dense twin, through the transposed pattern or without."""
    layer = linear_layer(transposed)
    x = torch.randn(9, 96)
    dense = layer.to_dense()
    expected_x, expected_weight, expected_bias = gradients(dense, x)
    given_x, given_values, given_bias = gradients(layer, x)
    packed = layer.packed
    assert packed.order is not None
    rows = torch.cat([packed.order.long(), torch.zeros(32 * 3 - 70, dtype=torch.long)]).view(3, 32)
    rows, columns = rows[packed.group_of_column()], packed.columns.long()[:, None]
    inside = (packed.group_of_column()[:, None] * 32 + torch.arange(32)) < 70
    torch.testing.assert_close(given_x, expected_x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given_values[inside], expected_weight[rows, columns][inside], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given_bias, expected_bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (1, 0, 1), (1, 0, 2), (5, 2, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_equals_its_dense_twin(kernel: int, padding: int, stride: int, layout: torch.memory_format) -> None:
    """The convolution computes what its dense twin computes, in both layouts of the image."""
    torch.manual_seed(1)
    dense = nn.Conv2d(16, 40, kernel, stride, padding)
    mask = torch.rand(3, kernel * kernel * 2) < 0.5
    layer = BlockSparseConv2d.from_dense(dense, mask, 16, 8, torch.randperm(40), activation="relu", backend=CPU_JIT)
    x = torch.randn(2, 16, 9, 7).to(memory_format=layout)
    layer.eval()
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_bfloat16() -> None:
    """Under autocast the layer computes in bfloat16, near what its dense twin gives there."""
    layer = linear_layer().eval()
    x = torch.randn(8, 96)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), layer.to_dense()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


def test_index_lists_of_a_module_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators hand the module's own buffers on, so their indices are checked in the first call alone."""
    layer = linear_layer().eval()
    x = torch.randn(8, 96)
    calls, check = [], jit_lists.check_indices

    def counted(*given: Any) -> bool:
        calls.append(1)
        return check(*given)

    monkeypatch.setattr(jit_lists, "check_indices", counted)
    for _ in range(3):
        layer(x)
    assert len(calls) == 1


@pytest.mark.slow
def test_compiled_whole() -> None:
    """torch.compile takes the layer whole, for any number of tokens."""
    layer = linear_layer().eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (3, 8):
        x = torch.randn(tokens, 96)
        torch.testing.assert_close(compiled(x), layer(x))


def test_float64_is_refused() -> None:
    """A type without a kernel is refused, not computed in another way."""
    layer = linear_layer().double().eval()
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        layer(torch.randn(2, 96, dtype=torch.float64))


def test_backends_are_values() -> None:
    """Two backends of this kind are one."""
    assert CpuJit() == CPU_JIT
