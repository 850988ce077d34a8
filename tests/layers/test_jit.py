"""The generated CPU kernels against sums in float64, and what they refuse."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structprune.layers import jit, jit_engine, jit_lists
from structprune.layers.jit import grouped_conv2d, grouped_linear
from structprune.layers.jit_ir import kernel_ir
from structprune.layers.jit_key import Isa, KernelKey, Storage

REASON = jit_engine.available()
needs_kernels = pytest.mark.skipif(bool(REASON), reason=REASON)
ISAS = [] if REASON else [isa for isa in Isa if isa is Isa.AVX2 or jit_engine.isa_of_this_machine() is Isa.AVX512]
ACTIVATE = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}


def packed(
    outputs: int, inputs: int, height: int, width: int, density: float, ordered: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Return values, columns, starts, order and the dense float64 weight of a random pattern with an empty group."""
    rng = np.random.default_rng(seed)
    groups = -(-outputs // height)
    pieces = rng.random((groups, -(-inputs // width))) < density
    pieces[groups // 2] = False
    kept = np.repeat(pieces, width, axis=1)[:, :inputs]
    columns = np.concatenate([np.flatnonzero(row) for row in kept])
    starts = np.concatenate([[0], np.cumsum(kept.sum(1))])
    values = rng.standard_normal((len(columns), height)).astype(np.float32)
    dense = np.zeros((groups * height, inputs), np.float64)
    for r in range(groups):
        s, e = starts[r : r + 2]
        values[s:e, max(0, outputs - r * height) :] = 0
        dense[r * height : (r + 1) * height, columns[s:e]] = values[s:e].T
    order = rng.permutation(outputs).astype(np.int32) if ordered else np.arange(outputs)
    weight = np.empty((outputs, inputs))
    weight[order] = dense[:outputs]
    return (
        torch.from_numpy(values),
        torch.from_numpy(columns.astype(np.int32)),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(order.astype(np.int32)) if ordered else None,
        torch.from_numpy(weight),
    )


def in_bfloat16(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both rounded to bfloat16, the second as float64."""
    return values.bfloat16(), weight.bfloat16().double()


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor of which every entry has to be written."""
    return torch.full(shape, torch.nan, dtype=dtype)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("height", jit.HEIGHTS)
@pytest.mark.parametrize("width", [1, 4, 16])
def test_linear_equals_float64(isa: Isa, height: int, width: int) -> None:
    """Every height and width, ragged outputs and inputs, an empty group, any number of tokens: the float64 product."""
    outputs, inputs = 2 * height + 37, 75
    values, columns, starts, _, weight = packed(outputs, inputs, height, width, 0.4)
    bias = torch.randn(outputs)
    for tokens in (*range(1, 14), 31):
        x, out = torch.randn(tokens, inputs), poisoned(tokens, outputs)
        grouped_linear(x, values, columns, starts, None, bias, outputs=outputs, out=out, isa=isa)
        torch.testing.assert_close(out.double(), x.double() @ weight.T + bias, rtol=1e-5, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("activation", "biased", "ordered"), list(product(ACTIVATE, (True, False), (True, False))))
def test_epilogue_equals_float64(isa: Isa, activation: str, biased: bool, ordered: bool) -> None:
    """Bias, activation and permuted outputs act on the sum."""
    outputs, inputs, tokens = 150, 64, 17
    values, columns, starts, order, weight = packed(outputs, inputs, 64, 4, 0.5, ordered)
    x, bias = torch.randn(tokens, inputs), torch.randn(outputs) if biased else None
    expected = x.double() @ weight.T + (0 if bias is None else bias)
    out = poisoned(tokens, outputs)
    grouped_linear(x, values, columns, starts, order, bias, activation, outputs=outputs, out=out, isa=isa)
    torch.testing.assert_close(out.double(), ACTIVATE[activation](expected), rtol=1e-5, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("height", [16, 32, 64, 128])
@pytest.mark.parametrize("width", [1, 2, 16])
def test_bfloat16_equals_float64(isa: Isa, height: int, width: int) -> None:
    """bfloat16 sums in float32, for columns in pairs (vdpbf16ps) and for others; only the result is rounded."""
    outputs, inputs = 2 * height + 5, 62
    values, columns, starts, order, weight = packed(outputs, inputs, height, width, 0.5, ordered=width == 2)
    values, weight = in_bfloat16(values, weight)
    for tokens, activation in product((1, 2, 5, 19), ACTIVATE):
        x, bias = torch.randn(tokens, inputs).bfloat16(), torch.randn(outputs).bfloat16()
        out = poisoned(tokens, outputs, dtype=torch.bfloat16)
        grouped_linear(x, values, columns, starts, order, bias, activation, outputs=outputs, out=out, isa=isa)
        expected = ACTIVATE[activation](x.double() @ weight.T + bias.double())
        torch.testing.assert_close(out.double(), expected, rtol=5e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("height", [16, 64])
def test_bfloat16_without_its_instructions(isa: Isa, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without AVX512-BF16 widens to float32 and rounds the result to nearest even, NaN staying NaN."""
    monkeypatch.setattr(jit_lists, "has_bfloat16", lambda: False)
    values, columns, starts, _, weight = packed(2 * height, 31, height, 1, 0.5)
    values, weight = in_bfloat16(values, weight)
    x = torch.randn(7, 31).bfloat16()
    x[3] = torch.nan
    y = grouped_linear(x, values, columns, starts, None, None, outputs=2 * height, isa=isa)
    exact = x.double() @ weight.T
    exact[3, height:] = 0  # the second group is empty
    torch.testing.assert_close(y.double(), exact, rtol=5e-3, atol=1e-4, equal_nan=True)


@needs_kernels
def test_bfloat16_of_whole_groups_equals_float64() -> None:
    """Groups without ragged rows leave the kernel by vector stores; they hold the same numbers."""
    values, columns, starts, _, weight = packed(192, 64, 64, 8, 0.5)
    values, weight = in_bfloat16(values, weight)
    x = torch.randn(9, 64).bfloat16()
    out = grouped_linear(x, values, columns, starts, None, None, outputs=192)
    torch.testing.assert_close(out.double(), x.double() @ weight.T, rtol=5e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("inputs", [1024, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_whole_pages_equal_float64(inputs: int, dtype: torch.dtype) -> None:
    """Rows at multiples of a page, which may be copied panel by panel, give the same product."""
    values, columns, starts, _, weight = packed(128, inputs, 64, 16, 0.1)
    if dtype == torch.bfloat16:
        values, weight = in_bfloat16(values, weight)
    x = torch.randn(421, inputs).to(dtype)
    out = poisoned(421, 128, dtype=dtype)
    grouped_linear(x, values, columns, starts, None, None, outputs=128, out=out)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(out.double(), x.double() @ weight.T, rtol=tolerance, atol=50 * tolerance**1.2)


@needs_kernels
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    """Several threads share the tasks and give the very same numbers."""
    values, columns, starts, order, _ = packed(500, 1024, 64, 1, 0.3, ordered=True)
    x, before = torch.randn(203, 1024), torch.get_num_threads()
    alone = grouped_linear(x, values, columns, starts, order, None, "gelu", outputs=500)
    try:
        torch.set_num_threads(threads)
        out = poisoned(203, 500)
        grouped_linear(x, values, columns, starts, order, None, "gelu", outputs=500, out=out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, alone)


@needs_kernels
def test_python_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch brings no libgomp, threads of Python give the same numbers."""
    values, columns, starts, _, _ = packed(500, 512, 64, 1, 0.3)
    x, before = torch.randn(64, 512), torch.get_num_threads()
    alone = grouped_linear(x, values, columns, starts, None, None, outputs=500)
    jit_engine._team.cache_clear()
    monkeypatch.setattr(jit_engine, "libraries_of_torch", list)
    try:
        torch.set_num_threads(2)
        out = grouped_linear(x, values, columns, starts, None, None, outputs=500)
    finally:
        torch.set_num_threads(before)
        jit_engine._team.cache_clear()
    assert torch.equal(out, alone)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize(("kernel", "width"), [((3, 3), 1), ((3, 3), 8), ((1, 1), 2), ((2, 5), 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_equals_float64(
    isa: Isa, stride: tuple[int, int], kernel: tuple[int, int], width: int, dtype: torch.dtype
) -> None:
    """Offsets into the padded image give the convolution, for every kernel, stride and image of a batch."""
    channels, outputs = 10, 70
    inputs = kernel[0] * kernel[1] * channels
    values, columns, starts, order, weight = packed(outputs, inputs, 32, width, 0.5, ordered=True)
    if dtype == torch.bfloat16:
        values, weight = in_bfloat16(values, weight)
    image, bias = torch.randn(2, 9, 8, channels).to(dtype), torch.randn(outputs).to(dtype)
    filters = weight.view(outputs, *kernel, channels).permute(0, 3, 1, 2)
    expected = F.relu(F.conv2d(image.double().permute(0, 3, 1, 2), filters, bias.double(), stride))
    out = poisoned(2, *expected.shape[2:], outputs, dtype=dtype)
    grouped_conv2d(
        image, values, columns, starts, order, bias, "relu", outputs=outputs, kernel=kernel, stride=stride, out=out,
        isa=isa,
    )  # fmt: skip
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(out.double().permute(0, 3, 1, 2), expected, rtol=tolerance, atol=2 * tolerance)


@needs_kernels
def test_gelu_is_accurate_everywhere() -> None:
    """GELU of the kernel is that of float64 to 3e-7 of its argument, and to 1e-5 of itself in the tail down to -5."""
    x = torch.linspace(-14, 14, 4001)[:, None]
    values = torch.zeros(1, 16)
    values[0, 0] = 1
    index = torch.tensor([0, 1], dtype=torch.int32)
    y = grouped_linear(x, values, index[:1], index, None, None, "gelu", outputs=1).double()
    exact = F.gelu(x.double())
    assert bool(((y - exact).abs() <= 3e-7 * x.abs()).all())
    near = x > -5
    torch.testing.assert_close(y[near], exact[near], rtol=1e-5, atol=1e-12)


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATE)
def test_nan_comes_through(activation: str) -> None:
    """An undefined activation makes an undefined output, whatever follows."""
    values, index = torch.ones(1, 16), torch.tensor([0, 1], dtype=torch.int32)
    y = grouped_linear(torch.tensor([[torch.nan]]), values, index[:1], index, None, None, activation, outputs=16)
    assert bool(y.isnan().all())


@needs_kernels
def test_rows_may_lie_apart() -> None:
    """A slice of a wider tensor, or a transposed one, is read where it lies or copied."""
    values, columns, starts, _, weight = packed(64, 40, 64, 1, 0.5, seed=3)
    starts[:] = torch.tensor([0, 20])
    values, columns = torch.randn(20, 64), torch.arange(0, 40, 2, dtype=torch.int32)
    wide = torch.randn(12, 100)
    run = lambda x: grouped_linear(x, values, columns, starts, None, None, outputs=64)  # noqa: E731
    expected = wide[:, 30:70][:, ::2] @ values
    torch.testing.assert_close(run(wide[:, 30:70]), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(wide[:, 30:70].t().contiguous().t()), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_no_tokens_give_no_rows() -> None:
    """An empty batch has an empty result."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.5)
    assert grouped_linear(torch.empty(0, 40), values, columns, starts, None, None, outputs=64).shape == (0, 64)


@needs_kernels
def test_written_indices_are_checked_again() -> None:
    """Indices that were in order are checked again once they are written to, so nothing is read out of bounds."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.5)
    x = torch.randn(3, 40)
    grouped_linear(x, values, columns, starts, None, None, outputs=64)
    columns[5] = 40
    with pytest.raises(ValueError, match=r"Expected columns from 0 to 39. Got \d+ to 40"):
        grouped_linear(x, values, columns, starts, None, None, outputs=64)


@needs_kernels
def test_lists_in_other_memory_are_checked_again() -> None:
    """Lists whose memory is exchanged, which leaves their versions alone, are checked again too."""
    values, columns, starts, order, _ = packed(64, 40, 16, 1, 0.5, ordered=True)
    assert order is not None
    for changed in (columns, starts, order):
        x, kept = torch.randn(1, 40), changed.data
        grouped_linear(x, values, columns, starts, order, None, outputs=64)
        changed.data = torch.full_like(kept, 100)
        with pytest.raises(ValueError, match="Expected"):
            grouped_linear(x, values, columns, starts, order, None, outputs=64)
        changed.data = kept


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_reads_the_tensors_of_now(dtype: torch.dtype) -> None:
    """Calls alike share what was prepared, and each reads its own input, values and bias."""
    values, columns, starts, _, weight = packed(64, 40, 16, 1, 0.5)
    if dtype == torch.bfloat16:
        values, weight = in_bfloat16(values, weight)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=2 * tolerance)
    for isa in ISAS:
        run = partial(grouped_linear, columns=columns, starts=starts, order=None, outputs=64, isa=isa)
        for given in (values, values * 2):
            x, bias = torch.randn(1, 40).to(dtype), torch.randn(64).to(dtype)
            expected = x.double() @ weight.T * (1 if given is values else 2)
            close(run(x, given, bias=bias).double(), expected + bias)
            close(run(x, given, bias=None).double(), expected)
        values.neg_()
        weight = -weight


@needs_kernels
def test_prepared_calls_check_what_may_change() -> None:
    """After a call that was in order, one with other types, sizes or gaps is refused or computed as it is given."""
    values, columns, starts, _, weight = packed(64, 40, 16, 1, 0.5)
    x = torch.randn(1, 40)
    run = partial(grouped_linear, columns=columns, starts=starts, order=None, outputs=64)
    expected = run(x, values, bias=None)
    for bias in (torch.randn(63), torch.randn(64, 1)):
        with pytest.raises(ValueError, match="Expected a bias of shape"):
            run(x, values, bias=bias)
    with pytest.raises(ValueError, match="Expected out as contiguous"):
        run(x, values, bias=None, out=torch.empty(1, 63))
    with pytest.raises(ValueError, match="Expected one column per row"):
        run(x, values[:-1].clone(), bias=None)
    with pytest.raises(ValueError, match="Expected contiguous values"):
        run(x, values.t().contiguous().t(), bias=None)
    with pytest.raises(ValueError, match="Expected activations and values of one type"):
        run(x, values.bfloat16(), bias=None)
    apart = torch.randn(1, 80)[:, ::2].copy_(x)
    assert torch.equal(run(apart, values, bias=None), expected)
    gaps = torch.randn(128)[::2]
    torch.testing.assert_close(run(x, values, bias=gaps), expected + gaps)


@needs_kernels
def test_threads_of_python_share_a_prepared_call() -> None:
    """Several threads of Python call one weight at once, and each gets its own result."""
    values, columns, starts, _, weight = packed(256, 128, 64, 1, 0.5)
    inputs = torch.randn(64, 1, 128)
    run = partial(grouped_linear, values=values, columns=columns, starts=starts, order=None, bias=None, outputs=256)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: [run(x) for _ in range(20)], inputs))
    for x, results in zip(inputs, found, strict=True):
        for y in results:
            torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_records_go_with_their_tensors() -> None:
    """What was noted about index lists is forgotten when they are."""
    gc.collect()
    before = len(jit_lists._known)
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.5)
    grouped_linear(torch.randn(3, 40), values, columns, starts, None, None, outputs=64)
    assert len(jit_lists._known) == before + 1
    del columns
    gc.collect()
    assert len(jit_lists._known) == before


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 39)}, "Expected columns from 0 to 38"),
        ({"x": torch.randn(3, 40).double()}, "Expected activations and values of one type"),
        ({"x": torch.randn(40)}, "Expected x as a matrix"),
        ({"values": torch.randn(7, 24)}, "with G in"),
        ({"starts": torch.zeros(5, dtype=torch.int32)}, "Expected starts that rise"),
        ({"starts": torch.zeros(4, dtype=torch.int32)}, "Expected starts as contiguous int32"),
        ({"order": torch.zeros(64, dtype=torch.int32)}, "Expected order to name each"),
        ({"bias": torch.randn(63)}, "Expected a bias of shape"),
        ({"out": torch.empty(3, 63)}, "Expected out as contiguous"),
        ({"activation": "tanh"}, "Expected an activation"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    """Shapes, types and indices that do not fit are refused before the kernel sees them."""
    values, columns, starts, _, _ = packed(64, 40, 16, 1, 0.9)
    given: dict[str, Any] = {"x": torch.randn(3, 40), "values": values, "columns": columns, "starts": starts}
    given |= {"order": None, "bias": None, "outputs": 64} | change
    with pytest.raises(ValueError, match=message):
        grouped_linear(**given)


@needs_kernels
def test_compiled_once() -> None:
    """Equal keys share one machine code."""
    key = KernelKey(64, Storage.FLOAT, Isa.AVX2, "none")
    assert jit_engine.compiled(key) is jit_engine.compiled(KernelKey(64, Storage.FLOAT, Isa.AVX2, "none"))


@needs_kernels
@pytest.mark.parametrize("storage", Storage)
@pytest.mark.parametrize("height", [16, 32, 64])
def test_sums_stay_in_registers(storage: Storage, height: int) -> None:
    """No vector register is spilled in the loop over columns."""
    isa = jit_engine.isa_of_this_machine()
    if storage is Storage.PAIRS and not jit_engine.has_bfloat16():
        pytest.skip("the processor has no AVX512-BF16")
    key = KernelKey(height, storage, isa, "none")
    text = jit_engine.assembly(key).split(f"\ntile{key.tokens}:")[1].split("\n.Lfunc_end")[0]
    assert "Spill" not in "".join(line for line in text.splitlines(True) if "mm" in line)


def test_text_needs_no_compiler() -> None:
    """The IR is plain text: it can be written where llvmlite is missing."""
    assert "define void @worker(ptr %arguments)" in kernel_ir(KernelKey(64, Storage.PAIRS, Isa.AVX512, "gelu"))


def test_missing_llvmlite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llvmlite the backend says so and names the package; nothing else stands in."""
    monkeypatch.setitem(__import__("sys").modules, "llvmlite.binding", None)
    monkeypatch.setitem(__import__("sys").modules, "llvmlite", None)
    jit_engine.available.cache_clear()
    try:
        assert "llvmlite" in jit_engine.available() or "x86-64" in jit_engine.available()
    finally:
        jit_engine.available.cache_clear()
