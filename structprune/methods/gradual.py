"""Gradual magnitude pruning: structures of least norm go one after another, and none comes back."""

from __future__ import annotations

from dataclasses import dataclass

from structprune.methods.method import TrainingMethod
from structprune.methods.phases import Cubic, Kind, Plan, Segment

__all__ = ["GradualMagnitude"]


@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(TrainingMethod):
    """The cubic schedule of Zhu and Gupta (2017), on norms of structures: 10 % dense, 60 % removal, 30 % sparse."""

    def own_schedule(self) -> Plan:
        """One removal."""
        return Plan((Segment(Kind.DENSE, 1), Segment(Kind.SPARSIFY, 6, Cubic()), Segment(Kind.SPARSE, 3)))

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return True
