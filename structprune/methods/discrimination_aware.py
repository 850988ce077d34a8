"""Discrimination-aware pruning: keep what the answer can be told from, layer by layer (Zhuang et al. 2018).

The network is first trained with auxiliary heads, stage by stage (:mod:`.stages`). Then, from its inputs to its
outputs, every axis keeps what the distance from the dense layer's outputs plus ``lam`` times the loss of the head
behind it asks for, and the kept weights are fitted anew (:mod:`structprune.criteria.discrimination`). As in the paper,
an axis may start from nothing and take in the structures with the largest gains, one by one or in batches, each
followed by a fit (``picking=Picking()``, ``Picking(steps=3)``). By default that loss is expanded to second order
instead, from two looks at the network, and an exact local search chooses by the expansion (``Picking(expand=True)``).

Channels that a residual stream ties together are one axis and are chosen together, by all maps that read them; heads of
attention are channels of the projection behind them; kernels and blocks are entries of one weight.

How many structures an axis keeps is given, or allocated by a solver under the budget: by another criterion's curves, or
(``adaptive``) by this method's own loss at every width.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from solvers.result import Result, Selection
from structprune.axes import RULES, propagate, trace
from structprune.axes.linear_maps import linear_maps
from structprune.axes.sweep import affordable
from structprune.criteria import Fisher, LayerReconstruction
from structprune.criteria.auxiliary import bottlenecks, final_objective, head_objective, spread
from structprune.criteria.discrimination import Discrimination
from structprune.criteria.gradients import batches, differentiable, needed, valid_examples
from structprune.criteria.refit import fitted_maps
from structprune.criteria.scores import Criterion, Curve, Scores
from structprune.methods.layer_selection import Chosen, LayerSelection, Walk
from structprune.methods.picking import Picking
from structprune.methods.stages import Stages, StageTraining, train_stages
from structprune.structures import Structures
from structprune.task import Task
from structprune.tensors import first_names, named_tensors

__all__ = ["DiscriminationAware", "Selected"]

Allocate = Callable[[Scores], Result]


@dataclass(frozen=True, eq=False)
class Selected:
    """What was chosen, and how.

    Attributes
    ----------
    model
        A trained copy in dense shapes, zero where structures are gone.
    scores
        By which a solver chooses the same.
    selection
        ``(n,)``, True = kept.
    chosen
        Per axis: order, losses, time.
    stages
        The network that was pruned, with its heads.
    given
        Whether the widths were given rather than allocated.
    """

    model: nn.Module
    scores: Scores
    selection: Selection
    chosen: Mapping[int, Chosen]
    stages: Stages
    given: bool


@dataclass(frozen=True, kw_only=True)
class DiscriminationAware:
    """Selection by reconstruction and discrimination, layer by layer.

    Attributes
    ----------
    heads
        Auxiliary heads; 0 to judge every layer by the network's own loss.
    loss
        Weight ``lam`` of the discriminative loss, norm of the gains, and how to fit; see
        :class:`structprune.criteria.discrimination.Discrimination`.
    lam
        Short for ``loss=Discrimination(lam=...)``.
    picking
        By an expansion of the loss, or by gains: one pick at a time or in batches, adaptive stop, PocketFlow's variant.
    widths
        How much each axis keeps: a fraction of every axis, fractions by axis name, or a criterion whose curves the
        caller's solver allocates by. By default layer reconstruction for channels and Fisher loss for the rest.
    adaptive
        Allocate by this method's own loss at every width instead: each axis is followed to its full width, all others
        being whole, and the solver weighs these curves against each other under the budget.
    stages
        How the network is trained with its heads.
    examples
        How many examples of the data are used, at most.
    ranking
        A criterion whose scores decide instead of gains, with the same training and the same fits: for controls.
    folder
        Where finished stages and axes are written, to go on from after an interruption.

    References
    ----------
    Zhuang, Tan, Zhuang, Liu, Guo, Wu, Huang, Zhu, "Discrimination-aware channel pruning for deep neural networks",
    NeurIPS 2018, algorithms 1 and 2.
    """

    heads: int = 3
    lam: float | None = None
    loss: Discrimination = field(default_factory=Discrimination)
    picking: Picking = field(default_factory=lambda: Picking(expand=True))
    widths: float | Mapping[str, float] | Criterion | None = None
    adaptive: bool = False
    stages: StageTraining = field(default_factory=StageTraining)
    examples: int = 4096
    ranking: Criterion | None = None
    folder: Path | str | None = None

    def __post_init__(self) -> None:
        valid_examples(self.examples)
        if isinstance(self.heads, bool) or not isinstance(self.heads, int) or self.heads < 0:
            raise ValueError(f"Expected heads to be an integer >= 0. Got {self.heads!r}. Use 3, or 0 for none.")
        if self.adaptive and self.widths is not None:
            raise ValueError("Expected either adaptive or widths. Got both. Leave widths out, or adaptive.")
        if self.adaptive and (self.picking.backward or self.ranking is not None):
            raise ValueError("Expected adaptive with forward gains. Got a backward path or a ranking. Give widths.")
        given = self.widths.values() if isinstance(self.widths, Mapping) else [self.widths]
        wrong = [part for part in given if isinstance(part, int | float) and not 0 < part <= 1]
        if wrong:
            raise ValueError(f"Expected widths as fractions in (0, 1]. Got {wrong[0]}. Use for instance 0.5.")
        if self.lam is not None:
            object.__setattr__(self, "loss", replace(self.loss, lam=self.lam))

    def __call__(
        self,
        model: nn.Module,
        structures: Structures,
        allocate: Allocate,
        task: Task,
        seed: int,
        progress: bool,
    ) -> tuple[nn.Module, Scores]:
        """Train with heads, choose, fit; see :class:`structprune.solve.Method`.

        Raises
        ------
        ValueError
            As :meth:`choose`, or if given widths are not within the budget.
        """
        chosen = self.choose(model, structures, allocate, task, seed)
        found = allocate(chosen.scores).selection if chosen.given else chosen.selection
        if found is None or not np.array_equal(found, chosen.selection):
            raise ValueError(
                f"Expected widths within the budget. Got {_kept_text(structures, chosen.selection)}, which is "
                "more than it allows. Raise the budget, or leave widths out to have them allocated."
            )
        return chosen.model, chosen.scores

    def choose(
        self, model: nn.Module, structures: Structures, allocate: Allocate | None, task: Task, seed: int
    ) -> Selected:
        """Train with heads, choose and fit, with all that is known about it.

        Parameters
        ----------
        allocate
            The caller's solver under his budget; not asked for given widths, and then may be None.

        Raises
        ------
        ValueError
            If data or loss is missing, or structures are of a kind without groups of their own (N:M).
        """
        data, loss = needed("DiscriminationAware", task.data, task.loss)
        if structures.kind == "nm":
            raise ValueError(
                "Expected channels, kernels or blocks. Got N:M. Use a criterion such as Fisher() for them."
            )
        if structures.labelled is None:
            structures = replace(structures, labelled=propagate(trace(model, task.example), model, RULES))
        with differentiable(model, {}):  # for its random state: a loader that shuffles gives the same every time
            drawn = [(inputs, targets) for inputs, targets, _ in batches(data, model, self.examples)]
        folder = None if self.folder is None else Path(self.folder)
        given = "" if folder is None else _fingerprint(model, drawn, seed)
        setting, stages = self._prepared(model, structures, drawn, replace(task, loss=loss), seed, folder, given)
        trained = _with_weights(model, setting.weights)
        base, widths, curves = self._widths(trained, setting, allocate, task, folder, given)
        parts = (self._walked(), structures.kind, widths, base.tolist())
        where, key = _place(folder, "chosen", given, self.stages, self.heads, *parts)
        walk = setting.walk(widths, base, folder=where, key=key)
        scores = _scores(setting.structures, walk, curves, self._notes(walk, stages, setting))
        return Selected(_with_weights(model, walk.weights), scores, walk.selection, walk.chosen, stages, curves is None)

    def _prepared(
        self,
        model: nn.Module,
        structures: Structures,
        drawn: list[tuple[object, object]],
        task: Task,
        seed: int,
        folder: Path | None,
        given: str,
    ) -> tuple[LayerSelection, Stages]:
        """Train with heads, and put together what all walks need."""
        labelled = structures.labelled
        assert labelled is not None and task.loss is not None
        maps = [one for one in linear_maps(labelled) if not one.transposed or one.kind == "linear"]
        places = spread(bottlenecks(labelled, maps), self.heads, len(maps))
        tensors = named_tensors(model)
        where, key = _place(folder, "stages", given, self.stages, self.heads)
        stages = train_stages(labelled, tensors, places, drawn, task.loss, self.stages, seed, where, key)
        heads = [head_objective(place, head, task.loss) for place, head in zip(places, stages.heads, strict=True)]
        inputs = affordable(labelled, [inputs for inputs, _ in drawn], copies=2)
        fitted = fitted_maps(structures, maps, first_names(model))
        setting = LayerSelection(
            model=model,
            structures=structures,
            weights=stages.weights,
            maps=fitted,
            places=places,
            objectives=[*heads, final_objective(labelled, task.loss)],
            inputs=inputs,
            targets=[targets for _, targets in drawn[: len(inputs)]],
            loss=self.loss,
            picking=self.picking,
            rankings={},
            seed=seed,
            left_out=len(drawn) - len(inputs),
        )
        if self.ranking is not None:
            scores = self.ranking(_with_weights(model, stages.weights), structures, task.data, task.loss)
            values = scores.check(structures).values
            rankings = {number: values[axis.entries] for number, axis in enumerate(structures.axes)}
            setting = replace(setting, rankings=rankings)
        return setting, stages

    def _widths(
        self,
        trained: nn.Module,
        setting: LayerSelection,
        allocate: Allocate | None,
        task: Task,
        folder: Path | None,
        given: str,
    ) -> tuple[Selection, dict[int, int], dict[int, Curve] | None]:
        """The selection on axes that no map tells of, the widths of the others, and the curves they were allocated by.

        The curves are None for given widths, and for widths that an adaptive stop may still lower.
        """
        structures = setting.structures
        told = set(setting.last_maps())
        untold = set(range(len(structures.axes))) - told
        selection = np.ones(structures.n, dtype=bool)
        if isinstance(self.widths, int | float | Mapping):
            by_name = self.widths if isinstance(self.widths, Mapping) else {}
            whole = self.widths if isinstance(self.widths, int | float) else 1.0
            unknown = set(by_name) - {axis.name for axis in structures.axes}
            if unknown:
                names = [axis.name for axis in structures.axes][:4]
                raise ValueError(f"Expected names of axes as widths. Got {sorted(unknown)[0]!r}. They are {names} ...")
            wished = {n: float(by_name.get(structures.axes[n].name, whole)) * structures.axes[n].size for n in told}
            near = {
                n: structures.axes[n].levels[np.abs(structures.axes[n].levels - w).argmin()] for n, w in wished.items()
            }
            return selection, {n: int(width) for n, width in near.items()}, None
        fisher = Fisher(examples=min(self.examples, 256))
        if self.adaptive:
            scores = self._own_curves(trained, setting, task, fisher if untold else None, folder, given)
        else:
            scores = (self.widths or self._default_widths(structures, setting.seed))(
                trained, structures, task.data, task.loss
            )
        scores = scores.check(structures)
        if allocate is None:
            raise ValueError("Expected widths where there is no budget to allocate under. Got none. Give widths.")
        found = allocate(scores).selection
        assert found is not None
        widths = structures.widths(found)
        for number in untold:
            selection[structures.axes[number].entries] = found[structures.axes[number].entries]
        curves = {number: _curve(structures, scores, number) for number in range(len(structures.axes))}
        ends_early = self.picking.tolerance is not None and not self.adaptive
        return selection, {number: widths[number] for number in told}, None if ends_early else curves

    def _default_widths(self, structures: Structures, seed: int) -> Criterion:
        if structures.kind == "channels":
            return LayerReconstruction(seed=seed, refit=False, examples=min(self.examples, 1024))
        return Fisher(examples=min(self.examples, 1024))

    def _own_curves(
        self,
        trained: nn.Module,
        setting: LayerSelection,
        task: Task,
        fisher: Fisher | None,
        folder: Path | None,
        given: str,
    ) -> Scores:
        """This method's loss of every axis at every width, the others being whole."""
        structures = setting.structures
        values = np.zeros(structures.n)
        if fisher is not None:
            values = fisher(trained, structures, task.data, task.loss).values.copy()
        full = {number: structures.axes[number].size for number in setting.last_maps()}
        where, key = _place(folder, "curves", given, self.stages, self.heads, self._walked(), structures.kind)
        walk = setting.walk(full, np.ones(structures.n, dtype=bool), cutting=False, folder=where, key=key)
        curves = {}
        for number, found in walk.chosen.items():
            # Fits on different examples may raise the loss by chance; more structures are never worth less.
            rising = np.maximum.accumulate((found.loss - found.loss[-1])[::-1])[::-1]
            rising[-1] = 0.0
            curves[number] = Curve(found.order, rising)
            values[structures.axes[number].start + found.order] = -np.diff(rising)
        return Scores(values, curves)

    def _walked(self) -> tuple[object, ...]:
        """The settings that decide a walk, besides those of the stages."""
        return self.loss, self.picking, self.ranking

    def _notes(self, walk: Walk, stages: Stages, setting: LayerSelection) -> tuple[str, ...]:
        found = list(walk.chosen.values())
        kept, seconds = sum(one.width for one in found), sum(one.seconds for one in found)
        weakness = min((one.weakness for one in found), default=1.0)
        way = "ranking" if self.ranking is not None else "expansion" if self.picking.expand else "gains"
        notes = [
            f"{way}: reconstruction + {self.loss.lam:g} x discrimination, {len(stages.heads)} heads; "
            f"{seconds:.1f} s of processor time to choose, {seconds / max(kept, 1):.2f} s per kept structure; "
            f"{sum(one.looked_at for one in found):,} examples went through parts of the network for it"
        ]
        if weakness < 1:
            notes.append(
                f"picked in batches: at worst a structure came in with {weakness:.2f} of the largest gain when its "
                "batch began"
            )
        if setting.left_out:
            batches_seen = len(setting.inputs)
            notes.append(f"chosen on the first {batches_seen} batches: memory does not hold {setting.left_out} more")
        untold = [axis.name for n, axis in enumerate(setting.structures.axes) if n not in walk.chosen]
        if untold:
            notes.append(f"no map that can be fitted takes {', '.join(untold[:4])}: left whole or chosen by scores")
        if self.widths is not None and not callable(self.widths):
            notes.append("widths were given: the certificate says no more than that they are within the budget")
        return tuple(notes)


