"""The BERT-style encoder in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.random_weights import randomise

VOCABULARY, LENGTH, TYPES, DIM, HEADS, HIDDEN, BLOCKS, CLASSES = 99, 23, 2, 30, 3, 52, 2, 2
EPS = 1e-12  # of every norm; PyTorch's default is 1e-5
MASKED = -1e9  # finite: where everything is masked, softmax is uniform and not NaN


class Embeddings(nn.Module):
    """The sum of a token's, its position's and its segment's vector, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, DIM)
        self.positions = nn.Embedding(LENGTH, DIM)
        self.types = nn.Embedding(TYPES, DIM)
        self.norm = nn.LayerNorm(DIM, eps=EPS)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions) + self.types(types)
        return self.norm(x)  # (B, T) -> (B, T, C)


class Core(nn.Module):
    """softmax(q kᵀ / √hs, masked) v per head (Vaswani et al., Attention Is All You Need, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, nh, T, T)
        return self.softmax(scores.masked_fill(~visible, MASKED)) @ v  # (B, nh, T, hs)


class SelfAttention(nn.Module):
    """Every position looks at every one that is not padding, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(DIM, DIM)
        self.key = nn.Linear(DIM, DIM)
        self.value = nn.Linear(DIM, DIM)
        self.core = Core()
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = (
            layer(x).view(batch, length, HEADS, dim // HEADS).transpose(1, 2)  # (B, nh, T, hs)
            for layer in (self.query, self.key, self.value)
        )
        visible = (present != 0)[:, None, None, :]  # (B, 1, 1, T): a key is padding to every query
        y = self.core(q, k, v, visible).transpose(1, 2)  # (B, T, nh, hs)
        return self.out(y.reshape(batch, length, dim))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(DIM, HIDDEN)
        self.gelu = nn.GELU()
        self.proj = nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.gelu(self.fc(x)))


class Block(nn.Module):
    """Normalised behind each residual sum, as in the original Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = SelfAttention()
        self.ln1 = nn.LayerNorm(DIM, eps=EPS)
        self.mlp = FeedForward()
        self.ln2 = nn.LayerNorm(DIM, eps=EPS)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x, present))
        return self.ln2(x + self.mlp(x))


class BERT(nn.Module):
    """Two passages (B, T) -> logits (B, 2): does the second follow the first? (Devlin et al., BERT:
    Pre-training of Deep Bidirectional Transformers, 2018).

    Inputs are int64: ``tokens``; ``types``, 0 in the first and 1 in the second; ``present``,
    1 for a token and 0 for padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.pooler = nn.Linear(DIM, DIM)
        self.tanh = nn.Tanh()
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, tokens: Tensor, types: Tensor, present: Tensor) -> Tensor:
        x = self.embeddings(tokens, types)  # (B, T, C)
        for block in self.blocks:
            x = block(x, present)
        first = self.tanh(self.pooler(x[:, 0]))  # (B, C): what stands at [CLS]
        return self.head(first)  # (B, 2)


def build() -> BERT:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = BERT()
    randomise(model, seed=3)
    return model.eval()
