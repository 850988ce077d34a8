"""Time of the generated CPU kernels as a share of the best dense layer: ``python -m benchmarks.kernels_cpu``.

Every case is one thread's CPU time, so that other processes of the machine count little: the dense and the sparse
layers are called in turns, in random order, and the median over the rounds is reported. The best dense layer is the
faster of ``F.linear`` and oneDNN's packed linear layer, or of oneDNN's convolution in both memory formats. The sparse
convolution's time includes padding the image.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import provenance
from structprune.layers import Geometry, GroupedColumns, pack
from structprune.layers.jit_backend import CPU_JIT
from structprune.layers.onednn import packed_linear

SAMPLE_NS = 3_000_000  # short calls are repeated inside a sample
DENSITIES = (0.5, 0.25, 0.1)
BLOCKS = ((64, 1), (64, 16), (32, 32), (16, 16), (16, 1))
LINEAR = ((1024, 1024), (3072, 768), (768, 3072))  # outputs, inputs
TOKENS = (1, 16, 128, 1024)
IMAGES = ((128, 28, 1), (256, 14, 1), (256, 14, 8), (512, 7, 8))  # channels, height and width, images
RESULTS = Path(__file__).parent / "results" / "kernels_cpu"
THREADS = 1

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One sparse layer beside the best dense one."""

    layer: str
    dtype: str
    height: int
    width: int
    density: float
    dense_us: float
    sparse_us: float
    ratio: float


def pattern(outputs: int, inputs: int, height: int, width: int, density: float) -> GroupedColumns:
    """Return a pattern that keeps the same number of pieces, chosen at random, in every group."""
    rng = np.random.default_rng(0)
    shape = (-(-outputs // height), -(-inputs // width))
    kept = np.zeros(shape, bool)
    for row in kept:
        row[rng.choice(shape[1], max(1, round(density * shape[1])), replace=False)] = True
    return GroupedColumns.from_blocks(kept, outputs, inputs, height, width)


def medians_us(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Return the median thread CPU time of each call, in microseconds."""
    repeats = {}
    for name, call in calls.items():
        call()
        begun = time.thread_time_ns()
        call()
        repeats[name] = max(1, SAMPLE_NS // max(1, time.thread_time_ns() - begun))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, rng = list(calls), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(names)
        for name in names:
            calls[name]()  # brings this layer's weights near again
            begun = time.thread_time_ns()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.thread_time_ns() - begun) / repeats[name] / 1e3)
    return {name: float(np.median(each)) for name, each in times.items()}


def rows_of(layer: str, dtype: torch.dtype, dense: dict[str, Call], sparse: dict[str, Call], rounds: int) -> list[Row]:
    """Time one layer in all its forms."""
    with torch.inference_mode():
        found = medians_us(dense | sparse, rounds)
    best = min(found[name] for name in dense)
    rows = []
    for name in sparse:
        height, width, density = name.split()
        kind = str(dtype).removeprefix("torch.")
        rows.append(Row(layer, kind, int(height), int(width), float(density), best, found[name], found[name] / best))
        print(layer, kind, name, f"{rows[-1].ratio:.3f} of {best:.0f} us", flush=True)
    return rows


def linear(outputs: int, inputs: int, tokens: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Time a linear layer."""
    x, weight = torch.randn(tokens, inputs).to(dtype), (torch.randn(outputs, inputs) * 0.05).to(dtype)
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
    dense: dict[str, Call] = {
        "F.linear": partial(F.linear, x, weight),
        "oneDNN": partial(packed_linear, x, blocked, None, "none"),
    }
    sparse: dict[str, Call] = {}
    for (height, width), density in cases():
        packed = pack(weight, pattern(outputs, inputs, height, width, density))
        sparse[f"{height} {width} {density}"] = partial(CPU_JIT.linear, x, packed, None, "none")
    return rows_of(f"linear {inputs} -> {outputs}, {tokens} tokens", dtype, dense, sparse, rounds)


def convolution(channels: int, size: int, images: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Time a 3 x 3 convolution."""
    last = torch.channels_last
    x = torch.randn(images, channels, size, size).to(dtype)
    weight = (torch.randn(channels, channels, 3, 3) * 0.05).to(dtype)
    x_last, weight_last = x.to(memory_format=last), weight.to(memory_format=last)
    dense: dict[str, Call] = {
        "NCHW": partial(F.conv2d, x, weight, padding=1),
        "NHWC": partial(F.conv2d, x_last, weight_last, padding=1),
    }
    matrix, geometry = weight.permute(0, 2, 3, 1).reshape(channels, -1), Geometry((3, 3), padding=(1, 1))
    sparse: dict[str, Call] = {}
    for (height, width), density in cases():
        packed = pack(matrix, pattern(channels, 9 * channels, height, width, density))
        sparse[f"{height} {width} {density}"] = partial(CPU_JIT.conv2d, x_last, packed, geometry, None, "none")
    name = f"conv 3x3, {channels} channels, {size}x{size}, {images} images"
    return rows_of(name, dtype, dense, sparse, rounds)


def cases() -> list[tuple[tuple[int, int], float]]:
    """Return the blocks and densities that are timed."""
    return [(block, density) for block in BLOCKS for density in DENSITIES]


def table(rows: list[Row]) -> str:
    """Return the ratios as a Markdown table, a line per layer and block."""
    lines = ["| layer | type | block | " + " | ".join(f"d={d:g}" for d in DENSITIES) + " | best dense, us |"]
    lines.append("|---|---|---|" + "---|" * (len(DENSITIES) + 1))
    grouped: dict[tuple[str, str, int, int], dict[float, Row]] = {}
    for row in rows:
        grouped.setdefault((row.layer, row.dtype, row.height, row.width), {})[row.density] = row
    for (layer, dtype, height, width), found in grouped.items():
        ratios = " | ".join(f"{found[d].ratio:.2f}" for d in DENSITIES)
        dense = next(iter(found.values())).dense_us
        lines.append(f"| {layer} | {dtype} | {height}x{width} | {ratios} | {dense:.0f} |")
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return provenance.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{told.get('model name', 'unknown')}, family {told.get('cpu family')}, {provenance.machine()}"


def main() -> None:
    """Time everything and write ``results/kernels_cpu``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    reason = CPU_JIT.available()
    if reason:
        raise SystemExit(reason)
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in LINEAR:
            for tokens in TOKENS:
                rows += linear(outputs, inputs, tokens, dtype, rounds)
        for channels, size, images in IMAGES:
            rows += convolution(channels, size, images, dtype, rounds)
    packages = ("torch", "llvmlite", "numpy")
    head = {
        "command": f"python -m benchmarks.kernels_cpu --rounds {rounds}",
        "commit": provenance.commit(["structprune/layers", "benchmarks/kernels_cpu.py"]),
        "processor": processor(),
        "threads": THREADS,
        "versions": provenance.versions(packages),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "rows.json").write_text(json.dumps(head | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    words = f"Time as a share of the best dense layer. One thread of {head['processor']}; {head['versions']}.\n\n"
    (RESULTS / "table.md").write_text(words + table(rows) + "\n")


if __name__ == "__main__":
    main()
