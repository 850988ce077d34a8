"""Whether torch watches a call: autograd, a compiler, a transformation, a mode, a tracer or a profiler.

What nobody watches may go to a kernel directly. The way through torch's dispatcher to an operator written in Python and
back takes five to ten times as long as a small product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["watched"]


def watched(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Return whether anybody would miss a call with these operands, or change what it does.

    Any of these is enough: a gradient is wanted; torch.compile or torch.export reads the program; an operand is of
    another class, such as a sharded tensor, or a lazily negated one; a mode or a transformation such as vmap is on;
    torch.jit traces; a profiler listens.
    """
    if torch.compiler.is_compiling():  # first, so that compilers read no further
        return True
    if torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return True
    return not (
        type(x) is Tensor
        and (type(values) is Parameter or type(values) is Tensor)
        and (bias is None or type(bias) is Parameter or type(bias) is Tensor)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and not torch.autograd._profiler_enabled()
        and not any_lazy(x, values, bias)
    )


def any_lazy(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Whether memory does not hold an operand's numbers: they are to be negated or are zeros that were never made."""
    return (
        x.is_neg()
        or x._is_zerotensor()
        or values.is_neg()
        or values._is_zerotensor()
        or (bias is not None and (bias.is_neg() or bias._is_zerotensor()))
    )
