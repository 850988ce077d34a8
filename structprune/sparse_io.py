"""What a saved network says of its block-sparse layers, and how they are put back into the dense network.

Patterns are not described twice: the saved ``columns``, ``starts`` and, where rows are reordered, ``order`` of a layer
are its pattern, and are checked as any pattern is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from structprune.compile.fuse import Fusion, applied, fused
from structprune.compile.sparse import replaced, sparse_layers
from structprune.errors import FileFormatError
from structprune.layers import (
    CPU_JIT,
    CUDA_TRITON,
    DENSE,
    DENSE_ONEDNN,
    ROWLOOP,
    Backend,
    BlockSparseConv2d,
    BlockSparseLinear,
    GroupedColumns,
)
from structprune.layers.activation import as_activation

__all__ = ["sparse_records", "with_sparse_layers"]

BACKENDS: tuple[Backend, ...] = (CPU_JIT, CUDA_TRITON, ROWLOOP, DENSE, DENSE_ONEDNN)
FIELDS = {"height": int, "width": int, "backend": str}
FUSED = {"activation": str, "applied": str}  # of layers that apply the activation of a module behind them


def sparse_records(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return, by name, what the tensors of block-sparse layers do not tell: block sizes and who computes."""
    records: dict[str, dict[str, Any]] = {
        name: {"height": layer.values.shape[1], "width": layer.width, "backend": layer.backend.name}
        for name, layer in sparse_layers(model).items()
    }
    for fusion in applied(model):
        records[fusion.layer] |= {"activation": fusion.activation, "applied": fusion.module}
    return records


def with_sparse_layers(
    model: nn.Module, records: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Put layers with the saved patterns into a dense network, in place; their values are the dense weights still.

    A layer whose backend does not run on this machine is computed densely, and a warning says so.

    Parameters
    ----------
    model
        The dense network.
    records
        What :func:`sparse_records` gave.
    tensors
        The saved ones, by name.

    Raises
    ------
    FileFormatError
        A record or a pattern is not what was saved.
    ValueError
        The network has no such layer.
    """
    modules = dict(model.named_modules())
    for name, record in records.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"Expected a linear layer or convolution {name!r}. Got {type(module).__name__}. "
                "Make the model as it was made for solve."
            )
        model = replaced(model, name, sparse_layer(name, module, record, tensors))
    taken = {name: record for name, record in records.items() if record.keys() & FUSED.keys()}
    return fused(model, [Fusion(name, one["applied"], as_activation(one["activation"])) for name, one in taken.items()])


def sparse_layer(
    name: str, module: nn.Linear | nn.Conv2d, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return the block-sparse layer of one record, in evaluation mode."""
    prefix = f"{name}." if name else ""
    fields = FIELDS | (FUSED if record.keys() & FUSED.keys() else {})
    wrong = [field for field, kind in fields.items() if not isinstance(record.get(field), kind)]
    wrong += [part for part in ("columns", "starts") if prefix + part not in tensors]
    if wrong:
        raise FileFormatError(
            f"Expected a whole record of the block-sparse layer {name!r}. Got one without a sound {', '.join(wrong)}. "
            "Copy the whole folder again."
        )
    outputs, inputs = module.weight.shape[0], module.weight[0].numel()
    columns, starts = (tensors[prefix + part].numpy().astype(np.int64) for part in ("columns", "starts"))
    order = tensors[prefix + "order"].numpy().astype(np.int64) if prefix + "order" in tensors else None
    try:
        pattern = GroupedColumns(outputs, inputs, record["height"], record["width"], columns, starts, order)
    except ValueError as error:
        raise FileFormatError(
            f"Expected the pattern of {name!r} as it was saved, for {outputs} x {inputs}. Got one that does not "
            f"fit: {error} Make the model as it was made for solve, or copy the whole folder again."
        ) from error
    size, backend = (record["height"], record["width"]), usable(name, record["backend"])
    if isinstance(module, nn.Conv2d):
        return BlockSparseConv2d.from_dense(module, pattern.blocks(), *size, order=order, backend=backend).eval()
    return BlockSparseLinear.from_dense(module, pattern.blocks(), *size, order=order, backend=backend).eval()


def usable(layer: str, name: str) -> Backend:
    """Return the backend of this name if it runs here, the dense one with a warning otherwise."""
    backend = next((one for one in BACKENDS if one.name == name), None)
    reason = "this release does not have it" if backend is None else backend.available()
    if backend is not None and not reason:
        return backend
    warnings.warn(
        f"Expected the backend {name} of the layer {layer!r}. Got none ({reason}). "
        "The layer is computed densely; compile the network again on this machine, or choose with layer.use(backend).",
        stacklevel=6,
    )
    return DENSE
