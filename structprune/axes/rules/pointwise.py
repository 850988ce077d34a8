"""Pointwise operators: broadcast operands are tied dimension by dimension."""

from __future__ import annotations

from typing import Any

import torch

from structprune.axes.labels import Label
from structprune.axes.propagate import Propagation, Value

__all__ = ["RULES", "broadcast"]

aten = torch.ops.aten

KEEPS_ZERO = {  # f(0) = 0
    *(aten.relu, aten.gelu, aten.silu, aten.tanh, aten.sin, aten.tan, aten.neg, aten.abs, aten.sqrt, aten.leaky_relu),
    *(aten.elu, aten.hardswish, aten.mish, aten.erf, aten.expm1, aten.log1p, aten.round, aten.floor, aten.ceil),
    *(aten.sign, aten.asin, aten.atan, aten.sinh, aten.asinh, aten.atanh, aten.celu, aten.selu, aten.relu6),
    *(aten.alias, aten.clone, aten._to_copy, aten.detach, aten.contiguous, aten.dropout, aten.lift_fresh_copy),
    *(aten.trunc, aten.square, aten.prelu),
}
POLES = {aten.rsqrt, aten.reciprocal, aten.log, aten.log2, aten.log10, aten.digamma, aten.lgamma}  # f(0) is infinite


def broadcast(state: Propagation, *values: Value) -> tuple[Label, ...]:
    """Right-align the operands, tie dimensions of equal size; one entry that meets many of them must stay."""
    rank = max((len(value.labels) for value in values), default=0)
    labels: list[Label] = []
    for back in range(rank, 0, -1):
        met = [value.labels[-back] for value in values if len(value.labels) >= back]
        full = [label for label in met if len(label) > 1] or met
        for label in met:
            if label is not full[0]:
                if len(label) == len(full[0]):
                    state.unify(full[0], label)
                else:
                    state.pin(label, "is one entry that is broadcast")
        labels.append(full[0])
    return tuple(labels)


def _shape(labels: tuple[Label, ...]) -> tuple[int, ...]:
    return tuple(len(label) for label in labels)


def _all(values: list[Value], labels: tuple[Label, ...]) -> list[bool]:
    return [all(flags) for flags in zip(*(value.zero_in(_shape(labels)) for value in values), strict=True)]


def _operands(args: tuple[Any, ...]) -> list[Value]:
    return [arg for arg in args if isinstance(arg, Value)]


def elementwise(state: Propagation, *args: Any, **kwargs: Any) -> Value:
    """Any pointwise operator: zero where masked only if every operand is and f(0) = 0."""
    operands = _operands((*args, *kwargs.values()))
    packet = getattr(state.node.target, "overloadpacket", None)
    if packet in POLES:
        _pin_zeros(state, operands[0])
    labels = broadcast(state, *operands)
    if packet not in KEEPS_ZERO:
        return Value.of(labels, zero=False)
    return Value.of(labels, operands[0].zero_in(_shape(labels)))


def _pin_zeros(state: Propagation, value: Value) -> None:
    """Where masking gives a division by zero, the masked network computes nothing that could be compared with."""
    for label, zero in zip(value.labels, value.zero, strict=True):
        if zero and state.removable(label):
            state.pin(label, "would be zero where it is masked, yet divided by")


def copy(state: Propagation, target: Value, source: Value, *args: Any) -> Value:
    """Copy into the shape of another tensor."""
    labels = broadcast(state, target, source)
    return Value.of(labels, source.zero_in(_shape(labels)))


def add(state: Propagation, first: Any, second: Any, **kwargs: Any) -> Value:
    """Sum or difference: zero only where all terms are."""
    operands = _operands((first, second))
    labels = broadcast(state, *operands)
    constants = [term for term in (first, second) if not isinstance(term, Value)]
    if any(constants):
        return Value.of(labels, zero=False)
    return Value.of(labels, _all(operands, labels))


def mul(state: Propagation, first: Any, second: Any) -> Value:
    """Product: zero where any full-size factor is."""
    operands = _operands((first, second))
    labels = broadcast(state, *operands)
    flags = zip(*(value.zero_in(_shape(labels)) for value in operands), strict=True)
    return Value.of(labels, [any(flag) for flag in flags])


def div(state: Propagation, first: Any, second: Any, **kwargs: Any) -> Value:
    """Quotient: zero where the numerator is."""
    if isinstance(second, Value):
        _pin_zeros(state, second)
    labels = broadcast(state, *_operands((first, second)))
    return Value.of(labels, first.zero_in(_shape(labels)) if isinstance(first, Value) else False)


def power(state: Propagation, base: Any, exponent: Any) -> Value:
    """Power: zero where the base is, for a positive constant exponent."""
    labels = broadcast(state, *_operands((base, exponent)))
    if isinstance(base, Value) and isinstance(exponent, (int, float)) and exponent > 0:
        return Value.of(labels, base.zero)
    if isinstance(base, Value) and not (isinstance(exponent, (int, float)) and exponent == 0):
        _pin_zeros(state, base)
    return Value.of(labels, zero=False)


def clamp(state: Propagation, value: Value, low: Any = None, high: Any = None) -> Value:
    """Clamp and hardtanh: zero is kept when it lies within the limits."""
    limits = [limit for limit in (low, high) if isinstance(limit, Value)]
    labels = broadcast(state, value, *limits)
    inside = not limits and (low is None or low <= 0) and (high is None or high >= 0)
    return Value.of(labels, value.zero if inside else False)


def hardtanh(state: Propagation, value: Value, low: float = -1.0, high: float = 1.0) -> Value:
    """Hardtanh has limits -1 and 1 when none are given."""
    return clamp(state, value, low, high)


def where(state: Propagation, condition: Value, first: Any, second: Any) -> Value:
    """Choice: zero only where both branches are."""
    labels = broadcast(state, *_operands((condition, first, second)))
    branches = [branch for branch in (first, second) if isinstance(branch, Value)]
    constants = [branch for branch in (first, second) if not isinstance(branch, Value)]
    if any(constants) or not branches:
        return Value.of(labels, zero=False)
    return Value.of(labels, _all(branches, labels))


RULES: dict[Any, Any] = {
    torch.Tag.pointwise: elementwise,
    **dict.fromkeys(KEEPS_ZERO, elementwise),
    aten.copy: copy,
    aten.add: add,
    aten.sub: add,
    aten.mul: mul,
    aten.div: div,
    aten.pow: power,
    aten.clamp: clamp,
    aten.clamp_min: clamp,
    aten.hardtanh: hardtanh,
    aten.where: where,
}
