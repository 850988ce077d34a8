"""The result of a criterion: one number per structure, and optionally a loss curve per axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from structprune.data import Loss
from structprune.structures import Structures

__all__ = ["Criterion", "Curve", "Data", "Loss", "Refit", "Scores", "finite_scores"]

Data = Iterable[tuple[Any, Any]]
"""Batches of (inputs, targets) that can be iterated several times; the first dimension runs over examples."""

Refit = Callable[[np.ndarray], dict[str, Tensor]]
"""``refit(selection)``: new values of whole parameters, by name, for the weights that survive."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What an axis loses by being cut to each width, when its structures go in one order.

    Attributes
    ----------
    order
        Structure indices within the axis, best first, ``(size,)`` int64.
    loss
        Estimated loss in nats per example when the best x are kept, at ``loss[x]``; ``(size + 1,)`` float64,
        ``loss[size] = 0``.

    Raises
    ------
    ValueError
        If the order is no permutation, or the loss has another length, is not finite, or does not end in 0.
    """

    order: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        order, loss = _frozen(self.order, np.int64), _frozen(self.loss, np.float64)
        if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(order.size)):
            raise ValueError(
                f"Expected order to hold each of 0 ... size - 1 once. Got shape {order.shape}: {order.tolist()[:8]}. "
                "Pass the axis' structures, best first."
            )
        if loss.shape != (order.size + 1,) or not np.isfinite(loss).all() or loss[-1] != 0:
            raise ValueError(
                f"Expected {order.size + 1} finite losses, the last one 0. Got shape {loss.shape}, of which "
                f"{int(np.isfinite(loss).sum())} are finite, ending in {loss.ravel()[-1:].tolist()}. "
                "Pass the loss at each width 0 ... size, measured from the whole axis."
            )
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "loss", loss)

    @property
    def size(self) -> int:
        """Number of structures on the axis."""
        return self.order.size


@dataclass(frozen=True, eq=False)
class Scores:
    """What the structures are worth.

    Attributes
    ----------
    values
        One number per structure, ``(n,)`` float64, higher = keep.
    curves
        For some axes, by index: their order and what each width costs. Where there is one it replaces the values.
    unit
        Unit of the values, 'nats' where they estimate loss per example.
    notes
        Sentences for the report.
    refit
        New values of the surviving weights for a selection; None where the weights stay as they are.

    Raises
    ------
    ValueError
        If the values are not one-dimensional or not finite.
    """

    values: np.ndarray
    curves: Mapping[int, Curve] = field(default_factory=dict)
    unit: str = ""
    notes: tuple[str, ...] = ()
    refit: Refit | None = None

    def __post_init__(self) -> None:
        values = _frozen(self.values, np.float64)
        if values.ndim != 1:
            raise ValueError(f"Expected values of shape (n,). Got {values.shape}. Pass one number per structure.")
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected finite values. Got {values[~np.isfinite(values)][0]} at structure "
                f"{int(np.argmin(np.isfinite(values)))}. Look for NaN or infinite weights, data or loss."
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "curves", MappingProxyType(dict(self.curves)))
        object.__setattr__(self, "notes", tuple(self.notes))

    def check(self, structures: Structures) -> Scores:
        """Return these scores if they are scores of ``structures``.

        Raises
        ------
        ValueError
            If the number of values, or the size of a curve, is another one.
        """
        if self.values.shape != (structures.n,):
            raise ValueError(
                f"Expected values of shape ({structures.n},). Got {self.values.shape}. Pass one number per structure."
            )
        for index, curve in self.curves.items():
            if not 0 <= index < len(structures.axes):
                raise ValueError(f"Expected curves of axes 0 ... {len(structures.axes) - 1}. Got axis {index}.")
            axis = structures.axes[index]
            if curve.size != axis.size:
                raise ValueError(
                    f"Expected the curve of axis {axis.name!r} to order {axis.size} structures. Got {curve.size}."
                )
        return self


class Criterion(Protocol):
    """Tells what each structure is worth; any callable of this form will do.

    It leaves the model as it was: weights, gradients, buffers and mode. Equal arguments give equal scores.
    """

    def __call__(
        self, model: nn.Module, structures: Structures, data: Data | None = None, loss: Loss | None = None
    ) -> Scores:
        """Score all structures; ``data`` and ``loss`` may be None where a criterion needs none."""
        ...


def finite_scores(values: np.ndarray, structures: Structures, model: nn.Module, unit: str, *notes: str) -> Scores:
    """Scores of ``structures``, or an error that names the axis and the parameter to look at.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        axis = structures.axes[int(structures.axis_of[np.argmax(bad)])]
        named = dict(model.named_parameters(remove_duplicate=False))
        own = [name for name in axis.tensors() if name in named]
        ill = [name for name in [*own, *named] if not bool(named[name].detach().isfinite().all())]
        cause = f"parameter {ill[0]!r} holds NaN or infinite numbers" if ill else "all parameters are finite"
        todo = "Load sound weights." if ill else "Look for NaN or infinite numbers in the data or the loss."
        raise ValueError(
            f"Expected finite scores. Got {int(bad[axis.entries].sum())} of {axis.size} that are not on axis "
            f"{axis.name!r}; {cause}. {todo}"
        )
    return Scores(values, unit=unit, notes=notes).check(structures)


def _frozen(array: Any, dtype: type[np.generic]) -> np.ndarray:
    """A copy that cannot be written to, so that a frozen value stays what it was."""
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy
