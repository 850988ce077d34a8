"""Stage-wise training of a network with auxiliary heads (Zhuang et al. 2018, algorithm 1).

Heads at P places cut the network into P + 1 parts. In stage p the network is trained on the loss of head p plus its
own; in the last stage on its own alone. Parts before the place of the stage's predecessor are frozen, so that each part
stays what it was trained to be with its own head, and one network serves all stages of a selection. Batch norm keeps
its statistics throughout: the recorded operators are those of evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from structprune.axes.propagate import LabelledGraph
from structprune.axes.rewrite import rewrite
from structprune.axes.sweep import leaves_of
from structprune.criteria.auxiliary import AuxiliaryHead, Place, final_objective, head_objective
from structprune.criteria.span import Span
from structprune.data import Loss, batch_size, cut
from structprune.files import write_atomically
from structprune.finetune import set_schedule
from structprune.progress import track

__all__ = ["StageTraining", "Stages", "load", "save", "train_stages"]

Drawn = Sequence[tuple[Any, Any]]


@dataclass(frozen=True)
class StageTraining:
    """How each stage trains: SGD with Nesterov's momentum, a short rise and half a cosine.

    Attributes
    ----------
    epochs
        Passes over the examples per stage; with 0 the network stays as it is and the heads alone take ``head_epochs``.
    head_epochs
        Passes that a stage's head is trained alone beforehand, the network as it stands.
    lr, head_lr
        Peak learning rates of the network and of the heads, which start from nothing.
    momentum, weight_decay, batch_size
        As in torch.optim; most examples per step.

    Raises
    ------
    ValueError
        Numbers out of range.
    """

    epochs: int = 1
    head_epochs: int = 1
    lr: float = 0.001
    head_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.epochs, self.head_epochs) < 0 or self.batch_size < 2:
            raise ValueError(
                "Expected epochs and head_epochs >= 0 and batch_size >= 2. "
                f"Got {self.epochs}, {self.head_epochs} and {self.batch_size}. Correct them."
            )
        rates = (self.lr, self.head_lr)
        if not (min(rates) > 0 and max(rates) < math.inf and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(
                "Expected learning rates > 0, a momentum in [0, 1) and weight_decay >= 0. "
                f"Got {rates}, {self.momentum} and {self.weight_decay}. Correct them."
            )


@dataclass(frozen=True, eq=False)
class Stages:
    """A trained network with its heads.

    Attributes
    ----------
    weights
        Every parameter and buffer by name.
    heads
        In evaluation mode, in the order of their places.
    losses
        Per stage, mean loss of the head and of the network over the last epoch, nats; 0 where there was none.
    """

    weights: dict[str, Tensor]
    heads: tuple[AuxiliaryHead, ...]
    losses: tuple[tuple[float, float], ...]


def train_stages(
    labelled: LabelledGraph,
    weights: Mapping[str, Tensor],
    places: Sequence[Place],
    data: Drawn,
    loss: Loss,
    settings: StageTraining,
    seed: int,
    folder: Path | None = None,
    key: str = "",
) -> Stages:
    """Train; with a folder, every finished stage is written there and not trained again.

    Parameters
    ----------
    labelled
        The recorded network.
    weights
        Parameters (those that require a gradient are trained) and buffers by name; left untouched.
    places
        Where the heads look, in the order of execution.
    data
        Batches (inputs, targets) on the network's device.
    seed
        For the heads' first weights and the order of the examples.
    key
        What the files belong to.
    """
    state = dict(weights)
    heads = _new_heads(labelled, places, weights, seed)
    losses: list[tuple[float, float]] = []
    final = len(places)
    stages = range(final + 1) if settings.epochs else range(final)
    flat, new = rewrite(labelled, np.zeros(0, dtype=np.int64))
    for stage in track(list(stages), "training with heads"):
        saved = None if folder is None else load(folder / f"stage_{stage}.pt", key)
        if saved is None:
            free = _free(labelled, weights, places[stage - 1].position if stage else -1)
            head = heads[stage] if stage < final else None
            place = places[stage] if stage < final else None
            run = _Stage(labelled, flat, new, state, place, head, loss, settings)
            found = run.train(free, data, np.random.SeedSequence([seed, stage]).generate_state(1)[0].item())
            saved = {
                "weights": {name: state[name] for name in free},
                "head": {} if head is None else {name: t.clone() for name, t in head.state_dict().items()},
                "losses": list(found),
            }
            if folder is not None:
                save(folder / f"stage_{stage}.pt", key, saved)
        _spread_aliases(state, weights, saved["weights"])
        if stage < final:
            heads[stage].load_state_dict(saved["head"])
        losses.append((saved["losses"][0], saved["losses"][1]))
    for head in heads:
        head.eval()
        head.requires_grad_(False)
    return Stages({name: tensor.detach() for name, tensor in state.items()}, tuple(heads), tuple(losses))


def _new_heads(
    labelled: LabelledGraph, places: Sequence[Place], weights: Mapping[str, Tensor], seed: int
) -> list[AuxiliaryHead]:
    """Heads with drawn weights, on the network's device."""
    leaf = labelled.graph.outputs[0] if places else None
    if places and (len(labelled.graph.outputs) != 1 or not isinstance(leaf, fx.Node)):
        raise ValueError(
            f"Expected a network with one output for auxiliary heads. Got {len(labelled.graph.outputs)}. Use heads=0."
        )
    like = next(iter(weights.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answer = () if leaf is None else tuple(int(size) for size in leaf.meta["val"].shape)
        return [AuxiliaryHead.at(place, answer).to(like.device) for place in places]


def _free(labelled: LabelledGraph, weights: Mapping[str, Tensor], after: int) -> list[str]:
    """Names of the parameters that are first used behind position ``after``; of a shared one a single name."""
    nodes = list(labelled.graph.module.graph.nodes)
    order = {node: position for position, node in enumerate(nodes)}
    moving: set[fx.Node] = set()
    for node in nodes:
        if node.name in labelled.graph.inputs or any(source in moving for source in node.all_input_nodes):
            moving.add(node)

    def first_use(node: fx.Node) -> int:
        return min((order[user] if user in moving else first_use(user) for user in node.users), default=len(nodes))

    used: dict[int, tuple[str, int]] = {}
    for node in nodes:
        name = labelled.graph.tensors.get(node.name) if node.op == "placeholder" else None
        if name is None or not isinstance(weights[name], nn.Parameter) or not weights[name].requires_grad:
            continue
        known = used.get(id(weights[name]), (name, len(nodes)))
        used[id(weights[name])] = (known[0], min(known[1], first_use(node)))
    return [name for name, position in used.values() if after < position < len(nodes)]


def _spread_aliases(state: dict[str, Tensor], weights: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Write changed tensors into ``state`` under all names that the network knows them by."""
    owner = {id(weights[name]): tensor for name, tensor in changed.items()}
    for name, tensor in weights.items():
        if id(tensor) in owner:
            state[name] = owner[id(tensor)]


class _Stage:
    """One stage: the network from its inputs to the head and to its own loss."""

    def __init__(
        self,
        labelled: LabelledGraph,
        flat: fx.GraphModule,
        new: Mapping[fx.Node, fx.Node],
        state: dict[str, Tensor],
        place: Place | None,
        head: AuxiliaryHead | None,
        loss: Loss,
        settings: StageTraining,
    ) -> None:
        self._labelled, self._flat, self._new = labelled, flat, new
        self._state, self._settings, self._head = state, settings, head
        final = final_objective(labelled, loss)
        early = None if place is None or head is None else head_objective(place, head, loss)
        self._objectives = [one for one in (early, final) if one is not None]
        self._loss = loss

    def train(self, free: Sequence[str], data: Drawn, seed: int) -> tuple[float, float]:
        """Train the free parameters and the head in place of their entries in the state; returns mean losses."""
        generator = torch.Generator().manual_seed(seed)
        leaves = {name: self._state[name].detach().clone().requires_grad_() for name in free}
        losses = (0.0, 0.0)
        with torch.enable_grad():
            if self._head is not None:
                losses = self._epochs({}, self._settings.head_epochs, data, generator, self._objectives[:1])
            if self._settings.epochs:
                losses = self._epochs(leaves, self._settings.epochs, data, generator, self._objectives)
        self._state.update({name: leaf.detach() for name, leaf in leaves.items()})
        return losses

    def _epochs(
        self, leaves: dict[str, Tensor], epochs: int, data: Drawn, generator: torch.Generator, objectives: Sequence[Any]
    ) -> tuple[float, float]:
        nodes = [node for one in objectives for node in one.nodes]
        span = Span(self._labelled, self._flat, self._new, None, nodes)
        weights = {name: tensor.detach() for name, tensor in self._state.items()} | leaves
        if self._head is None and not leaves:
            return 0.0, 0.0
        optimizer = self._optimizer(leaves)
        if self._head is not None:
            self._head.train()
        sums, count = [0.0] * len(objectives), 0
        for epoch in range(epochs):
            sums, count = [0.0] * len(objectives), 0
            for number, index in enumerate(torch.randperm(len(data), generator=generator).tolist()):
                pieces = cut(data[index], self._settings.batch_size, generator)
                for inner, (inputs, targets) in enumerate(pieces):
                    done = (epoch + (number + (inner + 0.5) / len(pieces)) / len(data)) / epochs
                    set_schedule(optimizer, done)
                    values = iter(span.run(weights, self._ordered(span, inputs)))
                    parts = [one.value([next(values) for _ in one.nodes], targets) for one in objectives]
                    optimizer.zero_grad(set_to_none=True)
                    total = torch.stack([part.reshape(()) for part in parts]).sum()
                    if not math.isfinite(float(total.detach())):
                        raise FloatingPointError(
                            f"Expected a finite loss while training with heads. Got {float(total.detach())}. "
                            f"Use StageTraining(lr={self._settings.lr / 10:g})."
                        )
                    total.backward()
                    optimizer.step()
                    size = batch_size((targets, inputs))
                    sums = [known + size * float(part.detach()) for known, part in zip(sums, parts, strict=True)]
                    count += size
        if self._head is not None:
            self._head.eval()
        means = [value / max(count, 1) for value in sums]
        early = means[0] if self._head is not None and means else 0.0
        return early, means[-1] if len(means) > (self._head is not None) else 0.0

    def _ordered(self, span: Span, inputs: Any) -> list[Any]:
        leaves = leaves_of(inputs)
        places = {name: place for place, name in enumerate(self._labelled.graph.inputs)}
        return [leaves[places[node.name]] for node in span.frontier]

    def _optimizer(self, leaves: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        if self._head is not None:
            groups.append({"params": list(self._head.parameters()), "lr": self._settings.head_lr})
        if leaves:
            groups.append({"params": list(leaves.values()), "lr": self._settings.lr})
        optimizer = torch.optim.SGD(
            groups,
            lr=self._settings.lr,
            momentum=self._settings.momentum,
            weight_decay=self._settings.weight_decay,
            nesterov=self._settings.momentum > 0,
        )
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return optimizer


# ---------------------------------------------------------------- files


def save(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write what a later run can take up, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: torch.save({"key": key, **content}, temporary))


def load(path: Path, key: str) -> dict[str, Any] | None:
    """Read it back; None if there is no such file.

    Raises
    ------
    ValueError
        If it belongs to another run.
    """
    if not path.is_file():
        return None
    found: dict[str, Any] = torch.load(path, weights_only=True)
    if found.get("key") != key:
        raise ValueError(
            f"Expected {path} to belong to this network, data, seed and settings. Got that of another run. "
            "Name another folder, or remove the files."
        )
    return found
