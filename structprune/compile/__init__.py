"""Build the smaller network and prove that it equals the masked one.

*Masked* means: the network's own modules and shapes, refit weights written, then every entry of a removed structure
set to zero. *Compiled* means: those entries gone. The two must agree on the example before anything is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from structprune.axes import Example, as_example
from structprune.axes.graph import run
from structprune.axes.rewrite import GraphModel, rewrite
from structprune.compile.fuse import fused, fusion_notes, plan_fusions
from structprune.compile.module import repair_attributes, shrink_tensors
from structprune.compile.packing import pack_linear, packed, plan_packing
from structprune.compile.proof import Proof, difference, tensors
from structprune.compile.sparse import plan_sparse
from structprune.errors import CompileError
from structprune.layers.tune import Tuned
from structprune.structures import Structures

__all__ = ["Compiled", "compile", "masked", "packed"]


@dataclass(frozen=True)
class Compiled:
    """The smaller network and what was checked.

    Attributes
    ----------
    model
        An ordinary module in evaluation mode.
    built_as
        'module' (the network's own classes with smaller tensors), 'graph' (the recorded graph, for code that cannot
        run with other sizes), 'block-sparse' (for blocks: block-sparse layers where they are faster, dense ones that
        hold zeros elsewhere) or 'masked' (dense layers that hold zeros, for structures inside a weight).
    error
        max abs(compiled - masked) / max abs(masked) over the outputs, with weights and example shaken at random, in
        float64 where the network runs in it.
    effect
        max abs(masked - dense) / max abs(dense) on the example: what the removal does to the network.
    notes
        Why something simpler was not possible.
    rounding
        max abs(compiled - masked) / max abs(masked) on the example, in the network's own precision.
    tuned
        For blocks: what was measured of each layer, whether it became block-sparse or not.
    """

    model: nn.Module
    built_as: str
    error: float
    effect: float
    notes: tuple[str, ...] = ()
    rounding: float = 0.0
    tuned: tuple[Tuned, ...] = ()


def masked(
    model: nn.Module, structures: Structures, selection: np.ndarray, refit: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of ``model`` with refit weights written and every entry of the removed structures zero."""
    clone = copy.deepcopy(model).eval()
    structures.apply_masks(clone, selection, refit)
    return clone


def compile(
    model: nn.Module,
    structures: Structures,
    selection: np.ndarray,
    example: Any,
    *,
    refit: Mapping[str, Tensor] | None = None,
    timing: Any = None,
    cache: str | Path | Literal[False] | None = None,
) -> Compiled:
    """Build the network that keeps only the selected structures.

    Channels are cut out of every tensor they live in, and the modules' own attributes are repaired. If the module's
    Python cannot run with the new sizes (hard-coded shapes, a softmax scale computed from the head dimension), the
    recorded graph with its sizes rewritten is returned instead. ``model`` is left untouched.

    Blocks of 16, 32, 64, 128 or 256 outputs (or multiples of 16) become block-sparse layers wherever these are
    measured to be faster than the best dense layer on this machine; whatever else lies inside a weight becomes zeros.
    Block-sparse layers take the activation module behind them into their kernel, and linear layers that stay dense
    beside blocks become :class:`~structprune.layers.packed_linear.PackedLinear`, each where measured not to be slower.

    Parameters
    ----------
    selection
        Boolean ``(n,)``, True = kept.
    refit
        New values of weights, by name and in their full shape, written before masking.
    timing
        For blocks: arguments of the forward call that is to be fast; by default ``example``.
    cache
        For blocks: folder of measured layers; None for the user's cache folder, False for no cache.

    Raises
    ------
    CompileError
        If neither way gives a network that equals the masked one on ``example``.
    """
    example = as_example(example)
    selection = structures.check(selection)
    reference = masked(model, structures, selection, refit)
    wanted = tensors(run(reference, example))
    effect = _effect(wanted, tensors(run(model, example)))
    if selection.all() and not refit:
        return Compiled(reference, "module", 0.0, 0.0)
    if structures.kind == "blocks":
        fast = example if timing is None else as_example(timing)
        return _with_blocks(reference, structures, selection, example, wanted, fast, effect, cache)
    if structures.kind != "channels":
        return Compiled(reference, "masked", 0.0, effect, (_zeros(structures),))
    rewritten = _rewritten(structures, selection)
    module = partial(_as_module, structures=structures, selection=selection, rewritten=rewritten)
    graph = partial(_as_graph, structures=structures, selection=selection, rewritten=rewritten)
    attempts = {
        "its own modules": partial(module, own_integers=False),
        "its own modules with repaired integers": partial(module, own_integers=True),
        "the recorded graph": graph,
    }
    proof = Proof(reference, structures, selection, example, wanted)
    problems: list[str] = []
    for name, build in attempts.items():
        try:
            smaller, error, rounding = proof.accept(build)
        except Exception as problem:  # whatever the network's own Python raises; the next way is tried
            problems.append(f"{name} cannot be cut: {type(problem).__name__}: {_first_line(problem)}")
            continue
        built_as = "graph" if build is graph else "module"
        return Compiled(smaller, built_as, error, effect, tuple(problems) if build is graph else (), rounding)
    raise CompileError(
        f"Expected a smaller {type(model).__name__} that equals the masked one. Got none: {'; '.join(problems)}. "
        "Keep the layers that this comes from whole with keep_whole=[...]."
    )


