"""The straight line: a trained network and a budget in, a smaller network with its certificate out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from solvers.choose import Automatic
from solvers.infeasibility import floors
from solvers.problem import SelectionProblem, Term
from solvers.result import Result
from structprune import account
from structprune.batch_norm import recalibrate
from structprune.budget import Budget
from structprune.compile import Compiled, compile
from structprune.compile.block_latency import block_latency_ns
from structprune.costs import costs
from structprune.criteria import Fisher, LayerReconstruction, Magnitude
from structprune.criteria.gradients import batches
from structprune.criteria.scores import Criterion, Data, Scores
from structprune.data import Loss, batch_size, device_of
from structprune.errors import InfeasibleBudgetError
from structprune.finetune import FineTune
from structprune.latency import latency_ns, measure
from structprune.limit import Limit
from structprune.problem import selection_problem
from structprune.progress import Phases
from structprune.pruned import Pruned
from structprune.report import LatencyRow
from structprune.structures import Structures, channels
from structprune.task import Task, checked_task
from structprune.units import quantity

__all__ = ["Method", "Solver", "solve"]

CALIBRATION = 1024  # examples for batch norm statistics
TIGHTENINGS = 3  # times that a choice is made again because it was measured above a cap on latency


class Solver(Protocol):
    """Chooses the levels of a selection problem."""

    def solve(self, problem: SelectionProblem) -> Result:
        """Return the best choice found, with its certificate."""
        ...


class Method(Protocol):
    """A training-time method: trains a copy of the network while it decides what to keep.

    ``allocate(scores)`` is the solver under the caller's budget, to be asked as often as needed. The method returns
    the trained network, in its dense shapes, and the scores that the final choice is made by.
    """

    def __call__(
        self,
        model: nn.Module,
        structures: Structures,
        allocate: Callable[[Scores], Result],
        task: Task,
        seed: int,
        progress: bool,
    ) -> tuple[nn.Module, Scores]:
        """Train and score."""
        ...


def solve(
    model: nn.Module,
    budget: Budget,
    *,
    structures: Structures | None = None,
    method: Method | None = None,
    data: Data | None = None,
    loss: Loss | None = None,
    example: Any = None,
    criterion: Criterion | None = None,
    solver: Solver | None = None,
    finetune: FineTune | None = None,
    validation: Data | None = None,
    limit: Limit | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    """Keep the most valuable structures of ``model`` that fit ``budget``, and build the smaller network.

    Parameters
    ----------
    model
        A trained network; left untouched.
    budget
        Caps, for instance ``Budget(macs=0.5)`` or ``Budget(params=0.3, latency_ns=2_000_000)``; never exceeded. One
        on latency holds for what measured tables predict; where the compiled network is measured above it, the choice
        is made again, up to three times, and the report says what came of it.
    structures
        What may be removed; by default all ``channels(model, example)``.
    method
        A training-time method; by default the network is pruned as it is.
    data
        Batches of (inputs, targets) that can be iterated several times; training data, not test data.
    loss
        ``loss(output, target)``, mean nats; by default cross-entropy for class targets, Gaussian for real ones.
    example
        Arguments of one forward call; taken from ``data`` or inferred from the model where possible.
    criterion
        What a structure is worth; by default layer reconstruction with data (for blocks, kernels and N:M, whose maps
        it does not refit, Fisher loss), group magnitude without.
    solver
        Chooses how much each axis keeps; by default :class:`solvers.choose.Automatic`, which says which and why.
    finetune
        Train the result on ``data`` for a few epochs.
    validation
        Batches on which the report measures quality; by default ``data``, which the report then says. Without
        ``data`` they serve the report alone.
    limit
        What ``pruning_limit`` found for ``model``; the report then says what the kept fraction of its weights means.
    seed
        For everything that is drawn; equal seeds give equal results on one machine.
    progress
        Show what is being done, on standard error.

    Returns
    -------
    The smaller network with its selection, certificate and report.

    Raises
    ------
    InfeasibleBudgetError
        If no selection meets the budget; the message gives the least that works.
    TraceError, CompileError, ValueError
        If the network cannot be read or rebuilt, or an argument is not what it must be.
    """
    phases = Phases(progress)
    with _seeded(seed, model):
        task = checked_task(model, budget, structures, data, loss, example, validation)
        _check_parts(task, method, criterion, solver, finetune)
        _check_limit(limit, model)
        return _line(task, budget, structures, method, criterion, solver, finetune, limit, seed, phases)


def _line(
    task: Task,
    budget: Budget,
    structures: Structures | None,
    method: Method | None,
    criterion: Criterion | None,
    solver: Solver | None,
    finetune: FineTune | None,
    limit: Limit | None,
    seed: int,
    phases: Phases,
) -> Pruned:
    with phases.phase("tracing"):
        structures = structures or channels(task.model, task.example)
    with phases.phase("costs"):
        terms = _costs(structures, task, budget)
        full = [axis.size for axis in structures.axes]
        limits = budget.limits({name: account.amount(of, structures, full) for name, of in terms.items()})
    criterion = criterion or _default_criterion(structures, task, seed)
    solver = solver or Automatic(seed=seed)

    def problem_of(scores: Scores) -> SelectionProblem:
        return selection_problem(structures, scores, terms, limits)

    def allocate(scores: Scores) -> Result:
        problem = problem_of(scores)
        return _checked(solver.solve(problem), problem)[0]

    _check_reachable(problem_of(Scores(np.zeros(structures.n))))
    trained = task.model
    if method is None:
        with phases.phase("scoring"):
            scores = _scores(criterion(trained, structures, task.data, task.loss), criterion, structures)
    else:
        with phases.phase("training"):
            trained, scores = method(trained, structures, allocate, task, seed, phases.visible)
            scores = _scores(scores, method, structures)

    def build() -> _Built:
        with phases.phase("allocation"):
            problem = problem_of(scores)
            result, selection = _checked(solver.solve(problem), problem)
        with phases.phase("re-fit"):
            refit = _refit(trained, structures, scores, selection, task)
        with phases.phase("compiling"):
            made = compile(trained, structures, selection, task.example, refit=refit, timing=task.timing)
        return _Built(problem, result, selection, made)

    allowed = dict(limits)  # what was asked for
    built, latency, timed = _within_latency(build, limits, budget.latency_ns, task, phases, again=method is None)
    problem, result, selection, compiled = built.problem, built.result, built.selection, built.compiled

    stages = {"dense": task.model, "pruned": compiled.model}
    notes = [*task.notes, *scores.notes, *compiled.notes, *timed]
    if finetune is not None and task.loss is not None:
        masks = _masks_of_zeros(compiled, structures, selection)
        with phases.phase("fine-tuning"):
            tuned = finetune.run(compiled.model, task.data, task.loss, masks=masks, progress=phases.visible)
        stages["fine-tuned"] = tuned.model
        notes += tuned.notes
    final = list(stages.values())[-1]
    with phases.phase("measuring"):
        widths = structures.widths(selection)
        rows, differences = account.cost_rows(structures, terms, allowed, widths, compiled, task.example)
        if latency is None or final is not compiled.model:
            latency = account.latency_row(task, final)
        measured = account.quality(stages, task)
    if measured[0] and task.validation is None:
        notes.append("quality is measured on the data that pruning used; pass validation= for held-out figures")
    report = account.report(
        *(task, structures, problem, scores, result, compiled),
        criterion=_name(criterion if method is None else method),
        rows=rows,
        latency=latency,
        measured=measured,
        limit=limit,
        notes=[*notes, *differences],
        seconds=phases.seconds,
        seed=seed,
    )
    return Pruned(final, structures, problem, result, report, task.example, compiled.built_as)


@dataclass(frozen=True, eq=False)
class _Built:
    """A choice with the network that was made of it."""

    problem: SelectionProblem
    result: Result
    selection: np.ndarray
    compiled: Compiled


def _within_latency(
    build: Callable[[], _Built], limits: dict[str, int], cap: float | None, task: Task, phases: Phases, again: bool
) -> tuple[_Built, LatencyRow | None, list[str]]:
    """Build; with a cap on latency also measure, and choose again under a lower cap while the clock is above it.

    Tables predict a network from its operators, so that what is within the cap by prediction may be above it. With a
    network that was trained for its choice, ``again`` is False and the report says what was measured.
    """
    built = build()
    notes: list[str] = []
    if cap is None:
        return built, None, notes
    for left in reversed(range(TIGHTENINGS + 1)):
        with phases.phase("measuring"):
            row = account.latency_row(task, built.compiled.model)
        over = row.after_ns / (cap * row.before_ns if isinstance(cap, float) else cap)
        if over <= 1:
            break
        if not (again and left):
            notes.append(f"latency: measured {over - 1:.1%} above its cap; only the prediction is within it")
            break
        choice = built.result.choice
        assert choice is not None
        limits["latency_ns"] = int(built.problem.evaluate(choice).used["latency_ns"] / over)
        try:
            built = build()
        except InfeasibleBudgetError:
            notes.append(f"latency: measured {over - 1:.1%} above its cap, and the tables know no faster choice")
            break
        notes.append(
            f"latency: measured {over - 1:.1%} above its cap, so the prediction was capped at "
            f"{quantity('latency_ns', limits['latency_ns'])} and the choice made again"
        )
    return built, row, notes


@contextmanager
def _seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Loaders that shuffle, and whatever else draws from torch's generators, do it from ``seed``; all is put back."""
    on_gpu = isinstance(model, nn.Module) and device_of(model).type == "cuda"
    with torch.random.fork_rng(devices=[device_of(model)] if on_gpu else []):
        torch.manual_seed(seed)
        yield


