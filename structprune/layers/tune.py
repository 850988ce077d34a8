"""Measure whether a block-sparse layer is faster than the best dense one, and with which backend.

A sparse layer that is slower than a dense one helps nobody, and which is faster depends on the machine, the shape, the
pattern and the number of tokens. So the layers themselves are timed, as the network will call them, beside torch's
dense layer and oneDNN's with a weight packed beforehand. The sparse layer is chosen only where it takes less than
``MARGIN`` of the best dense time, and less than it in each half of the rounds, so that one quiet moment of a busy
machine does not decide.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import thread_time_ns
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from structprune.latency.cache import Cache, default_folder
from structprune.latency.timing import interleaved
from structprune.layers.activation import Activation
from structprune.layers.backend import Backend
from structprune.layers.conv import BlockSparseConv2d
from structprune.layers.jit_backend import CPU_JIT
from structprune.layers.linear import BlockSparseLinear
from structprune.layers.onednn import multiplies, packed_linear, packed_weight
from structprune.layers.packed_linear import PackedLinear
from structprune.layers.rowloop import ROWLOOP
from structprune.layers.triton_backend import CUDA_TRITON
from structprune.layers.tune_key import key_of

__all__ = ["BACKENDS", "BlockSparse", "Call", "Timed", "Tuned", "time_fused", "time_packed", "tune"]

BACKENDS: tuple[Backend, ...] = (CPU_JIT, CUDA_TRITON, ROWLOOP)
MARGIN = 0.95  # a sparse layer must take less than this share of the best dense layer's time
ROUNDS = 11
SAMPLE_NS = 1_000_000  # short calls are repeated inside a sample
HOPELESS = 3.0  # times the quickest first look: what is slower than that is not timed further
FIELDS = ("median_ns", "first_ns", "second_ns")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 1e-2}

BlockSparse = BlockSparseLinear | BlockSparseConv2d
Folder = str | Path


@dataclass(frozen=True)
class Call:
    """The input of one call of a layer, without its values.

    Attributes
    ----------
    shape, stride, dtype, device
        As of the tensor.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> Call:
        """Return the call with this input."""
        return cls(tuple(x.shape), tuple(x.stride()), x.dtype, x.device)

    def tensor(self, generator: torch.Generator) -> Tensor:
        """Return normal random numbers in this shape, and in this layout where it has no gaps or overlaps."""
        x = torch.randn(self.shape, generator=generator).to(self.device, self.dtype)
        laid_out = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        if torch.ops.aten.is_non_overlapping_and_dense(laid_out):
            return laid_out.copy_(x)
        return x


@dataclass(frozen=True)
class Timed:
    """Median nanoseconds of one call: over all rounds, over the first half of them and over the second."""

    median_ns: float
    first_ns: float
    second_ns: float


