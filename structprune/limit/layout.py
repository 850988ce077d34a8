"""A network's parameters as one long vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of all floating parameters, tied ones once, in the model's order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a model.

        Raises
        ------
        ValueError
            If it has no floating parameter.
        """
        named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        if not named:
            raise ValueError(
                f"Expected a network with weights. Got {type(model).__name__}, which has none. Pass another."
            )
        return cls(tuple(named), tuple(tuple(p.shape) for p in named.values()))

    @property
    def offsets(self) -> np.ndarray:
        """Where each parameter begins, and the end: ``(parameters + 1,)``."""
        return np.concatenate([[0], np.cumsum([prod(shape) for shape in self.shapes])]).astype(np.int64)

    @property
    def size(self) -> int:
        """Number of weights, D."""
        return int(self.offsets[-1])

    def place(self, name: str) -> slice:
        """Where a parameter lies in the vector."""
        index = self.names.index(name)
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def flat(self, tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
        """One vector ``(D,)`` of tensors by name, or in order."""
        ordered = [tensors[name] for name in self.names] if isinstance(tensors, Mapping) else list(tensors)
        return torch.cat([tensor.reshape(-1) for tensor in ordered])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector ``(D,)``, by name."""
        parts = vector.split([prod(shape) for shape in self.shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def weights(self, model: nn.Module) -> Tensor:
        """The model's weights, ``(D,)``, copied."""
        named = dict(model.named_parameters())
        return self.flat([named[name].detach() for name in self.names]).clone()
