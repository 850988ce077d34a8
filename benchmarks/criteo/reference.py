"""How good an unrestricted network is on the best m fields: what no mask that reads m fields should hope to beat.

A mask of few blocks reads few fields (`coverage`). The loss of a dense network that is shown the best m of them bounds
what such a mask can reach, as far as its training finds it and the ranking below finds the best fields.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks.criteo.arrays import Prepared, Rows
from benchmarks.criteo.quality import quality

__all__ = ["PREFIX", "best_fields", "fields_of", "name_of"]

PREFIX = "best fields: "
SHUFFLED = 200_000  # validation rows that the ranking looks at


def name_of(count: int) -> str:
    """Return the method's name in cells and tables."""
    return f"{PREFIX}{count}"


def fields_of(method: str) -> int | None:
    """Return how many fields a cell's network may see; None for cells of other kinds."""
    return int(method.removeprefix(PREFIX)) if method.startswith(PREFIX) else None


@torch.no_grad()
def best_fields(model: nn.Module, prepared: Prepared, count: int, seed: int) -> np.ndarray:
    """Return the fields whose shuffling among validation rows raises the loss of a trained network most.

    Parameters
    ----------
    model
        A dense network that sees all fields.
    prepared
        The rows; test rows are not looked at.
    count
        How many to return.
    seed
        Of the shuffling.

    Returns
    -------
    ndarray
        Boolean ``(39,)``.

    References
    ----------
    Breiman, "Random forests", Machine Learning 45 (2001), section 10: importance by permutation.
    """
    whole = prepared.parts["validation"]
    rows = Rows(*(np.array(array[:SHUFFLED]) for array in (whole.numbers, whole.ids, whole.labels)))
    rng = np.random.default_rng(seed)
    losses = []
    for field in range(len(prepared.fields)):
        numbers, ids = rows.numbers.copy(), rows.ids.copy()
        array, column = (numbers, field) if field < prepared.numeric else (ids, field - prepared.numeric)
        array[:, column] = rng.permutation(array[:, column])
        losses.append(quality(model, Rows(numbers, ids, rows.labels)).log_loss)
    chosen = np.zeros(len(prepared.fields), dtype=bool)
    chosen[np.argsort(-np.asarray(losses), kind="stable")[:count]] = True
    return chosen
