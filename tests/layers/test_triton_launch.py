"""What the Triton launches refuse and choose; none of it needs Triton or a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from structprune.layers import triton_launch
from structprune.layers.pattern import HEIGHTS
from structprune.layers.triton_backend import CUDA_TRITON, CudaTriton
from structprune.layers.triton_checks import Indices, checked_lists
from structprune.layers.triton_launch import grouped_conv2d, grouped_linear, grouped_weight_gradient
from structprune.layers.triton_tiles import (
    HOPPER_SHARED_BYTES,
    Tile,
    fastest,
    forward_tile,
    forward_tiles,
    gradient_tile,
)


@dataclass(frozen=True)
class Operands:
    """A layer of 20 outputs in two groups of 16 and 8 inputs, in pieces of 2."""

    x: Tensor
    values: Tensor
    columns: Tensor
    starts: Tensor
    order: Tensor | None = None
    bias: Tensor | None = None
    outputs: int = 20

    def run(self) -> Tensor:
        """Launch the layer."""
        packed = (self.values, self.columns, self.starts, self.order)
        return grouped_linear(self.x, *packed, self.bias, outputs=self.outputs)


def indices(*numbers: int) -> Tensor:
    """Return a list of indices."""
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.fixture
def operands() -> Operands:
    """Return operands that fit each other."""
    return Operands(torch.zeros(3, 8), torch.zeros(6, 16), indices(0, 1, 4, 5, 6, 7), indices(0, 4, 6))


WRONG: dict[str, Callable[[Operands], Operands]] = {
    "with unit stride last": lambda o: replace(o, x=torch.zeros(8, 3).t()),
    "columns below 6": lambda o: replace(o, x=torch.zeros(3, 6)),
    "columns from 0": lambda o: replace(o, columns=indices(-1, 1, 4, 5, 6, 7)),
    "X of float32, float16 or bfloat16": lambda o: replace(o, x=o.x.double(), values=o.values.double()),
    "values .C, G. of torch.float16": lambda o: replace(o, x=o.x.half()),
    "a height in": lambda o: replace(o, values=torch.zeros(6, 8)),
    "5 columns, one a row of values": lambda o: replace(o, values=torch.zeros(5, 16)),
    "starts as contiguous int32 .4,.": lambda o: replace(o, outputs=33),
    "starts that rise from 0 to 6": lambda o: replace(o, starts=indices(0, 4, 5)),
    "columns as contiguous int32": lambda o: replace(o, columns=o.columns.long()),
    "order as contiguous int32 .20,.": lambda o: replace(o, order=indices(*range(19))),
    "an order that names each of 20 outputs once": lambda o: replace(o, order=indices(*range(19), 3)),
    "a contiguous bias .20,.": lambda o: replace(o, bias=torch.zeros(16)),
}


@pytest.mark.parametrize("expected", WRONG)
def test_operands_that_do_not_fit_are_refused(expected: str, operands: Operands) -> None:
    """Nothing is launched that would read or write outside its tensors; the message says what was expected."""
    with pytest.raises(ValueError, match=f"Expected .*{expected}.* Got "):
        WRONG[expected](operands).run()


def test_an_index_that_is_written_to_is_checked_again(operands: Operands) -> None:
    """Lists are read once, and once more after a change in place."""
    lists = Indices(operands.columns, operands.starts, None)
    assert checked_lists(lists, operands.x, 20, 8, 16) is checked_lists(lists, operands.x, 20, 8, 16)
    operands.columns[-1] = 99
    with pytest.raises(ValueError, match="Expected columns below 8"):
        checked_lists(lists, operands.x, 20, 8, 16)


def test_other_starts_with_the_same_columns_are_read(operands: Operands) -> None:
    """What was found holds for the lists together."""
    first = checked_lists(Indices(operands.columns, operands.starts, None), operands.x, 20, 8, 16)
    second = checked_lists(Indices(operands.columns, indices(0, 1, 6), None), operands.x, 20, 8, 16)
    assert (first.run, first.longest) == (2, 4)
    assert (second.run, second.longest) == (1, 5)


@pytest.mark.parametrize(
    ("columns", "starts", "run"),
    [
        (range(32), (0, 32, 32), 16),
        (range(8, 40), (0, 16, 32), 8),
        (range(1, 33), (0, 16, 32), 1),
        ((0, 1, 2, 3, 8, 9), (0, 4, 6), 2),
        ((), (0, 0, 0), 16),
    ],
)
def test_runs_are_aligned_and_whole(columns: tuple[int, ...], starts: tuple[int, ...], run: int) -> None:
    """A run begins at a multiple of its length, in the columns and in the list: that is what the loads are told."""
    lists = Indices(indices(*columns), indices(*starts), None)
    assert checked_lists(lists, torch.zeros(1, 64), 20, 64, 16).run == run


def test_lists_made_in_inference_mode_are_read_every_time() -> None:
    """They do not tell when they change, so nothing is remembered of them."""
    with torch.inference_mode():
        lists = Indices(indices(0, 1), indices(0, 2), None)
        assert checked_lists(lists, torch.zeros(1, 8), 16, 8, 16).inputs == 2
        lists.columns[1] = 7
        assert checked_lists(lists, torch.zeros(1, 8), 16, 8, 16).inputs == 8


def test_an_image_must_hold_the_kernel(operands: Operands) -> None:
    """A window that no image of that size has is refused."""
    packed = (operands.values, operands.columns, operands.starts, None, None)
    with pytest.raises(ValueError, match="Expected a kernel within the padded image of 2 x 5"):
        grouped_conv2d(torch.zeros(1, 2, 5, 8), *packed, outputs=20, kernel=(3, 3))


def test_gradients_have_as_many_tokens_as_inputs(operands: Operands) -> None:
    """Matrices of different layouts are refused where their sizes tell."""
    with pytest.raises(ValueError, match="Expected as many tokens in the gradient as in X, 3. Got 20"):
        grouped_weight_gradient(operands.x, torch.zeros(20, 3), operands.columns, operands.starts, None, height=16)


def test_importing_the_backend_does_not_load_triton() -> None:
    """Triton is looked for when it is needed."""
    program = (
        "import sys, structprune.layers.triton_backend as b; b.CUDA_TRITON.available(); print('triton' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


def test_available_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton or without CUDA there is a reason; the interpreter needs no CUDA."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_launch.importlib.util, "find_spec", lambda name: None)
    assert CUDA_TRITON.available() == "Triton is not installed."
    monkeypatch.setattr(triton_launch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CUDA_TRITON.available() == "torch sees no CUDA device."
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert CUDA_TRITON.available() == ""


def test_precisions_are_backends_of_their_own() -> None:
    """A saved program names how it multiplies."""
    assert CudaTriton("tf32").name != CUDA_TRITON.name


@pytest.mark.parametrize("tokens", [1, 16, 65, 128, 1024, 12608])
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_divide_the_groups_and_fit_the_device(height: int, tokens: int, dtype: torch.dtype) -> None:
    """Every tile offered is one that the kernels take and shared memory holds, on a small device too."""
    for memory in (HOPPER_SHARED_BYTES, 99 * 1024):
        for tile in forward_tiles(height, 1000, tokens, dtype, memory):
            assert height % tile.rows == 0
            assert tile.rows >= 16
            assert tile.tokens >= 16
            assert tile.shared_bytes(dtype.itemsize) <= memory
    assert height % gradient_tile(height, dtype).rows == 0


def test_few_tokens_cut_the_groups_into_more_programs() -> None:
    """A layer that is bound by reading its weights is spread over the multiprocessors."""
    assert forward_tile(128, 4096, 1, torch.bfloat16).rows < forward_tile(128, 4096, 8192, torch.bfloat16).rows


def test_a_tile_must_divide_the_height(operands: Operands) -> None:
    """A tile of other rows than a divisor of the height would leave outputs out."""
    packed = (operands.values, operands.columns, operands.starts, None, None)
    with pytest.raises(ValueError, match="Expected a tile whose rows divide the height 16. Got 64"):
        grouped_linear(operands.x, *packed, outputs=20, tile=Tile(64, 16, 16, 4, 3))


@pytest.mark.gpu
def test_the_fastest_tile_is_one_of_those_timed() -> None:
    """Timing returns a tile, and leaves out those that the device refuses."""
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)

    def work(size: int) -> Tensor:
        if size == 1:
            raise MemoryError
        return matrix[:size, :size] @ matrix[:size, :size]

    assert fastest(work, [4096, 1, 64], device, refused=(MemoryError,)) == 64
