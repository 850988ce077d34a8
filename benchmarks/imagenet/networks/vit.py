"""Vision transformers S and B with patches of 16; parameters are named as timm's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ViT", "vit_b", "vit_s"]

PATCH, DEPTH, HEAD = 16, 12, 64
EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention of all patches, heads of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two dense layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Attention, then dense layers, each beside a shortcut and behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """One vector for each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """A vision transformer that classifies by a token of its own.

    Parameters
    ----------
    width
        Of a token; a multiple of 64.
    classes
        Number of outputs.
    side
        Of the images, in pixels; a multiple of 16.

    Raises
    ------
    ValueError
        If patches do not cover the image.

    References
    ----------
    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, table 1; Touvron et al., DeiT, ICML 2021, for S.
    """

    def __init__(self, width: int, classes: int, side: int) -> None:
        super().__init__()
        if side % PATCH:
            raise ValueError(f"Expected a side in multiples of {PATCH} pixels. Got {side}. Use for instance 224.")
        self.patch_embed = PatchEmbedding(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (side // PATCH) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Layer(width) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        first = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([first, tokens], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vit_s(classes: int, side: int = 224) -> ViT:
    """Return ViT-S/16."""
    return ViT(384, classes, side)


def vit_b(classes: int, side: int = 224) -> ViT:
    """Return ViT-B/16."""
    return ViT(768, classes, side)