def _masks_of_zeros(compiled: Compiled, structures: Structures, selection: np.ndarray) -> dict[str, Tensor] | None:
    """The masks of the dense weights that hold zeros, which training must keep."""
    if compiled.built_as not in ("masked", "block-sparse"):
        return None
    held = dict(compiled.model.named_parameters(remove_duplicate=False))
    return {name: mask for name, mask in structures.masks(selection).items() if name in held}


def _name(part: object) -> str:
    """What a report calls a criterion or method: its class, or its own name where it is a function."""
    return getattr(part, "__name__", type(part).__name__)


def _check_parts(task: Task, method: object, criterion: object, solver: object, finetune: FineTune | None) -> None:
    """Refuse parts of the wrong kind before any work is done."""
    for what, part in (("method", method), ("criterion", criterion), ("solver", solver), ("finetune", finetune)):
        fits = hasattr(part, "solve") if what == "solver" else hasattr(part, "run") or what != "finetune"
        if part is not None and (isinstance(part, type) or not fits or (what == "criterion" and not callable(part))):
            name = part.__name__ + " itself" if isinstance(part, type) else repr(part)
            examples = {"criterion": "Magnitude()", "solver": "Automatic()", "finetune": "FineTune(epochs=2)"}
            raise TypeError(f"Expected a {what} object. Got {name}. Pass {examples.get(what, 'an instance')}.")
    if task.data is None and (method is not None or finetune is not None):
        who = "method=" if method is not None else "finetune="
        raise ValueError(f"Expected data for {who}. Got None. Pass data=, batches of (inputs, targets).")


