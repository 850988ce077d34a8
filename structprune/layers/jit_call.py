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
from structprune.layers.jit_gradient_ir import MOST_TOKENS
from structprune.layers.jit_key import Field

__all__ = ["Deal", "Indices", "Prepared", "deal_gradient", "deal_product", "threads_for"]

PANEL_BYTES = 384 << 10  # activations of one panel: with the values of a group they share a second-level cache
LEAST_WORK = 1 << 19  # multiply-adds below which waking other threads costs more than they save
TASKS_PER_THREAD = 4
LEAST_PANEL = 16  # tokens of a gradient's panel: fewer, and its sums are read and written too often


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

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.bases.shape[0]

    @property
    def groups(self) -> int:
        """Number of groups ``R``."""
        return self.starts.shape[0] - 1


@dataclass(frozen=True)
class Deal:
    """How work is dealt to threads: tasks of ``panel`` tokens times ``chunk`` groups, or of all tokens times those.

    Attributes
    ----------
    threads
        How many take part.
    panel, chunk
        Tokens that are gone over with each group, and groups of a task.
    tasks, chunks
        Their numbers.
    """

    threads: int
    panel: int
    chunk: int
    tasks: int
    chunks: int


class Prepared:
    """A call of one kernel.

    Parameters
    ----------
    code
        The kernel.
    deal
        Who does what.
    indices
        Checked lists; the caller sees to it that those of the weight live and stay as they are while this is used.
    token_bytes
        Bytes of activations that one more token of a panel takes of the cache.
    shape, dtype
        Of the outputs, the last dimension of which is that of the layer.
    """

    __slots__ = ("_address", "_alone", "_bases", "_fields", "_like", "_outputs", "_threads", "_worker")

    def __init__(
        self, code: Code, deal: Deal, indices: Indices, token_bytes: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        order = 0 if indices.order is None else indices.order.data_ptr()
        self._fields = array("q", (
            0, deal.tasks, deal.chunks, deal.chunk, deal.panel, indices.tokens, indices.groups, shape[-1],
            0, 0, indices.columns.data_ptr(), indices.starts.data_ptr(), order, 0, 0, indices.bases.data_ptr(),
            token_bytes,
        ))  # fmt: skip
        self._address, _ = self._fields.buffer_info()
        self._worker, self._alone = code
        self._bases, self._outputs, self._threads = indices.bases, shape[-1], deal.threads
        # `empty_like` of one number in this shape is a third faster than `empty` with a type, and takes no memory.
        self._like = torch.empty(1, dtype=dtype).expand(shape)

    def run(self, x: Tensor, values: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
        """Compute, with ``out`` or, where it is None, with new outputs.

        Raises
        ------
        ValueError
            The bias or ``out`` does not fit the outputs.
        """
        bias_at = 0
        if bias is not None:
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
        elif (
            out.shape != self._like.shape or out.dtype != self._like.dtype or not out.is_contiguous() or not out.is_cpu
        ):
            raise ValueError(
                f"Expected out as contiguous {self._like.dtype} {tuple(self._like.shape)} on the CPU. Got {out.dtype} "
                f"{tuple(out.shape)}, strides {out.stride()}, on {out.device}. Leave it out to have one made."
            )
        if self._threads == 1:
            self._alone(self._address, x.data_ptr(), values.data_ptr(), bias_at, out.data_ptr())
            return out
        fields = self._fields[:]
        fields[Field.X], fields[Field.VALUES] = x.data_ptr(), values.data_ptr()
        fields[Field.BIAS], fields[Field.OUT] = bias_at, out.data_ptr()
        run(self._worker, fields, self._threads)
        return out


def threads_for(work: int) -> int:
    """Return how many threads to use for so many multiply-adds."""
    return torch.get_num_threads() if work > LEAST_WORK else 1


@lru_cache(maxsize=256)
def deal_product(tokens: int, groups: int, tile: int, token_bytes: int, threads: int) -> Deal:
    """Deal a product in panels of tokens, whole tiles of them, times chunks of groups."""
    panel = max(1, PANEL_BYTES // token_bytes // tile) * tile
    if threads > 1:
        panel = min(panel, -(-tokens // threads // tile) * tile)
    panel = max(1, min(panel, tokens))
    panels = -(-tokens // panel)
    chunk = groups if threads == 1 else max(1, groups // -(-TASKS_PER_THREAD * threads // max(1, panels)))
    chunks = -(-groups // chunk)
    return Deal(threads, panel, chunk, panels * chunks, chunks)


@lru_cache(maxsize=256)
def deal_gradient(groups: int, token_bytes: int, threads: int) -> Deal:
    """Deal the gradient of the values in chunks of groups, each over all tokens, a panel after the other."""
    panel = max(LEAST_PANEL, min(MOST_TOKENS, PANEL_BYTES // token_bytes))
    chunk = groups if threads == 1 else max(1, groups // (TASKS_PER_THREAD * threads))
    chunks = -(-groups // chunk)
    return Deal(threads, panel, chunk, chunks, chunks)
