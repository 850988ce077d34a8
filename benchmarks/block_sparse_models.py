"""Whole trained networks with block-sparse layers beside the dense ones: ``python -m benchmarks.block_sparse_models``.

MiniLM's feed-forward layers (sentence pairs of STS-B) and MobileNetV1's 1x1 convolutions (random pixels) are pruned by
magnitude to a density with ``solve(model, Budget(density=...), structures=blocks(...))``, without training: this
measures speed, not accuracy. Each whole network is then timed on one thread of the CPU, by that thread's CPU time, in
turns and random order, medians over the rounds. Its rivals are the masked network as it is, for images the same with
channels innermost, and the same with oneDNN's packed linear layers wherever the block-sparse one has sparse layers; the
fastest of these counts. The block-sparse network may have its images with channels innermost as well.

With ``--arrange`` nothing is timed: the score |w|^2 that blocks keep at a quarter of the density is printed for every
layer, in the given order of the outputs and in the one that ``arrange`` finds, and written to ``arranged.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import provenance
from benchmarks.cifar import data_folder
from benchmarks.kernels_cpu import processor
from benchmarks.mobilenets import SameConv, trained_mobilenet
from benchmarks.texts import sentence_pairs, trained_minilm
from structprune import Arrangement, Budget, Magnitude, Structures, arrange, blocks, masked, solve
from structprune.axes import as_example
from structprune.compile.sparse import plan_sparse, sparse_layers
from structprune.layers import DENSE_ONEDNN, BlockSparseLinear
from structprune.layers.tune import first_look, one_thread, thread_times

DENSITIES = (0.5, 0.25, 0.1)
SHAPES = ((64, 1), (64, 16), (32, 32))
ARRANGED = ((64, 1), (64, 16), (128, 16))
ARRANGED_DENSITY = 0.25
RESULTS = Path(__file__).parent / "results" / "block_sparse_models"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A trained network, one batch for it, and the layers that stay whole."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, ...]
    keep_whole: tuple[str, ...]
    images: bool


@dataclass(frozen=True)
class Row:
    """One network at one density.

    Attributes
    ----------
    layers, sparse
        Layers that lost blocks, and those of them that became block-sparse.
    error
        Largest difference from the masked network's output, as a share of the largest output.
    times_ms
        Median of one forward pass, by way of computing.
    ratio
        The block-sparse network's time as a share of the fastest dense one's.
    worst_layer
        Largest share among the layers that became block-sparse, each of its own best dense time; 0 without such layers.
    """

    network: str
    height: int
    width: int
    density: float
    layers: int
    sparse: int
    error: float
    times_ms: Mapping[str, float]
    ratio: float
    worst_layer: float


def minilm(folder: Path, count: int) -> Subject:
    """Return MiniLM with one side of some sentence pairs, 24 tokens each."""
    model = trained_minilm(folder)
    ids, mask, _, _ = sentence_pairs(folder, count, seed=0).inputs
    whole = tuple(name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name[-1] in "qkvo")
    return Subject(f"MiniLM-L6 feed-forward, {count} x 24 tokens", model, (ids, mask), whole, False)


def mobilenet(folder: Path, count: int) -> Subject:
    """Return MobileNetV1 with torch's own 1x1 convolutions, and some images."""
    model = trained_mobilenet(folder, 1)
    for name, part in list(model.named_modules()):
        if isinstance(part, SameConv) and part.kernel_size == (1, 1):
            plain = nn.Conv2d(part.in_channels, part.out_channels, 1)
            plain.load_state_dict(part.state_dict())
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, plain)
    batch = torch.rand(count, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = ("stem", "fc", "blocks.*.dw")
    return Subject(f"MobileNetV1 1x1 convolutions, {count} x 224 x 224", model.eval(), (batch,), whole, True)


def measure(subject: Subject, shape: tuple[int, int], density: float, rounds: int) -> Row:
    """Prune, compile and time one network."""
    structures = blocks(subject.model, shape, keep_whole=subject.keep_whole)
    example = as_example(subject.batch)
    pruned = solve(subject.model, Budget(density=density), structures=structures, example=example, progress=False)
    reference = masked(subject.model, structures, pruned.selection)
    layers = sparse_layers(pruned.model)
    networks = {"dense": reference, "block-sparse": pruned.model}
    if subject.images:
        networks |= {f"{name}, channels last": channels_last(network) for name, network in networks.items()}
    elif any(isinstance(layer, BlockSparseLinear) for layer in layers.values()):
        packed = copy.deepcopy(pruned.model)
        for layer in sparse_layers(packed).values():
            layer.use(DENSE_ONEDNN)
        networks["dense, oneDNN packed"] = packed
    with torch.no_grad():
        expected, found = reference(*subject.batch), pruned.model(*subject.batch)
        error = float((found - expected).abs().max() / expected.abs().max())
        with one_thread(CPU):
            times = medians_ms({name: call_of(network, subject, name) for name, network in networks.items()}, rounds)
    # The measurements that compiling made, read from the cache.
    tuned = plan_sparse(reference, structures, pruned.selection, example).tuned
    masks = structures.masks(pruned.selection)
    return Row(
        *(
            subject.name,
            *shape,
            density,
            len(masks),
            len(layers),
            error,
            times,
            fastest(times, "block-sparse") / fastest(times, "dense"),
        ),
        max((one.ratio for one in tuned if one.name in layers), default=0.0),
    )


def channels_last(network: nn.Module) -> nn.Module:
    """Return a copy whose convolutions have their weights with channels innermost."""
    clone = copy.deepcopy(network)
    for parameter in clone.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return clone


def call_of(network: nn.Module, subject: Subject, name: str) -> Callable[[], Any]:
    """Return one forward pass."""
    batch = subject.batch
    if name.endswith("channels last"):
        batch = tuple(part.contiguous(memory_format=torch.channels_last) for part in batch)
    return partial(network, *batch)


def medians_ms(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU time of this thread for each call, in milliseconds."""
    looks = [first_look(call, CPU) for call in calls.values()]
    samples = thread_times(list(calls.values()), looks, rounds)
    return dict(zip(calls, (np.median(samples, axis=0) / 1e6).tolist(), strict=True))


def fastest(times: Mapping[str, float], kind: str) -> float:
    """Return the least time of the networks whose names begin so."""
    return min(time for name, time in times.items() if name.startswith(kind))


def table(rows: list[Row]) -> str:
    """Return Markdown."""
    heads = (
        "network | block | density | sparse layers | best dense, ms | block-sparse, ms | ratio | worst layer | error"
    )
    lines = [f"| {heads} |", "|---|---|" + "---:|" * 7]
    for row in rows:
        cells = [row.network, f"{row.height}x{row.width}", f"{row.density:g}", f"{row.sparse} of {row.layers}"]
        cells += [f"{fastest(row.times_ms, kind):.1f}" for kind in ("dense", "block-sparse")]
        cells += [f"**{row.ratio:.2f}**"]
        lines.append("| " + " | ".join([*cells, f"{row.worst_layer:.2f}", f"{row.error:.0e}"]) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class ArrangedRow:
    """One network that was reordered.

    Attributes
    ----------
    network, found
        Its name, and what was found for it.
    seconds
        That it took.
    apart
        |masked - dense| / |dense| over the outputs of the subject's batch, without training: blocks by magnitude in
        the given order, and in the new one.
    """

    network: str
    found: Arrangement
    seconds: float
    apart: tuple[float, float]


def arrangement(subject: Subject, shape: tuple[int, int], density: float) -> ArrangedRow:
    """Reorder the layers that do not stay whole."""
    structures = blocks(subject.model, shape, keep_whole=subject.keep_whole)
    names = list(dict.fromkeys(tensor.removesuffix(".weight") for axis in structures.axes for tensor in axis.tensors()))
    start = time.perf_counter()
    found = arrange(subject.model, shape, density, example=subject.batch, layers=names, progress=False)
    seconds = time.perf_counter() - start
    before = outputs_apart(subject, subject.model, blocks(subject.model, shape, layers=names), density)
    ordered = blocks(found.model, shape, layers=names, orders=found.orders)
    after = outputs_apart(subject, found.model, ordered, density)
    return ArrangedRow(subject.name.split(",")[0], found, seconds, (before, after))


@torch.no_grad()
def outputs_apart(subject: Subject, model: nn.Module, structures: Structures, density: float) -> float:
    """Return how far the network with only the best blocks by magnitude is from the dense one."""
    values = Magnitude()(model, structures).values
    kept = np.zeros(structures.n, dtype=bool)
    kept[np.argsort(-values, kind="stable")[: round(density * structures.n)]] = True
    dense, small = subject.model(*subject.batch), masked(model, structures, kept)(*subject.batch)
    return float((small - dense).norm() / dense.norm())


def arranged_table(rows: list[ArrangedRow]) -> str:
    """Return Markdown: a line for all layers of a network, and one for each."""
    heads = "network | block | layer | kept before | kept after | order | outputs apart, before | after"
    lines = [f"| {heads} |", "|---|---|---|---:|---:|---|---:|---:|"]
    for row in rows:
        found = row.found
        size = "x".join(map(str, found.shape))
        cells = [row.network, size, "all", f"**{found.before:.3f}**", f"**{found.after:.3f}**"]
        cells += [f"{len(found.folded)} folded, {row.seconds:.0f} s", *(f"{apart:.2f}" for apart in row.apart)]
        lines.append("| " + " | ".join(cells) + " |")
        lines += [f"| | | {one.name} | {one.before:.3f} | {one.after:.3f} | {one.order} | | |" for one in found.layers]
    return "\n".join(lines)


def measure_arrangements(folder: Path) -> None:
    """Print what blocks keep before and after, and write ``results/block_sparse_models/arranged.md``."""
    rows = []
    for subject in (minilm(folder, 16), mobilenet(folder, 1)):
        for shape in ARRANGED:
            rows.append(arrangement(subject, shape, ARRANGED_DENSITY))
            print(arranged_table(rows[-1:]), flush=True)
    commit = provenance.commit(["structprune", "solvers", "benchmarks/block_sparse_models.py"])
    words = f"""Share of |w|^2 that the best {ARRANGED_DENSITY:g} of the blocks of each layer keep, in the given order
of the outputs and after `arrange`. The order is *folded* into the neighbouring layers where the network computes the
same with it, and stored with the layer (*indexed*) elsewhere. *outputs apart*: |masked - dense| / |dense| of the
whole network's outputs with these blocks by magnitude, not trained: 1 is as far as outputs of zero. {processor()}.

`python -m benchmarks.block_sparse_models --arrange` (commit {commit})

"""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "arranged.md").write_text(words + arranged_table(rows) + "\n")


def main() -> None:
    """Measure everything and write ``results/block_sparse_models``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--arrange", action="store_true", help="print what blocks keep before and after reordering")
    options = parser.parse_args()
    folder = data_folder(options.data)
    if options.arrange:
        measure_arrangements(folder)
        return
    rows = []
    for subject in (minilm(folder, 16), mobilenet(folder, 1)):
        for shape in SHAPES:
            for density in options.densities:
                rows.append(measure(subject, shape, density, options.rounds))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    head = {
        "command": f"python -m benchmarks.block_sparse_models --rounds {options.rounds}",
        "commit": provenance.commit(["structprune", "solvers", "benchmarks/block_sparse_models.py"]),
        "processor": processor(),
        "threads": 1,
        "versions": provenance.versions(("torch", "llvmlite", "numpy")),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "rows.json").write_text(json.dumps(head | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    words = f"""Whole networks, pruned by magnitude without training, so that this is about speed alone. CPU time of one
thread of {head["processor"]}, medians of {options.rounds} interleaved rounds; {head["versions"]}.
*ratio*: block-sparse over dense, each in its faster layout. *worst layer*: the largest such share among the layers that
became block-sparse, as the tuner measured it; a layer at 0.95 or more stays dense. *error*: from the masked network.

`{head["command"]}` (commit {head["commit"]})

"""
    (RESULTS / "table.md").write_text(words + table(rows) + "\n")


if __name__ == "__main__":
    main()
