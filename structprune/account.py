"""Make the report of a run: counts, latency and quality of the compiled network beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
from torch import Tensor, nn

from solvers.problem import Product, SelectionProblem, Term
from solvers.result import Result
from structprune.axes.graph import Example, run
from structprune.compile import Compiled
from structprune.counting import count_macs, count_memory
from structprune.criteria.scores import Scores
from structprune.data import batch_size, device_of, evaluate
from structprune.errors import TraceError
from structprune.latency import Timing, measure
from structprune.limit import Limit
from structprune.report import AxisRow, CostRow, CurveRow, LatencyRow, QualityRow, Report
from structprune.structures import Structures
from structprune.task import Task
from structprune.tensors import under_every_name

__all__ = ["amount", "cost_rows", "curve_rows", "kept_fraction", "latency_row", "quality", "report", "weights"]

TIMING_SECONDS = 20.0


def amount(terms: Sequence[Term], structures: Structures, widths: Sequence[int]) -> int:
    """Exact amount that ``terms`` give at ``widths``, one per axis."""
    total = 0
    for term in terms:
        if isinstance(term, Product):
            part = term.coefficient
            for axis in term.groups:
                part *= int(widths[axis])
        else:
            levels = [structures.axes[axis].levels for axis in term.groups]
            where = tuple(list(level).index(widths[axis]) for level, axis in zip(levels, term.groups, strict=True))
            part = int(term.entries[where])
        total += part
    return total


def cost_rows(
    structures: Structures,
    costs: Mapping[str, Sequence[Term]],
    limits: Mapping[str, int],
    widths: Sequence[int],
    compiled: Compiled,
    example: Example,
) -> tuple[tuple[CostRow, ...], tuple[str, ...]]:
    """One row per resource, predicted beside counted on the compiled network, and notes on what does not agree."""
    notes: tuple[str, ...] = ()
    counted: dict[str, int] = {}
    if compiled.built_as in ("module", "graph"):  # zeros, stored or padded, are no part of a prediction
        counted = count_memory(compiled.model)
        try:
            counted["macs"] = count_macs(compiled.model, example)
        except TraceError as error:
            notes = (f"the compiled network's macs were not recounted: {error}",)
    full = [axis.size for axis in structures.axes]
    rows = tuple(
        CostRow(
            name,
            amount(terms, structures, full),
            limits.get(name),
            amount(terms, structures, widths),
            counted.get(name),
        )
        for name, terms in costs.items()
    )
    for row in rows:
        if row.counted is not None and row.counted != row.predicted:
            notes += (
                f"{row.predicted} {row.resource} were predicted and {row.counted} counted: the compiled network does "
                "not run quite the recorded operators",
            )
    return rows, notes


def curve_rows(problem: SelectionProblem, result: Result, scores: Scores) -> tuple[CurveRow, ...]:
    """Loss by width of every axis, where the scores estimate loss."""
    if scores.unit != "nats" or result.choice is None:
        return ()
    return tuple(
        CurveRow(
            group.name,
            tuple(group.levels.tolist()),
            tuple((group.values.max() - group.values).tolist()),
            int(group.levels[choice]),
        )
        for group, choice in zip(problem.groups, result.choice, strict=True)
    )


def latency_row(task: Task, after: nn.Module) -> LatencyRow:
    """Interleaved medians of one forward pass of the dense and of the compiled network on the timing batch.

    15 rounds, or as many (5 at least) as fit into ``TIMING_SECONDS``.
    """
    start = perf_counter()
    run(task.model, task.timing)
    rounds = int(min(max(TIMING_SECONDS / (2 * (perf_counter() - start)), 5), 15))
    times: dict[str, Timing] = measure({"before": task.model, "after": after}, task.timing, rounds=rounds)
    before, now = times["before"], times["after"]
    return LatencyRow(
        batch_size((task.timing.args, dict(task.timing.kwargs))),
        str(device_of(task.model)),
        before.median_ns,
        before.low_ns,
        before.high_ns,
        now.median_ns,
        now.low_ns,
        now.high_ns,
    )


def quality(stages: Mapping[str, nn.Module], task: Task) -> tuple[tuple[QualityRow, ...], dict | None]:
    """Mean loss and accuracy of every stage, and recall by stage and class where there are classes."""
    data = task.data if task.validation is None else task.validation
    if data is None or task.loss is None:
        return (), None
    rows, recalls = [], {}
    for stage, network in stages.items():
        found = evaluate(network, data, task.loss)
        rows.append(QualityRow(stage, found.loss, found.accuracy, found.examples))
        if found.recall is not None:
            recalls[stage] = found.recall
    return tuple(rows), recalls or None


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The floating parameters, a shared one under its first name only: what a pruning limit counts."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}


def kept_fraction(model: nn.Module, structures: Structures, selection: np.ndarray) -> float:
    """Kept entries of all parameters divided by all entries, a shared parameter counted once.

    The currency of :class:`structprune.limit.Limit`: what the masks of the selection leave, whether or not the
    compiled network is smaller by it.
    """
    parameters = weights(model)
    masks = under_every_name(structures.masks(selection), model)
    total = sum(parameter.numel() for parameter in parameters.values())
    removed = sum(int((~masks[name]).sum()) for name in parameters if name in masks)
    return 1 - removed / total if total else 1.0


def report(
    task: Task,
    structures: Structures,
    problem: SelectionProblem,
    scores: Scores,
    result: Result,
    compiled: Compiled,
    *,
    criterion: str,
    rows: tuple[CostRow, ...],
    latency: LatencyRow | None,
    measured: tuple[tuple[QualityRow, ...], dict | None],
    limit: Limit | None,
    notes: Sequence[str],
    seconds: Mapping[str, float],
    seed: int,
) -> Report:
    """Put the facts of a run together."""
    assert result.selection is not None and result.choice is not None
    widths = structures.widths(result.selection)
    certificate = result.certificate
    objective = problem.evaluate(result.choice).value
    sentence = ""
    if limit is not None:
        sentence = limit.sentence(kept_fraction(task.model, structures, result.selection), structures.kind)
    return Report(
        model_name=type(task.model).__name__,
        kind=structures.kind,
        criterion=criterion,
        score_unit=scores.unit or "score",
        axes=tuple(AxisRow(axis.name, axis.size, width) for axis, width in zip(structures.axes, widths, strict=True)),
        costs=rows,
        objective=objective,
        bound=certificate.bound if certificate else None,
        gap=certificate.gap if certificate else None,
        predicted_loss=problem.total_value - objective if scores.unit == "nats" else None,
        termination_text=result.termination.text,
        latency=latency,
        quality=measured[0],
        per_class_recall=measured[1],
        curves=curve_rows(problem, result, scores),
        compiled_as=compiled.built_as,
        max_error=compiled.error,
        limit_sentence=sentence,
        notes=tuple(notes),
        pinned=tuple((p.tensor, p.dim, p.reason) for p in structures.pinned),
        seed=seed,
        seconds=dict(seconds),
    )
