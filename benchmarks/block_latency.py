"""Latency asked for, predicted and measured, of networks in blocks: ``python -m benchmarks.block_latency``.

MiniLM's feed-forward layers (sentence pairs of STS-B), MobileNetV1's 1x1 convolutions (random pixels) and a perceptron
with GELU modules (random weights) are pruned by magnitude with ``solve(model, Budget(latency_ns=...), structures=
blocks(...))``, without training: this measures speed, not accuracy. What the measured tables predict stands beside what
the whole network takes, both as shares of the dense network as it was given. Each network is timed on one thread of the
CPU, by that thread's CPU time, in turns and random order, medians over the rounds. Beside it stand the same network
without packed dense layers, and without fused activations: what each of the two is worth.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import provenance
from benchmarks.block_sparse_models import CPU, Subject, call_of, medians_ms, minilm, mobilenet
from benchmarks.cifar import data_folder
from benchmarks.kernels_cpu import processor
from structprune import Budget, blocks, solve
from structprune.axes import as_example
from structprune.compile.fuse import Applied
from structprune.compile.packing import packed_layers
from structprune.compile.sparse import replaced, sparse_layers
from structprune.layers.layer import BlockSparseLayer
from structprune.layers.packed_linear import PackedLinear
from structprune.layers.tune import one_thread

CAPS = (0.8, 0.6, 0.5, 0.4)
SHAPE = (64, 1)
RESULTS = Path(__file__).parent / "results" / "block_latency"


@dataclass(frozen=True)
class Row:
    """One network under one cap.

    Attributes
    ----------
    cap, predicted, measured
        Latency as a share of the dense network's: allowed, by the tables at the choice that was made, and taken.
    kept
        Kept share of the weights in blocks.
    sparse, packed, fused
        Number of layers in each form, of ``layers`` that have blocks.
    dense_ms, pruned_ms, without_packing_ms, without_fusion_ms
        Medians of one forward pass.
    """

    network: str
    cap: float
    predicted: float
    measured: float
    kept: float
    layers: int
    sparse: int
    packed: int
    fused: int
    dense_ms: float
    pruned_ms: float
    without_packing_ms: float
    without_fusion_ms: float


def perceptron(tokens: int) -> Subject:
    """Return three wide layers with random weights, and random inputs."""
    torch.manual_seed(0)
    sizes = (512, 2048, 2048, 512)
    parts = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.GELU())]
    model = nn.Sequential(*parts).eval()
    return Subject(f"perceptron 512-2048-2048-512, {tokens} tokens", model, (torch.randn(tokens, 512),), (), False)


def measure(subject: Subject, cap: float, rounds: int) -> Row:
    """Prune to a latency, and time what comes of it."""
    structures = blocks(subject.model, SHAPE, keep_whole=subject.keep_whole)
    example = as_example(subject.batch)
    pruned = solve(subject.model, Budget(latency_ns=cap), structures=structures, example=example, progress=False)
    (cost,) = [row for row in pruned.report.costs if row.resource == "latency_ns"]
    networks = {
        "dense": subject.model,
        "pruned": pruned.model,
        "without packing": unpacked(pruned.model),
        "without fusion": unfused(pruned.model),
    }
    with torch.no_grad(), one_thread(CPU):
        times = medians_ms({name: call_of(network, subject, name) for name, network in networks.items()}, rounds)
    layers = {axis.name.partition(" (")[0] for axis in structures.axes}
    return Row(
        network=subject.name,
        cap=cap,
        predicted=cost.predicted / cost.before,
        measured=times["pruned"] / times["dense"],
        kept=float(structures.count[pruned.selection].sum() / structures.count.sum()),
        layers=len(layers),
        sparse=len(sparse_layers(pruned.model)),
        packed=len(packed_layers(pruned.model)),
        fused=sum(isinstance(part, Applied) for part in pruned.model.modules()),
        dense_ms=times["dense"],
        pruned_ms=times["pruned"],
        without_packing_ms=times["without packing"],
        without_fusion_ms=times["without fusion"],
    )


def unpacked(model: nn.Module) -> nn.Module:
    """Return a copy with ordinary linear layers where packed ones are."""
    clone = copy.deepcopy(model)
    for name, layer in list(clone.named_modules()):
        if isinstance(layer, PackedLinear):
            with torch.device("meta"):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight, plain.bias = layer.weight, layer.bias
            clone = replaced(clone, name, plain.eval())
    return clone


def unfused(model: nn.Module) -> nn.Module:
    """Return a copy with the activations in modules of their own again."""
    clone = copy.deepcopy(model)
    for name, part in list(clone.named_modules()):
        if isinstance(part, Applied):
            layer = clone.get_submodule(part.by)
            assert isinstance(layer, BlockSparseLayer)
            replaced(clone, name, nn.ReLU() if layer.activation == "relu" else nn.GELU())
            layer.activation = "none"
    return clone


def table(rows: Sequence[Row]) -> str:
    """Return Markdown."""
    heads = (
        "network | dense, ms | allowed | predicted | measured | weights kept | sparse, packed, fused | "
        "without packing | without fusion"
    )
    lines = [f"| {heads} |", "|---|" + "---:|" * 8]
    for row in rows:
        others = [time / row.dense_ms for time in (row.without_packing_ms, row.without_fusion_ms)]
        cells = [row.network, f"{row.dense_ms:.1f}", f"{row.cap:g}", f"{row.predicted:.2f}", f"**{row.measured:.2f}**"]
        cells += [f"{row.kept:.2f}", f"{row.sparse}, {row.packed}, {row.fused} of {row.layers}"]
        lines.append("| " + " | ".join([*cells, *(f"{share:.2f}" for share in others)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure everything and write ``results/block_latency``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of data (default: $STRUCTPRUNE_DATA, else ../shared/data)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--caps", type=float, nargs="+", default=CAPS)
    options = parser.parse_args()
    folder = data_folder(options.data)
    torch.set_num_threads(1)
    # Read before the measurement: the code that runs is that of now.
    caps = "" if tuple(options.caps) == CAPS else " --caps " + " ".join(f"{cap:g}" for cap in options.caps)
    head = {
        "command": f"python -m benchmarks.block_latency --rounds {options.rounds}{caps}",
        "commit": provenance.commit(["structprune", "solvers", "benchmarks/block_latency.py"]),
        "processor": processor(),
        "threads": 1,
        "versions": provenance.versions(("torch", "llvmlite", "numpy")),
    }
    rows = []
    for subject in (perceptron(128), minilm(folder, 16), mobilenet(folder, 1)):
        for cap in options.caps:
            rows.append(measure(subject, cap, options.rounds))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "rows.json").write_text(json.dumps(head | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    words = f"""Latency of whole networks in {SHAPE[0]}x{SHAPE[1]} blocks, pruned by magnitude without training to a
latency: this is about speed alone. CPU time of one thread of {head["processor"]}, medians of {options.rounds}
interleaved rounds; {head["versions"]}. *allowed*, *predicted*, *measured*: shares of the dense network's latency.
*sparse, packed, fused*: layers that became block-sparse, dense layers in oneDNN's packed form, activations that the
layer before applies. *without packing*, *without fusion*: the measured share had these been left as they were.

`{head["command"]}` (commit {head["commit"]})

"""
    (RESULTS / "table.md").write_text(words + table(rows) + "\n")


if __name__ == "__main__":
    main()
