"""Latency as a cost of blocks: every layer's time by its number of kept blocks, from a few measured densities.

A layer is timed as :mod:`structprune.layers.tune` times it for compiling, block-sparse beside dense, at several
densities with blocks kept at random. Between them its time is interpolated; where the block-sparse layer would not be
shipped, the layer costs what the dense one that is shipped instead takes, so that a solver knows that those densities
gain nothing. The rest of the network is timed with those layers' outputs at hand, as it is and as compiling rebuilds
it: other linear layers packed, and convolutions with channels innermost where block-sparse ones are among them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from solvers.problem import Product, Table, Term
from structprune.axes.graph import Example, run
from structprune.compile.packing import pack_linear, plan_packing
from structprune.compile.sparse import (
    Candidate,
    convolutions_innermost,
    find_candidates,
    not_worth_timing,
    recorded_inputs,
)
from structprune.data import device_of
from structprune.layers.tune import MARGIN, Call, Tuned, one_thread, time_calls, tune
from structprune.structures import EntryAxis, Structures

__all__ = ["DENSITIES", "LayerTime", "NetworkTime", "block_latency_ns", "network_time"]

DENSITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
ROUNDS = 7  # of the rest of the network
Folder = str | Path


@dataclass(frozen=True)
class LayerTime:
    """Measured time of one layer by the weights that it keeps.

    Attributes
    ----------
    name
        The layer's.
    kept
        Kept weights at the measured densities, ``(D,)``, increasing.
    sparse_ns
        Time of the fastest block-sparse layer there, ``(D,)``.
    dense_ns, best_dense_ns, shipped_ns
        Time of the layer as it is, of the fastest dense one, which block-sparse layers must beat, and of the dense one
        that compiling puts there if they do not.
    """

    name: str
    kept: np.ndarray
    sparse_ns: np.ndarray
    dense_ns: float
    best_dense_ns: float
    shipped_ns: float

    def sparse_at(self, kept: np.ndarray) -> np.ndarray:
        """Return the time of the block-sparse layer with so many weights kept, non-decreasing."""
        return np.interp(kept, self.kept, np.maximum.accumulate(self.sparse_ns))

    def pays(self, kept: np.ndarray, full: int) -> np.ndarray:
        """Return whether the block-sparse layer is shipped with so many of ``full`` weights kept."""
        return (self.sparse_at(kept) < MARGIN * self.best_dense_ns) & (kept < full)

    def at(self, kept: np.ndarray, full: int) -> np.ndarray:
        """Return the time in nanoseconds with so many of ``full`` weights kept, non-decreasing in ``kept``."""
        pruned = np.where(self.pays(kept, full), self.sparse_at(kept), self.shipped_ns)
        return np.maximum.accumulate(np.where(kept < full, np.minimum(pruned, self.dense_ns), self.dense_ns))


@dataclass(frozen=True)
class NetworkTime:
    """Measured time of a network and of those of its layers that can be block-sparse, all by one clock.

    Attributes
    ----------
    layers
        By the name of their weight.
    rest_ns, rebuilt_ns
        One forward pass without those layers, of the network as it is and as compiling rebuilds it; the latter no more.
    leader
        The layer whose choice tells whether the rest is rebuilt: the slowest, with images the slowest convolution.
    images
        Whether there are convolutions among the layers: the rest is rebuilt only if one of them is block-sparse.
    """

    layers: dict[str, LayerTime]
    rest_ns: float
    rebuilt_ns: float
    leader: str
    images: bool

    @property
    def dense_ns(self) -> float:
        """One forward pass of the dense network."""
        return self.rest_ns + sum(layer.dense_ns for layer in self.layers.values())

    def terms(self, structures: Structures, dense_ns: int) -> tuple[Term, ...]:
        """Return integer nanoseconds by the axes' kept blocks, ``dense_ns`` at full widths.

        Parts of the network enter by their shares of it, so that times of one thread serve for several. Blocks that
        the edge of a matrix cuts smaller are charged as if all were kept. What the rest of the network gains by being
        rebuilt is charged to the leader as long as that layer is whole, with images as long as it is dense; too much
        is charged so where other layers are pruned and the leader is not, never too little.
        """
        scale = dense_ns / self.dense_ns
        axes: dict[str, list[tuple[int, EntryAxis]]] = {}
        for number, axis in enumerate(structures.axes):
            assert isinstance(axis, EntryAxis)
            axes.setdefault(axis.tensor, []).append((number, axis))
        terms: list[Term] = []
        for tensor, layer in self.layers.items():
            weights = [axis.weights_each * axis.size for _, axis in axes[tensor]]
            number, axis = axes[tensor][int(np.argmax(weights))]
            kept = axis.weights_each * axis.levels + sum(weights) - max(weights)
            nanoseconds = layer.at(kept, sum(weights))
            if tensor == self.leader:
                as_it_was = ~layer.pays(kept, sum(weights)) if self.images else kept == sum(weights)
                nanoseconds = nanoseconds + np.where(as_it_was, self.rest_ns - self.rebuilt_ns, 0.0)
            terms.append(Table((number,), np.ceil(scale * nanoseconds).astype(np.int64)))
        rest = dense_ns - sum(int(term.entries[-1]) for term in terms if isinstance(term, Table))
        return (*terms, Product((), rest)) if rest > 0 else tuple(terms)


def block_latency_ns(
    structures: Structures,
    model: nn.Module,
    timing: Example,
    *,
    dense_ns: int | None = None,
    densities: Sequence[float] = DENSITIES,
    cache: Folder | Literal[False] | None = None,
) -> tuple[Term, ...]:
    """Latency of one forward pass as a sum of integer terms over the number of kept blocks of every layer.

    Parameters
    ----------
    structures
        Blocks of ``model``; groups of the terms are indices of ``structures.axes``.
    model
        The dense network, on the device to measure on.
    timing
        Arguments of the forward call to make faster.
    dense_ns
        Latency of the dense network, if it was measured; None for the sum of what is measured here, of one thread.
    densities, cache
        As in :func:`network_time`.

    Raises
    ------
    ValueError
        If the structures are no blocks, or the densities not what they must be.
    """
    found = network_time(structures, model, timing, densities=densities, cache=cache)
    return found.terms(structures, ceil(found.dense_ns) if dense_ns is None else dense_ns)


def network_time(
    structures: Structures,
    model: nn.Module,
    timing: Example,
    *,
    densities: Sequence[float] = DENSITIES,
    cache: Folder | Literal[False] | None = None,
) -> NetworkTime:
    """Time each layer that can be block-sparse at some densities, and the rest of the network.

    On CPUs one thread computes and its CPU time counts, on CUDA devices events are recorded.

    Parameters
    ----------
    densities
        Shares of the blocks to measure with, increasing, from 0 to 1 (all but one block).
    cache
        Folder of measured layers; None for the user's cache folder, False for no cache.
    """
    if structures.kind != "blocks":
        raise ValueError(f"Expected blocks. Got {structures.kind}. Measure them with structprune.latency.latency_ns.")
    shares = np.asarray(densities, dtype=np.float64)
    if len(shares) < 2 or (shares[0], shares[-1]) != (0, 1) or (np.diff(shares) <= 0).any():
        raise ValueError(f"Expected increasing densities from 0 to 1. Got {tuple(densities)}. Pass (0, 0.25, 0.5, 1).")
    known: dict[tuple[object, ...], Tuned] = {}
    points: dict[str, list[tuple[int, Tuned]]] = {}
    names: dict[str, str] = {}
    inputs: dict[str, list[Call]] | None = None
    for share in shares:
        selection = at_density(structures, share)
        reference = copy.deepcopy(model).eval()
        structures.apply_masks(reference, selection)
        candidates, _ = find_candidates(reference, structures, selection)
        inputs = inputs or recorded_inputs(reference, [one.name for one in candidates], timing)
        for one in candidates:
            tuned = measured_layer(one, reference, inputs[one.name], known, cache)
            if tuned is not None and tuned.sparse:
                tensor = f"{one.name}.weight" if one.name else "weight"
                names[tensor] = one.name
                points.setdefault(tensor, []).append((int(one.mask.sum()), tuned))
    layers = {tensor: layer_time(names[tensor], found) for tensor, found in points.items() if len(found) == len(shares)}
    return with_rest(layers, model, timing, cache)


def with_rest(
    layers: dict[str, LayerTime], model: nn.Module, timing: Example, cache: Folder | Literal[False] | None
) -> NetworkTime:
    """Time the network without these layers, as it is and as compiling rebuilds it."""
    names = [layer.name for layer in layers.values()]
    model = copy.deepcopy(model).eval()
    convolutions = [one for one in layers if isinstance(model.get_submodule(layers[one].name), nn.Conv2d)]
    leader = max(convolutions or layers, key=lambda one: layers[one].dense_ns, default="")
    packing = plan_packing(model, timing, leave=names, cache=cache)
    rebuilt = pack_linear(copy.deepcopy(model), packing.names)
    if convolutions:
        convolutions_innermost(rebuilt)
    calls = {
        "dense, the rest": partial(run, without(model, names, timing), timing),
        "dense, the rest rebuilt": partial(run, without(rebuilt, names, timing), timing),
    }
    device = device_of(model)
    with torch.no_grad(), one_thread(device):
        timed = time_calls(calls, device, ROUNDS)
    rest, again = (timed[name].median_ns for name in calls)
    return NetworkTime(layers, rest, min(rest, again), leader, bool(convolutions))


@dataclass(frozen=True)
class Replay:
    """A layer's forward that gives the recorded outputs again, one after the other."""

    outputs: Iterator[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return next(self.outputs)


def without(model: nn.Module, names: Sequence[str], timing: Example) -> nn.Module:
    """Let these layers of a network take no time, in place: each gives what it gave in one forward pass.

    The layouts of their outputs are those that they had there.
    """
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, module: nn.Module, given: object, output: Tensor) -> None:
        outputs[name].append(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    run(model, timing)
    for handle in handles:
        handle.remove()
    for name in names:
        model.get_submodule(name).forward = Replay(cycle(outputs[name]))  # type: ignore[method-assign]
    return model


def at_density(structures: Structures, share: float) -> np.ndarray:
    """Return a selection that keeps this share of every axis at random, all but one structure at most.

    Axes of one size have equal choices, so that equal layers have equal patterns and are measured once.
    """
    selection = np.zeros(structures.n, dtype=bool)
    for axis in structures.axes:
        kept = min(round(share * axis.size), axis.size - 1)
        chosen = np.random.default_rng(0).permutation(axis.size)[:kept]
        selection[axis.start + chosen] = True
    return selection


def measured_layer(
    candidate: Candidate,
    reference: nn.Module,
    calls: list[Call],
    known: dict[tuple[object, ...], Tuned],
    cache: Folder | Literal[False] | None,
) -> Tuned | None:
    """Time a layer, or look up an equal one; None for what is too small to be timed."""
    module = reference.get_submodule(candidate.name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    if not_worth_timing(module, calls):
        return None
    key = (repr(module), *calls, candidate.height, candidate.width, candidate.mask.numpy().tobytes())
    if key not in known:
        known[key] = tune(candidate.name, module, partial(candidate.build, module), calls, cache=cache)
    return known[key]


def layer_time(name: str, points: Sequence[tuple[int, Tuned]]) -> LayerTime:
    """Put the measurements of one layer together.

    Each gives the block-sparse time as a share of the best dense one, taken in turns; the dense times are medians.
    """
    dense = float(np.median([tuned.medians_ns["dense"] for _, tuned in points]))
    best = float(np.median([tuned.medians_ns[tuned.sparse] / tuned.ratio for _, tuned in points]))
    kept = np.array([count for count, _ in points], dtype=np.int64)
    packs = all("dense-onednn" in tuned.medians_ns for _, tuned in points) and best < MARGIN * dense
    sparse = np.array([tuned.ratio * best for _, tuned in points])
    return LayerTime(name, kept, sparse, dense, best, best if packs else dense)
