"""Block-sparse layers on a CUDA device against the best dense layer: `python -m benchmarks.gpu_kernels --out FILE`.

First the device's roofs: bandwidth of memory and of the second-level cache, rate of a large dense product, and what the
Triton kernel reaches of that rate when nothing is pruned. Then the grid: for each layer, height, width and density the
time of the kernel as a fraction of cuBLAS, in half precision, with random patterns and without biases. Pieces below 8
columns read X feature-major and are given it so: a transposition is not counted. Products of torch's own BSR Triton
kernel stand beside it where the blocks are square and the tokens so many that its launch is hidden; it is called and
not replayed.

All else is captured in CUDA graphs and replayed in turn, so that a change of the clock touches all alike; weights are
rotated until they exceed the second-level cache twice, as they would between a model's layers. The median of the rounds
is reported. Every product is checked against the dense one before it is timed.

`--tune` times the candidate tiles, for each layer, height and width at the middle density, and uses the fastest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.provenance import commit, versions
from structprune.files import write_atomically
from structprune.layers.pack import Packed, pack, unpack
from structprune.layers.pattern import GroupedColumns
from structprune.layers.triton_launch import (
    available,
    grouped_linear,
    grouped_linear_features,
    grouped_weight_gradient,
    shared_bytes,
)
from structprune.layers.triton_tiles import Tile, fastest, forward_tile, forward_tiles

DTYPE = torch.bfloat16
DENSITIES = (0.5, 0.25, 0.1, 0.05)
TUNED_AT = 0.25
ROUNDS = 15
MOST_COPIES = 32
ALLOWED_ERROR = 2e-2  # of bfloat16, relative to the greatest number

Timer = Callable[[Mapping[str, Sequence[Callable[[], object]]]], dict[str, float]]


@dataclass(frozen=True)
class Layer:
    """A dense layer to prune and how many tokens it is given."""

    name: str
    outputs: int
    inputs: int
    tokens: int


@dataclass(frozen=True)
class Cell:
    """One row of the table before it is measured: a layer and its blocks."""

    layer: Layer
    height: int
    width: int
    density: float

    @property
    def features(self) -> bool:
        """Whether the kernel reads X feature-major, which narrow pieces want."""
        return self.width < 8


@dataclass(frozen=True)
class Row:
    """A measured cell: times in microseconds, of torch's BSR kernel None where it was not asked."""

    cell: Cell
    tile: Tile
    dense_us: float
    sparse_us: float
    bsr_us: float | None
    gradient_us: float
    dense_gradient_us: float
    error: float

    def __str__(self) -> str:
        """Return a line of the table."""
        cell, layer = self.cell, self.cell.layer
        bsr = "     -" if self.bsr_us is None else f"{self.bsr_us / self.dense_us:6.2f}"
        return (
            f"{layer.name:<12}{layer.tokens:>7}{cell.height:>5}x{cell.width:<4}{cell.density:>6.2f}"
            f"{self.dense_us:>11.1f}{self.sparse_us / self.dense_us:>9.3f}{bsr:>8}"
            f"{self.gradient_us / self.dense_gradient_us:>11.3f}"
        )


HEADER = f"{'layer':<12}{'tokens':>7}{'block':>8}{'density':>9}{'dense us':>10}{'sparse':>9}{'BSR':>8}{'dW':>11}"

LAYERS = (
    Layer("4096", 4096, 4096, 8192),
    Layer("4096", 4096, 4096, 16),
    Layer("4096", 4096, 4096, 1),
    Layer("ViT-B fc1", 3072, 768, 12608),
    Layer("ViT-B fc2", 768, 3072, 12608),
    Layer("MLP 1024", 1024, 1024, 16384),
)


def cells() -> Iterator[Cell]:
    """Yield the grid: tall groups with wide and single columns, and the square blocks of others."""
    blocks = [(256, 16), (128, 16), (128, 1), (64, 16), (64, 1), (64, 64), (32, 32), (16, 16)]
    for layer in LAYERS:
        for height, width in blocks:
            for density in DENSITIES:
                yield Cell(layer, height, width, density)