def _check_limit(limit: object, model: nn.Module) -> None:
    """Refuse the limit of another network before any work is done."""
    if limit is None:
        return
    if not isinstance(limit, Limit):
        raise TypeError(f"Expected a Limit. Got {type(limit).__name__}. Pass what pruning_limit(model, ...) returns.")
    weights = sum(parameter.numel() for parameter in account.weights(model).values())
    if limit.weights != weights:
        raise ValueError(
            f"Expected the limit of this {type(model).__name__} with {weights:,} weights. Got that of a "
            f"{limit.model_name} with {limit.weights:,}. Compute it anew with pruning_limit(model, ...)."
        )


def _default_criterion(structures: Structures, task: Task, seed: int) -> Criterion:
    if task.data is None:
        return Magnitude()
    return LayerReconstruction(seed=seed) if structures.kind == "channels" else Fisher()


def _scores(found: object, by: object, structures: Structures) -> Scores:
    if not isinstance(found, Scores):
        raise TypeError(f"Expected Scores from {_name(by)}. Got {type(found).__name__}. Return Scores(values).")
    return found.check(structures)


def _costs(structures: Structures, task: Task, budget: Budget) -> dict[str, tuple[Term, ...]]:
    """Terms of every resource that is capped or can be counted without measuring."""
    known = ("macs", "params", "bytes") if structures.labelled is not None else ("params", "bytes")
    needed = [name for name in budget.resources if name not in ("latency_ns", *known)]
    terms = {name: costs(structures, task.model, name) for name in (*known, *needed)}
    if "latency_ns" in budget.resources:
        dense = measure({"dense": task.model}, task.timing)["dense"].median_ns
        if structures.kind == "blocks":
            timed = block_latency_ns(structures, task.model, task.timing, dense_ns=dense)
            return terms | {"latency_ns": timed}
        batch = batch_size((task.timing.args, dict(task.timing.kwargs)))
        device = str(device_of(task.model))
        terms["latency_ns"] = latency_ns(structures, device=device, batch=batch, dense_ns=dense)
    return terms


def _check_reachable(problem: SelectionProblem) -> None:
    """Refuse a cap below what keeping least takes, before the long work."""
    for floor in floors(problem):
        resource, amount = floor.resource, floor.minimum
        due = f" ({floor.due})" if floor.due else ""
        raise InfeasibleBudgetError(
            f"Expected at least {amount} {resource}, which the smallest network still takes{due}. "
            f"Got {floor.limit}. Pass Budget({resource}={amount}) or more."
        )


def _checked(result: Result, problem: SelectionProblem) -> tuple[Result, np.ndarray]:
    """The result and its selection, if there is one and it is within budget."""
    if result.selection is None or result.choice is None:
        raise InfeasibleBudgetError(result.termination.text)
    found = problem.evaluate(result.choice)
    if not found.feasible or not np.array_equal(problem.selection(result.choice), result.selection):
        allowed = {capacity.resource: capacity.limit for capacity in problem.capacities}
        raise ValueError(
            f"Expected a solver whose choice is its selection and within {allowed}. Got one that uses "
            f"{dict(found.used)}. Mend the solver, or use Automatic()."
        )
    return result, result.selection


def _refit(
    model: nn.Module, structures: Structures, scores: Scores, selection: np.ndarray, task: Task
) -> dict[str, Tensor]:
    """New weights from the criterion if it offers them, else batch norm statistics where there are data."""
    if selection.all() or task.data is None:
        return {}
    if scores.refit is not None:
        return scores.refit(selection)
    inputs = [inputs for inputs, _, _ in batches(task.data, model, CALIBRATION)]
    return recalibrate(model, structures, selection, inputs)
