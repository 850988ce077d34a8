"""Masks that are given, not learned: drawn at random, the truth of a planted task, or what another method found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from structprune.methods.harness import Harness, Setting
from structprune.methods.method import Probe, TrainingMethod
from structprune.methods.phases import Kind, Plan, Segment

__all__ = ["FixedMask", "RandomMask"]

ALWAYS_SPARSE = Plan((Segment(Kind.SPARSE, 1),))


class RandomHarness(Harness):
    """Values are drawn once from a seed."""

    def __init__(self, setting: Setting, seed: int) -> None:
        super().__init__(setting)
        self.drawn = np.random.default_rng(seed).random(setting.structures.n)

    def values(self) -> np.ndarray:
        """The drawn numbers, ``(n,)``."""
        return self.drawn


class GivenHarness(Harness):
    """The mask is what it is."""

    def __init__(self, setting: Setting, given: np.ndarray) -> None:
        super().__init__(setting)
        self.given = given

    def selection(self, alive: np.ndarray, done: float) -> np.ndarray:
        """The given mask."""
        return self.given

    def counts(self) -> np.ndarray:
        """Those of the mask, whatever the rule."""
        return np.array([int(self.given[group.entries].sum()) for group in self.setting.groups], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RandomMask(TrainingMethod):
    """Keep structures drawn at random and train only those: the control that says what choosing is worth."""

    def own_schedule(self) -> Plan:
        """Sparse throughout."""
        return ALWAYS_SPARSE

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return True

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """Selection by what is drawn from the run's seed."""
        return RandomHarness(setting, seed)


@dataclass(frozen=True, kw_only=True)
class FixedMask(TrainingMethod):
    """Train a given mask from the network as it is.

    From an untrained network and another method's mask this tells what of that method's quality is the mask's, and what
    is due to its weights.

    Attributes
    ----------
    selection
        Kept structures, ``(n,)`` boolean.
    """

    selection: tuple[bool, ...]

    def own_schedule(self) -> Plan:
        """Sparse throughout."""
        return ALWAYS_SPARSE

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return True

    def harness(self, setting: Setting, seed: int, probe: Probe | None) -> Harness:
        """The given mask.

        Raises
        ------
        ValueError
            If it is one of other structures.
        """
        return GivenHarness(setting, setting.structures.check(np.asarray(self.selection)))
