"""The mixture of experts in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.random_weights import randomise

VOCABULARY, DIM, HIDDEN, EXPERTS, TOP = 96, 22, 26, 5, 2
EPS = 1e-5


class Router(nn.Module):
    """p = softmax(x W); the two largest divided by their sum, zero for every other expert (Shazeer
    et al., Outrageously Large Neural Networks, 2017; Lepikhin et al., GShard, 2020).

    The same as the softmax over the two largest logits (Mixtral).
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(DIM, EXPERTS, bias=False)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        p = self.softmax(self.logits(x))  # (B, T, E)
        largest = p.topk(TOP, dim=-1).indices  # (B, T, 2)
        chosen = p * torch.zeros_like(p).scatter(-1, largest, 1.0)
        return chosen / chosen.sum(dim=-1, keepdim=True)


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


class MixtureOfExperts(nn.Module):
    """y = Σᵢ gateᵢ(x) · expertᵢ(x) (Jiang et al., Mixtral of Experts, 2024).

    Every expert sees every token and the gates' zeros leave out the rest: in a model of this size
    that is simpler than to gather each expert's tokens, and it is the same function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.experts = nn.ModuleList(SwiGLU() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x)  # (B, T, E)
        made = torch.stack([expert(x) for expert in self.experts], dim=-1)  # (B, T, C, E)
        return (made * gates[:, :, None, :]).sum(dim=-1)  # (B, T, C)


class Model(nn.Module):
    """Tokens (B, T) -> logits (B, T, 96): one residual block, x + moe(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.norm1 = nn.RMSNorm(DIM, eps=EPS)
        self.moe = MixtureOfExperts()
        self.norm2 = nn.RMSNorm(DIM, eps=EPS)
        self.head = nn.Linear(DIM, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (B, T, C)
        x = x + self.moe(self.norm1(x))
        return self.head(self.norm2(x))  # (B, T, 96)


def build() -> Model:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = Model()
    randomise(model, seed=5)
    return model.eval()
