"""The same problems for everyone: `Allocation`, CP-SAT, HiGHS, thresholds and greedy rules, real scores among them.

What a rule loses is compared with what the proven bound loses: 1.4 means 40 % more lost score than unavoidable.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product

from benchmarks.solvers.allocation_baselines import BASELINES, Baseline, greedy_down
from benchmarks.solvers.instances import SIGMAS, name_of, problem
from benchmarks.solvers.measure import Measured, interleaved
from benchmarks.solvers.mip_baselines import MipAnswer, cp_sat, highs, highs_can
from benchmarks.solvers.networks import mobilenet_v2, resnet18, resnet50, vit_b
from benchmarks.solvers.real_instances import real_problems
from benchmarks.solvers.row import Row, Verdict
from benchmarks.solvers.trace import Trace, points_of
from solvers.allocation import Allocation, Progress
from solvers.problem import IntArray, SelectionProblem
from solvers.result import relative_gap

__all__ = ["rows", "verdicts"]

FAMILY = "comparison"
OURS, EXACT = "Allocation", "Allocation, to the end"
GENERAL = ("CP-SAT", "HiGHS")
TO_THE_END = ("CP-SAT", "HiGHS, to the end")
LIMIT, QUICK_LIMIT = 10.0, 2.0  # seconds for those that go on until proven
USUAL = 1e-3  # the gap at which `Allocation` stops by default
SAME = 1e-9  # of the total value: sums of floats in another order
CLOSE = 1e-5  # gaps that differ by less are equal: CP-SAT's has the slack of rounded values in it


@dataclass(frozen=True)
class Found:
    """A method's choice, its bound if it proves one, and its trace if it has one."""

    choice: IntArray | None
    bound: float | None = None
    trace: Trace = field(default_factory=Trace)


def ours(given: SelectionProblem, gap: float, limit: float) -> Found:
    """Run `Allocation` and note its gap as it falls."""
    trace = Trace()

    def note(progress: Progress) -> None:
        trace.add(progress.gap, progress.seconds)

    found = Allocation(gap_tolerance=gap, time_limit=limit).solve(given, note)
    if found.certificate is None:
        return Found(None, None, trace)
    trace.add(found.certificate.gap, found.seconds)
    return Found(found.choice, found.certificate.bound, trace)


def general(solve: Callable[[], MipAnswer]) -> Found:
    """Run a general solver."""
    found = solve()
    return Found(found.choice, found.bound, found.trace)


def hinted(given: SelectionProblem, limit: float) -> MipAnswer:
    """Run CP-SAT from the marginal greedy's choice, whose time counts."""
    return cp_sat(given, limit, greedy_down(given))


def until(given: SelectionProblem, limit: float) -> MipAnswer:
    """Run HiGHS, which tells no gaps on the way, until the usual gap; what is lost is guessed by the greedy choice."""
    near = greedy_down(given)
    lost = 0.0 if near is None else given.total_value - given.value(near)
    return highs(given, limit, gap=0.9 * USUAL * lost)


def rule(baseline: Baseline, given: SelectionProblem) -> Found:
    """Run a rule, which proves nothing."""
    return Found(baseline.choose(given))


def problems(quick: bool) -> dict[str, SelectionProblem]:
    """The instances by name; synthetic scores say so by their sigma and seed."""
    made = {f"{name} (real scores)": given for name, given in real_problems().items()}
    if quick:
        few = {name: given for name, given in made.items() if name.startswith("resnet20")}
        return few | {"ResNet-18 step 32": problem(resnet18(), {"macs": 0.5}, step=32)}
    cases = [
        (resnet50(), {"macs": 0.5}, 8, False),
        (mobilenet_v2(), {"macs": 0.5}, 8, False),
        (resnet18(), {"macs": 0.5}, 8, False),
        (vit_b(), {"macs": 0.5}, 64, True),
        (resnet50(), {"latency_ns": 0.6, "macs": 0.5, "params": 0.6}, 16, False),
    ]
    for network, budgets, step, by_degree in cases:
        name = name_of(network, budgets, step, 1.0, 0)
        made[name] = problem(network, budgets, step=step, by_degree=by_degree)
    return made


