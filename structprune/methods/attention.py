"""Attention over structures: a softmax in each layer decides how loudly each structure speaks.

    A = n softmax(L),   effective weight of structure i = A_i W_i,

with one trained logit per structure (Yasuda, Axiotis, Fu, Bateni and Mirrokni 2024, SequentialAttention++, Algorithm
1). The factor n makes the mean attention one: with logits of zero the network is the dense one, bit for bit. The
softmax always runs over all structures of the layer, removed ones included, so that nothing is rescaled when a mask
changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from structprune.methods.masked import Masked
from structprune.structures import Structures

__all__ = ["Attentive", "attention"]


def attention(logits: Tensor, least: float = 0.0) -> Tensor:
    """``n softmax(logits)`` within ``[least, 1 / least]``, in float32; zeros give exactly ones.

    Parameters
    ----------
    logits
        ``(n,)``.
    least
        The layer's kept fraction, as appendix C.1 of the paper clips by it, read for attention of mean one; 0 for no
        limits.
    """
    powers = torch.exp(logits.float() - logits.detach().float().max())
    # n e^L first: for equal logits that is n / n.
    scaled = len(logits) * powers / powers.sum()
    return scaled if least <= 0 else scaled.clamp(least, 1 / least)


class Attentive(Masked):
    """A masked network with attention over the structures of each eligible layer.

    Parameters
    ----------
    model, structures
        See :class:`~structprune.methods.masked.Masked`.
    eligible
        Per layer, whether anything of it may be removed; the others have no gates.
    """

    def __init__(self, model: nn.Module, structures: Structures, eligible: Sequence[bool]) -> None:
        super().__init__(model, structures)
        self.eligible = tuple(eligible)
        device = self.mask.device
        chosen = [group for group, may in zip(self.groups, self.eligible, strict=True) if may]
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(group.size, device=device)) for group in chosen)
        self.least = [0.0] * len(chosen)

    def gates(self) -> Tensor:
        """Attention of every structure, one where the layer has none, ``(n,)``."""
        own = iter(zip(self.logits, self.least, strict=True))
        ones = torch.ones(max(group.size for group in self.groups), device=self.mask.device)
        return torch.cat(
            [
                attention(*next(own)) if may else ones[: group.size]
                for group, may in zip(self.groups, self.eligible, strict=True)
            ]
        )

    def slices(self) -> list[tuple[nn.Parameter, slice]]:
        """Each layer's logits with the structures that they belong to."""
        chosen = [group for group, may in zip(self.groups, self.eligible, strict=True) if may]
        return [(logits, group.entries) for logits, group in zip(self.logits, chosen, strict=True)]

    @torch.no_grad()
    def attention(self) -> np.ndarray:
        """Attention of every structure, ``(n,)`` float64."""
        return self.gates().double().cpu().numpy()
