"""A small vision transformer in PyTorch; images are (N, C, H, W).

Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, equations 1 to 4: patches, a class token,
learned positions, and blocks that normalise first (with the authors' epsilon of 1e-6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.seeded import randomise

DIM, HEADS, HIDDEN, BLOCKS = 30, 3, 42, 2
PATCHES = 4 * 6  # 16 x 12 pixels in patches of 4 x 2


class Embedding(nn.Module):
    """Images -> tokens (N, 1 + 24, D): the class token, then the patches row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, DIM, (4, 2), stride=(4, 2))
        self.class_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.positions = nn.Parameter(torch.zeros(1, 1 + PATCHES, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x)  # (N, D, 4, 6)
        x = x.flatten(2).transpose(1, 2)  # (N, 24, D)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (N, 25, D)
        return x + self.positions


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(DIM, HIDDEN)
        self.gelu = nn.GELU()
        self.proj = nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.gelu(self.fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(DIM, eps=1e-6)
        self.attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.ln2 = nn.LayerNorm(DIM, eps=1e-6)
        self.mlp = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    """Images (N, 1, 16, 12) -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.ln = nn.LayerNorm(DIM, eps=1e-6)
        self.head = nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)  # (N, 25, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x)[:, 0])  # the class token: (N, D) -> (N, 10)


def build() -> ViT:
    """The model with seeded weights, in evaluation mode."""
    model = ViT()
    randomise(model, seed=13)
    return model.eval()
