"""Build the smaller network and prove that it equals the masked one.

*Masked* means: the network's own modules and shapes, refit weights written, then every entry of a removed structure
set to zero. *Compiled* means: those entries gone. The two must agree on the example before anything is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.axes import as_example
from structprune.axes.graph import Example, run
from structprune.axes.rewrite import GraphModel, rewrite
from structprune.compile.module import repair_attributes, shrink_tensors
from structprune.errors import CompileError
from structprune.structures import Structures

__all__ = ["Compiled", "compile", "masked"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Compiled:
    """The smaller network and what was checked.

    Attributes
    ----------
    model
        An ordinary module in evaluation mode.
    built_as
        'module' (the network's own classes with smaller tensors), 'graph' (the recorded graph, for code that cannot
        run with other sizes) or 'masked' (dense layers that hold zeros, for structures inside a weight).
    error
        max abs(compiled - masked) / max abs(masked) over the outputs on the example, in float64 where the network
        runs in it.
    effect
        max abs(masked - dense) / max abs(dense): what the removal does; the check says something if this is large.
    notes
        Why something simpler was not possible.
    """

    model: nn.Module
    built_as: str
    error: float
    effect: float
    notes: tuple[str, ...] = ()


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
) -> Compiled:
    """Build the network that keeps only the selected structures.

    Channels are cut out of every tensor they live in, and the modules' own attributes are repaired. If the module's
    Python cannot run with the new sizes (hard-coded shapes, a softmax scale computed from the head dimension), the
    recorded graph with its sizes rewritten is returned instead. ``model`` is left untouched.

    Parameters
    ----------
    selection
        Boolean ``(n,)``, True = kept.
    refit
        New values of weights, by name and in their full shape, written before masking.

    Raises
    ------
    CompileError
        If neither way gives a network that equals the masked one on ``example``.
    """
    example = as_example(example)
    selection = structures.check(selection)
    reference = masked(model, structures, selection, refit)
    wanted, dense = _tensors(run(reference, example)), _tensors(run(model, example))
    effect = _relative_difference(wanted, dense)
    if selection.all() and not refit:
        return Compiled(reference, "module", 0.0, 0.0)
    if structures.kind != "channels":
        note = f"{structures.kind} compile to dense layers that hold zeros: smaller when stored sparsely, not faster"
        return Compiled(reference, "masked", 0.0, effect, (note,))
    problems: list[str] = []
    for attempt in ("module", "graph"):
        try:
            candidates = (
                _as_modules(reference, structures, selection)
                if attempt == "module"
                else [_as_graph(reference, structures, selection)]
            )
            for candidate in candidates:
                failure = _check(candidate, reference, example)
                if isinstance(failure, float):
                    return Compiled(candidate, attempt, failure, effect, tuple(problems))
            problems.append(f"the {attempt} could not be rebuilt: {failure}")
        except Exception as error:  # whatever the module's own Python raises; the graph is tried next
            problems.append(f"the {attempt} could not be rebuilt: {type(error).__name__}: {_first_line(error)}")
    raise CompileError(
        f"Expected a smaller {type(model).__name__} that equals the masked one. Got none: {'; '.join(problems)}. "
        "Keep the layer named above whole with keep_whole=[...]."
    )


def _as_modules(reference: nn.Module, structures: Structures, selection: np.ndarray) -> list[nn.Module]:
    """The network's own classes: with torch's attributes repaired, then with the user's own integers too."""
    rewritten = _rewritten(structures, selection)
    plain = copy.deepcopy(reference)
    sizes = shrink_tensors(plain, structures, selection)
    repair_attributes(plain, rewritten, sizes, own_integers=False)
    repaired = copy.deepcopy(plain)
    repair_attributes(repaired, rewritten, sizes, own_integers=True)
    return [plain, repaired]


def _as_graph(reference: nn.Module, structures: Structures, selection: np.ndarray) -> nn.Module:
    clone = copy.deepcopy(reference)
    shrink_tensors(clone, structures, selection)
    state: dict[str, Tensor] = {
        **dict(clone.named_parameters(remove_duplicate=False)),
        **dict(clone.named_buffers(remove_duplicate=False)),
    }
    assert structures.labelled is not None
    return GraphModel(_rewritten(structures, selection), structures.labelled, state).eval()


def _rewritten(structures: Structures, selection: np.ndarray) -> torch.fx.GraphModule:
    assert structures.labelled is not None
    ids = np.concatenate([axis.ids for axis in structures.found]) if structures.found else np.zeros(0, np.int64)
    return rewrite(structures.labelled, ids[~selection])[0]


def _in_double(model: nn.Module, example: Example) -> list[Tensor] | None:
    """Outputs in float64, in which rounding hides no mistake; None if a lower precision is fixed inside."""
    args, kwargs = torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
        (example.args, dict(example.kwargs)),
    )
    if isinstance(model, GraphModel) and model.casts:
        return None
    try:
        outputs = _tensors(run(copy.deepcopy(model).double(), Example(args, kwargs)))
    except (RuntimeError, TypeError):
        return None
    return outputs if all(t.dtype == torch.float64 for t in outputs if t.is_floating_point()) else None


def _check(candidate: nn.Module, reference: nn.Module, example: Example) -> float | str:
    """The relative difference if it is small enough, else what is wrong."""
    try:
        got, wanted = _tensors(run(candidate, example)), _tensors(run(reference, example))
    except Exception as error:  # the module's Python does not run with these sizes
        return f"{type(error).__name__}: {_first_line(error)}"
    if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in wanted]:
        return f"output shapes {[tuple(t.shape) for t in got]} instead of {[tuple(t.shape) for t in wanted]}"
    exact = _in_double(candidate, example), _in_double(reference, example)
    if exact[0] is not None and exact[1] is not None:
        got, wanted = exact
    difference = _relative_difference(got, wanted)
    dtype = next((t.dtype for t in wanted if t.is_floating_point()), torch.float32)
    if difference <= TOLERANCE.get(dtype, 1e-5):
        return difference
    return f"outputs differ from the masked network by {difference:.1e}"


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _relative_difference(got: list[Tensor], wanted: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if b.is_floating_point() and b.numel():
            scale = b.abs().max().item() or 1.0
            difference = ((a - b).abs().max() / scale).item()
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
