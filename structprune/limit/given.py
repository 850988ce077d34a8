"""What a limit is computed from, checked: a network at rest, data that stay the same, an epsilon with its error."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from structprune.data import Batches, Loss, batch_to, call, check_data, device_of, infer_loss, tensors_in
from structprune.limit.curvature import Curvature, LossAt
from structprune.limit.value import Interval

__all__ = ["checked_loss", "epsilon_of", "refuse_unsteady"]

#: Resamplings of the batches behind epsilon's interval.
RESAMPLES = 2000
#: Two losses, or products with one vector, may differ by this much, relatively; a GPU adds in varying order.
STEADY = 1e-4


def checked_loss(model: nn.Module, data: Any, loss: Loss | None) -> LossAt:
    """The loss as a function of the weights.

    Raises
    ------
    TypeError, ValueError
        For a network in training mode, one whose loss is not finite or is random, empty data, data that differ from
        pass to pass.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be a torch.nn.Module. Got {type(model).__name__}. Pass the network itself.")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"Expected a network in evaluation mode: dropout and batch statistics would change the loss from call to "
            f"call. Got {training[0]!r} in training mode. Call model.eval()."
        )
    batches = check_data(data)
    _refuse_changing(batches)
    if loss is None:
        inputs, targets = batch_to(next(iter(batches)), device_of(model))
        with torch.no_grad():
            loss = infer_loss(call(model, inputs), targets)
    at = LossAt.of(model, batches, loss)
    here = at.layout.weights(model)
    value = at(here)
    if not math.isfinite(value):
        cause = "the weights hold" if not bool(here.isfinite().all()) else "the data or the loss give"
        raise ValueError(f"Expected a finite loss. Got {value}: {cause} NaN or infinite numbers. Mend them first.")
    _refuse_random(at, here)
    return at


def _refuse_random(at: LossAt, here: Tensor) -> None:
    first, second = (np.array(at.by_batch(here)) for _ in range(2))
    if (np.abs(first - second) > STEADY * np.abs(first)).any():
        raise ValueError(
            f"Expected the same loss each time. Got {first.mean():.6g} and then {second.mean():.6g} on the same data. "
            "Look for random layers that evaluation mode does not turn off."
        )


def _fingerprint(batches: Batches) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for inputs, targets in batches:
        for tensor in (*tensors_in(inputs), *tensors_in(targets)):
            numbers = tensor.detach().double().flatten()
            # A sum alone would not see that examples changed places.
            ramp = torch.arange(len(numbers), device=numbers.device, dtype=torch.float64).cos()
            found.append((tuple(tensor.shape), float(numbers.sum()), float(numbers @ ramp)))
    return found


def _refuse_changing(batches: Batches) -> None:
    first, second = _fingerprint(batches), _fingerprint(batches)
    if len(first) != len(second) or any(not _same(a, b) for a, b in zip(first, second, strict=True)):
        raise ValueError(
            "Expected data that are the same in every pass, or the curvature is no fixed matrix. Got other batches the "
            "second time. Turn shuffling and augmentation off, for instance data=list(loader)."
        )


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    # NaN is reported as a loss that is not finite, not as data that change.
    return one[0] == other[0] and bool(np.array_equal(one[1:], other[1:], equal_nan=True))


def refuse_unsteady(curvature: Curvature, like: Tensor, seed: int) -> None:
    """Refuse an operator whose products differ from time to time, or that is not symmetric.

    Raises
    ------
    ValueError
        In either case.
    """
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(len(like), generator=generator).to(like) for _ in range(2))
    first, second = curvature(v), curvature(v)
    size = float(first.double().norm())
    moved = float((first - second).double().norm())
    if moved > STEADY * size:
        raise ValueError(
            f"Expected the same curvature each time. Got products with one vector that differ by "
            f"{moved / max(size, 1e-300):.2g}. Look for random layers that evaluation mode does not turn off."
        )
    one, other = float(u.double() @ first.double()), float(v.double() @ curvature(u).double())
    if abs(one - other) > 1e-2 * size * float(u.double().norm()):
        raise ValueError(
            f"Expected a symmetric curvature. Got u'Hv = {one:.6g} and v'Hu = {other:.6g}. Look for custom backward "
            "functions in the network, or pass curvature='layerwise'."
        )


def epsilon_of(epsilon: str | float, at: LossAt, here: Tensor, confidence: float, seed: int) -> tuple[Interval, str]:
    """The allowed rise of the loss, in nats, with a bootstrap interval over batches, and where it comes from.

    Raises
    ------
    ValueError
        If it is neither a positive number nor 'batch_std', or there are too few batches of one size.
    """
    if isinstance(epsilon, Real) and not isinstance(epsilon, bool):
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"Expected epsilon > 0, in nats. Got {epsilon}. Pass for instance 0.01.")
        return Interval(float(epsilon), float(epsilon), float(epsilon)), "given"
    if epsilon != "batch_std":
        raise ValueError(f"Expected epsilon to be 'batch_std' or a number of nats. Got {epsilon!r}. Pass one of them.")
    sizes = [count for _, _, count in at.batches]
    whole = np.array([loss for loss, count in zip(at.by_batch(here), sizes, strict=True) if count == sizes[0]])
    if len(whole) < 2 or whole.std() == 0:
        raise ValueError(
            f"Expected batches whose losses vary, for epsilon='batch_std'. Got {len(whole)} of {sizes[0]} examples. "
            "Pass smaller batches, or epsilon= as a number of nats."
        )
    generator = np.random.default_rng(seed)
    drawn = whole[generator.integers(0, len(whole), (RESAMPLES, len(whole)))].std(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = float(whole.std())
    # A resampled deviation can come out at 0 with few batches; an epsilon of 0 has no limit.
    low = min(max(float(low), 1e-3 * value), value)
    text = f"standard deviation of the loss over {len(whole)} batches of {sizes[0]}"
    return Interval(low, value, max(float(high), value)), text
