"""Widths of whole networks within budgets: certified gaps against time, without and with every coupling that we know.

True shapes, SYNTHETIC scores (lognormal, with their seeds). Each solve runs alone and once per instance; seconds are
wall time, and CPU seconds of the process stand beside them, because the machine may have other work. Rules without a
proof, CP-SAT and HiGHS on such problems are in `benchmarks.solvers.comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.solvers.instances import name_of, problem
from benchmarks.solvers.measure import Measured, interleaved
from benchmarks.solvers.networks import Network, llama_7b, mobilenet_v2, resnet18, resnet50, resnet152, unet, vit_b
from benchmarks.solvers.row import Row, Verdict
from solvers.allocation import Allocation
from solvers.choose import Automatic
from solvers.pareto import ParetoFront
from solvers.problem import SelectionProblem
from solvers.result import Result

__all__ = ["rows", "verdicts"]

FAMILY = "allocation"
USUAL, OPTIMAL = 1e-3, 1e-6  # gaps that are asked for, fractions of the lost value
LATE = 5e-3  # the gap that every instance of the suite has to reach
SUITE = 50
SHARES = (0.4, 0.5, 0.6, 0.7)  # of the dense network's latency, macs and parameters, drawn per instance of the suite
MIB_ALLOWED = 8 * 1024

CLOSE, PROVEN, SINGLE, FRONT = "gap 1e-3", "gap 1e-6", "every width, gap 1e-3", "front of 10 limits"
COUPLED = "latency, macs, params"


@dataclass(frozen=True)
class Case:
    """One solve: what is asked of it, and the problem, made when its turn comes."""

    instance: str
    method: str
    settings: Allocation | Automatic
    make: Callable[[], SelectionProblem]
    memory: bool = False


def network_cases(seeds: int) -> Iterator[Case]:
    """Macs alone: ResNet-50, MobileNetV2 and ResNet-18 to the end, larger networks to the usual gap.

    The larger ones take the solver that `solvers.choose` names: a transformer's one width couples all others.
    """
    close, proven = Allocation(USUAL, time_limit=60.0), Allocation(OPTIMAL, time_limit=60.0, max_nodes=10**6)
    for seed in range(seeds):
        for network in (resnet50(), mobilenet_v2(), resnet18()):
            for method, settings in ((CLOSE, close), (PROVEN, proven)):
                yield _case(network, 8, seed, method, settings)
        for network, step in ((vit_b(), 64), (llama_7b(), 128), (unet(), 8), (resnet152(), 16)):
            yield _case(network, step, seed, CLOSE, Automatic(USUAL, time_limit=60.0), by_degree=True)


def _case(
    network: Network, step: int, seed: int, method: str, settings: Allocation | Automatic, by_degree: bool = False
) -> Case:
    budgets = {"macs": 0.5}
    name = name_of(network, budgets, step, 1.0, seed)
    make = partial(problem, network, budgets, step=step, seed=seed, by_degree=by_degree)
    return Case(name, method, settings, make, memory=step == 1)


def suite_cases(count: int, step: int, limit: float) -> Iterator[Case]:
    """ResNet-50 with a latency table, macs and parameters, in every second instance with removable branches.

    The three shares are drawn from the instance's seed, so that one, two or three budgets bind.
    """
    for seed in range(count):
        latency, macs, params = (float(share) for share in np.random.default_rng([seed, 5]).choice(SHARES, 3))
        budgets = {"latency_ns": latency, "macs": macs, "params": params}
        removable = bool(seed % 2)
        name = name_of(resnet50(), budgets, step, 1.0, seed) + (", branches removable" if removable else "")
        make = partial(problem, resnet50(), budgets, step=step, seed=seed, removable=removable)
        yield Case(name, COUPLED, Allocation(USUAL, time_limit=limit, max_nodes=10**6), make)


def cases(quick: bool) -> list[Case]:
    """All of them, or a few small ones."""
    if quick:
        few = [_case(resnet18(), 32, 0, method, Allocation(gap)) for method, gap in ((CLOSE, USUAL), (PROVEN, OPTIMAL))]
        return [*few, *suite_cases(2, 64, 10.0), _case(resnet18(), 1, 0, SINGLE, Allocation(USUAL))]
    single = _case(resnet50(), 1, 0, SINGLE, Allocation(USUAL, time_limit=60.0))
    return [*network_cases(3), single, *suite_cases(SUITE, 8, 60.0)]


def rows(quick: bool) -> list[Row]:
    """Solve every case once, and one front."""
    made = []
    for case in cases(quick):
        given = case.make()
        solve = partial(case.settings.solve, given)
        measured = interleaved({case.method: solve}, repeats=1, memory=case.memory)[case.method]
        made.append(_row(case, given, measured))
    return [*made, _front(quick)]


def _row(case: Case, given: SelectionProblem, measured: Measured[Result]) -> Row:
    result = measured.answer
    facts: dict[str, float | int | str | bool] = {"cpu_seconds": measured.cpu_seconds, "total": given.total_value}
    facts["reason"] = result.termination.reason.value
    certificate = result.certificate
    if certificate is None:
        return Row(FAMILY, case.instance, case.method, None, measured.seconds, facts=facts)
    certificate.verify(given)
    facts["binding"] = sum(price > 0 for price in certificate.prices.values())
    facts["leaves"] = len(certificate.leaves)
    return Row(
        *(FAMILY, case.instance, case.method, certificate.objective, measured.seconds, certificate.bound),
        *(certificate.gap, measured.peak_mib, measured.repeats, facts),
    )


def _front(quick: bool) -> Row:
    """A certified front of macs by one sweep; the row's gap is the largest of its points."""
    network, step = (resnet18(), 32) if quick else (resnet50(), 8)
    given = problem(network, {"macs": 0.5}, step=step)
    dense = given.used([len(group) - 1 for group in given.groups])[0]
    limits = [dense * share // 10 for share in range(1, 11)]
    sweep = ParetoFront("macs", limits, allocation=Allocation(USUAL, time_limit=60.0))
    measured = interleaved({FRONT: partial(sweep.solve, given)}, repeats=1, memory=False)[FRONT]
    front = measured.answer
    found = [(point, point.result.certificate) for point in front.points]
    known = [(point, certificate) for point, certificate in found if certificate is not None]
    for point, certificate in known:
        certificate.verify(front.problem(given, point))
    objectives = [certificate.objective for _, certificate in known]
    bounds = [certificate.bound for _, certificate in known]
    rising = bool(np.all(np.diff(objectives) >= 0) and np.all(np.diff(bounds) >= 0))
    facts: dict[str, float | int | str | bool] = {"cpu_seconds": measured.cpu_seconds, "rising": rising}
    facts["points"] = len(known)
    name = f"{network.name} macs 0.1 .. 1, step {step}, sigma 1, seed 0"
    gap = max((certificate.gap for _, certificate in known), default=None)
    return Row(FAMILY, name, FRONT, None, measured.seconds, gap=gap, facts=facts)


def verdicts(rows: list[Row]) -> list[Verdict]:
    """T4 and T5, every width, and the front."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.method, []).append(row)
    close, proven = by.get(CLOSE, []), by.get(PROVEN, [])
    found = [
        _within("T4 ResNet-50", _named(close, "ResNet-50"), USUAL, 2.0),
        _within("T4 ResNet-50, optimal", _named(proven, "ResNet-50"), OPTIMAL, 10.0),
        _within("T4 MobileNetV2 and ResNet-18, optimal", _named(proven, "MobileNetV2", "ResNet-18"), OPTIMAL, 3.0),
        _within("T4 larger networks", _named(close, "ViT", "LLaMA", "U-Net", "ResNet-152"), USUAL, 5.0),
        _suite(by.get(COUPLED, [])),
        _single(by.get(SINGLE, [])),
        _rising(by.get(FRONT, [])),
    ]
    return [verdict for verdict in found if verdict is not None]


def _named(rows: list[Row], *starts: str) -> list[Row]:
    return [row for row in rows if row.instance.startswith(starts)]


def _cpu(row: Row) -> float:
    return float(row.facts["cpu_seconds"])


def _gap(row: Row) -> float:
    return float("inf") if row.gap is None else row.gap


def _within(target: str, rows: list[Row], gap: float, seconds: float) -> Verdict | None:
    """Every instance at most at a gap, in at most some wall seconds."""
    if not rows:
        return None
    good = [row for row in rows if _gap(row) <= gap and row.seconds <= seconds]
    measured = (
        f"{len(good)} of {len(rows)} instances; largest gap {max(map(_gap, rows)):.1e}, "
        f"longest {max(row.seconds for row in rows):.2g} s ({max(map(_cpu, rows)):.2g} CPU s)"
    )
    return Verdict(target, f"gap at most {gap:g} in {seconds:g} s", measured, len(good) == len(rows))


def _suite(rows: list[Row]) -> Verdict | None:
    if not rows:
        return None
    soon = [row for row in rows if _gap(row) <= USUAL and row.seconds <= 15.0]
    worst = max(map(_gap, rows))
    several = sum(int(row.facts.get("binding", 0)) > 1 for row in rows)
    measured = (
        f"{len(soon)} of {len(rows)} instances ({several} with more than one binding budget); largest gap {worst:.1e}, "
        f"longest {max(row.seconds for row in rows):.2g} s ({max(map(_cpu, rows)):.2g} CPU s)"
    )
    asked = f"latency table, macs and params: gap {USUAL:g} in 15 s on at least 90 %, {LATE:g} on all"
    return Verdict("T5", asked, measured, len(soon) >= 0.9 * len(rows) and worst <= LATE)


def _single(rows: list[Row]) -> Verdict | None:
    if not rows:
        return None
    row = rows[0]
    peak = row.peak_mib or float("inf")
    measured = f"gap {_gap(row):.1e} in {row.seconds:.2g} s ({_cpu(row):.2g} CPU s), {peak:.0f} MiB"
    holds = _gap(row) <= USUAL and row.seconds <= 60.0 and peak <= MIB_ALLOWED
    return Verdict("every width", f"single channels: gap {USUAL:g} in 60 s and 8 GiB", measured, holds)


def _rising(rows: list[Row]) -> Verdict | None:
    if not rows:
        return None
    row = rows[0]
    measured = f"{row.facts['points']} points, largest gap {_gap(row):.1e}, in {row.seconds:.2g} s"
    holds = bool(row.facts["rising"]) and _gap(row) <= USUAL
    return Verdict("front", f"every point certified to {USUAL:g}, values and bounds rising", measured, holds)
