"""One cut by magnitude, then fine-tuning: the least that any method must beat."""

from __future__ import annotations

from dataclasses import dataclass

from structprune.methods.method import TrainingMethod
from structprune.methods.phases import Kind, Plan, Segment

__all__ = ["OneShotMagnitude"]


@dataclass(frozen=True, kw_only=True)
class OneShotMagnitude(TrainingMethod):
    """Train dense, keep the structures of largest norm, train those.

    Attributes
    ----------
    dense
        Percent of the run before the cut: 50 gives a network that starts untrained its share of dense training, 0 cuts
        a trained one at once.
    """

    dense: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.dense < 100:
            raise ValueError(f"Expected dense in 0 ... 99 percent of the run. Got {self.dense}. Use 50, or 0.")

    def own_schedule(self) -> Plan:
        """Dense, then sparse."""
        before = (Segment(Kind.DENSE, self.dense),) if self.dense else ()
        return Plan((*before, Segment(Kind.SPARSE, 100 - self.dense)))

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return True
