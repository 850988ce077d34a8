"""Selections with refit: layers of a network trained on digits, and the convolutions of a CIFAR ResNet (T7, T8).

The objective is the loss after the refit relative to the loss of keeping nothing, damping included, on real second
moments; the instances called wide are synthetic weights on random features. Times are compared by processor time: the
machine may be shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from benchmarks.cifar import data_folder
from benchmarks.solvers.measure import interleaved
from benchmarks.solvers.refit_baselines import activation, brute_force, elimination, local_search, magnitude
from benchmarks.solvers.refit_instances import convolutions, drawn, hidden_layer, wide_layer
from benchmarks.solvers.row import Row, Verdict
from solvers.bounds.refit import refit_bound
from solvers.quadratic import BoolArray, QuadraticMap, RefitProblem
from solvers.refit import Refit, from_activity, from_backward, from_forward, from_inverse

__all__ = ["rows", "verdicts"]

FAMILY = "refit"
OURS, OURS_THREE = "swaps (ours)", "swaps, three starts (ours)"
SEARCH = "drop/add local search (OSSCAR type)"
EXACT = "elimination, one at a time (OBS)"
BATCHED = "elimination, 20 rounds (batched OBS)"
BACKWARD = "swaps after elimination (ours)"
INVERSE = "swaps after one inverse (ours)"
ROUNDS = 20
SAME = 1e-9  # relative difference of losses that is rounding


def rows(quick: bool) -> list[Row]:
    """Run every method on every instance; without ``quick`` about a quarter of an hour on one core."""
    found = []
    for number, keeps in ((1, (128, 256, 512)), (2, (32, 64, 128, 256))):
        one = hidden_layer(number, 1e-2)
        for keep in keeps[:1] if quick else keeps:
            found += _compared(f"digits h{number}, keep {keep} of {len(one.moment)}", one, keep, quick)
    if quick:
        return found + _drawn(draws=3) + _bounds(quick) + _convolutional(quick)
    found += _wide(4096, 1024)
    return found + _drawn(draws=30) + _bounds(quick) + _convolutional(quick)


def verdicts(rows: list[Row]) -> list[Verdict]:
    """T7, T8 and the convolutions."""
    return [*_layer_verdicts(rows), *_drawn_verdicts(rows), *_bound_verdicts(rows), *_convolution_verdicts(rows)]


def _compared(instance: str, one: QuadraticMap, keep: int, quick: bool) -> list[Row]:
    problem = RefitProblem((one,), keep)
    total = problem.total()
    methods: dict[str, Callable[[], BoolArray]] = {
        "magnitude": lambda: magnitude(one, keep),
        "activation times weight": lambda: activation(one, keep),
        BATCHED: lambda: elimination(one, keep, ROUNDS),
        EXACT: lambda: elimination(one, keep),
        SEARCH: lambda: local_search(one, elimination(one, keep, ROUNDS)),
        OURS: lambda: Refit(starts=(from_activity,)).solve(problem).selection,
        OURS_THREE: lambda: Refit(starts=(from_activity, from_forward, from_backward)).solve(problem).selection,
    }
    if quick:
        del methods[EXACT]
    measured = interleaved(methods, repeats=1 if quick else 3)
    return [
        Row(
            FAMILY,
            instance,
            name,
            problem.lost(one_measured.answer) / total,
            one_measured.seconds,
            peak_mib=one_measured.peak_mib,
            repeats=one_measured.repeats,
            facts={"cpu_seconds": one_measured.cpu_seconds, "keep": keep},
        )
        for name, one_measured in measured.items()
    ]


def _wide(inputs: int, outputs: int) -> list[Row]:
    one = wide_layer(inputs, outputs, 1e-2)
    problem = RefitProblem((one,), inputs // 2)
    total = problem.total()
    methods: dict[str, Callable[[], BoolArray]] = {
        BATCHED: lambda: elimination(one, inputs // 2, ROUNDS),
        OURS: lambda: Refit(starts=(from_activity,)).solve(problem).selection,
    }
    measured = interleaved(methods, repeats=1, memory=False)
    return [
        Row(
            FAMILY,
            f"wide (synthetic), keep {inputs // 2} of {inputs}",
            name,
            problem.lost(found.answer) / total,
            found.seconds,
            facts={"cpu_seconds": found.cpu_seconds},
        )
        for name, found in measured.items()
    ]


def _drawn(draws: int) -> list[Row]:
    """16 inputs drawn at random, 4, 8 and 12 kept: which share of the draws is solved to the optimum."""
    found = []
    for number in (1, 2):
        layer = hidden_layer(number, 1e-2)
        for seed in range(draws):
            one = drawn(layer, 16, seed)
            for keep in (4, 8, 12):
                problem = RefitProblem((one,), keep)
                best = problem.lost(brute_force(one, keep)[0])
                settings = Refit(starts=(from_backward, from_forward))
                measured = interleaved({"two starts": partial(settings.solve, problem)}, repeats=1, memory=False)
                error = measured["two starts"].answer.error
                found.append(
                    Row(
                        FAMILY,
                        f"16 inputs of h{number}, keep {keep}, draw {seed}",
                        "swaps, two starts (ours)",
                        error / problem.total(),
                        measured["two starts"].seconds,
                        facts={"optimal": error <= best * (1 + SAME), "layer": number, "ratio": error / best},
                    )
                )
    return found


def _bounds(quick: bool) -> list[Row]:
    found = []
    for damping in (1e-3, 1e-2, 1e-1):
        for number, size, keeps in ((2, 512, (64, 128, 256)), (1, 256, (64, 128, 192))):
            layer = hidden_layer(number, damping)
            one = layer if size == len(layer.moment) else drawn(layer, size, 0)
            for keep in keeps[:1] if quick else keeps:
                problem = RefitProblem((one,), keep)
                best, total = Refit().solve(problem).error, problem.total()
                measured = interleaved({"bound": partial(refit_bound, problem)}, repeats=1, memory=False)["bound"]
                found.append(
                    Row(
                        FAMILY,
                        f"bound: {size} inputs of h{number}, keep {keep}, damping {damping:g}",
                        f"{measured.answer.kind.value} bound (ours)",
                        best / total,
                        measured.seconds,
                        bound=measured.answer.value / total,
                        gap=1 - measured.answer.value / best,
                        facts={"damping": damping, "share": measured.answer.value / best},
                    )
                )
    return found


def _convolutional(quick: bool) -> list[Row]:
    """Every second convolution of a block: all input channels of 9 taps, a quarter and a half kept."""
    name, count = ("resnet20", 100) if quick else ("resnet56", 2000)
    found = []
    for label, one in convolutions(data_folder(), name, count, 1e-2).items():
        size = len(one.groups)
        if quick and not label.endswith("0.conv2"):
            continue
        for keep in (size // 4, size // 2):
            found += _one_convolution(f"{name} {label}, keep {keep} of {size}", one, keep, quick)
    return found


def _one_convolution(instance: str, one: QuadraticMap, keep: int, quick: bool) -> list[Row]:
    size = len(one.groups)
    problem = RefitProblem((one,), keep)
    total = problem.total()
    methods: dict[str, Callable[[], BoolArray]] = {
        EXACT: lambda: elimination(one, keep),
        OURS: lambda: Refit(starts=(from_activity,)).solve(problem).selection,
        INVERSE: lambda: Refit(starts=(from_inverse,), depth=2).solve(problem).selection,
        BACKWARD: lambda: Refit(starts=(from_backward,)).solve(problem).selection,
    }
    measured = interleaved(methods, repeats=1 if quick else 5, memory=False)
    if size <= 16:
        reference = problem.lost(brute_force(one, keep)[0])
    else:
        reference = min(_random_search(problem, seed) for seed in range(2 if quick else 30))
    facts = {"size": size, "keep_fraction": keep / size, "reference": reference / total}
    return [
        Row(
            FAMILY,
            instance,
            method,
            problem.lost(found.answer) / total,
            found.seconds,
            repeats=found.repeats,
            facts={**facts, "cpu_seconds": found.cpu_seconds},
        )
        for method, found in measured.items()
    ]


def _random_search(problem: RefitProblem, seed: int) -> float:
    start = np.zeros(problem.size, dtype=bool)
    start[np.random.default_rng(seed).permutation(problem.size)[: problem.keep]] = True
    return Refit(starts=(lambda maps, keep, stop: start,)).solve(problem).error


def _by_instance(rows: list[Row], prefix: str) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.instance.startswith(prefix):
            found.setdefault(row.instance, {})[row.method] = row
    return found


def _cpu(row: Row) -> float:
    return float(row.facts["cpu_seconds"])


def _layer_verdicts(rows: list[Row]) -> list[Verdict]:
    wanted = [found for name, found in _by_instance(rows, "digits h1").items() if SEARCH in found]
    verdicts = []
    if wanted:
        errors = [_error(found[OURS]) / _error(found[SEARCH]) for found in wanted]
        times = [_cpu(found[OURS]) / _cpu(found[SEARCH]) for found in wanted]
        verdicts.append(
            Verdict(
                "T7",
                "n = 1024: loss at most the drop/add search's, in at most half its processor time",
                f"loss {_range(errors)} of its, time {_range(times)} of its",
                max(errors) <= 1 + SAME and max(times) <= 0.5,
            )
        )
    for found in _by_instance(rows, "wide").values():
        row = found[OURS]
        text = f"{_cpu(row):.1f} s ({row.seconds:.1f} s on the wall)"
        verdicts.append(Verdict("T7", "n = 4096 in 10 s of processor time", text, _cpu(row) <= 10.0))
    return verdicts


def _drawn_verdicts(rows: list[Row]) -> list[Verdict]:
    verdicts = []
    for number, least in ((1, 0.95), (2, 0.75)):
        found = [row for row in rows if row.facts.get("layer") == number]
        if found:
            share = sum(bool(row.facts["optimal"]) for row in found) / len(found)
            verdicts.append(
                Verdict(
                    "T7",
                    f"n = 16 of h{number}: the optimum in at least {100 * least:.0f} % of the draws",
                    f"{100 * share:.1f} % of {len(found)}",
                    share >= least,
                )
            )
    return verdicts


def _bound_verdicts(rows: list[Row]) -> list[Verdict]:
    verdicts = []
    for damping, least in ((1e-2, 0.4), (1e-1, 0.75)):
        found = [row for row in rows if row.facts.get("damping") == damping]
        if found:
            shares, slowest = [float(row.facts["share"]) for row in found], max(row.seconds for row in found)
            verdicts.append(
                Verdict(
                    "T8",
                    f"damping {damping:g}: bound at least {least} of the loss, within 20 s",
                    f"{_range(shares)}, at most {slowest:.1f} s",
                    min(shares) >= least and slowest <= 20.0,
                )
            )
    return verdicts


def _convolution_verdicts(rows: list[Row]) -> list[Verdict]:
    layers = list(_by_instance(rows, "resnet").values())
    verdicts = []
    for fraction, method in product((0.25, 0.5), (INVERSE, OURS, BACKWARD)):
        found = [one for one in layers if one[EXACT].facts["keep_fraction"] == fraction]
        if not found:
            continue
        above = sum(_error(one[method]) > _error(one[EXACT]) * (1 + SAME) for one in found)
        small = [one for one in found if int(one[EXACT].facts["size"]) <= 16]
        large = [one for one in found if int(one[EXACT].facts["size"]) > 16]
        room, met = _room(small, method)
        room_large, below = _room(large, method)
        time = sum(_cpu(one[method]) for one in found) / sum(_cpu(one[EXACT]) for one in found)
        name = f"keep {fraction:g}, {method}: "
        verdicts.append(
            Verdict(
                "convolutions",
                name + "never above exact elimination, below it wherever brute force shows room (16 channels), in less "
                "time in all",
                f"above in {above} of {len(found)}; below in {met} of the {room} small ones with room; "
                f"{time:.2f} of its processor time",
                above == 0 and met == room and time < 1.0,
            )
        )
        verdicts.append(
            Verdict(
                "convolutions",
                name + "below exact elimination in most larger layers",
                f"{below} of {len(large)} (30 random starts find room in {room_large})",
                2 * below > len(large),
            )
        )
    return verdicts


def _room(layers: list[dict[str, Row]], method: str) -> tuple[int, int]:
    """In how many layers the reference is below exact elimination, and in how many the method is."""
    room = [float(one[EXACT].facts["reference"]) < _error(one[EXACT]) * (1 - SAME) for one in layers]
    below = [_error(one[method]) < _error(one[EXACT]) * (1 - SAME) for one in layers]
    return sum(room), sum(below)


def _error(row: Row) -> float:
    assert row.objective is not None
    return row.objective


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"
