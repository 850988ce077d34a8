"""Several processes that train one network: each trains on its part of every batch, all come to the same masks."""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from structprune.data import Batch, batch_size, rows

__all__ = ["leave", "part_of_batch", "rank", "ranks", "same_on_all_ranks", "sum_over_ranks"]


def ranks() -> int:
    """How many processes train together; 1 outside of a distributed launch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def leave() -> None:
    """End the ranks' connections: threads that still hold one when a process ends abort it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors of one shape, the same on all of them."""
    if ranks() == 1:
        return values
    total = _for_transfer(values)
    dist.all_reduce(total)
    return total.to(values.device)


def same_on_all_ranks(decided: Tensor) -> Tensor:
    """Return what rank 0 decided, after making sure that every rank decided the same.

    Raises
    ------
    RuntimeError
        On every rank, if one of them disagrees with rank 0.
    """
    if ranks() == 1:
        return decided
    first = _for_transfer(decided)
    dist.broadcast(first, src=0)
    first = first.to(decided.device)
    apart = sum_over_ranks(torch.tensor([float(not torch.equal(first, decided))], device=decided.device))
    if float(apart):
        raise RuntimeError(
            f"Expected every rank to decide alike. Got {int(apart)} of {ranks()} that differ from rank 0. Give all "
            "ranks the same seed, network and data, and the same versions of torch."
        )
    return first


def part_of_batch(batch: Batch) -> tuple[Batch, float]:
    """Return this rank's examples of a batch, and what its mean loss counts for among the ranks' mean losses.

    Parts differ by at most one example. The weights make the mean of gradients over ranks that of the whole batch.

    Raises
    ------
    ValueError
        If there are fewer examples than ranks.
    """
    count = ranks()
    if count == 1:
        return batch, 1.0
    examples = batch_size((batch[1], batch[0]))
    if examples < count:
        raise ValueError(
            f"Expected at least one example per rank in each batch. Got {examples} for {count} ranks. Use larger "
            "batches, and drop_last=True where the last one is small."
        )
    mine = torch.arange(examples).tensor_split(count)[rank()]
    part: Any = rows(batch, mine, examples)
    return part, len(mine) * count / examples


def _for_transfer(values: Tensor) -> Tensor:
    """A copy where the ranks' backend can reach it: NCCL knows GPU memory only, gloo is given the CPU's."""
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return values.detach().to(device, copy=True).contiguous()
