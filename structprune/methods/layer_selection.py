"""One walk through a network, axis by axis: choose what each keeps, fit it, and go on with what is left.

The dense network and the pruned one run side by side up to the first map that has entries of an axis. There the axis'
structures are chosen beside everything that has been chosen before it, and the pruned network goes on with the fitted
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from solvers.result import Selection
from structprune.axes.linear_maps import LinearMap
from structprune.axes.sweep import Sweep
from structprune.criteria.auxiliary import Objective, Place
from structprune.criteria.discrimination import Discrimination, DiscriminationOracle, parts_at
from structprune.criteria.owners import owned_by
from structprune.criteria.refit import Fitted
from structprune.methods.picking import Picking
from structprune.methods.stages import load, save
from structprune.progress import track
from structprune.structures import Structures
from structprune.tensors import under_every_name

__all__ = ["Chosen", "LayerSelection", "Walk"]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was found for one axis.

    Attributes
    ----------
    order, loss, weakness
        See :class:`.picking.Picked`.
    width
        How many of the order's first the fitted weights use.
    tensors
        Fitted weights and intercepts by name.
    looked_at
        Examples that went through the network for it, forward and backward.
    seconds
        Processor time of this process, which other work on the machine does not lengthen as it does wall time.
    """

    order: np.ndarray
    width: int
    loss: np.ndarray
    weakness: float
    tensors: Mapping[str, Tensor]
    looked_at: int
    seconds: float

    def content(self) -> dict[str, Any]:
        """As it goes into a file."""
        return {
            "order": torch.from_numpy(self.order.copy()),
            "width": self.width,
            "loss": torch.from_numpy(self.loss.copy()),
            "weakness": self.weakness,
            "tensors": dict(self.tensors),
            "looked_at": self.looked_at,
            "seconds": self.seconds,
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Chosen:
        """As it comes out of a file."""
        known = {name: content[name] for name in ("width", "weakness", "tensors", "looked_at", "seconds")}
        return cls(order=content["order"].numpy(), loss=content["loss"].numpy(), **known)


@dataclass(frozen=True, eq=False)
class LayerSelection:
    """What all walks through one network share.

    Attributes
    ----------
    model, structures
        The network, for the names of its tensors, and what may be removed, with the traced network.
    weights
        Every parameter and buffer by name: the dense network to imitate.
    maps
        What can be fitted.
    places, objectives
        Where the heads look, and their losses; the last objective is the network's own.
    inputs, targets
        Per batch.
    loss
        Settings of the loss and its fit.
    picking
        Settings of the picks.
    rankings
        For some axes, values ``(size,)`` that decide instead of gains, with the same fits: for controls.
    seed
        For sampled positions.
    left_out
        Batches that memory does not hold beside the others.
    """

    model: nn.Module
    structures: Structures
    weights: Mapping[str, Tensor]
    maps: Sequence[Fitted]
    places: Sequence[Place]
    objectives: Sequence[Objective]
    inputs: Sequence[Any]
    targets: Sequence[Any]
    loss: Discrimination
    picking: Picking
    rankings: Mapping[int, np.ndarray]
    seed: int
    left_out: int = 0

    def last_maps(self) -> dict[int, tuple[LinearMap, LinearMap]]:
        """For every axis with entries in some map, the first and the last of these."""
        found = {}
        for number in range(len(self.structures.axes)):
            owned = owned_by(self.structures, number, list(self.maps), self.weights, {})
            if owned:
                found[number] = (owned[0].map, owned[-1].map)
        return found

    def walk(
        self,
        widths: Mapping[int, int],
        selection: Selection,
        *,
        cutting: bool = True,
        folder: Path | None = None,
        key: str = "",
    ) -> Walk:
        """Choose for every axis in ``widths``, in the order in which the network reaches them.

        Parameters
        ----------
        widths
            How many structures an axis keeps.
        selection
            Of the other axes, ``(n,)``; theirs are cut from the start.
        cutting
            Whether what is not chosen goes at once, so that later axes know; else every axis is looked at alone.
        folder
            Where the result of every axis is written, and taken up from.
        key
            What the files belong to.
        """
        labelled = self.structures.labelled
        assert labelled is not None
        order = {node: position for position, node in enumerate(labelled.graph.module.graph.nodes)}
        ends = self.last_maps()
        axes = sorted(widths, key=lambda number: (order[ends[number][0].node], number))
        run = Walk(self, np.array(selection))
        for number in track(axes, "choosing by loss" if cutting else "measuring loss curves"):
            path = None if folder is None else folder / f"axis_{number:04d}.pt"
            saved = None if path is None else load(path, key)
            first, last = ends[number]
            found = Chosen.of(saved) if saved is not None else None
            if found is None:
                run.advance_to(first.node)
                found = run.choose(number, widths[number], self._objective(order[last.node]), every_width=not cutting)
                if path is not None:
                    save(path, key, found.content())
            elif cutting:
                run.advance_to(first.node)
            run.take(number, found, cutting)
        return run

    def _objective(self, position: int) -> Objective:
        """The loss of the first head behind a position, or the network's own."""
        behind = [one for place, one in zip(self.places, self.objectives, strict=False) if place.position >= position]
        return behind[0] if behind else self.objectives[-1]


class Walk:
    """The dense and the pruned network side by side, with what has been chosen so far.

    Attributes
    ----------
    selection
        ``(n,)``; axes that have not been reached are whole.
    chosen
        By axis.
    """

    def __init__(self, setting: LayerSelection, selection: Selection) -> None:
        assert setting.structures.labelled is not None
        self._setting = setting
        self.selection = selection
        self.chosen: dict[int, Chosen] = {}
        labelled = setting.structures.labelled
        self._pruned = Sweep(labelled, dict(setting.weights), setting.inputs)
        self._dense = Sweep(labelled, dict(setting.weights), setting.inputs)
        self._position = 0
        self._nodes = [list(one.flat.graph.nodes) for one in (self._dense, self._pruned)]
        self._cut()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer of the pruned network, in dense shapes, zero where structures are gone."""
        return self._pruned.weights

    @torch.no_grad()
    def advance_to(self, node: fx.Node) -> None:
        """Run both networks up to a recorded node."""
        target = self._nodes[0].index(self._dense.new[node])
        for position in range(self._position, target):
            for one, nodes in zip((self._dense, self._pruned), self._nodes, strict=True):
                one.advance(nodes[position])
        self._position = max(self._position, target)

    def choose(self, number: int, width: int, objective: Objective, every_width: bool) -> Chosen:
        """Pick ``width`` structures of an axis whose first map is next; see :meth:`.picking.Picking.solve`."""
        started = process_time()
        setting, structures = self._setting, self._setting.structures
        size = structures.axes[number].size
        masks = under_every_name(structures.masks(self.selection), setting.model)
        owned = owned_by(structures, number, list(setting.maps), self._pruned.weights, masks)
        parts = parts_at(owned, size, self._dense, self._pruned, setting.loss, setting.seed)
        oracle = DiscriminationOracle(parts, size, setting.loss, self._pruned, setting.targets, objective, last=width)
        found = setting.picking.solve(oracle, width, setting.rankings.get(number), every_width)
        oracle.settle(found.selection)
        return Chosen(
            order=found.order,
            width=int(found.selection.sum()),
            loss=found.loss,
            weakness=found.weakness,
            tensors=oracle.tensors(),
            looked_at=oracle.looked_at,
            seconds=process_time() - started,
        )

    def take(self, number: int, found: Chosen, cutting: bool) -> None:
        """Go on with what was chosen for an axis."""
        self.chosen[number] = found
        if not cutting:
            return
        axis = self._setting.structures.axes[number]
        kept = np.zeros(axis.size, dtype=bool)
        kept[found.order[: found.width]] = True
        self.selection[axis.entries] = kept
        tensors = under_every_name(dict(found.tensors), self._setting.model)
        for name, tensor in tensors.items():
            self._pruned.weights[name] = tensor.to(self._pruned.weights[name])
        self._cut()

    def _cut(self) -> None:
        """Zero every entry of the structures that are gone."""
        masks = self._setting.structures.masks(self.selection)
        for name, mask in under_every_name(masks, self._setting.model).items():
            weight = self._pruned.weights[name]
            self._pruned.weights[name] = weight.detach() * mask.to(weight.device)
