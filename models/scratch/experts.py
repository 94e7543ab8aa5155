"""A mixture of experts: a router, and feed-forward layers of which each token uses a few."""

from __future__ import annotations

import numpy as np

from models.scratch.activation import Softmax
from models.scratch.base import Array, Layer, array_namespace
from models.scratch.dense import Linear
from models.scratch.gated import SwiGLU


class Router(Layer):
    """How much of each expert a token gets: p = softmax(x W), and of it the ``top`` largest,

        gateᵢ = pᵢ / Σ_{j chosen} pⱼ   where i is chosen, 0 elsewhere

    (Shazeer et al., Outrageously Large Neural Networks, 2017; normalised again as in Lepikhin et
    al., GShard, 2020): (B, T, C) -> (B, T, E). The choice is a constant to the derivative.
    """

    def __init__(self, dim: int, experts: int, top: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.top = top
        self.logits = Linear(dim, experts, rng, bias=False)
        self.softmax = Softmax(axis=-1)

    def forward(self, x: Array) -> Array:
        p = self.softmax.forward(self.logits.forward(x))  # (B, T, E)
        self._chosen = p * self.largest(p)
        self._total = self._chosen.sum(axis=-1, keepdims=True)
        return self._chosen / self._total

    def backward(self, dy: Array) -> Array:
        gate, chosen = self._chosen / self._total, self._chosen > 0
        d = chosen * (dy - (dy * gate).sum(axis=-1, keepdims=True)) / self._total
        return self.logits.backward(self.softmax.backward(d))

    def largest(self, p: Array) -> Array:
        """One where an expert is among the ``top`` most likely ones of its token, 0 elsewhere."""
        xp = array_namespace(p)
        order = xp.argsort(-p, axis=-1, kind="stable")
        chosen = xp.zeros_like(p)
        xp.put_along_axis(chosen, order[..., : self.top], 1, axis=-1)
        return chosen


class MixtureOfExperts(Layer):
    """y = Σᵢ gateᵢ(x) · expertᵢ(x), every expert a SwiGLU (Jiang et al., Mixtral of Experts, 2024).

    Every expert sees every token and the gates' zeros leave out the rest: in a model of this size
    that is simpler than to gather each expert's tokens, and it is the same function.
    """

    def __init__(
        self, dim: int, hidden: int, experts: int, top: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.router = Router(dim, experts, top, rng)
        self.experts = [SwiGLU(dim, hidden, rng) for _ in range(experts)]

    def forward(self, x: Array) -> Array:
        self._gates = self.router.forward(x)  # (B, T, E)
        self._made = [expert.forward(x) for expert in self.experts]  # (B, T, C) each
        return sum(self._gates[..., i, None] * y for i, y in enumerate(self._made))

    def backward(self, dy: Array) -> Array:
        xp = array_namespace(dy)
        dgates = xp.stack([(dy * y).sum(axis=-1) for y in self._made], axis=-1)  # (B, T, E)
        dx = sum(
            self.experts[i].backward(self._gates[..., i, None] * dy)
            for i in reversed(range(len(self.experts)))
        )
        return dx + self.router.backward(dgates)
