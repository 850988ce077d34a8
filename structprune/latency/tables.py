"""Latency as a cost: integer nanoseconds per operator and widths, from measurements at a few widths.

Operators that multiply are measured on a grid of widths and interpolated, since their latency is a staircase that
depends on how the kernels tile it; the others cost so much per call and so much per entry. The whole network is
measured at two widths, so that the dense network is predicted as measured.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from solvers.problem import Term
from structprune.axes.polynomial import Polynomial
from structprune.latency.cache import Cache, default_folder
from structprune.latency.operators import Network
from structprune.latency.signatures import Signature, callables
from structprune.latency.terms import MOST_CELLS, TermSum, Widths, upper_line
from structprune.latency.timing import Progress, interleaved
from structprune.structures import Structures

__all__ = ["latency_ns"]

GRID = 5  # widths at which a multiplying operator is measured along an axis of WIDE structures or more
WIDE = 128  # below, one step of the kernels' tiles is felt: the measured widths lie on both sides of steps
TILES = (16, 8, 4)
LIGHT = (0.25, 1.0)  # shares of the widths at which the others are
NARROW = 0.25  # share of the widths at which the whole network is measured a second time
MOST_SPREAD = 1.5  # upper over lower quartile, in the sum over all calls

Folder = str | os.PathLike[str]


def latency_ns(
    structures: Structures,
    *,
    device: str | torch.device | None = None,
    batch: int | None = None,
    dense_ns: int | None = None,
    rounds: int = 9,
    cache: Folder | Literal[False] | None = None,
    progress: Progress | None = None,
) -> tuple[Term, ...]:
    """Latency of one forward pass as a sum of integer terms over the axes' widths.

    Every operator of the traced network is called on random tensors. One that multiplies along at most two axes is
    measured at 5 to 8 widths of each, made non-decreasing by a running maximum, and interpolated linearly in both.
    Along more axes (heads, concatenated inputs) its latency is the lowest line ``a + b macs`` above its measurements.
    All other operators follow ``a + b entries`` through two measurements. Views are free. Entries are rounded up.

    The whole network is measured too, dense and at a quarter of its widths. The operators' sum is scaled so that it
    falls as much between the two, and a constant (Python, memory moves) makes up what is missing. So the terms give
    the measured latency at both, as far as the constant is not negative; at full widths always, up to one nanosecond
    per term and one per cent of terms of high degree.

    Parameters
    ----------
    structures
        Traced with an example. Groups of the terms are indices of ``structures.axes``.
    device
        Where to measure, ``cpu`` or ``cuda``; None for the device of the traced network.
    batch
        Examples per forward pass; None for as many as it was traced with (a lone example is traced twice).
    dense_ns
        Latency of the dense network, if it was measured; None for that of its recorded graph.
    rounds
        How often each operator is timed; the median counts.
    cache
        Folder of measurements; None for the user's cache folder, False for no cache.
    progress
        Called with the numbers of samples done and in all.

    Raises
    ------
    ValueError
        Structures without a traced network, a batch size for a network without a batch, more than 4,000,000
        combinations of widths in one table.
    """
    network = _network(structures, device, batch)
    plans = [_plan(structures, network, node) for node in network.operators]
    widths = structures.axes if structures.found else ()  # blocks change no shapes
    full = tuple(axis.size for axis in widths)
    narrow = tuple(_nearest(_positive(axis.levels), NARROW) for axis in widths)
    wanted: dict[str, Signature] = {}
    for plan in plans:
        for signature in plan.signatures:
            wanted.setdefault(signature.key, signature)
    # The whole network at full and at narrow widths tells what it takes beside its operators.
    dense, narrowed = _whole_key(network, full), _whole_key(network, narrow)
    medians = _measured(network, wanted, {dense: full, narrowed: narrow}, rounds, cache, progress)

    total = TermSum([np.asarray(axis.levels, dtype=np.int64) for axis in structures.axes])
    for plan in plans:
        plan.add_to(total, [medians[signature.key] for signature in plan.signatures])
    dense_ns = ceil(medians[dense]) if dense_ns is None else dense_ns
    scale = _scale(dense_ns, total.at(full), total.at(full) - total.at(narrow), medians[dense] - medians[narrowed])
    return total.terms(full, dense_ns, scale)


def _scale(dense_ns: float, dense_sum: float, fall_sum: float, fall_measured: float) -> float:
    """By what the operators' sum is multiplied, so that it falls with the widths as the whole network does.

    At most so much that the dense network takes nothing beside its operators. A fall below half of the operators'
    own is taken for a disturbed measurement.
    """
    most = dense_ns / dense_sum if dense_sum else 1.0
    slope = fall_measured / fall_sum if fall_sum > 0 else 1.0
    return min(max(slope, min(1.0, most) / 2), most)


def _network(structures: Structures, device: str | torch.device | None, batch: int | None) -> Network:
    labelled = structures.labelled
    if labelled is None:
        raise ValueError(
            f"Expected structures that were traced with an example. Got {structures.kind} without one. "
            f"Pass example= to {structures.kind}()."
        )
    if batch is not None and batch < 1:
        raise ValueError(f"Expected a batch of at least 1 example. Got {batch}. Pass how many examples run at once.")
    if batch is not None and not len(labelled.batch):
        raise ValueError(
            f"Expected a network whose inputs share a batch dimension. Got batch={batch} for one without. "
            "Trace it with an example of the size to be measured, and leave batch out."
        )
    values = [node.meta.get("val") for node in labelled.graph.module.graph.nodes if node.op == "placeholder"]
    traced = next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
    chosen = torch.device(device) if device is not None else traced
    if chosen.type == "meta":
        chosen = torch.device("cpu")
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"Expected device 'cpu' or 'cuda'. Got {str(chosen)!r}. Only those two have a clock here.")
    return Network(labelled, structures.found, batch, chosen)


@dataclass(frozen=True)
class _Grid:
    """An operator along one or two axes, measured at every combination of ``widths``."""

    axes: tuple[int, ...]
    widths: tuple[np.ndarray, ...]
    signatures: list[Signature]

    def add_to(self, total: TermSum, medians: Sequence[float]) -> None:
        entries = np.array(medians).reshape([len(widths) for widths in self.widths])
        for dim in range(entries.ndim):
            entries = np.maximum.accumulate(entries, axis=dim)
        # Linear interpolation, one axis after the other, keeps what is non-decreasing non-decreasing.
        for dim, (axis, widths) in enumerate(zip(self.axes, self.widths, strict=True)):
            entries = np.apply_along_axis(_interpolated, dim, entries, total.levels[axis], widths)
        total.add_table(self.axes, entries)


def _interpolated(measured: np.ndarray, levels: np.ndarray, widths: np.ndarray) -> np.ndarray:
    return np.interp(levels, widths, measured)


@dataclass(frozen=True)
class _Line:
    """An operator whose latency is a constant and a slope times ``size``, measured at a few sizes."""

    size: Polynomial
    sizes: tuple[int, ...]
    signatures: list[Signature]

    def add_to(self, total: TermSum, medians: Sequence[float]) -> None:
        total.add_line(*upper_line(self.sizes, medians), self.size)


def _plan(structures: Structures, network: Network, node: fx.Node) -> _Grid | _Line:
    """At which widths the operator is measured, and what is made of it."""
    axes = network.axes(node)
    macs = network.macs(node)
    full = [axis.size for axis in structures.axes]
    if axes and macs is not None and len(axes) <= 2:
        _check_cells(structures, axes)
        widths = tuple(_grid(structures.axes[axis].levels) for axis in axes)
        points = [_with(full, axes, point) for point in product(*widths)]
        return _Grid(axes, widths, [network.signature(node, point) for point in points])
    shares = np.linspace(0, 1, GRID) if macs is not None else LIGHT
    levels = [_positive(structures.axes[axis].levels) for axis in axes]
    points = [_with(full, axes, [_nearest(widths, share) for widths in levels]) for share in shares]
    points = list(dict.fromkeys(points))
    size = macs if macs is not None else network.elements(node)
    for term in size.terms:
        if len(set(term)) == 2:
            _check_cells(structures, tuple(dict.fromkeys(term)))
    return _Line(size, tuple(size(point) for point in points), [network.signature(node, point) for point in points])


def _check_cells(structures: Structures, axes: tuple[int, ...]) -> None:
    cells = prod(len(structures.axes[axis].levels) for axis in axes)
    if cells > MOST_CELLS:
        names = " and ".join(repr(structures.axes[axis].name) for axis in axes)
        raise ValueError(
            f"Expected at most {MOST_CELLS:,} combinations of widths in a latency table. Got {cells:,} for {names}. "
            "Use channels(..., multiple_of=8) to have fewer widths."
        )


def _positive(levels: np.ndarray) -> np.ndarray:
    """Widths that can be run: an operator without channels is charged as one with the fewest."""
    return levels[levels > 0]


def _grid(levels: np.ndarray) -> np.ndarray:
    """Least and full width and those between; of a narrow axis both sides of three likely steps of the staircase."""
    levels = _positive(levels)
    if levels[-1] >= WIDE:
        return levels[np.unique(np.linspace(0, len(levels) - 1, GRID).round().astype(int))]
    tile = next(tile for tile in TILES if levels[-1] >= 4 * tile or tile == TILES[-1])
    steps = [round(share * levels[-1] / tile) * tile for share in (0.25, 0.5, 0.75)]
    wanted = [levels[0], *steps, *(step + 1 for step in steps), levels[-1]]
    return np.unique([levels[np.abs(levels - width).argmin()] for width in wanted])


def _nearest(levels: np.ndarray, share: float) -> int:
    return int(levels[np.abs(levels - share * levels[-1]).argmin()])


def _with(full: Sequence[int], axes: Iterable[int], widths: Iterable[int]) -> Widths:
    point = list(full)
    for axis, width in zip(axes, widths, strict=True):
        point[axis] = int(width)
    return tuple(point)


def _whole_key(network: Network, widths: Widths) -> str:
    """Names the network at some widths by all its operators and their shapes."""
    text = "\n".join(network.signature(node, widths).key for node in network.operators)
    return f"network {hashlib.sha256(text.encode()).hexdigest()}"


def _measured(
    network: Network,
    wanted: dict[str, Signature],
    wholes: dict[str, Widths],
    rounds: int,
    folder: Folder | Literal[False] | None,
    progress: Progress | None,
) -> dict[str, float]:
    """Medians in nanoseconds of all signatures and whole networks, from the cache as far as it has them."""
    cache = None if folder is False else Cache(default_folder() if folder is None else folder, network.device)
    known = cache.read() if cache is not None else {}
    missing = [key for key in wanted if key not in known]
    calls: list[Callable[[], Any]] = callables([wanted[key] for key in missing], network.device)
    new_wholes = [key for key in wholes if key not in known]
    missing += new_wholes
    calls += [network.forward(wholes[key]) for key in new_wholes]
    if missing:
        samples = interleaved(calls, network.device, rounds, progress)
        new = {key: max(float(value), 1.0) for key, value in zip(missing, np.median(samples, axis=0), strict=True)}
        if _steady(samples) and cache is not None:
            cache.add(new)
        known = {**known, **new}
    return known


def _steady(samples: np.ndarray) -> bool:
    """Whether the rounds agree; warns where they do not, since such medians must not be kept for later."""
    low, high = (float(quartile.sum()) for quartile in np.percentile(samples, [25, 75], axis=0))
    if high <= MOST_SPREAD * low:
        return True
    warnings.warn(
        f"Expected a quiet machine to measure latency on. Got quartiles that differ by a factor of {high / low:.1f}: "
        "other programs use the device. The medians are used now and not kept; measure again later.",
        stacklevel=4,
    )
    return False
