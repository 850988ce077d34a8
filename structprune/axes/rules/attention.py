"""Scaled dot-product attention as one operator."""

from __future__ import annotations

from typing import Any

import torch

from structprune.axes.propagate import Call, Keep, Propagation, Value
from structprune.axes.rules.matmul import contract_activations
from structprune.axes.rules.pointwise import broadcast

__all__ = ["RULES"]

aten = torch.ops.aten


def attention(
    state: Propagation,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    **kwargs: Any,
) -> Any:
    """softmax(scale q k^T + mask) v over ``(..., heads, length, dim)``.

    Keys and values may have fewer heads (``enable_gqa``): then the query heads are a product of key heads and heads
    in a group. The default scale depends on the head dimension, so the dense network's scale is written down.
    """
    contract_activations(state, query, key, -1, -1)
    state.pin(key.labels[-2], "is attended over")
    state.unify(key.labels[-2], value.labels[-2])
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        group = query.shape[-3] // key.shape[-3]
        head, inside = state.split(query.labels[-3], [key.shape[-3], group])
        state.unify(head, key.labels[-3])
        state.unify(key.labels[-3], value.labels[-3])
        state.pin(inside, "is a share of a key head's queries, kept whole")
        batch = (*broadcast(state, *(Value.of(x.labels[:-3]) for x in (query, key, value))), query.labels[-3])
    else:
        batch = broadcast(state, *(Value.of(x.labels[:-2]) for x in (query, key, value)))
    if mask is not None:
        scores = Value.of((*batch, query.labels[-2], key.labels[-2]))
        broadcast(state, scores, mask)
    state.contract(*batch, query.labels[-2], key.labels[-2], query.labels[-1])
    state.contract(*batch, query.labels[-2], key.labels[-2], value.labels[-1])
    _bake_scale(state, query, scale)
    heads = value.zero[: len(batch)] if len(value.zero) == len(batch) + 2 else (False,) * len(batch)
    zero = (*heads, False, value.zero[-1])
    out = Value.of((*batch, query.labels[-2], value.labels[-1]), zero)
    recorded = state.node.meta["val"]
    return out if not isinstance(recorded, (tuple, list)) else [out, Value.of((*batch, query.labels[-2]), zero=False)]


def _bake_scale(state: Propagation, query: Value, scale: float | None) -> None:
    node = state.node
    baked = float(query.shape[-1]) ** -0.5 if scale is None else scale

    def rewrite(keep: Keep) -> Call:
        return Call(node.target, node.args, {**node.kwargs, "scale": baked})

    state.resize(rewrite)


def flash_attention_cpu(
    state: Propagation,
    query: Value,
    key: Value,
    value: Value,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Any:
    """The fused CPU operator that a recorded forward pass shows instead."""
    return attention(state, query, key, value, kwargs.get("attn_mask"), dropout, is_causal, scale=kwargs.get("scale"))


RULES = {
    aten.scaled_dot_product_attention: attention,
    aten._scaled_dot_product_flash_attention_for_cpu: flash_attention_cpu,
}
