"""Small attention networks, each written the way one of the usual libraries writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """LayerNorm, two linear layers, added to what came in."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class SeparateAttention(nn.Module):
    """Query, key and value by three layers; scores, softmax and the rest by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.proj = (nn.Linear(16, 16) for _ in range(4))
        self.mlp, self.head = FeedForward(16, 20), nn.Linear(16, 5)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        normed = self.norm(x)
        q, k, v = (
            layer(normed).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attention = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(batch, length, width))
        return self.head(self.mlp(x).mean(dim=1))


class FusedAttention(nn.Module):
    """Vision transformer block whose fused projection is viewed with hard-coded sizes (3, 4 heads, 8 features)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 5, 32) * 0.2)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.2)
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp, self.head = FeedForward(32, 24), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        B, N, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, N, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, 32))
        return self.head(self.mlp(x)[:, 0])


class RMSNorm(nn.Module):
    """Division by the root mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of features by the position's angles."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class RotaryDecoder(nn.Module):
    """Llama's block: rotary positions, two key-value heads for four query heads, gated feed-forward network."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2, self.norm3 = nn.Embedding(20, 16), RMSNorm(16), RMSNorm(16), RMSNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, n * 6, bias=False) for n in (4, 2, 2))
        self.o = nn.Linear(24, 16, bias=False)
        self.gate, self.up, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.register_buffer("inv_freq", 100.0 ** (-torch.arange(0, 6, 2) / 6), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, _ = x.shape
        angles = torch.arange(length, device=x.device).to(x.dtype)[:, None] * self.inv_freq[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        normed = self.norm1(x)
        q, k, v = (layer(normed).view(batch, length, -1, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rotate(q, angles.cos(), angles.sin()), rotate(k, angles.cos(), angles.sin())
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1))
        normed = self.norm2(x)
        x = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return self.lm_head(self.norm3(x))


class TiedDecoder(nn.Module):
    """GPT's block with learned positions; the output layer is the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp, self.last = FeedForward(16, 20), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.lm_head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        q, k, v = self.qkv(self.norm(x)).split(16, dim=2)
        q, k, v = (part.view(batch, length, 4, 4).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, 16))
        return self.lm_head(self.last(self.mlp(x)))


class TorchEncoder(nn.Module):
    """torch's own encoder, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=20, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


class TorchAttention(nn.Module):
    """nn.MultiheadAttention between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head((x + mixed).mean(dim=1))


class EinsumAttention(nn.Module):
    """Projections by tensors (width, heads, features); all products by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(16, 4, 4) * 0.3) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(4, 4, 16) * 0.3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        normed = self.norm(x)
        q, k, v = (torch.einsum("bnd,dhf->bhnf", normed, w) for w in (self.wq, self.wk, self.wv))
        attention = torch.einsum("bhnf,bhmf->bhnm", q, k).mul(0.5).softmax(-1)
        x = x + torch.einsum("bhnm,bhmf,hfd->bnd", attention, v, self.wo)
        return self.head(x.mean(dim=1))