def cuda_times(candidates: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, float]:
    """Return for each candidate the microseconds of one of its calls, the median of rounds that replay all in turn."""
    graphs = {}
    for name, calls in candidates.items():
        for call in calls:
            call()
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for call in calls:
                call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            graph.replay()
            after.record()
            torch.cuda.synchronize()
            times[name].append(1000 * before.elapsed_time(after) / len(candidates[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def time_of_calls(call: Callable[[], object]) -> float:
    """Return the microseconds of a call that is launched and not replayed: torch's BSR kernel chooses on the host."""
    call()
    times = []
    for _ in range(ROUNDS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
        times.append(1000 * before.elapsed_time(after))
    return statistics.median(times)


def random_weight(cell: Cell, rng: np.random.Generator, device: torch.device) -> Packed:
    """Return a packed weight with that share of its blocks, drawn evenly over the groups."""
    layer = cell.layer
    pieces = -(-layer.inputs // cell.width)
    kept = np.zeros((-(-layer.outputs // cell.height), pieces), dtype=bool)
    for row in kept:
        row[rng.permutation(pieces)[: max(1, round(cell.density * pieces))]] = True
    pattern = GroupedColumns.from_blocks(kept, layer.outputs, layer.inputs, cell.height, cell.width)
    weight = torch.randn(layer.outputs, layer.inputs, device=device) / layer.inputs**0.5
    return pack(weight.to(DTYPE), pattern)


def product(x: Tensor, packed: Packed, cell: Cell, tile: Tile | None = None) -> Tensor:
    """Return the kernel's Y (tokens, outputs), a transpose where X (inputs, tokens) is feature-major."""
    arrays = (packed.values, packed.columns, packed.starts, packed.order, None)
    if cell.features:
        return grouped_linear_features(x, *arrays, outputs=packed.outputs, tile=tile).t()
    return grouped_linear(x, *arrays, outputs=packed.outputs, tile=tile)


def tile_of(cell: Cell, device: torch.device, tuned: bool) -> Tile:
    """Return the tile by rule, or the fastest of the candidates at the middle density."""
    layer, probe = cell.layer, torch.empty(0, device=device)
    size = (cell.height, layer.outputs, layer.tokens, DTYPE, shared_bytes(probe))
    if not tuned:
        return forward_tile(*size)
    at = replace(cell, density=TUNED_AT)
    packed, x = random_weight(at, np.random.default_rng(0), device), activations(at, device)
    # What Triton raises for a tile that the device cannot hold.
    refused = importlib.import_module("triton.runtime.errors").OutOfResources
    return fastest(lambda tile: product(x, packed, at, tile), forward_tiles(*size), device, (refused,))


def activations(cell: Cell, device: torch.device) -> Tensor:
    """Return X in the layout that the cell's kernel reads."""
    x = torch.randn(cell.layer.tokens, cell.layer.inputs, device=device, dtype=DTYPE)
    return x.t().contiguous() if cell.features else x


def measured(cell: Cell, device: torch.device, timer: Timer, tile: Tile, rng: np.random.Generator) -> Row:
    """Check and time one cell."""
    torch.manual_seed(0)
    first = random_weight(cell, rng, device)
    x = activations(cell, device)
    rows = x.t().contiguous() if cell.features else x
    dense = unpack(first)
    reference = F.linear(rows, dense).float()
    error = float((product(x, first, cell, tile).float() - reference).abs().max() / reference.abs().max())
    if not error <= ALLOWED_ERROR:
        raise ArithmeticError(f"Expected the dense product within {ALLOWED_ERROR}. Got {error} off. See {cell}.")
    copies = copies_past_the_cache(dense, device)
    weights = [replace(first, values=first.values.clone()) for _ in range(copies)]
    denses = [dense.clone() for _ in range(copies)]
    slope = torch.randn_like(reference).to(DTYPE)
    given = slope.t().contiguous() if cell.features else slope
    gradient = partial(
        grouped_weight_gradient, x, given, first.columns, first.starts, first.order,
        height=cell.height, features=cell.features,
    )  # fmt: skip
    candidates: dict[str, Sequence[Callable[[], object]]] = {
        "dense": [partial(F.linear, rows, weight) for weight in denses],
        "sparse": [partial(product, x, weight, cell, tile) for weight in weights],
        "gradient": [gradient],
        "dense gradient": [partial(torch.mm, slope.t(), rows)],
    }
    times = timer(candidates)
    bsr = None
    if device.type == "cuda" and cell.height == cell.width and cell.layer.tokens >= 1024:
        bsr = time_of_calls(partial(F.linear, rows, dense.to_sparse_bsr((cell.height, cell.width))))
    return Row(
        cell,
        tile,
        times["dense"],
        times["sparse"],
        bsr,
        times["gradient"],
        times["dense gradient"],
        error,
    )


def copies_past_the_cache(weight: Tensor, device: torch.device) -> int:
    """Return how many copies of a dense weight exceed the second-level cache twice."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_COPIES, 1 + 2 * cache // (weight.numel() * weight.element_size()))


def roofs(device: torch.device, timer: Timer) -> dict[str, float]:
    """Return the device's rates: TB/s of copies, TFLOP/s of products, and the kernel's share of the dense rate."""
    large, small = (torch.randn(count, device=device).to(DTYPE) for count in (1 << 29, 1 << 22))
    whole = Cell(Layer("dense", 8192, 8192, 8192), 128, 16, 1.0)
    x, packed = activations(whole, device), random_weight(whole, np.random.default_rng(0), device)
    weight = unpack(packed)
    targets = torch.empty_like(large), torch.empty_like(small)
    times = timer(
        {
            "memory": [partial(targets[0].copy_, large)],
            "cache": [partial(targets[1].copy_, small)] * 16,
            "dense": [partial(F.linear, x, weight)],
            "kernel": [partial(product, x, packed, whole)],
        }
    )
    return {
        "memory_tb_s": 4 * large.numel() / times["memory"] / 1e6,
        "cache_tb_s": 4 * small.numel() / times["cache"] / 1e6,
        "dense_tflop_s": 2 * 8192**3 / times["dense"] / 1e6,
        "kernel_share_of_dense": times["dense"] / times["kernel"],
    }


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tune", action="store_true", help="time the candidate tiles and use the fastest")
    parser.add_argument("--only", default="", help="layers whose name holds this")
    arguments = parser.parse_args()
    reason = available() or ("" if torch.cuda.is_available() else "torch sees no CUDA device.")
    if reason:
        parser.error(f"Expected a CUDA device and Triton. {reason} Run this where both are.")
    device, rng = torch.device("cuda"), np.random.default_rng(0)
    record = {
        "device": torch.cuda.get_device_name(device),
        "versions": versions(["torch", "triton", "numpy"]),
        "commit": commit(["structprune/layers", "benchmarks/gpu_kernels.py"]),
        "tuned": arguments.tune,
        "roofs": roofs(device, cuda_times),
    }
    print(json.dumps(record), HEADER, sep="\n", flush=True)
    tiles: dict[tuple[Layer, int, int], Tile] = {}
    rows: list[Row] = []
    for cell in cells():
        if arguments.only not in cell.layer.name:
            continue
        key = (cell.layer, cell.height, cell.width)
        if key not in tiles:
            tiles[key] = tile_of(cell, device, arguments.tune)
        rows.append(measured(cell, device, cuda_times, tiles[key], rng))
        print(rows[-1], flush=True)
        content = json.dumps(record | {"rows": [asdict(row) for row in rows]}, indent=1)
        write_atomically(arguments.out, content.encode())


if __name__ == "__main__":
    main()
