"""The character-level GPT in PyTorch."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights import load

VOCABULARY, LENGTH, DIM, HEADS, BLOCKS = 96, 32, 48, 3, 2


class CausalSelfAttention(nn.Module):
    """softmax(q kᵀ / √hs + mask) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(DIM, 3 * DIM)
        self.softmax = nn.Softmax(dim=-1)
        self.c_proj = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.c_attn(x).view(batch, length, 3, HEADS, dim // HEADS)  # (B, T, 3, nh, hs)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // HEADS)  # (B, nh, T, T)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        att = self.softmax(scores.masked_fill(future, -math.inf))
        y = (att @ v).transpose(1, 2).reshape(batch, length, dim)
        return self.c_proj(y)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(DIM, 4 * DIM)
        self.gelu = nn.GELU()
        self.proj = nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.gelu(self.fc(x)))


class Block(nn.Module):
    """Pre-norm residual block (Xiong et al., On Layer Normalization in the Transformer, 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(DIM)
        self.attn = CausalSelfAttention()
        self.ln2 = nn.LayerNorm(DIM)
        self.mlp = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """Tokens (B, T) -> logits (B, T, 96) (Radford et al., Language Models are Unsupervised
    Multitask Learners, 2019).

    The head shares the token embedding (Press, Wolf, Using the Output Embedding, 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, DIM)
        self.wpe = nn.Embedding(LENGTH, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.ln_f = nn.LayerNorm(DIM)
        self.lm_head = nn.Linear(DIM, VOCABULARY, bias=False)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=0.02)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))  # (B, T, 96)


def build() -> GPT:
    """The trained model, in evaluation mode."""
    model = GPT()
    load(model, Path(__file__).with_name("weights.safetensors"))
    return model.eval()
