"""An ordinary linear layer that multiplies by oneDNN's packed product where only its outputs are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from structprune.layers.onednn import multiplies, packed_linear, packed_weight

__all__ = ["PackedLinear"]


@dataclass(frozen=True)
class Kept:
    """A packed weight, and what tells whether the weight is the same still.

    Attributes
    ----------
    packed
        In oneDNN's layout.
    source
        Shares the weight's memory, so that no other weight can come to lie there.
    version
        Torch's count of changes in place.
    """

    packed: Tensor
    source: Tensor
    version: int

    def of(self, weight: Tensor) -> bool:
        """Whether this is that weight, packed."""
        same = self.source.data_ptr() == weight.data_ptr() and self.source.dtype == weight.dtype
        return same and self.version == weight._version


@final
class PackedLinear(nn.Linear):
    """``nn.Linear`` with the same parameters and ``state_dict``, faster on CPUs where ``F.linear`` is slow.

    Without gradients, and with plain float32 or bfloat16 tensors on the CPU, the product is oneDNN's with a weight that
    is packed at the first call and again after a change. Everything else is ``F.linear``: gradients, autocast,
    ``torch.compile`` and export, other types and devices. The packed weight takes as much memory again as the weight;
    it is neither copied nor saved.

    Writes through ``weight.data`` escape torch's count of changes: call :meth:`forget` after them, or :meth:`train`.
    """

    _kept: Kept | None = None

    @classmethod
    def from_linear(cls, module: nn.Linear) -> Self:
        """Return a layer with the very parameters of ``module``, in its mode."""
        with torch.device("meta"):
            layer = cls(module.in_features, module.out_features, bias=module.bias is not None)
        layer.weight, layer.bias = module.weight, module.bias
        return layer.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., outputs)`` for ``(..., inputs)``."""
        if not self._packs(x):
            return F.linear(x, self.weight, self.bias)
        kept = self._kept
        if kept is None or not kept.of(self.weight):
            weight = self.weight.detach()
            kept = self._kept = Kept(packed_weight(weight), weight, self.weight._version)
        return packed_linear(x.contiguous(), kept.packed, self.bias, "none")

    def _packs(self, x: Tensor) -> bool:
        """Whether this call is one for oneDNN."""
        weight, bias = self.weight, self.bias
        if torch.compiler.is_compiling():
            return False
        learns = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        if learns and torch.is_grad_enabled():
            return False
        return (
            (type(x) is Tensor or type(x) is nn.Parameter)
            and type(weight) is nn.Parameter
            and weight.dtype == x.dtype
            and x.ndim > 1
            and x.numel() > 0
            and not (weight.is_inference() or torch.is_autocast_enabled("cpu"))
            and not (torch._C._functorch.is_functorch_wrapped_tensor(x) or is_in_torch_dispatch_mode())
            and multiplies(x)
            and multiplies(weight)
        )

    def forget(self) -> None:
        """Drop the packed weight; the next call packs it anew."""
        self._kept = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and drop the packed weight: training may write where torch does not count."""
        self.forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but the packed weight, which another machine would pack anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}