def _with_blocks(
    reference: nn.Module,
    structures: Structures,
    selection: np.ndarray,
    example: Example,
    wanted: list[Tensor],
    timing: Example,
    effect: float,
    cache: str | Path | Literal[False] | None,
) -> Compiled:
    """The masked network, with block-sparse layers where they are faster and the whole equals the masked one."""
    plan = plan_sparse(reference, structures, selection, timing, cache=cache)
    graph = structures.labelled.graph if structures.labelled is not None else None
    fusions = plan_fusions(reference, plan, graph, example, timing, cache=cache) if plan.layers else ()
    sparse_names = [candidate.name for candidate, _ in plan.layers]
    packing = plan_packing(reference, timing, leave=sparse_names, cache=cache)
    notes = plan.notes() if plan.layers else (_zeros(structures), *plan.notes())
    if not plan.layers and not packing.names:
        return Compiled(reference, "masked", 0.0, effect, notes, 0.0, plan.tuned)

    def build(network: nn.Module) -> nn.Module:
        return pack_linear(fused(plan.build(network), fusions), packing.names)

    try:
        fast, error, rounding = Proof(reference, structures, selection, example, wanted).accept(build)
    except Exception as problem:  # whatever the network's own Python raises; the masked network stands
        why = f"faster layers cannot be put in: {type(problem).__name__}: {_first_line(problem)}"
        return Compiled(reference, "masked", 0.0, effect, (_zeros(structures), why, *plan.notes()), 0.0, plan.tuned)
    notes += (*fusion_notes(fusions), *packing.notes())
    built_as = "block-sparse" if plan.layers else "masked"
    # The trial in float64 proves the patterns; the kernels' own error is that on the example.
    return Compiled(fast, built_as, max(error, rounding), effect, notes, rounding, plan.tuned)


def _zeros(structures: Structures) -> str:
    return f"{structures.kind} compile to dense layers that hold zeros: smaller when stored sparsely, not faster"


def _effect(masked_outputs: list[Tensor], dense_outputs: list[Tensor]) -> float:
    try:
        return difference(masked_outputs, dense_outputs)
    except ValueError:  # the number of outputs depends on their values: removal changed which there are
        return float("inf")


def _as_module(
    reference: nn.Module,
    structures: Structures,
    selection: np.ndarray,
    rewritten: torch.fx.GraphModule,
    own_integers: bool,
) -> nn.Module:
    """The network's own classes, torch's attributes repaired, and with ``own_integers`` the user's integers too."""
    clone = copy.deepcopy(reference)
    sizes = shrink_tensors(clone, structures, selection)
    repair_attributes(clone, rewritten, sizes, own_integers=own_integers)
    return clone


def _as_graph(
    reference: nn.Module, structures: Structures, selection: np.ndarray, rewritten: torch.fx.GraphModule
) -> nn.Module:
    clone = copy.deepcopy(reference)
    shrink_tensors(clone, structures, selection)
    state: dict[str, Tensor] = {
        **dict(clone.named_parameters(remove_duplicate=False)),
        **dict(clone.named_buffers(remove_duplicate=False)),
    }
    assert structures.labelled is not None
    return GraphModel(rewritten, structures.labelled, state).eval()


def _rewritten(structures: Structures, selection: np.ndarray) -> torch.fx.GraphModule:
    assert structures.labelled is not None
    ids = np.concatenate([axis.ids for axis in structures.found]) if structures.found else np.zeros(0, np.int64)
    return rewrite(structures.labelled, ids[~selection])[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
