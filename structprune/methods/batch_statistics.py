"""Batch norm statistics of the network as it is now, in place of an average over how it came to be."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from structprune.data import Batches, batch_to, call, device_of, eval_mode

__all__ = ["refresh_batch_norm"]


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, data: Batches, batches: int = 100) -> tuple[str, ...]:
    """Measure running means and variances anew, in place, as the mean over at most ``batches`` batches.

    Only batch norm is in training mode meanwhile. Returns a note with what was done, none for networks without it.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return ()
    momenta = [norm.momentum for norm in norms]
    device, seen = device_of(model), 0
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the plain mean over batches
        for inputs, _ in data:
            call(model, batch_to(inputs, device))
            seen += 1
            if seen == batches:
                break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return (f"batch norm statistics were measured anew on {seen} batches",)
