"""How good a classifier is: top-1, top-5, loss, and the recall of every class."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.data import device_of, eval_mode

__all__ = ["Quality", "quality", "throughput"]

TOP = 5
WARM_UP, ROUNDS = 3, 10


@dataclass(frozen=True)
class Quality:
    """Figures on validation images.

    Attributes
    ----------
    top1, top5
        Fractions.
    loss
        Mean cross-entropy in nats.
    recalls
        Fraction of each class's images that are found, for the classes that have images, by class.
    images
        How many.
    """

    top1: float
    top5: float
    loss: float
    recalls: tuple[float, ...]
    images: int


@torch.no_grad()
def quality(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """Measure a classifier on all batches."""
    device = device_of(model)
    hits, classes, found = [], [], 0
    total = 0.0
    with eval_mode(model):
        for inputs, targets in batches:
            logits = model(inputs.to(device, non_blocking=True)).float()
            labels = targets.to(device)
            best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            found += int((best == labels[:, None]).any(1).sum())
            total += float(F.cross_entropy(logits, labels, reduction="sum"))
            hits.append((best[:, 0] == labels).cpu())
            classes.append(targets)
    hit, label = torch.cat(hits), torch.cat(classes)
    counts = torch.bincount(label)
    caught = torch.bincount(label[hit], minlength=len(counts))
    recalls = (caught[counts > 0] / counts[counts > 0]).tolist()
    return Quality(float(hit.float().mean()), found / len(label), total / len(label), tuple(recalls), len(label))


@torch.no_grad()
def throughput(models: dict[str, nn.Module], example: Tensor) -> dict[str, float | None]:
    """Return images per second of each network, by its name with ' images per second'.

    Each runs with channels outermost and innermost, and the faster layout counts. All run in turns, and the best round
    of each counts: others may use the machine too.
    """
    inner = example.contiguous(memory_format=torch.channels_last)
    contenders = [
        (name, layout, inputs)
        for name, model in models.items()
        for layout, inputs in (
            (model, example),
            (copy.deepcopy(model).to(memory_format=torch.channels_last), inner),  # type: ignore[call-overload]
        )
    ]
    best = dict.fromkeys(models, float("inf"))
    for number in range(WARM_UP + ROUNDS):
        for name, model, inputs in contenders:
            start = perf_counter()
            model(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            if number >= WARM_UP:
                best[name] = min(best[name], perf_counter() - start)
    return {f"{name} images per second": len(example) / seconds for name, seconds in best.items()}