@dataclass(frozen=True)
class Tuned:
    """What was measured of one layer, and what follows.

    Attributes
    ----------
    name
        The layer's name in its network.
    what
        Its shape, blocks, density and input in words.
    backend
        Who should compute the block-sparse layer; None if the layer should stay dense.
    sparse
        Name of the fastest sparse backend, whether it won or not; '' where none ran.
    ratio
        Its median time divided by that of the best dense layer; infinite where none ran.
    medians_ns
        Every candidate's, by name. What was several times slower at first sight has the time of that look.
    notes
        Why a backend took no part.
    """

    name: str
    what: str
    backend: Backend | None
    sparse: str
    ratio: float
    medians_ns: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Return one line of text."""
        if not self.sparse:
            return f"{self.name}: dense, no sparse backend ran ({self.what}; {'; '.join(self.notes)})"
        verdict = f"{self.sparse} in" if self.backend is not None else f"dense, as {self.sparse} takes"
        times = ", ".join(f"{name} {median / 1000:.0f} us" for name, median in self.medians_ns.items())
        return f"{self.name}: {verdict} {self.ratio:.2f} of the best dense layer's time ({self.what}; {times})"


def tune(
    name: str,
    dense: nn.Linear | nn.Conv2d,
    build: Callable[[Backend], BlockSparse],
    calls: Sequence[Call],
    *,
    backends: Sequence[Backend] = BACKENDS,
    rounds: int = ROUNDS,
    cache: Folder | Literal[False] | None = None,
) -> Tuned:
    """Time one layer in all forms that run here, and say which to use.

    On CPUs this thread's CPU time is taken, with one thread and in random order, so that other processes count little;
    on CUDA devices events are recorded. Whoever is chosen gave the dense layer's result within rounding.

    Parameters
    ----------
    name
        For the report.
    dense
        The layer with zeros where nothing is kept, in evaluation mode.
    build
        Makes the block-sparse layer with a backend.
    calls
        The inputs it gets in one pass of the network. Dense layers are timed in these layouts and, convolutions, with
        channels innermost too, the faster of which counts; sparse ones in these alone.
    backends
        Those to try; what is not available is left out and noted, what is for another kind of device is left out.
    rounds
        How often each is timed.
    cache
        Folder of measurements; None for the user's cache folder, False for no cache.

    Raises
    ------
    ValueError
        There is no call, or fewer than four rounds.
    """
    if not calls or rounds < 4:
        raise ValueError(
            f"Expected at least one call and four rounds. Got {len(calls)} and {rounds}. "
            "Record the layer's inputs in a forward pass."
        )
    device = calls[0].device
    generator = torch.Generator().manual_seed(0)
    inputs = [call.tensor(generator) for call in calls]
    with torch.no_grad(), one_thread(device):
        sparse, notes = sparse_candidates(dense, build, backends, inputs)
        if not sparse:
            return Tuned(name, f"{len(calls)} calls", None, "", float("inf"), {}, notes)
        layer = next(iter(sparse.values()))[1]
        key, what = key_of(layer, calls)
        dense_ones = dense_candidates(dense, inputs)
        every = dense_ones | {backend.name: repeated(layer, inputs) for backend, layer in sparse.values()}
        timed = measured(every, device, rounds, key, cache)
    best_dense = {half: min(getattr(timed[one], half) for one in dense_ones) for half in ("first_ns", "second_ns")}
    best = min(timed[one].median_ns for one in dense_ones)
    winner = min(sparse, key=lambda one: timed[one].median_ns)
    found = timed[winner]
    both = found.first_ns < best_dense["first_ns"] and found.second_ns < best_dense["second_ns"]
    pays = found.median_ns < MARGIN * best and both
    medians = {one: each.median_ns for one, each in timed.items()}
    return Tuned(name, what, sparse[winner][0] if pays else None, winner, found.median_ns / best, medians, notes)


def time_fused(
    layer: BlockSparse,
    behind: nn.Module,
    activation: Activation,
    calls: Sequence[Call],
    *,
    rounds: int = ROUNDS,
    cache: Folder | Literal[False] | None = None,
) -> float:
    """Return the time of a layer that applies its activation as a share of the time of the layer and ``behind``.

    Parameters
    ----------
    layer
        A block-sparse layer without an activation; it is given one.
    behind
        The activation's module.
    activation
        Which it is.
    calls, rounds, cache
        As in :func:`tune`.
    """
    device = calls[0].device
    generator = torch.Generator().manual_seed(0)
    inputs = [call.tensor(generator) for call in calls]
    apart, together = copy.copy(layer), copy.copy(layer)
    together.activation = activation

    def both(x: Tensor) -> Tensor:
        return behind(apart(x))

    with torch.no_grad(), one_thread(device):
        key = f"{key_of(together, calls)[0]}; {layer.backend.name}; {behind!r}"
        timed = measured(
            {"apart": repeated(both, inputs), "fused": repeated(together, inputs)}, device, rounds, key, cache
        )
    return timed["fused"].median_ns / timed["apart"].median_ns


def time_packed(
    dense: nn.Linear, calls: Sequence[Call], *, rounds: int = ROUNDS, cache: Folder | Literal[False] | None = None
) -> tuple[float, bool]:
    """Return the time of oneDNN's packed product as a share of ``F.linear``'s, and whether it wins.

    It wins with less than ``MARGIN`` of the time in the whole and in each half of the rounds.

    Parameters
    ----------
    dense
        The layer, in evaluation mode.
    calls, rounds, cache
        As in :func:`tune`. Where oneDNN cannot multiply the inputs the share is infinite.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [call.tensor(generator) for call in calls]
    if not all(multiplies(x) for x in inputs):
        return float("inf"), False
    plain, fast = dense, PackedLinear.from_linear(dense)
    facts = [[list(call.shape), list(call.stride), str(call.dtype)] for call in calls]
    key = f"packed {dense.extra_repr()}, {dense.weight.dtype}, {json.dumps(facts)}"
    with torch.no_grad(), one_thread(inputs[0].device):
        forms = {"dense": repeated(plain, inputs), "dense-onednn": repeated(fast, inputs)}
        timed = measured(forms, inputs[0].device, rounds, key, cache)
    shares = [getattr(timed["dense-onednn"], part) / getattr(timed["dense"], part) for part in FIELDS]
    return shares[0], max(shares) < MARGIN


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread, whose time is then the layer's; the number of threads is put back."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


def sparse_candidates(
    dense: nn.Module, build: Callable[[Backend], BlockSparse], backends: Sequence[Backend], inputs: Sequence[Tensor]
) -> tuple[dict[str, tuple[Backend, BlockSparse]], tuple[str, ...]]:
    """Return the layers that run here and equal the dense one, by backend, and why others are left out."""
    found, notes = {}, []
    expected = [dense(x) for x in inputs]
    for backend in backends:
        if computes_elsewhere(backend, inputs[0]):
            continue
        reason = backend.available()
        if not reason:
            layer = build(backend).eval()
            try:
                apart = max(difference(layer(x), y) for x, y in zip(inputs, expected, strict=True))
            except ValueError as error:  # a type or size that this backend refuses, in its own words
                reason = str(error)
            else:
                allowed = TOLERANCE.get(inputs[0].dtype, 1e-5)
                reason = "" if apart <= allowed else f"its outputs differ from the dense layer's by {apart:.1e}."
                found.update({} if reason else {backend.name: (backend, layer)})
        notes += [f"{backend.name}: {reason}"] if reason else []
    return found, tuple(notes)


