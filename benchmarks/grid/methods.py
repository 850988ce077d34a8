"""The methods of the grids, by the names that stand in tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.grid.cell import DENSE, Cell
from structprune.methods import (
    ACDC,
    BlockSwaps,
    Caps,
    DenseTraining,
    GradualMagnitude,
    GroupLassoProx,
    GroupPowerpropagation,
    OneShotMagnitude,
    Plan,
    RandomMask,
    SequentialAttentionPP,
    SoftTopK,
    Swaps,
    Training,
    TrainingMethod,
    Uniform,
    alternating,
)

__all__ = ["METHODS", "NamedMethod", "Phases", "method_of"]


@dataclass(frozen=True)
class Phases:
    """The dense, alternating and sparse parts of a run, for methods that alternate.

    Attributes
    ----------
    dense, cycle, last, sparse
        Lengths of the first dense phase, of a cycle, of the last dense phase's extension, and of the last sparse phase.
    cycles
        How many cycles.
    """

    dense: int
    cycles: int
    cycle: int
    last: int
    sparse: int

    def plan(self, sparsify: bool) -> Plan:
        """With gradual removals or without."""
        return alternating(
            dense=self.dense,
            cycles=self.cycles,
            cycle=self.cycle,
            last=self.last,
            sparse=self.sparse,
            sparsify=sparsify,
        )


Make = Callable[..., TrainingMethod]


@dataclass(frozen=True)
class NamedMethod:
    """A method with its name in tables and a sentence about it.

    Attributes
    ----------
    name
        In tables and on the command line.
    about
        A sentence.
    make
        From keywords that all methods have to the method.
    alternates
        None where the method has phases of its own; else whether its removals are gradual.
    caps
        Limits on kept blocks per row of blocks.
    trained
        Instead of ``make`` for networks that come trained.
    """

    name: str
    about: str
    make: Make
    alternates: bool | None = None
    caps: Caps | None = None
    trained: Make | None = None


def _one_shot_of_trained(**given: Any) -> TrainingMethod:
    return OneShotMagnitude(dense=0, **given)


def _acdc_gradual(**given: Any) -> TrainingMethod:
    return ACDC(sparsify=True, **given)


def _without_sparsify(**given: Any) -> TrainingMethod:
    return SequentialAttentionPP(sparsify=False, **given)


def _gradual_attention(**given: Any) -> TrainingMethod:
    plan = GradualMagnitude().own_schedule()
    return SequentialAttentionPP(schedule=plan, times_norm=True, **given)


def _whitened(**given: Any) -> TrainingMethod:
    return BlockSwaps(swaps=Swaps(whiten=True), **given)


METHODS: tuple[NamedMethod, ...] = (
    NamedMethod(DENSE, "the same training, nothing removed", DenseTraining),
    NamedMethod("random", "a random mask from the beginning", RandomMask),
    NamedMethod("magnitude", "one cut by norm, then fine-tuning", OneShotMagnitude, trained=_one_shot_of_trained),
    NamedMethod("gmp", "gradual magnitude, cubic schedule", GradualMagnitude),
    NamedMethod("powerprop", "group powerpropagation", GroupPowerpropagation),
    NamedMethod("acdc", "dense and sparse phases in turn, by norm", ACDC, alternates=False),
    NamedMethod("acdc-sparsify", "ACDC with gradual removals", _acdc_gradual, alternates=True),
    NamedMethod("sa++", "SequentialAttention++", SequentialAttentionPP, alternates=True),
    NamedMethod("sa++-no-sparsify", "SequentialAttention++, removals at once", _without_sparsify, alternates=False),
    NamedMethod(
        "sa++-caps",
        "SequentialAttention++, at most twice the average per row of blocks",
        SequentialAttentionPP,
        alternates=True,
        caps=Caps(rows=2.0),
    ),
    NamedMethod("sa++-gradual", "attention times norm, one gradual removal as gmp's", _gradual_attention),
    NamedMethod("swaps", "exchanges in by gradient, out by norm (OMPR, RigL)", BlockSwaps),
    NamedMethod("swaps-whitened", "exchanges in whitened coordinates", _whitened),
    NamedMethod("lasso", "group lasso by proximal steps", GroupLassoProx),
    NamedMethod("spartan", "soft top-k", SoftTopK),
)


def method_of(
    cell: Cell,
    training: Training,
    phases: Phases | None,
    *,
    folder: Path | None,
    min_phase_steps: int,
    trained: bool = False,
    min_structures: int = 1,
    by_budget: bool = False,
    methods: tuple[NamedMethod, ...] = METHODS,
) -> TrainingMethod:
    """Return the method of a cell, ready to fit.

    Parameters
    ----------
    cell
        Names the method and the sparsity.
    training
        Settings of the engine.
    phases
        For methods that alternate; None for their own.
    folder
        For checkpoints.
    min_phase_steps
        Refuse shorter phases.
    trained
        Whether the network comes trained.
    min_structures
        Layers with fewer blocks stay dense.
    by_budget
        Whether `solve` says how much stays, instead of the cell's sparsity in every layer.
    methods
        To choose from.

    Raises
    ------
    ValueError
        If no method has the name.
    """
    named = next((one for one in methods if one.name == cell.method), None)
    if named is None:
        names = ", ".join(one.name for one in methods)
        raise ValueError(f"Expected a method of {names}. Got {cell.method!r}. Name one of them.")
    make = named.trained if trained and named.trained is not None else named.make
    made = make(training=training, folder=folder, min_phase_steps=min_phase_steps)
    if named.alternates is not None and phases is not None:
        made = replace(made, schedule=phases.plan(named.alternates))
    if by_budget:
        return made
    if cell.method == DENSE:
        return replace(made, keep=Uniform(0.0))
    return replace(made, keep=Uniform(cell.sparsity, min_structures=min_structures, caps=named.caps))