def spread(quick: bool) -> dict[str, SelectionProblem]:
    """Synthetic scores of three spreads and seeds, for `Allocation` and the rules alone."""
    made = {}
    for network, sigma, seed in product((resnet50(), mobilenet_v2()), SIGMAS, range(0 if quick else 3)):
        name = name_of(network, {"macs": 0.5}, 8, sigma, seed)
        made[f"rules: {name}"] = problem(network, {"macs": 0.5}, step=8, sigma=sigma, seed=seed)
    return made


def brief(given: SelectionProblem, limit: float) -> dict[str, Callable[[], Found]]:
    """`Allocation` up to the usual gap, and the rules."""
    methods: dict[str, Callable[[], Found]] = {OURS: partial(ours, given, USUAL, limit)}
    return methods | {baseline.name: partial(rule, baseline, given) for baseline in BASELINES}


def rows(quick: bool) -> list[Row]:
    """Quick rules and `Allocation` with its usual gap three times in turn; those that go on to the end once."""
    limit = QUICK_LIMIT if quick else LIMIT
    made = []
    for name, given in spread(quick).items():
        measured = interleaved(brief(given, limit), repeats=1, memory=False)
        made += [row_of(name, method, given, found) for method, found in measured.items()]
    for name, given in problems(quick).items():
        long: dict[str, Callable[[], Found]] = {EXACT: partial(ours, given, 0.0, limit)}
        long["CP-SAT"] = partial(general, partial(hinted, given, limit))
        if highs_can(given):
            long["HiGHS"] = partial(general, partial(until, given, limit))
            long["HiGHS, to the end"] = partial(general, partial(highs, given, limit))
        measured = interleaved(brief(given, limit), repeats=1 if quick else 3) | interleaved(
            long, repeats=1, memory=False
        )
        made += [row_of(name, method, given, found) for method, found in measured.items()]
    return made


def row_of(name: str, method: str, given: SelectionProblem, measured: Measured[Found]) -> Row:
    """Return a method's row; the objective is counted by the problem itself, not by the method."""
    found = measured.answer
    facts: dict[str, float | int | str | bool] = {"cpu_seconds": measured.cpu_seconds, "total": given.total_value}
    objective = gap = bound = None
    if found.choice is not None:
        evaluation = given.evaluate(found.choice)
        objective, facts["feasible"] = evaluation.value, evaluation.feasible
        if found.bound is not None:
            bound = max(found.bound, objective)
            gap = relative_gap(objective, bound, given.total_value)
    return Row(
        FAMILY,
        name,
        method,
        objective,
        measured.seconds,
        bound,
        gap,
        measured.peak_mib,
        measured.repeats,
        facts | found.trace.fact,
    )


def verdicts(rows: list[Row]) -> list[Verdict]:
    """T6 on every instance, and the comparisons with general solvers."""
    instances: dict[str, dict[str, Row]] = {}
    for row in rows:
        instances.setdefault(row.instance, {})[row.method] = row
    return [_never_worse(instances), *_threshold(instances), _soon(instances), _general(instances)]


def _value(row: Row | None) -> float:
    return -float("inf") if row is None or row.objective is None else row.objective


def _never_worse(instances: dict[str, dict[str, Row]]) -> Verdict:
    """Allocation against every rule."""
    names = [baseline.name for baseline in BASELINES]
    worse = []
    for name, group in instances.items():
        allowed = SAME * float(group[OURS].facts["total"])
        worse += [f"{name}: {rule}" for rule in names if _value(group.get(rule)) > _value(group[OURS]) + allowed]
    text = f"worse than a rule in {len(worse)} of {len(instances) * len(names)} comparisons"
    return Verdict("T6", "Allocation never worse than any rule", text + _some(worse), not worse)


