"""What the compiler makes of the Triton kernels for compute capability 9.0; that takes no GPU.

Slow code passes every test of numbers, so the tests read the machine code: tensor cores by warp groups, loads of 16
bytes that arrive while others are multiplied, and all accumulators in registers.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from structprune.layers.triton_kernels import kernels
from structprune.layers.triton_launch import interpreted
from structprune.layers.triton_tiles import GradientTile, Tile, forward_tile, gradient_tile

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(interpreted(), reason="TRITON_INTERPRET=1: kernels are not compiled")

POINTERS = {"columns": "*i32", "starts": "*i32", "order": "*i32", "partial": "*fp32"}
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
HOPPER = 90


@dataclass(frozen=True)
class Code:
    """What was compiled, as text."""

    ptx: str
    machine: str

    @property
    def asynchronous_loads(self) -> Counter[int]:
        """Number of asynchronous copies to shared memory by their bytes."""
        sizes = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", self.ptx)
        return Counter(int(size, 16) for size in sizes)

    @property
    def spills(self) -> int:
        """Number of instructions that move registers to or from local memory."""
        return len(re.findall(r"\b(?:LDL|STL)\b", self.machine))

    @property
    def spills_before_the_last_product(self) -> int:
        """The same without those of the epilogue."""
        loop = self.machine[: [found.end() for found in re.finditer("HGMMA", self.machine)][-1]]
        return len(re.findall(r"\b(?:LDL|STL)\b", loop))


def compiled(kernel: Any, dtype: torch.dtype, constants: dict[str, Any], tile: Tile | GradientTile) -> Code:
    """Compile a kernel for operands whose addresses, sizes and strides are multiples of 16."""
    names = kernel.arg_names
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        operand = name in ("x", "values", "bias", "y", "gradient")
        signature[name] = TYPES[dtype] if operand else POINTERS.get(name, "i32")
        attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(
        kernel, signature, {(names.index(name),): value for name, value in constants.items()}, attributes
    )
    target = triton.backends.compiler.GPUTarget("cuda", HOPPER, 32)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    program = triton.compile(source, target=target, options=options)
    return Code(program.asm["ptx"], disassembled(program.asm["cubin"]))


def disassembled(program: bytes) -> str:
    """Return the machine code as text, by the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with (Path(triton.knobs.cache.dir) / "program.cubin").open("wb") as file:
        file.write(program)
    return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def forward(
    layout: str, tile: Tile, height: int, dtype: torch.dtype = torch.bfloat16, run: int = 8, **told: Any
) -> Code:
    """Compile a forward kernel."""
    constants = {
        "HEIGHT": height,
        "ROWS": tile.rows,
        "TOKENS": tile.tokens,
        "STEP": tile.step,
        "ORDER": False,
        "BIAS": True,
        "ACTIVATION": "none",
        "PRECISION": "ieee",
        "UPCAST": False,
    }
    if layout == "features":
        return compiled(kernels().feature_major, dtype, {**constants, "stride_y_token": 1, **told}, tile)
    image = layout == "image"
    return compiled(kernels().row_major, dtype, {**constants, "RUN": run, "IMAGE": image, **told}, tile)


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile anew, and leave nothing behind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("height", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("layout", ["rows", "features"])
def test_many_tokens_use_warp_groups_and_wide_loads(layout: str, height: int) -> None:
    """By rule, all heights multiply by wgmma, fetch both tiles by 16 bytes ahead of use, and spill nothing."""
    tile = forward_tile(height, 4096, 8192, torch.bfloat16)
    code = forward(layout, tile, height)
    assert "wgmma.mma_async" in code.ptx
    assert "mma.sync" not in code.ptx
    wide = code.asynchronous_loads[16]
    threads = 32 * tile.warps
    each_step = sum(-(-rows * tile.step // 8 // threads) for rows in (tile.tokens, tile.rows))
    assert wide % each_step == 0
    assert wide >= 2 * each_step
    assert set(code.asynchronous_loads) <= {4, 16}  # 4 bytes: the list of columns
    assert code.spills == 0


@pytest.mark.parametrize("layout", ["rows", "features"])
def test_gelu_spills_at_most_after_the_products(layout: str) -> None:
    """The error function needs more registers than are left, which costs something once and not at every step."""
    tile = forward_tile(128, 4096, 8192, torch.bfloat16)
    code = forward(layout, tile, 128, ACTIVATION="gelu")
    assert code.spills_before_the_last_product == 0


def test_a_convolution_loads_as_wide_as_a_matrix() -> None:
    """Windows of an image are fetched by 16 bytes where channels come in runs of 8."""
    tile = forward_tile(64, 256, 8192, torch.bfloat16)
    image, matrix = forward("image", tile, 64), forward("rows", tile, 64)
    assert image.asynchronous_loads == matrix.asynchronous_loads
    assert "wgmma.mma_async" in image.ptx
    assert image.spills == 0


def test_runs_set_the_width_of_row_major_loads() -> None:
    """Runs of 4 half-precision columns are fetched by 8 bytes, single ones not asynchronously at all."""
    tile = Tile(64, 128, 64, 4, 4)
    assert forward("rows", tile, 64, run=4).asynchronous_loads[8] > 0
    single = forward("rows", tile, 64, run=1).asynchronous_loads
    assert single[16] < forward("rows", tile, 64, run=8).asynchronous_loads[16]
    assert single[8] == 0


def test_few_tokens_use_the_small_instruction() -> None:
    """A tile of 16 tokens is multiplied by mma.sync, and its weights arrive by 16 bytes ahead of use."""
    tile = forward_tile(64, 4096, 4, torch.bfloat16)
    code = forward("rows", tile, 64)
    assert "mma.sync" in code.ptx
    assert code.asynchronous_loads[16] > 0
    assert code.spills == 0


@pytest.mark.parametrize("layout", ["rows", "features"])
def test_tf32_uses_warp_groups(layout: str) -> None:
    """Single precision with the short format runs on the tensor cores."""
    tile = forward_tile(64, 4096, 8192, torch.float32)
    code = forward(layout, tile, 64, torch.float32, run=4, PRECISION="tf32")
    assert "wgmma.mma_async" in code.ptx
    assert code.spills == 0


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("height", [32, 128])
def test_the_weight_gradient_uses_warp_groups_and_wide_loads(features: bool, height: int) -> None:
    """By rule, the weight gradient multiplies by wgmma, fetches by 16 bytes alone and spills nothing."""
    tile = gradient_tile(height, torch.bfloat16)
    constants = {
        "HEIGHT": height,
        "ROWS": tile.rows,
        "ENTRIES": tile.entries,
        "STEP": tile.step,
        "RUN": 1 if features else 8,
        "IMAGE": False,
        "FEATURES": features,
        "ORDER": False,
        "PRECISION": "ieee",
        "UPCAST": False,
    }
    code = compiled(kernels().weight_gradient, torch.bfloat16, constants, tile)
    assert "wgmma.mma_async" in code.ptx
    assert set(code.asynchronous_loads) == {16}
    assert code.spills == 0
