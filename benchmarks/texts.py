"""Two small trained transformers and what they read: MiniLM with sentence pairs, a Llama with short stories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar import read

__all__ = [
    "Encoder",
    "Llama",
    "SentencePairs",
    "Similarity",
    "sentence_pairs",
    "stories",
    "trained_llama",
    "trained_minilm",
]

BASE = 10_000.0  # of the rotary angles
EPSILON = 1e-5

# ---------------------------------------------------------------- sentence encoder


class EncoderLayer(nn.Module):
    """Attention and a feed-forward part, each added and then normalised."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.ln1 = nn.LayerNorm(width, 1e-12)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ln2 = nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, length, _ = x.shape
        queries, keys, values = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        x = self.ln1(x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1)))
        return self.ln2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """A BERT encoder with mean pooling: token ids and mask ``(N, T)`` in, unit vectors ``(N, 384)`` out.

    References
    ----------
    Wang et al., "MiniLM: deep self-attention distillation for task-agnostic compression of pre-trained
    transformers", NeurIPS 2020; fine-tuned as all-MiniLM-L6-v2.
    """

    def __init__(self, words: int, places: int = 128, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.word, self.pos, self.seg = (nn.Embedding(count, width) for count in (words, places, 2))
        self.ln = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList([EncoderLayer(width, 12, 4 * width) for _ in range(layers)])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.ln(self.word(ids) + self.pos.weight[: ids.shape[1]] + self.seg.weight[0])
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :].bool())
        weight = mask[..., None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9), dim=-1)


class Similarity(nn.Module):
    """Cosine similarity ``(N,)`` of the first and the second half of the sentences, by one encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor) -> Tensor:
        one, other = self.encoder(first, first_mask), self.encoder(second, second_mask)
        return (one * other).sum(-1)


def trained_minilm(folder: Path) -> Encoder:
    """Return all-MiniLM-L6-v2, cut to the words of STS-B, in evaluation mode."""
    stored = read(folder, "minilm_l6_sts_fp16.npz.xz")
    model = Encoder(stored["word.weight"].shape[0])
    model.load_state_dict(_tensors(stored, leave_out=("vocab_ids",)))
    return model.eval()


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences from STS-B with their similarity from 0 to 1, padded to one length.

    Attributes
    ----------
    inputs
        Ids and mask of the first sentences, ids and mask of the second, each ``(N, T)`` int64.
    targets
        float32 ``(N,)``.
    """

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    targets: Tensor


def sentence_pairs(folder: Path, count: int, seed: int, longest: int = 24) -> SentencePairs:
    """Return training pairs of at most ``longest`` tokens, drawn at random."""
    stored = read(folder, "sts_benchmark_ids.npz.xz")
    sides = [_ragged(stored, f"train_{side}") for side in ("a", "b")]
    short = [i for i in range(len(sides[0])) if max(len(sides[0][i]), len(sides[1][i])) <= longest]
    chosen = np.random.default_rng(seed).permutation(short)[:count]
    inputs = []
    for side in sides:
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            ids[row, : len(side[index])] = torch.from_numpy(side[index].astype(np.int64))
            mask[row, : len(side[index])] = 1
        inputs += [ids, mask]
    scores = torch.from_numpy(stored["train_score"][chosen].astype(np.float32)) / 5
    return SentencePairs((inputs[0], inputs[1], inputs[2], inputs[3]), scores)


# ---------------------------------------------------------------- language model


class Decoder(nn.Module):
    """A Llama layer: grouped-query attention with rotary positions and a gated feed-forward part, before norms."""

    def __init__(self, width: int, hidden: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        each = width // heads
        self.n1, self.n2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, shared * each, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = normed(x, self.n1)
        queries = rotated(self.wq(y).view(batch, length, self.heads, -1), cos, sin)
        keys = rotated(self.wk(y).view(batch, length, self.shared, -1), cos, sin)
        values = self.wv(y).view(batch, length, self.shared, -1)
        times = self.heads // self.shared
        queries, keys, values = (
            part.transpose(1, 2)
            for part in (queries, keys.repeat_interleave(times, 2), values.repeat_interleave(times, 2))
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))
        y = normed(x, self.n2)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """Divide by the root mean square over the channels."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of ``(N, T, heads, dims)`` by its angle at the place in the text."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[: x.shape[1], None], sin[: x.shape[1], None]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)


class Llama(nn.Module):
    """A Llama decoder with tied embeddings: token ids ``(N, T)`` in, scores of the next token ``(N, T, V)`` out.

    References
    ----------
    Touvron et al., "LLaMA: open and efficient foundation language models", arXiv 2302.13971 (2023), section 2.2.
    """

    def __init__(self, width: int, hidden: int, layers: int, heads: int, shared: int, words: int, longest: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(words, width)
        self.layers = nn.ModuleList([Decoder(width, hidden, heads, shared) for _ in range(layers)])
        self.nf = nn.Parameter(torch.ones(width))
        each = width // heads
        frequencies = BASE ** -(torch.arange(0, each, 2).float() / each)
        angles = torch.outer(torch.arange(longest).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.linear(normed(x, self.nf), self.emb.weight)


def trained_llama(folder: Path) -> Llama:
    """Return the decoder of 260,000 weights that was trained on TinyStories, in evaluation mode."""
    stored = read(folder, "stories260k.npz")
    model = Llama(*(int(number) for number in stored["config"]))
    model.load_state_dict(_tensors(stored, leave_out=("config", "tok_bytes", "tok_off", "tok_score")))
    return model.eval()


def stories(folder: Path, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Return pieces of stories and, as targets, their next tokens: int64 ``(count, length)`` each, in file order."""
    pieces: list[np.ndarray] = []
    for text in _ragged(read(folder, "tinystories_tok512.npz"), "ids"):
        pieces += [text[start : start + length + 1] for start in range(0, len(text) - length, length)]
    tokens = torch.from_numpy(np.stack(pieces[:count]).astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


# ---------------------------------------------------------------- files


def _tensors(stored: Mapping[str, np.ndarray], leave_out: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value.astype(np.float32)) for key, value in stored.items() if key not in leave_out}


def _ragged(stored: Mapping[str, np.ndarray], key: str) -> list[np.ndarray]:
    """Sequences of different lengths, stored one after the other with their offsets."""
    flat, offsets = stored[f"{key}_flat"], stored[f"{key}_off"]
    return [flat[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]
