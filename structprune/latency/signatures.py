"""Operators by the shapes they are called with, and calls of them on random tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

__all__ = ["Signature", "TensorSpec", "callables"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values: ``order`` lists the dimensions from the outermost in memory to the innermost.

    Dimensions in ``repeated`` are expanded from size 1.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    repeated: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def like(cls, recorded: Any, shape: Sequence[int]) -> TensorSpec:
        """Another size of a recorded tensor, laid out in the same order."""
        strides = recorded.stride() if isinstance(recorded, Tensor) else recorded.stride
        strides = [int(stride) for stride in strides]
        order = tuple(sorted(range(len(shape)), key=lambda d: -strides[d]))
        repeated = tuple(d for d, stride in enumerate(strides) if stride == 0 and shape[d] > 1)
        return cls(tuple(shape), order, repeated, recorded.dtype)

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape in memory, outermost dimension first."""
        return tuple(1 if d in self.repeated else self.shape[d] for d in self.order)

    def arranged(self, memory: Tensor) -> Tensor:
        """``memory`` of shape :attr:`stored` with this spec's dimensions."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return memory.permute(inverse).expand(self.shape)


@dataclass(frozen=True)
class Signature:
    """An operator with everything that its latency depends on: ``target(*args, **kwargs)``, tensors as specs."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Equal for equal work."""
        return f"{self.target} {self.args} {dict(self.kwargs)}"

    @cached_property
    def specs(self) -> list[TensorSpec]:
        """The tensors, in the order of the arguments."""
        found: list[TensorSpec] = []
        map_aggregate(
            (self.args, dict(self.kwargs)), lambda leaf: found.append(leaf) if isinstance(leaf, TensorSpec) else None
        )
        return found


def callables(signatures: Sequence[Signature], device: torch.device) -> list[Callable[[], Any]]:
    """One call per signature, on random tensors.

    All signatures share one piece of memory per type, so that a thousand of them need no more than the largest one.
    Values are positive; indices are below every dimension of the operator's other tensors, hence valid.
    """
    need: dict[torch.dtype, int] = {}
    for signature in signatures:
        for dtype in {spec.dtype for spec in signature.specs if _drawn(spec.dtype)}:
            mine = sum(_room(spec) for spec in signature.specs if spec.dtype == dtype)
            need[dtype] = max(need.get(dtype, 0), mine)
    memory = {dtype: torch.rand(size, dtype=dtype, device=device) + 0.5 for dtype, size in need.items()}
    return [_callable(signature, memory, device) for signature in signatures]


def _drawn(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _room(spec: TensorSpec) -> int:
    return -(-prod(spec.stored) // 64) * 64  # every tensor starts at a cache line


def _callable(signature: Signature, memory: Mapping[torch.dtype, Tensor], device: torch.device) -> Callable[[], Any]:
    start = dict.fromkeys(memory, 0)
    limit = min((size for spec in signature.specs if _drawn(spec.dtype) for size in spec.shape), default=1)

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, TensorSpec):
            return leaf
        if leaf.dtype == torch.bool:
            return leaf.arranged(torch.ones(leaf.stored, dtype=leaf.dtype, device=device))
        if not _drawn(leaf.dtype):
            return leaf.arranged(torch.randint(max(limit, 1), leaf.stored, dtype=leaf.dtype, device=device))
        low = start[leaf.dtype]
        start[leaf.dtype] += _room(leaf)
        return leaf.arranged(memory[leaf.dtype][low : low + prod(leaf.stored)].view(leaf.stored))

    target = signature.target
    args = map_aggregate(signature.args, tensor)
    kwargs = {name: map_aggregate(value, tensor) for name, value in signature.kwargs.items()}
    return lambda: target(*args, **kwargs)
