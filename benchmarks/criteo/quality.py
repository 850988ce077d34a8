"""How good a click-rate network is on a part of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.criteo.arrays import Rows
from benchmarks.criteo.loading import InOrderBatches
from structprune.data import batch_to, device_of, eval_mode

__all__ = ["Quality", "predictions", "quality"]

AT_ONCE = 1 << 16  # rows of one forward pass


@dataclass(frozen=True)
class Quality:
    """Figures of one part.

    Attributes
    ----------
    log_loss
        Mean cross-entropy in nats.
    auc
        Area under the ROC curve; None where all labels are alike.
    recalls
        Fraction of the rows without and with a click whose predicted click rate is on their side of the mean rate.
    """

    log_loss: float
    auc: float | None
    recalls: tuple[float, float]


@torch.no_grad()
def predictions(model: nn.Module, rows: Rows) -> np.ndarray:
    """Return the logits, float64 ``(rows,)``."""
    device = device_of(model)
    with eval_mode(model):
        found = [model(*batch_to(inputs, device)).float().cpu() for inputs, _ in InOrderBatches(rows, AT_ONCE)]
    return torch.cat(found).double().numpy()


def quality(model: nn.Module, rows: Rows) -> Quality:
    """Measure a network on all rows of a part."""
    logits, labels = predictions(model, rows), np.asarray(rows.labels)
    # log(1 + exp(z)) - y z, without overflow
    losses = np.maximum(logits, 0) - labels * logits + np.log1p(np.exp(-np.abs(logits)))
    rate = rows.click_rate
    clicks = labels == 1
    auc = float(roc_auc_score(clicks, logits)) if 0 < rate < 1 else None
    threshold = np.log(rate / (1 - rate)) if 0 < rate < 1 else 0.0
    above = logits > threshold
    recalls = (float(1 - above[~clicks].mean()) if rate < 1 else 1.0, float(above[clicks].mean()) if rate > 0 else 1.0)
    return Quality(float(losses.mean()), auc, recalls)
