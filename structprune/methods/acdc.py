"""ACDC: alternating compressed and decompressed training."""

from __future__ import annotations

from dataclasses import dataclass

from structprune.methods.method import TrainingMethod
from structprune.methods.phases import Exponential, Plan, alternating

__all__ = ["ACDC"]


@dataclass(frozen=True, kw_only=True)
class ACDC(TrainingMethod):
    """AC/DC of Peste, Iofinova, Vladu and Alistarh (2021), on structures: dense and sparse phases in turn.

    The structures of least norm go at once when a sparse phase begins, and come back as zeros when it ends. With
    ``sparsify`` they go gradually, as in SequentialAttention++: the baseline that shows what attention itself adds.

    Attributes
    ----------
    cycles
        Sparse-dense cycles; 7 in the schedule of Kuznedelev et al. (2023).
    sparsify
        Whether removals are gradual.
    exponent
        Of a gradual removal, how early it does most of its work.
    retain
        Whether removed weights come back with the values they had, instead of as zeros.
    """

    cycles: int = 7
    sparsify: bool = False
    exponent: float = 4.0
    retain: bool = False

    def own_schedule(self) -> Plan:
        """10 % dense, cycles of 10 %, the last dense phase 5 % longer, 15 % sparse, with seven cycles."""
        curve = Exponential(self.exponent)
        return alternating(
            dense=10, cycles=self.cycles, cycle=10, last=5, sparse=15, sparsify=self.sparsify, curve=curve
        )

    @property
    def zero_removed(self) -> bool:
        """Removed weights become zero."""
        return not self.retain
