"""Training without removals: what every loss is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from structprune.criteria.scores import Scores
from structprune.methods.method import Fitted, TrainingMethod
from structprune.methods.phases import Kind, Plan, Segment
from structprune.methods.selection import Allocate
from structprune.structures import Structures

__all__ = ["DenseTraining"]


@dataclass(frozen=True, kw_only=True)
class DenseTraining(TrainingMethod):
    """Train, and keep everything. In ``solve``, whose budget wants less, the structures of least norm then go."""

    def own_schedule(self) -> Plan:
        """One dense phase."""
        return Plan((Segment(Kind.DENSE, 1),))

    def final_scores(self, found: Fitted, structures: Structures, allocate: Allocate) -> Scores:
        """Norms over the root of their entries, so that small structures are not worth less for being small."""
        return Scores(found.values / structures.count**0.5, notes=found.notes)
