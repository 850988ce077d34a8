"""What happens around each step when masks come and go: the one harness of all methods.

A method says when (`phases`), how many (`selection`), by which values, and what becomes of removed weights. The
harness does the rest, the same for all: exact counts, nested removals, frozen weights, an optimiser that forgets what
it should.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.methods.groups import Group
from structprune.methods.masked import Masked
from structprune.methods.optimizer_state import Reset, chosen_reset, forget_entries, reset
from structprune.methods.phases import Kind, Phase, Timeline
from structprune.methods.ranks import same_on_all_ranks
from structprune.methods.selection import Allocate, Keep, select
from structprune.structures import Structures

__all__ = ["Harness", "Setting"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a harness is told.

    Attributes
    ----------
    structures
        What may be removed.
    keep
        How many stay, and which for given values.
    allocate
        The solver under the caller's budget; None where the rule needs none.
    timeline
        The phases, step by step.
    epoch
        Steps of one pass over the data.
    reset
        What the optimiser forgets when a phase begins.
    zero_removed
        Whether removed weights become zero, and come back as zeros; else they wait with the values they had.
    """

    structures: Structures
    keep: Keep
    allocate: Allocate | None
    timeline: Timeline
    epoch: int
    reset: Reset = Reset.AUTO
    zero_removed: bool = False
    groups: tuple[Group, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", self.keep.groups(self.structures))


class Harness:
    """Masks by phases; values are the norms of the structures unless a method says otherwise.

    While a structure is removed its weights get no gradient, no decay and no momentum: they stand still. When its mask
    changes, the optimiser forgets what it knew of its entries.
    """

    model: Masked
    optimizer: torch.optim.Optimizer

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.final = np.zeros(len(setting.groups), dtype=np.int64)
        self.phase: Phase | None = None
        self.supports: list[np.ndarray] = []
        self.policy = setting.reset
        self.masks: dict[str, Tensor] = {}
        self.waiting: dict[str, Tensor] = {}

    # ------------------------------------------------------------ what methods change

    def values(self) -> np.ndarray:
        """What each structure is worth now, ``(n,)`` float64, higher = keep."""
        return self.model.norms()

    def selection(self, alive: np.ndarray, done: float) -> np.ndarray:
        """The mask at a point of a removal, a part of ``alive``."""
        return select(self.setting.keep, self.setting.groups, self.values(), alive, self.final, done)

    def counts(self) -> np.ndarray:
        """How many of each group stay in the end, ``(groups,)``, asked when a removal begins."""
        setting = self.setting
        counts = setting.keep.counts(setting.structures, self.values(), setting.allocate)
        sizes = [group.size for group in setting.groups]
        if counts.shape != (len(sizes),) or (counts < 0).any() or (counts > sizes).any():
            raise ValueError(
                f"Expected counts between 0 and {sizes} for the groups. Got {counts.tolist()}. "
                f"Mend {type(setting.keep).__name__}."
            )
        return counts

    def notes(self) -> tuple[str, ...]:
        """Sentences for a report, after the last step."""
        return ()

    # ------------------------------------------------------------ the engine's calls

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Meet the network, which the method has wrapped, and the optimiser."""
        if not isinstance(model, Masked):
            raise TypeError(f"Expected a Masked network. Got {type(model).__name__}. Train what prepare() returns.")
        self.model, self.optimizer = model, optimizer
        shortest = self.setting.timeline.shortest
        self.policy = chosen_reset(self.setting.reset, optimizer, shortest, self.setting.epoch)
        self.final = self.counts()

    def before_forward(self, step: int) -> None:
        """Enter a phase, or remove some more."""
        before, phase = self.phase, self.setting.timeline.at(step)
        entered = before is None or phase.index != before.index
        if entered and before is not None:
            reset(self.optimizer, self.policy)
        if phase.kind is Kind.DENSE and entered:
            self.mask(np.ones(self.model.size, dtype=bool))
        elif phase.kind is not Kind.DENSE:
            if entered and (before is None or before.kind is Kind.DENSE):
                self.final = self.counts()
            if before is None or phase.done != before.done:
                self.mask(self.selection(self.model.kept, phase.done))
        if phase.kind is Kind.SPARSE and entered:
            self.supports.append(self.model.kept)
        self.phase = phase

    def penalty(self) -> Tensor | None:
        """Nothing is added to the loss."""
        return None

    def after_backward(self, step: int) -> None:
        """Removed entries get no gradient; through the masks they got none, or zeros."""
        for name, mask in self.masks.items():
            gradient = self.parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Put removed weights back where they were: neither decay nor momentum moves them."""
        for name, mask in self.masks.items():
            parameter = self.parameter(name)
            parameter.copy_(torch.where(mask, parameter, self.waiting[name]))

    def status(self) -> Mapping[str, str | float]:
        """The phase and the kept fraction of the structures."""
        phase = self.phase.kind.value if self.phase is not None else "start"
        return {"phase": phase, "kept": float(self.model.kept.mean())}

    def state_dict(self) -> dict[str, Any]:
        """Mask, counts, waiting weights, and the masks of earlier sparse phases."""
        return {
            "kept": torch.from_numpy(self.model.kept),
            "final": torch.from_numpy(self.final.copy()),
            "phase": None if self.phase is None else (self.phase.index, self.phase.done),
            "supports": [torch.from_numpy(support.copy()) for support in self.supports],
            "waiting": {name: value.clone() for name, value in self.waiting.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self.final = state["final"].numpy().copy()
        self.supports = [support.numpy().copy() for support in state["supports"]]
        self.phase = None if state["phase"] is None else self._phase(*state["phase"])
        selection = state["kept"].numpy()
        self.model.keep(selection)
        self._hold(selection)
        for name, value in state["waiting"].items():
            self.waiting[name] = value.to(self.parameter(name)).clone()

    def finish(self) -> None:
        """Take away what was attached to the network; after the last step."""

    # ------------------------------------------------------------ parts

    def parameter(self, name: str) -> Tensor:
        """A parameter of the network by its own name."""
        return self.model.inner.get_parameter(name)

    def mask(self, selection: np.ndarray) -> None:
        """Change to another mask: who comes or goes is forgotten by the optimiser, and who is gone waits."""
        selection = same_on_all_ranks(torch.from_numpy(selection)).numpy()
        before = self.model.kept
        if np.array_equal(selection, before):
            return
        changed = self.model.entry_masks(~(selection ^ before))
        self.model.keep(selection)
        self.forget({self.parameter(name): ~same for name, same in changed.items()})
        self._hold(selection)

    def forget(self, where: Mapping[Tensor, Tensor]) -> None:
        """Zero what the optimiser remembers of the entries where a boolean tensor of a parameter's shape is True."""
        forget_entries(self.optimizer, where)

    @torch.no_grad()
    def _hold(self, selection: np.ndarray) -> None:
        masks = self.model.entry_masks(selection) if not selection.all() else {}
        self.masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        if self.setting.zero_removed:
            for name, mask in self.masks.items():
                self.parameter(name).masked_fill_(~mask, 0)
        self.waiting = {name: self.parameter(name).detach().clone() for name in self.masks}

    def _phase(self, index: int, done: float) -> Phase:
        segment = self.setting.timeline.plan.segments[index]
        return Phase(index, segment.kind, 0, False, 0.0, done)
