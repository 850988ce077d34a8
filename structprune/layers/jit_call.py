"""One call of a kernel, ready but for four addresses: activations, values, bias and result.

A product of one token takes a microsecond or two, as long as putting together what a kernel wants to know. All of it
but those addresses is the same in the next call of the same weight with inputs of the same shape.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from structprune.layers.jit_engine import Code, run
from structprune.layers.jit_key import Field, KernelKey

__all__ = ["Indices", "Prepared"]

PANEL_BYTES = 384 << 10  # activations of one panel: with the values of a group they share a second-level cache
LEAST_WORK = 1 << 19  # multiply-adds below which waking other threads costs more than they save
TASKS_PER_THREAD = 4


@dataclass(frozen=True)
class Indices:
    """The lists that a kernel reads by.

    Attributes
    ----------
    columns
        ``(C,)`` int32, elements from a base.
    starts
        ``(R + 1,)`` int32.
    order
        ``(outputs,)`` int32 or None.
    bases
        ``(tokens,)`` int64, the first element of each token's activations.
    """

    columns: Tensor
    starts: Tensor
    order: Tensor | None
    bases: Tensor


class Prepared:
    """A call of one kernel by as many threads as torch uses now, where the work is worth waking them.

    Parameters
    ----------
    code, key
        The kernel.
    indices
        Checked lists; the caller sees to it that those of the weight live and stay as they are while this is used.
    shape, dtype
        Of the result, whose last dimension is the outputs.
    numbers
        Activations that one more token of a panel takes of the cache.
    entries
        Number of values.
    """

    __slots__ = ("_address", "_bases", "_code", "_fields", "_like", "_outputs", "_threads", "dtype", "shape")

    def __init__(
        self,
        code: Code,
        key: KernelKey,
        indices: Indices,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        numbers: int,
        entries: int,
    ) -> None:
        tokens, groups, outputs = indices.bases.numel(), indices.starts.numel() - 1, shape[-1]
        token_bytes = numbers * (4 if key.storage.activation == "float" else 2)
        self._threads = torch.get_num_threads() if tokens * entries > LEAST_WORK else 1
        panel, chunk = shares(max(1, tokens), groups, key.tokens, token_bytes, self._threads)
        chunks = -(-groups // chunk)
        order = 0 if indices.order is None else indices.order.data_ptr()
        self._fields = array("q", (
            0, -(-tokens // panel) * chunks, chunks, chunk, panel, tokens, groups, outputs,
            0, 0, indices.columns.data_ptr(), indices.starts.data_ptr(), order, 0, 0, indices.bases.data_ptr(),
            token_bytes,
        ))  # fmt: skip
        self._address, _ = self._fields.buffer_info()
        self._code, self._bases, self._outputs = code, indices.bases, outputs
        self.shape, self.dtype = shape, dtype
        # `empty_like` of one number in this shape is a third faster than `empty` with a type, and takes no memory.
        self._like = torch.empty(1, dtype=dtype).expand(shape)

    def __call__(self, x: Tensor, values: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
        """Compute into ``out`` or, where it is None, into a new tensor."""
        if bias is None:
            bias_at = 0
        else:
            if bias.shape != (self._outputs,) or not bias.is_cpu:
                raise ValueError(
                    f"Expected a bias of shape ({self._outputs},) on the CPU. Got {tuple(bias.shape)} on "
                    f"{bias.device}. Give one per output."
                )
            if bias.dtype is not torch.float32 or not bias.is_contiguous():
                bias = bias.float().contiguous()
            bias_at = bias.data_ptr()
        if out is None:
            out = torch.empty_like(self._like)
        if self._threads == 1:
            self._code.alone(self._address, x.data_ptr(), values.data_ptr(), bias_at, out.data_ptr())
            return out
        fields = self._fields[:]
        fields[Field.X], fields[Field.VALUES] = x.data_ptr(), values.data_ptr()
        fields[Field.BIAS], fields[Field.OUT] = bias_at, out.data_ptr()
        run(self._code.worker, fields, self._threads)
        return out


@lru_cache(maxsize=256)
def shares(tokens: int, groups: int, tile: int, token_bytes: int, threads: int) -> tuple[int, int]:
    """Return the tokens of a panel and the groups of a chunk: the work is dealt in panels times chunks."""
    panel = max(1, PANEL_BYTES // token_bytes // tile) * tile
    if threads > 1:
        panel = min(panel, -(-tokens // threads // tile) * tile)
    panel = max(1, min(panel, tokens))
    if threads == 1:
        return panel, groups
    panels = -(-tokens // panel)
    return panel, max(1, groups // -(-TASKS_PER_THREAD * threads // panels))
