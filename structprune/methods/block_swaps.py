"""Exchanges while training sparse: bring in by gradient, take out by norm, and take back what did not pay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solvers.oracle import top
from structprune.methods.fixed_mask import RandomHarness
from structprune.methods.harness import Harness, Setting
from structprune.methods.input_moments import InputMoments
from structprune.methods.method import Probe, TrainingMethod
from structprune.methods.phases import Kind, Phase, Plan, Segment
from structprune.methods.ranks import ranks, sum_over_ranks

__all__ = ["BlockSwaps", "SwapHarness", "Swaps"]


@dataclass(frozen=True)
class Swaps:
    """How structures are exchanged.

    Attributes
    ----------
    rounds
        Exchanges over the swapping phase.
    fraction
        Of each layer's kept structures, how many the first exchange replaces; a cosine lowers it to none. At least one
        is replaced.
    batches
        Steps before an exchange over which gradients are averaged.
    whiten
        Measure gradients and weights in the coordinates of their inputs' second moments.
    accept
        Test each exchange on held-out data when the next one is due: where the loss has risen, the network goes back to
        what it was before, and what was exchanged is barred for a while.
    tolerance
        Relative rise of the held-out loss that is accepted.
    barred
        Rounds for which structures of a rejected exchange stay as they are.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    rounds: int = 30
    fraction: float = 0.3
    batches: int = 8
    whiten: bool = False
    accept: bool = False
    tolerance: float = 0.0
    barred: int = 5

    def __post_init__(self) -> None:
        whole = min(self.rounds, self.batches) >= 1 and self.barred >= 0
        if not (whole and 0 < self.fraction <= 1 and 0 <= self.tolerance < math.inf):
            raise ValueError(
                "Expected rounds and batches of at least 1, barred and tolerance of at least 0, and a fraction in "
                f"(0, 1]. Got {self}. Correct them."
            )


