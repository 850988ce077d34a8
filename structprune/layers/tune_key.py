"""What the time of a block-sparse layer depends on, as a text: under it measurements are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata, resources
from typing import Protocol

import torch

from structprune.layers.layer import BlockSparseLayer

__all__ = ["key_of"]

PACKAGES = ("structprune", "llvmlite", "triton")  # torch's version is that of the cache


class Input(Protocol):
    """Shape and layout of an input."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def stride(self) -> tuple[int, ...]:
        """Steps in memory, in elements."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        ...


def key_of(layer: BlockSparseLayer, calls: Sequence[Input]) -> tuple[str, str]:
    """Return the key of a layer's measurement, and the layer and its inputs in words for people.

    The pattern enters by the number of kept columns in each group: which columns they are matters little.
    """
    pattern = layer.pattern
    lengths = hashlib.sha256(pattern.starts.tobytes()).hexdigest()[:12]
    facts = {
        "layer": layer.extra_repr().partition(", backend=")[0],
        "geometry": str(getattr(layer, "geometry", "")),
        "groups": lengths,
        "order": pattern.order is not None,
        "calls": [[list(call.shape), list(call.stride), str(call.dtype)] for call in calls],
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "code": code_of_layers(),
    }
    shapes = ", ".join("x".join(map(str, call.shape)) for call in calls)
    kind = str(calls[0].dtype).removeprefix("torch.")
    words = f"{pattern.inputs} -> {pattern.outputs}, blocks {pattern.height}x{pattern.width}, "
    words += f"density {pattern.density:.3g}, input {shapes} {kind}"
    return f"block-sparse {json.dumps(facts, sort_keys=True)}", words


def installed(name: str) -> str:
    """Return the version of a package, '' where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@lru_cache(maxsize=1)
def code_of_layers() -> str:
    """Return a fingerprint of the source of layers and kernels: other kernels take another time."""
    digest = hashlib.sha256()
    for file in sorted(resources.files("structprune.layers").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
