"""The transformers of `bench_models` in PyTorch: the reference, and a port of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from scripts.bench_models import Sizes

__all__ = ["Encoder", "Port"]


# -- the reference: attention is spelled out -------------------------------------------------------


class Encoder(nn.Module):
    """Token ids (B, T) -> logits (B, T, words)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(s.words, s.width)
        self.places = nn.Parameter(0.02 * torch.randn(s.length, s.width))
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width)
        self.head = nn.Linear(s.width, s.words, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.attention = Attention(s)
        self.up, self.gelu = nn.Linear(s.width, 4 * s.width), nn.GELU()
        self.down = nn.Linear(4 * s.width, s.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads = s.heads
        self.query, self.key, self.value = (nn.Linear(s.width, s.width) for _ in range(3))
        self.out = nn.Linear(s.width, s.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(b, t, self.heads, -1).transpose(1, 2)  # (B, nh, T, hs)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


# -- the port: the same function, as another person would write it ---------------------------------


class Port(nn.Module):
    """Token ids (B, T) -> logits (B, T, words)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(s.words, s.width)
        self.position = nn.Parameter(torch.zeros(s.length, s.width))
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.depth))
        self.ln_final = nn.LayerNorm(s.width)
        self.lm_head = nn.Linear(s.width, s.words, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.ln_final(x))


class Layer(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.ln_attn, self.attn = nn.LayerNorm(s.width), SelfAttention(s)
        self.ln_mlp = nn.LayerNorm(s.width)
        self.fc1, self.fc2 = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.ln_attn(x)) + x
        return self.fc2(functional.gelu(self.fc1(self.ln_mlp(x)))) + x


class SelfAttention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads = s.heads
        self.q_proj, self.k_proj = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
        self.v_proj, self.o_proj = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q = self.q_proj(x).reshape(shape).transpose(1, 2)
        k = self.k_proj(x).reshape(shape).transpose(1, 2)
        v = self.v_proj(x).reshape(shape).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).flatten(2))