def _soon(instances: dict[str, dict[str, Row]]) -> Verdict:
    """When each solver has proven the usual gap."""
    parts, medians = [], {}
    instances = {name: group for name, group in instances.items() if EXACT in group}
    for method in (OURS, *GENERAL):
        times = [_seconds_to(group[method], USUAL) for group in instances.values() if method in group]
        medians[method] = statistics.median(times) if times else float("inf")
        within = sum(time < float("inf") for time in times)
        median = f"{medians[method]:.2g} s" if medians[method] < float("inf") else "beyond the limit"
        parts.append(f"{method} on {within} of {len(times)} instances, median {median}")
    holds = all(_gap(group[OURS]) <= USUAL for group in instances.values())
    holds = holds and medians[OURS] == min(medians.values())
    asked = f"gap {USUAL:g} proven everywhere, sooner than by CP-SAT and HiGHS (median)"
    return Verdict("T4 beside CP-SAT, HiGHS", asked, "; ".join(parts), holds)


def _seconds_to(row: Row, gap: float) -> float:
    """Seconds until a gap was proven; infinite if it never was."""
    reached = [seconds for seconds, value in points_of(row.facts) if value <= gap]
    return min(reached, default=float("inf"))


def _general(instances: dict[str, dict[str, Row]]) -> Verdict:
    """Who is ahead when all go on until the time limit."""
    behind, ahead, compared = [], [], 0
    for name, group in instances.items():
        if EXACT not in group:
            continue
        own = group[EXACT]
        allowed = SAME * float(own.facts["total"])
        for method in (method for method in TO_THE_END if method in group):
            compared += 1
            other = group[method]
            if _value(other) > _value(own) + allowed or _gap(other) < _gap(own) - CLOSE:
                behind.append(f"{name}: {method} {_gap(other):.1e}, {OURS} {_gap(own):.1e}")
            elif _value(other) < _value(own) - allowed or _gap(other) > _gap(own) + CLOSE:
                ahead.append(name)
    text = f"ahead in {len(ahead)}, behind in {len(behind)} of {compared}{_some(behind)}"
    asked = (
        f"value and proven gap at least as good as CP-SAT's and HiGHS' when all go on to the time limit (+- {CLOSE:g})"
    )
    return Verdict("to the end", asked, text, not behind)


def _gap(row: Row) -> float:
    return 1.0 if row.gap is None else row.gap


def _threshold(instances: dict[str, dict[str, Row]]) -> list[Verdict]:
    """What the global threshold loses, relative to what the tightest bound loses: the mean over seeds, per setting."""
    ratios = {name: _ratio(group) for name, group in instances.items()}
    found = []
    for what, start, least in (
        ("ResNet-50, synthetic scores", "rules: ResNet-50", 1.3),
        ("MobileNetV2, synthetic scores", "rules: MobileNetV2", 3.0),
        ("real scores", "", 1.0),
    ):
        those = {name: ratio for name, ratio in ratios.items() if name.startswith(start) and (start or "(real" in name)}
        if those:
            seeds: dict[str, list[float]] = {}
            for name, ratio in those.items():
                seeds.setdefault(name.partition(", seed ")[0], []).append(ratio)
            means = [statistics.fmean(group) for group in seeds.values()]
            asked = f"{what}: the global threshold loses at least {least:g} times what is unavoidable, mean over seeds"
            text = (
                f"means of {min(means):.2f} to {max(means):.2f} times in {len(means)} settings; "
                f"{len(those)} instances from {min(those.values()):.2f} to {max(those.values()):.2f}"
            )
            found.append(Verdict("T6", asked, text, min(means) >= least))
    return found


def _ratio(group: dict[str, Row]) -> float:
    """Lost value of the global threshold over that of the tightest bound."""
    row = group["global threshold"]
    total = float(row.facts["total"])
    lost = total - min(found.bound for found in group.values() if found.bound is not None)
    return (total - _value(row)) / lost if lost > 0 else 1.0


def _some(names: list[str]) -> str:
    return f" ({'; '.join(names[:4])}{' ...' if len(names) > 4 else ''})" if names else ""