def _curve(structures: Structures, scores: Scores, number: int) -> Curve:
    """The curve that the scores give an axis, made from its values where there is none."""
    if number in scores.curves:
        return scores.curves[number]
    axis = structures.axes[number]
    values = scores.values[axis.entries]
    order = axis.order(values)
    return Curve(order, np.append(np.cumsum(values[order][::-1])[::-1], 0.0))


def _scores(structures: Structures, walk: Walk, curves: Mapping[int, Curve] | None, notes: tuple[str, ...]) -> Scores:
    """Scores by which a solver chooses what the walk has chosen.

    With the curves that widths were allocated by, the problem is the same but for the order within an axis, and so is
    its certificate. For given widths, values peak at them.
    """
    values, made = np.zeros(structures.n), {}
    for number, axis in enumerate(structures.axes):
        kept = walk.selection[axis.entries]
        width = int(kept.sum())
        found = walk.chosen.get(number)
        order = np.argsort(~kept, kind="stable") if found is None else found.order
        if curves is None:
            loss = np.abs(np.arange(axis.size + 1) - width) - 1.0
            loss[width + 1 :] = 0.0
            loss = loss if width < axis.size else np.arange(axis.size, -1, -1.0)
        else:
            loss = curves[number].loss
            order = curves[number].order if found is None else order
        made[number] = Curve(order, loss)
        values[axis.start + order] = -np.diff(loss)
    return Scores(values, made, notes=notes)


def _with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy with other values of its parameters and buffers."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in named_tensors(copied).items():
            tensor.copy_(weights[name])
    return copied


def _kept_text(structures: Structures, selection: Selection) -> str:
    widths = structures.widths(selection)
    shown = [f"{width} of {axis.size} on {axis.name!r}" for width, axis in zip(widths, structures.axes, strict=True)]
    return ", ".join(shown[:3]) + (" ..." if len(shown) > 3 else "")


def _fingerprint(model: nn.Module, drawn: list[tuple[object, object]], seed: int) -> str:
    """What the caller gave, as a number of few letters: network, examples and seed."""
    digest = hashlib.sha256(repr(seed).encode())
    leaves = torch.utils._pytree.tree_leaves(drawn)
    for tensor in [*named_tensors(model).values(), *(leaf for leaf in leaves if isinstance(leaf, Tensor))]:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _place(folder: Path | None, what: str, given: str, *settings: object) -> tuple[Path | None, str]:
    """The folder of one part of the work and what its files are known by; runs of other settings lie beside."""
    key = hashlib.sha256((given + repr(settings)).encode()).hexdigest()
    return None if folder is None else folder / f"{what}_{key[:12]}", key