class SwapHarness(Harness):
    """Exchanges in a layer at constant number: orthogonal matching pursuit with replacement, inside training.

    What comes in has the largest gradient norm among the removed, starts at zero and with an optimiser that knows
    nothing of it; what goes out has the least norm among the kept.
    """

    def __init__(self, setting: Setting, swaps: Swaps, seed: int, from_random: bool, probe: Probe | None) -> None:
        super().__init__(setting)
        if swaps.accept and probe is None:
            raise ValueError(
                "Expected held-out data for the test of exchanges. Got none. Pass validation=, or accept=False."
            )
        self.swaps, self.probe = swaps, probe
        self.first = RandomHarness(setting, seed).drawn if from_random else None
        self.round, self.seen = 0, 0
        self.gradients: dict[str, Tensor] = {}
        self.barred = np.zeros(setting.structures.n, dtype=np.int64)
        self.exchanged = np.zeros(setting.structures.n, dtype=bool)
        self.before: dict[str, Any] | None = None
        self.moments: InputMoments | None = None
        self.rejected, self.tried = 0, 0

    # ------------------------------------------------------------ the engine's calls

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Meet the network, and watch its inputs if they are to be whitened."""
        super().start(model, optimizer)
        if self.swaps.whiten:
            self.moments = InputMoments(self.model)

    def values(self) -> np.ndarray:
        """Norms, or random numbers for the first mask where that is asked for."""
        return self.first if self.first is not None else super().values()

    def before_forward(self, step: int) -> None:
        """Exchange when a round is over, and look at all gradients when one is about to be."""
        super().before_forward(step)
        phase = self.setting.timeline.at(step)
        swapping = phase.kind is Kind.SWAP
        ahead = self._round(self.setting.timeline.at(min(step + self.swaps.batches, self.setting.timeline.steps - 1)))
        due = self._round(phase) if swapping else self.round
        if due > self.round and self.seen:
            self._end_of_round(phase)
        elif not swapping and self.before is not None:
            self._judge()
        self.round = max(self.round, due)
        looking = swapping and ahead > self.round
        if not looking:
            self.gradients, self.seen = {}, 0
        self.model.dense_gradients = looking
        if self.moments is not None:
            self.moments.watching = looking

    def after_backward(self, step: int) -> None:
        """Add up gradients of all entries, then leave those of the kept ones alone."""
        if self.model.dense_gradients:
            for name in self.masks:
                gradient = self.parameter(name).grad
                if gradient is not None:
                    before = self.gradients.get(name)
                    self.gradients[name] = gradient.clone() if before is None else before + gradient
            self.seen += 1
        super().after_backward(step)

    def finish(self) -> None:
        """Take the watches away."""
        if self.moments is not None:
            self.moments.remove()

    def notes(self) -> tuple[str, ...]:
        """How many exchanges stayed."""
        if not self.swaps.accept:
            return (f"{self.tried} exchanges in training, none tested",)
        return (f"{self.tried} exchanges in training, {self.rejected} taken back after a test on held-out data",)

    # ------------------------------------------------------------ exchanges

    def _round(self, phase: Phase) -> int:
        """Completed rounds when a step begins; after the swapping phase, all of them."""
        if phase.kind is not Kind.SWAP:
            return self.round
        timeline = self.setting.timeline
        begin = timeline.ends[phase.index - 1] if phase.index else 0
        length = timeline.ends[phase.index] - begin
        passed = round(phase.u * length) - 1
        return passed * (self.swaps.rounds + 1) // length

    def _end_of_round(self, phase: Phase) -> None:
        stays = self._judge()
        if stays:
            self._exchange(phase)
        self.gradients, self.seen = {}, 0
        self.barred = np.maximum(0, self.barred - 1)

    @torch.no_grad()
    def _exchange(self, phase: Phase) -> None:
        coming, going = self._worth()
        kept = self.model.kept
        selection = kept.copy()
        for group, final in zip(self.setting.groups, self.final.tolist(), strict=True):
            own, free = kept[group.entries], self.barred[group.entries] == 0
            count = math.ceil(self.swaps.fraction * final * 0.5 * (1 + math.cos(math.pi * phase.u)))
            count = min(count, int((free & own).sum()), int((free & ~own).sum()))
            if count:
                enter = top(coming[group.entries], free & ~own, count)
                leave = top(-going[group.entries], free & own, count)
                selection[group.entries] = (own | enter) & ~leave
        if np.array_equal(selection, kept):
            return
        if self.swaps.accept:
            self.before = self._snapshot()
        self.exchanged = selection ^ kept
        self.tried += 1
        self.mask(selection)

    def _worth(self) -> tuple[np.ndarray, np.ndarray]:
        """What bringing in each structure promises, and what taking it out costs; ``(n,)`` each."""
        names = {place.tensor for place in self.model.places if place.gated}
        gradients = {name: self.gradients[name] / self.seen for name in names & self.gradients.keys()}
        weights = {name: self.parameter(name).detach() for name in names}
        if self.moments is not None:
            gradients = {name: self.moments.powered(name, value, -0.5) for name, value in gradients.items()}
            weights = {name: self.moments.powered(name, value, 0.5) for name, value in weights.items()}
        coming, going = (
            self.model.sums({name: value.double().square() for name, value in values.items()}).cpu().numpy()
            for values in (gradients, weights)
        )
        return coming, going

    # ------------------------------------------------------------ the test of an exchange

    def _loss(self) -> float:
        assert self.probe is not None
        # Batch norm has seen other examples on each rank: the mean is what all can agree on.
        return float(sum_over_ranks(torch.tensor(self.probe(self.model), dtype=torch.float64))) / ranks()

    def _snapshot(self) -> dict[str, Any]:
        memory = [
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
            for state in self._states()
        ]
        weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {
            "loss": self._loss(),
            "weights": weights,
            "memory": memory,
            "kept": torch.from_numpy(self.model.kept),
            "waiting": {name: value.clone() for name, value in self.waiting.items()},
        }

    def _judge(self) -> bool:
        """Tell whether the last exchange stays; where it does not, everything is as before it."""
        before, self.before = self.before, None
        if before is None or self._loss() <= before["loss"] * (1 + self.swaps.tolerance):
            return True
        self.model.load_state_dict(before["weights"])
        for state, memory in zip(self._states(), before["memory"], strict=True):
            state.clear()
            state.update(memory)
        kept = before["kept"].numpy()
        self.model.keep(kept)
        self._hold(kept)
        self.waiting = dict(before["waiting"])
        self.barred[self.exchanged] = self.swaps.barred
        self.rejected += 1
        return False

    def _states(self) -> list[Any]:
        """The optimiser's memory of every parameter, in the order of its groups."""
        return [self.optimizer.state[p] for group in self.optimizer.param_groups for p in group["params"]]

    # ------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """With gradients, moments, and what an exchange under test would go back to."""
        return {
            **super().state_dict(),
            "round": self.round,
            "seen": self.seen,
            "gradients": dict(self.gradients),
            "dense": self.model.dense_gradients,
            "barred": torch.from_numpy(self.barred.copy()),
            "exchanged": torch.from_numpy(self.exchanged.copy()),
            "before": self.before,
            "counts": (self.rejected, self.tried),
            "moments": None if self.moments is None else dict(self.moments.moments),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        super().load_state_dict(state)
        self.round, self.seen, self.before = state["round"], state["seen"], state["before"]
        self.gradients = {name: value.to(self.parameter(name)) for name, value in state["gradients"].items()}
        self.model.dense_gradients = state["dense"]
        self.barred, self.exchanged = state["barred"].numpy().copy(), state["exchanged"].numpy().copy()
        self.rejected, self.tried = state["counts"]
        if self.moments is not None:
            self.moments.moments = {name: value.to(self.model.mask.device) for name, value in state["moments"].items()}


@dataclass(frozen=True, kw_only=True)
class BlockSwaps(TrainingMethod):
    """Sparse all along, with exchanges: RigL (Evci et al. 2020) on structures, or OMPR inside training.

    This is the practical side of the local search that SequentialAttention++ proves its guarantee for (its algorithm
    2): the structure of largest gradient comes in, the one of least norm goes out. The network is never trained dense.

    Attributes
    ----------
    swaps
        How structures are exchanged.
    from_random
        Whether the first mask is drawn; else it keeps the largest norms.
    """

    swaps: Swaps = Swaps()
    from_random: bool = False

    def own_schedule(self) -> Plan:
        """75 % with exchanges, 25 % with the mask standing."""
        return Plan((Segment(Kind.SWAP, 3), Segment(Kind.SPARSE, 1)))

    @property
    def zero_removed(self) -> bool:
        """What comes in starts at zero."""
        return True

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """Selection by exchanges."""
        return SwapHarness(setting, self.swaps, seed, self.from_random, probe)
