"""The pruning limit as a value: several estimates with their intervals, what each is, and what a budget means beside it.

No estimate here is "the" limit. Only the constructive one is a bound: the loss was measured there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structprune.errors import FileFormatError
from structprune.files import write_atomically
from structprune.units import fraction_text, short_number

__all__ = ["Interval", "LayerCurve", "Limit", "LimitEstimate"]

FORMAT = "structprune-limit"
FORMAT_VERSION = 1


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

    def sentence(self, keep_fraction: float) -> str:
        """What a budget of so many kept weights, as a fraction of all, means beside the limit.

        Raises
        ------
        ValueError
            If the fraction is not between 0 and 1.
        """
        if not 0 <= keep_fraction <= 1:
            raise ValueError(f"Expected a keep fraction between 0 and 1. Got {keep_fraction}. Divide by all weights.")
        bounds = [one for one in self.estimates if one.is_upper_bound]
        judge = next((one for one in self.estimates if one.name.startswith("trust")), None)
        judge = judge or next(iter(bounds), None) or self.estimates[0]
        kept = judge.keep_fraction
        if any(keep_fraction >= one.keep_fraction.value for one in bounds):
            verdict = "within reach, a network of that size was measured"
        elif judge.is_upper_bound or kept.low <= keep_fraction <= kept.high:
            verdict = "at the limit" if not judge.is_upper_bound else "beyond what was measured to work"
        else:
            verdict = "expect loss" if keep_fraction < kept.low else "likely within reach"
        return (
            f"your budget keeps {fraction_text(keep_fraction)} of the weights; the {_title(judge.name)} limit is "
            f"{_percent(kept)}: {verdict}"
        )

    def __str__(self) -> str:
        unit = "weight" if self.kind == "weights" else {"nm": "N:M entry"}.get(self.kind, self.kind.rstrip("s"))
        lines = [
            f"{self.model_name}: how far it can be pruned by {self.kind}",
            f"  loss           {self.loss:.5g} nats on {self.examples:,} examples, may rise by epsilon = "
            f"{short_number(self.epsilon.value)} "
            + (f"[{short_number(self.epsilon.low)}, {short_number(self.epsilon.high)}] " * self._epsilon_varies)
            + f"({self.epsilon_source})",
            f"  weights        {self.weights:,}, of which {self.free:,} always kept and {self.dead:,} dead; "
            f"{self.structures:,} {unit}{'s' if self.structures != 1 else ''}",
            f"  curvature      {self.curvature}, effective dimension {short_number(self.dimension.value)} "
            f"[{short_number(self.dimension.low)}, {short_number(self.dimension.high)}]",
            f"  keep at least  (with {fraction_text(self.confidence)} intervals)",
        ]
        lines += [
            f"    {_title(one.name):<22} {_percent(one.keep_fraction):<24} {one.meaning}" for one in self.estimates
        ]
        if self.stationarity is not None:
            lines.append(f"  stationarity   one step would lower the loss by {short_number(self.stationarity)} nats")
        if self.movement is not None:
            lines.append(f"  movement       {self.movement:.2g} of the survivors' length for the unbounded update")
        if self.model_error is not None:
            lines.append(f"  model error    {self.model_error:.2g} epsilon at the constructive limit")
        lines += [f"  warning        {text}" for text in self.warnings]
        lines += [f"  note           {text}" for text in self.notes]
        lines.append(f"  seconds        {self.seconds:.1f}, seed {self.seed}")
        return "\n".join(lines)

    @property
    def _epsilon_varies(self) -> bool:
        return self.epsilon.low < self.epsilon.high

    def to_json(self) -> str:
        """The whole value as JSON text."""
        body = {"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(body, indent=1, default=dict)

    @classmethod
    def from_json(cls, text: str) -> Limit:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        FileFormatError
            If it is no limit of this version.
        """
        try:
            body = json.loads(text)
            if body.pop("format") != FORMAT or body.pop("version") != FORMAT_VERSION:
                raise KeyError("format")
            return cls(**{name: _read(name, value) for name, value in body.items()})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"Expected a pruning limit in JSON of version {FORMAT_VERSION}. Got something else ({error}). "
                "Compute it again with `structprune limit --out`."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the value as JSON, whole or not at all."""
        write_atomically(path, self.to_json().encode())


def _read(name: str, value: Any) -> Any:
    if name in ("epsilon", "dimension"):
        return Interval(**value)
    if name == "estimates":
        return tuple(
            LimitEstimate(
                **{
                    **one,
                    "keep_fraction": Interval(**one["keep_fraction"]),
                    "curve": tuple((x, y) for x, y in one["curve"]),
                }
            )
            for one in value
        )
    if name == "layers":
        return tuple(LayerCurve(**{**one, "curve": tuple((x, y) for x, y in one["curve"])}) for one in value)
    return tuple(value) if isinstance(value, list) else value


def _title(name: str) -> str:
    return f"trust-region ({name.removeprefix('trust ')})" if name.startswith("trust ") else name


def _percent(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{100 * interval.value:.1f} %"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
