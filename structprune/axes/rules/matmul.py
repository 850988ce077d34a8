"""Matrix products: contracted and batch dimensions are tied, the others flow on."""

from __future__ import annotations

from typing import Any

import torch

from structprune.axes.propagate import Propagation, Value
from structprune.axes.rules.pointwise import add, mul

__all__ = ["RULES", "contract_activations"]

aten = torch.ops.aten


def linear(state: Propagation, value: Value, weight: Value, bias: Value | None = None) -> Value:
    """Linear: contract the last dimension with the weight's second."""
    state.unify(value.labels[-1], weight.labels[1])
    if not (weight.zero[1] or value.zero[-1]):
        state.pin(value.labels[-1], "is not zero where it is masked, yet contracted")
    out = weight.labels[0]
    if bias is not None:
        state.unify(out, bias.labels[0])
    state.contract(*value.labels, out)
    rows = [flag and bias is None for flag in value.zero[:-1]]
    return Value.of((*value.labels[:-1], out), (*rows, weight.zero[0] and (bias is None or bias.zero[0])))


def contract_activations(state: Propagation, first: Value, second: Value, a: int, b: int) -> None:
    """Tie contracted dimensions; one of the two factors must be zero where it is masked."""
    state.unify(first.labels[a], second.labels[b])
    if not (first.zero[a] or second.zero[b]):
        state.pin(first.labels[a], "is not zero where it is masked, yet contracted")


def matmul(state: Propagation, first: Value, second: Value) -> Value:
    """Product of matrices, vectors and batches of matrices, with broadcasting."""
    rank_a, rank_b = len(first.labels), len(second.labels)
    inner_b = -2 if rank_b > 1 else -1
    contract_activations(state, first, second, -1, inner_b)
    batch_a = Value.of(first.labels[: max(rank_a - 2, 0)], first.zero[: max(rank_a - 2, 0)])
    batch_b = Value.of(second.labels[: max(rank_b - 2, 0)], second.zero[: max(rank_b - 2, 0)])
    batch = mul(state, batch_a, batch_b)
    labels, zero = list(batch.labels), list(batch.zero)
    if rank_a > 1:
        labels.append(first.labels[-2])
        zero.append(first.zero[-2])
    if rank_b > 1:
        labels.append(second.labels[-1])
        zero.append(second.zero[-1])
    state.contract(*labels, first.labels[-1])
    return Value.of(labels, zero)


def addmm(state: Propagation, bias: Value, first: Value, second: Value, **kwargs: Any) -> Value:
    """Bias plus product, batched or not."""
    return add(state, bias, matmul(state, first, second))


def dot(state: Propagation, first: Value, second: Value) -> Value:
    """Product of two vectors."""
    contract_activations(state, first, second, 0, 0)
    state.contract(first.labels[0])
    return Value.of(())


RULES = {
    aten.linear: linear,
    **dict.fromkeys([aten.matmul, aten.mm, aten.bmm, aten.mv], matmul),
    aten.addmm: addmm,
    aten.baddbmm: addmm,
    aten.dot: dot,
}
