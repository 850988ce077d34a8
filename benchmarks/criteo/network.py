"""The click-rate network of the paper: 39 embeddings of 10, three hidden layers of 400."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FIRST_LAYER", "ClickNetwork", "base_rate_loss", "click_loss", "parameter_counts"]

FIRST_LAYER = "hidden.0.weight"
FIELDS, WIDTH, HIDDEN = 39, 10, (400, 400, 400)


class ClickNetwork(nn.Module):
    """Embeddings of all fields, side by side, then dense layers; one logit.

    A number x of a field is embedded as x times the field's vector, as in the code behind Criteo_x1. All categories
    share one table, each field at its own offset.

    Parameters
    ----------
    numeric
        Numeric fields; they come first.
    sizes
        Identities of each categorical field.
    width
        Of an embedding.
    hidden
        Widths of the dense layers.
    dropout
        After each dense layer.
    fields
        Which fields the network may see, boolean ``(fields,)``; all by default. Others count as zero.
    """

    offsets: Tensor
    seen: Tensor

    def __init__(
        self,
        numeric: int,
        sizes: Sequence[int],
        *,
        width: int = WIDTH,
        hidden: Sequence[int] = HIDDEN,
        dropout: float = 0.0,
        fields: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        total = numeric + len(sizes)
        self.width = width
        self.numbers = nn.Parameter(torch.empty(numeric, width))
        self.table = nn.Embedding(max(1, sum(sizes)), width)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if sizes else np.zeros(0)
        self.register_buffer("offsets", torch.from_numpy(starts.astype(np.int64)), persistent=False)
        seen = np.ones(total, dtype=bool) if fields is None else fields
        self.register_buffer("seen", torch.from_numpy(np.repeat(seen, width)).float(), persistent=False)
        widths = [total * width, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(widths[-1], 1)
        # Of the order of 1e-2, as usual for embeddings of clicks: rare categories say little until they are trained.
        nn.init.normal_(self.table.weight, std=1e-2)
        nn.init.normal_(self.numbers, std=1e-2)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Return logits ``(batch,)`` of numbers ``(batch, numeric)`` and identities ``(batch, categorical)``."""
        embedded = self.table(ids.long() + self.offsets).flatten(1)
        x = torch.cat([(numbers[:, :, None] * self.numbers).flatten(1), embedded], 1) * self.seen
        for layer in self.hidden:
            x = self.dropout(F.relu(layer(x)))
        return self.last(x).squeeze(1)


def click_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def parameter_counts(sizes: Sequence[int] | None, numeric: int = 13) -> dict[str, int]:
    """Return parameters of the first layer, of the dense layers, and of all; the tables only where sizes are known."""
    widths = [FIELDS * WIDTH, *HIDDEN, 1]
    weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    counts = {"first layer": widths[0] * widths[1], "dense layers": weights + sum(widths[1:])}
    if sizes is not None:
        counts["all"] = counts["dense layers"] + (sum(sizes) + numeric) * WIDTH
    return counts


def base_rate_loss(rate: float) -> float:
    """Return the entropy of labels with a click rate: the loss of a network that sees nothing."""
    return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
