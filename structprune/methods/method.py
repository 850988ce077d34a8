"""What all training methods share: settings, the way from a network to a smaller one's weights and mask, and the call
that ``solve`` makes.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from structprune.criteria.scores import Scores
from structprune.data import Batches, Loss, check_data, device_of, evaluate
from structprune.methods.batch_statistics import refresh_batch_norm
from structprune.methods.engine import Training, repeatable, steps_per_epoch, train
from structprune.methods.harness import Harness, Setting
from structprune.methods.masked import Masked
from structprune.methods.optimizer_state import Reset
from structprune.methods.phases import Plan
from structprune.methods.selection import Allocate, Evenly, Keep
from structprune.methods.shape import coverage_note, sparsity_note, stability, stability_note
from structprune.structures import Structures
from structprune.task import Task

__all__ = ["Fitted", "Probe", "TrainingMethod"]

Probe = Callable[[nn.Module], float]
"""A network's loss on held-out examples."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained network with what it keeps.

    Attributes
    ----------
    model
        A plain network in its dense shapes, in evaluation mode; removed entries are exactly zero.
    selection
        Kept structures, ``(n,)`` boolean.
    values
        Norms of the structures in ``model``, ``(n,)`` float64.
    supports
        The masks of the sparse phases, in order; the last is ``selection``.
    history
        The engine's rows.
    notes
        Sentences for a report.
    """

    model: nn.Module
    selection: np.ndarray
    values: np.ndarray
    supports: tuple[np.ndarray, ...]
    history: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def changes(self) -> tuple[float, ...]:
        """Fraction of the kept structures that each sparse phase replaced, against the one before."""
        return stability(self.supports)


@dataclass(frozen=True, kw_only=True)
class TrainingMethod(ABC):
    """Trains a copy of a network while structures are removed from it.

    Attributes
    ----------
    epochs
        Passes over the data; by default those of ``training``.
    training
        Learning rate, optimiser, schedule and so on.
    keep
        How many structures each layer keeps; by default :class:`~structprune.methods.selection.Evenly`, the same
        fraction of each as the caller's budget allows. ``Uniform(0.9)`` is the paper's rule.
    schedule
        The phases, by shares of the run; by default the method's own.
    reset
        What the optimiser forgets when a phase begins.
    min_phase_steps
        Refuse runs with shorter phases.
    folder
        Where checkpoints go; none are written by default.
    """

    epochs: int | None = None
    training: Training = field(default_factory=Training)
    keep: Keep | None = None
    schedule: Plan | None = None
    reset: Reset = Reset.AUTO
    min_phase_steps: int = 4
    folder: Path | str | None = None

    # ------------------------------------------------------------ what methods change

    @abstractmethod
    def own_schedule(self) -> Plan:
        """The phases of the method."""

    @property
    def zero_removed(self) -> bool:
        """Whether removed weights become zero; else they wait with the values they had."""
        return False

    def wrap(self, model: nn.Module, structures: Structures, keep: Keep) -> Masked:
        """Put the network, a copy already, behind masks."""
        return Masked(model, structures)

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """What happens around each step."""
        return Harness(setting)

    def parameter_groups(self, model: Masked, training: Training) -> list[dict[str, Any]] | None:
        """Groups for the optimiser; None for all parameters alike."""
        return None

    # ------------------------------------------------------------ what they share

    @property
    def settings(self) -> Training:
        """The training settings with the method's own number of epochs."""
        return self.training if self.epochs is None else replace(self.training, epochs=self.epochs)

    def plan(self) -> Plan:
        """The phases of a run."""
        return self.schedule or self.own_schedule()

    def fit(
        self,
        model: nn.Module,
        structures: Structures,
        data: Iterable[tuple[Any, Any]],
        loss: Loss,
        *,
        keep: Keep | None = None,
        allocate: Allocate | None = None,
        validation: Iterable[tuple[Any, Any]] | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Fitted:
        """Train a copy of ``model`` and return it with its mask.

        Parameters
        ----------
        model
            The network; left untouched.
        structures
            What may be removed.
        data
            Re-iterable batches of (inputs, targets), or a DataLoader.
        loss
            ``loss(output, target)``, the mean over a batch.
        keep, allocate
            How many stay, instead of the method's own rule, and the solver that a rule may ask.
        validation
            Held-out batches, for methods that test exchanges on them.
        seed
            For the order of the data and everything that is drawn.
        progress
            Show a bar on standard error.

        Raises
        ------
        ValueError
            If phases would be too short, or a rule needs a budget and there is none.
        """
        batches = check_data(data)
        probe = None if validation is None else partial(_held_out_loss, data=check_data(validation), loss=loss)
        wrapped, hooks = self.prepare(
            *(model, structures),
            epoch=steps_per_epoch(batches, self.settings),
            keep=keep,
            allocate=allocate,
            seed=seed,
            probe=probe,
        )
        trained = train(
            wrapped,
            batches,
            loss,
            hooks,
            self.settings,
            seed=seed,
            progress=progress,
            folder=None if self.folder is None else Path(self.folder),
            parameters=lambda network: self.parameter_groups(network, self.settings),
            identity=self._identity(keep),
        )
        hooks.finish()
        model = hooks.model.fold(structures)
        notes = [*hooks.notes(), *hooks.setting.keep.notes(hooks.setting.groups, hooks.model.kept)]
        with repeatable(batches, seed, self.settings.epochs, device_of(model)):
            notes += refresh_batch_norm(model, batches)
        model.eval()
        selection = hooks.model.kept
        values = structures.sum({name: weight.square() for name, weight in _weights(model, structures).items()})
        supports = tuple(hooks.supports)
        notes += [*stability_note(supports), *coverage_note(structures, selection)]
        notes += sparsity_note(model, structures, selection)
        return Fitted(model, selection, np.sqrt(values), supports, tuple(trained.history), tuple(notes))

    def _identity(self, keep: Keep | None) -> dict[str, str]:
        """What decides a run besides the training settings, as texts."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("training", "folder")}
        if keep is not None:
            own["keep"] = keep
        return {"method": type(self).__name__} | {name: str(value) for name, value in own.items()}

    def prepare(
        self,
        model: nn.Module,
        structures: Structures,
        *,
        epoch: int,
        keep: Keep | None = None,
        allocate: Allocate | None = None,
        seed: int = 0,
        probe: Probe | None = None,
    ) -> tuple[Masked, Harness]:
        """Return a copy of the network behind masks, and what happens around each step of its training.

        Parameters
        ----------
        epoch
            Steps of one pass over the data.
        probe
            The loss on held-out examples.
        """
        keep = keep or self.keep or Evenly()
        timeline = self.plan().over(epoch * self.settings.epochs, self.min_phase_steps)
        setting = Setting(structures, keep, allocate, timeline, epoch, self.reset, self.zero_removed)
        return self.wrap(copy.deepcopy(model), structures, keep), self.harness(setting, seed, probe)

    def __call__(
        self,
        model: nn.Module,
        structures: Structures,
        allocate: Allocate,
        task: Task,
        seed: int,
        progress: bool,
    ) -> tuple[nn.Module, Scores]:
        """Train, and return scores by which the caller's solver keeps what was kept in training.

        Raises
        ------
        ValueError
            If the method's own rule has kept more than the budget allows.
        """
        assert task.data is not None and task.loss is not None  # solve has looked
        found = self.fit(
            *(model, structures, task.data, task.loss),
            allocate=allocate,
            validation=task.validation,
            seed=seed,
            progress=progress,
        )
        return found.model, self.final_scores(found, structures, allocate)

    def final_scores(self, found: Fitted, structures: Structures, allocate: Allocate) -> Scores:
        """Scores of the trained network: between 1 and 2 for what is kept, -1 for the rest.

        Less than nothing, so that no room that the budget leaves is filled with structures that are zeros.
        """
        largest = max(float(found.values.max(initial=0.0)), 1e-30)
        values = np.where(found.selection, 1 + found.values / largest, -1.0)
        scores = Scores(values, notes=found.notes)
        selection = allocate(scores).selection
        dropped = int((found.selection & ~selection).sum()) if selection is not None else structures.n
        if dropped:
            raise ValueError(
                f"Expected a mask within the budget. Got {dropped} of {int(found.selection.sum())} kept structures too "
                "many. Raise the budget, or leave the counts to it with keep=Evenly()."
            )
        return scores


def _held_out_loss(model: nn.Module, data: Batches, loss: Loss) -> float:
    return evaluate(model, data, loss).loss


def _weights(model: nn.Module, structures: Structures) -> dict[str, Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {name: named[name].detach() for axis in structures.axes for name in axis.tensors() if name in named}
