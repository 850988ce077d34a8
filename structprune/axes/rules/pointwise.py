"""Pointwise operators: broadcast operands are tied dimension by dimension."""

from __future__ import annotations

from typing import Any

import torch

from structprune.axes.labels import Label, empty_label
from structprune.axes.propagate import Propagation, Value

__all__ = ["RULES", "broadcast"]

aten = torch.ops.aten

KEEPS_ZERO = {  # f(0) = 0
    *(aten.relu, aten.gelu, aten.silu, aten.tanh, aten.sin, aten.tan, aten.neg, aten.abs, aten.sqrt, aten.leaky_relu),
    *(aten.elu, aten.hardswish, aten.mish, aten.erf, aten.expm1, aten.log1p, aten.round, aten.floor, aten.ceil, aten.trunc),
    *(aten.sign, aten.asin, aten.atan, aten.sinh, aten.asinh, aten.atanh, aten.celu, aten.selu, aten.relu6, aten.square),
    *(aten.alias, aten.clone, aten._to_copy, aten.detach, aten.contiguous, aten.dropout, aten.lift_fresh_copy, aten.copy),
    aten.prelu,
}


def broadcast(state: Propagation, *values: Value) -> tuple[Label, ...]:
    """Right-align the operands, tie dimensions of equal size, skip those of size 1."""
    rank = max((len(value.labels) for value in values), default=0)
    labels: list[Label] = [empty_label(1)] * rank
    for value in values:
        for offset, label in enumerate(value.labels, start=rank - len(value.labels)):
            if len(label) == 1:
                continue
            if len(labels[offset]) == 1:
                labels[offset] = label
            else:
                state.unify(labels[offset], label)
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
    labels = broadcast(state, *operands)
    if getattr(state.node.target, "overloadpacket", None) not in KEEPS_ZERO:
        return Value.of(labels, zero=False)
    return Value.of(labels, operands[0].zero_in(_shape(labels)))


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
    labels = broadcast(state, *_operands((first, second)))
    return Value.of(labels, first.zero_in(_shape(labels)) if isinstance(first, Value) else False)


def power(state: Propagation, base: Any, exponent: Any) -> Value:
    """Power: zero where the base is, for a positive constant exponent."""
    labels = broadcast(state, *_operands((base, exponent)))
    if isinstance(base, Value) and isinstance(exponent, (int, float)) and exponent > 0:
        return Value.of(labels, base.zero)
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


RULES = {
    torch.Tag.pointwise: elementwise,
    **dict.fromkeys(KEEPS_ZERO, elementwise),
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