def computes_elsewhere(backend: Backend, x: Tensor) -> bool:
    """Whether the backend is for another kind of device than the input's."""
    return x.device.type != {CPU_JIT.name: "cpu", CUDA_TRITON.name: "cuda"}.get(backend.name, x.device.type)


def difference(y: Tensor, expected: Tensor) -> float:
    """Return max abs(y - expected) / max abs(expected)."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    apart = float((y - expected).abs().max()) if expected.numel() else 0.0
    return apart / (scale or 1.0)


def dense_candidates(dense: nn.Linear | nn.Conv2d, inputs: Sequence[Tensor]) -> dict[str, Callable[[], Any]]:
    """Return calls of the dense layer in its forms."""
    found: dict[str, Callable[[], Any]] = {"dense": repeated(dense, inputs)}
    if isinstance(dense, nn.Conv2d):
        last = torch.channels_last
        weight = dense.weight.contiguous(memory_format=last)
        pictures = [x.contiguous(memory_format=last) for x in inputs]

        def innermost(x: Tensor) -> Tensor:
            return dense._conv_forward(x, weight, dense.bias)

        found["dense, channels last"] = repeated(innermost, pictures)
    elif all(multiplies(x) for x in inputs):
        packed = packed_weight(dense.weight.detach())

        def onednn(x: Tensor) -> Tensor:
            return packed_linear(x, packed, dense.bias, "none")

        found["dense-onednn"] = repeated(onednn, [x.contiguous() for x in inputs])
    return found


def repeated(layer: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a call that runs the layer on each input."""
    return lambda: [layer(x) for x in inputs]


def measured(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    key: str,
    folder: Folder | Literal[False] | None,
) -> dict[str, Timed]:
    """Time the calls, or read what was measured of the same layer before; all from one source."""
    cache = None if folder is False else Cache(default_folder() if folder is None else folder, device)
    known = cache.read() if cache is not None else {}
    names = {name: [f"{key}; {rounds} rounds; {name}; {field}" for field in FIELDS] for name in calls}
    if all(entry in known for entries in names.values() for entry in entries):
        return {name: Timed(*(known[entry] for entry in entries)) for name, entries in names.items()}
    found = time_calls(calls, device, rounds)
    if cache is not None:
        cache.add({entry: getattr(found[n], f) for n in names for entry, f in zip(names[n], FIELDS, strict=True)})
    return found


def time_calls(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, Timed]:
    """Time the calls in turns."""
    looks = {name: first_look(call, device) for name, call in calls.items()}
    # The dense layers stay whatever they take: they are what the others are measured by.
    quickest = min(looks.values())
    timed = [name for name in calls if looks[name] <= HOPELESS * quickest or name.startswith("dense")]
    if device.type == "cuda":
        samples = interleaved([calls[name] for name in timed], device, rounds)
    else:
        samples = thread_times([calls[name] for name in timed], [looks[name] for name in timed], rounds)
    half = rounds // 2
    whole, first, second = (np.median(part, axis=0) for part in (samples, samples[:half], samples[half:]))
    found = {name: Timed(looks[name], looks[name], looks[name]) for name in calls}
    for index, name in enumerate(timed):
        found[name] = Timed(float(whole[index]), float(first[index]), float(second[index]))
    return {name: found[name] for name in calls}


def first_look(call: Callable[[], Any], device: torch.device) -> float:
    """Return about how many nanoseconds a call takes once it has settled."""
    call()
    if device.type == "cuda":
        return max(1.0, float(interleaved([call], device, 3).min()))
    return float(min(thread_time(call, 1) for _ in range(3)))


def thread_times(calls: Sequence[Callable[[], Any]], looks: Sequence[float], rounds: int) -> np.ndarray:
    """Return this thread's CPU time per call in nanoseconds, ``(rounds, len(calls))``; a new order in every round."""
    repeats = [max(1, round(SAMPLE_NS / look)) for look in looks]
    samples = np.zeros((rounds, len(calls)))
    order, rng = list(range(len(calls))), random.Random(0)
    for row in samples:
        rng.shuffle(order)
        for index in order:
            calls[index]()  # brings this layer's weights near again
            row[index] = thread_time(calls[index], repeats[index])
    return samples


def thread_time(call: Callable[[], Any], repeats: int) -> float:
    """Return nanoseconds of this thread's CPU time per call, at least 1."""
    begun = thread_time_ns()
    for _ in range(repeats):
        call()
    return max(1.0, (thread_time_ns() - begun) / repeats)
