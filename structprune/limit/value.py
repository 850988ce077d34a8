"""The pruning limit as a value: estimates with intervals, what each is, and what a budget means beside it.

No estimate here is "the" limit. Only the constructive one is a bound: the loss was measured there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structprune.files import write_atomically
from structprune.limit.words import described, judgement
from structprune.records import Format

__all__ = ["Interval", "LayerCurve", "Limit", "LimitEstimate"]

FORMAT = Format("structprune-limit", 1, "limit")


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; ``low == high == value`` where it is known exactly."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class LimitEstimate:
    """The smallest size at which one estimator says that the loss rises by no more than epsilon.

    Attributes
    ----------
    name
        'paper', 'generic', 'trust 0.05' (with its radius), 'constructive'.
    keep_fraction
        Kept weights divided by all weights, those that are always kept counted in both.
    kept
        Number of kept weights at the value.
    structures
        Number of kept structures at the value.
    is_upper_bound
        Whether a network of this size was seen to lose no more than epsilon, on the data given.
    meaning
        What the number is and what it is not, in one sentence.
    curve
        Pairs (keep fraction, predicted or measured rise of the loss in nats), by rising keep fraction.
    """

    name: str
    keep_fraction: Interval
    kept: int
    structures: int
    is_upper_bound: bool
    meaning: str
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def sparsity(self) -> Interval:
        """Removed weights divided by all weights."""
        kept = self.keep_fraction
        return Interval(1 - kept.high, 1 - kept.value, 1 - kept.low)


@dataclass(frozen=True)
class LayerCurve:
    """What cutting one layer alone costs, generically: pairs (kept weights of the layer, rise of the loss in nats)."""

    name: str
    weights: int
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far a network can be pruned, with what that rests on.

    Attributes
    ----------
    model_name
        Class of the network.
    kind
        What is removed: 'weights' (single ones), 'channels', 'blocks', 'kernels' or 'nm'.
    weights
        Number of weights, D: prunable ones and those that are always kept.
    free
        How many of them are always kept (biases, normalisation, the caller's ``free``).
    dead
        How many prunable weights are zero and have no influence on the outputs: removing them says nothing.
    structures
        Number of structures.
    loss, examples
        Mean loss of the network in nats and the number of examples it was measured on.
    epsilon
        The rise of the loss that is allowed, in nats, and where it comes from.
    curvature
        'ggn', 'hessian' (negative curvature clipped) or 'layerwise'.
    estimates
        One per estimator, in the order asked for.
    dimension
        Effective dimension tr[H (H + mu)^-1] at the paper's fixed point.
    stationarity
        By how much one second-order step would lower the loss, in nats; None where it was not looked at.
    movement
        Length of the unconstrained second-order update at the trust-region limit, relative to the survivors; beyond
        about 0.2 the quadratic model is far from home. None without trust-region estimate.
    model_error
        |measured - predicted rise| / epsilon at the constructive limit's point; None without one.
    memory_bytes
        Size of the largest Lanczos basis.
    layers
        Generic curves by layer, in 'layerwise' curvature.
    warnings, notes
        Sentences for a reader; warnings say that the numbers should not be relied on, and why.
    """

    model_name: str
    kind: str
    weights: int
    free: int
    dead: int
    structures: int
    loss: float
    examples: int
    epsilon: Interval
    epsilon_source: str
    curvature: str
    estimates: tuple[LimitEstimate, ...]
    dimension: Interval
    stationarity: float | None = None
    movement: float | None = None
    model_error: float | None = None
    memory_bytes: int = 0
    layers: tuple[LayerCurve, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    confidence: float = 0.95
    seed: int = 0
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.estimates:
            raise ValueError("Expected at least one estimate in a limit. Got none. Ask for an estimator.")

    def __getitem__(self, name: str) -> LimitEstimate:
        """The estimate of that name.

        Raises
        ------
        KeyError
            If it was not asked for.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        raise KeyError(f"Expected one of {[one.name for one in self.estimates]}. Got {name!r}.")

    def sentence(self, keep_fraction: float, kind: str | None = None) -> str:
        """What a budget of so many kept weights, as a fraction of all, means beside the limit.

        Parameters
        ----------
        keep_fraction
            Kept entries of all parameters divided by all entries.
        kind
            What the budget removes; None for what the limit is of. The limit of one kind says little of another.

        Raises
        ------
        ValueError
            If the fraction is not between 0 and 1.
        """
        if not 0 <= keep_fraction <= 1:
            raise ValueError(f"Expected a keep fraction between 0 and 1. Got {keep_fraction}. Divide by all weights.")
        return judgement(self, keep_fraction, kind)

    def __str__(self) -> str:
        return described(self)

    # ------------------------------------------------------------ files

    def to_json(self) -> str:
        """The whole value as JSON text."""
        return FORMAT.write(self)

    @classmethod
    def from_json(cls, source: str | Path) -> Limit:
        """Read the value from JSON text, or from the file of that name.

        Raises
        ------
        FileFormatError
            If it is truncated, no limit, or of another version.
        """
        return FORMAT.read(source, lambda fields: cls(**{name: _part(name, value) for name, value in fields.items()}))

    def save(self, path: str | Path) -> None:
        """Write the value as JSON, whole or not at all."""
        write_atomically(path, self.to_json().encode())


def _part(name: str, value: Any) -> Any:
    """A field of a limit from what JSON holds of it."""
    if name in ("epsilon", "dimension"):
        return Interval(**value)
    if name == "estimates":
        return tuple(LimitEstimate(**{**one, "keep_fraction": Interval(**one["keep_fraction"])}) for one in value)
    return tuple(LayerCurve(**one) for one in value) if name == "layers" else value
