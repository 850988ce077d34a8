"""Transposable N:M masks: exchanges along cycles and flows, beside rounding with and without entropic transport.

*Transport, rounded* is the published scheme of entropic transport with Dykstra's projections and greedy rounding; its
error is measured against the optimum that the flow and the exchanges prove. Synthetic values are absolute values of
normal numbers; the digits' are squared weights as trained.
"""

from __future__ import annotations

import numpy as np

from benchmarks.solvers.digits import trained_network
from benchmarks.solvers.measure import interleaved
from benchmarks.solvers.row import Row, Verdict
from solvers.nm import Transposable, TransposableFlow
from solvers.result import OPTIMAL_GAP

__all__ = ["rows", "verdicts"]

FAMILY = "nm"
PATTERNS = ((2, 4), (4, 8), (8, 16), (16, 32))
EXCHANGES, FLOW = "exchanges", "flow per tile"


def _synthetic(size: int) -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(size=(size, size)))


def _digits() -> np.ndarray:
    weight: np.ndarray = trained_network()[2].weight.detach().double().numpy()  # type: ignore[union-attr,operator]
    return weight**2


def rows(quick: bool) -> list[Row]:
    """Every method at every pattern; ``quick`` takes a small synthetic table only."""
    tables = {"synthetic 128x128": _synthetic(128)} if quick else {"synthetic 512x512": _synthetic(512)}
    if not quick:
        tables["digits 512x1024"] = _digits()
    return [row for name, values in tables.items() for n, m in PATTERNS for row in _compared(name, values, n, m, quick)]


def _compared(name: str, values: np.ndarray, n: int, m: int, quick: bool) -> list[Row]:
    solvers = {
        "rounded": Transposable(n, m, rounds=0),
        "transport, rounded": Transposable(n, m, rounds=0, sweeps=100),
        "transport, exchanges": Transposable(n, m, sweeps=100),
        EXCHANGES: Transposable(n, m),
        FLOW: TransposableFlow(n, m),
    }
    calls = {method: lambda solver=solver: solver.solve(values) for method, solver in solvers.items()}
    measured = interleaved(calls, 1 if quick else 3)
    best = measured[FLOW].answer.objective or 0.0
    return [
        Row(
            FAMILY,
            f"{name}, {n}:{m}",
            method,
            one.answer.objective,
            one.seconds,
            one.answer.bound,
            one.answer.gap,
            one.peak_mib,
            one.repeats,
            {
                "pattern": f"{n}:{m}",
                "error": 1.0 - (one.answer.objective or 0.0) / best,
                "kept": (one.answer.objective or 0.0) / float(values.sum()),
                "cpu_seconds": one.cpu_seconds,
            },
        )
        for method, one in measured.items()
    ]


def verdicts(rows: list[Row]) -> list[Verdict]:
    """Optimality of the batched method, and its time where tiles are small."""
    batched = {row.instance: row for row in rows if row.method == EXCHANGES}
    flows = {row.instance: row for row in rows if row.method == FLOW}
    if not batched:
        return []
    worst = max(abs(float(row.facts["error"])) for row in batched.values())
    proven = all(row.gap is not None and row.gap <= OPTIMAL_GAP for row in batched.values())
    ratios: dict[str, list[float]] = {}
    for name, row in batched.items():
        ratio = float(flows[name].facts["cpu_seconds"]) / float(row.facts["cpu_seconds"])
        ratios.setdefault(str(row.facts["pattern"]), []).append(ratio)
    times = ", ".join(f"{min(each):.1f} times at {pattern}" for pattern, each in ratios.items())
    return [
        Verdict(
            "transposable",
            "exchanges reach the flow's optimum and prove it",
            f"largest difference {worst:.1e}, {'all' if proven else 'not all'} of {len(batched)} proven",
            proven and worst <= 1e-9,
        ),
        Verdict(
            "transposable, time",
            "exchanges are faster than a flow per tile at every pattern, CPU seconds",
            f"at least {times}",
            all(ratio > 1.0 for each in ratios.values() for ratio in each),
        ),
    ]
