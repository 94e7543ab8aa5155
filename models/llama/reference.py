"""The Llama-style decoder in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.random_weights import randomise

VOCABULARY, DIM, HEADS, KV_HEADS, SIZE, HIDDEN, BLOCKS = 96, 40, 6, 2, 8, 52, 2
EPS = 1e-5
BASE = 10000.0  # of the rotary frequencies


class Rotary(nn.Module):
    """y₁ = x₁ cos - x₂ sin, y₂ = x₂ cos + x₁ sin, angle(t, i) = t · base^(-2i/hs) (Su et al.,
    RoFormer, 2021), the pairs being channel i of the first half and channel i of the second.
    """

    def forward(self, x: Tensor) -> Tensor:
        length, size = x.shape[-2:]
        frequency = BASE ** (-torch.arange(0, size, 2, device=x.device) / size)  # (hs/2,)
        angle = torch.arange(length, device=x.device)[:, None] * frequency  # (T, hs/2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)  # (B, nh, T, hs/2) each
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Core(nn.Module):
    """softmax(q kᵀ / √hs + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[-2]
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)  # (B, nh, T, T)
        return self.softmax(scores.masked_fill(future, -math.inf)) @ v  # (B, nh, T, hs)


class GroupedQueryAttention(nn.Module):
    """Neighbouring query heads share a key and a value head (Ainslie et al., GQA, 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(DIM, HEADS * SIZE, bias=False)
        self.k = nn.Linear(DIM, KV_HEADS * SIZE, bias=False)
        self.v = nn.Linear(DIM, KV_HEADS * SIZE, bias=False)
        self.rotary = Rotary()
        self.core = Core()
        self.o = nn.Linear(HEADS * SIZE, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split_heads(x: Tensor) -> Tensor:
            return x.view(batch, length, -1, SIZE).transpose(1, 2)  # (B, heads, T, hs)

        q, k, v = split_heads(self.q(x)), split_heads(self.k(x)), split_heads(self.v(x))
        q, k = self.rotary(q), self.rotary(k)
        k, v = (a.repeat_interleave(HEADS // KV_HEADS, dim=1) for a in (k, v))  # (B, nh, T, hs)
        y = self.core(q, k, v).transpose(1, 2)  # (B, T, nh, hs)
        return self.o(y.reshape(batch, length, HEADS * SIZE))


class SwiGLU(nn.Module):
    """(SiLU(x G) · x U) D (Shazeer, GLU Variants Improve Transformer, 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, HIDDEN, bias=False)
        self.silu = nn.SiLU()
        self.up = nn.Linear(DIM, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(DIM, eps=EPS)  # Zhang, Sennrich, 2019
        self.attn = GroupedQueryAttention()
        self.norm2 = nn.RMSNorm(DIM, eps=EPS)
        self.mlp = SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """Tokens (B, T) -> logits (B, T, 96) (Touvron et al., LLaMA, 2023; grouped queries as in
    Llama 2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(DIM, eps=EPS)
        self.head = nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # (B, T, 96)


def build() -> Llama:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = Llama()
    randomise(model, seed=4)
    return model.eval()
