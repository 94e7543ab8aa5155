"""Images as sequences of patches, and attention between all of them."""

from __future__ import annotations

import math

import numpy as np

from models.scratch.attention import CausalSelfAttention
from models.scratch.base import Array, Layer, array_namespace


class PatchProjection(Layer):
    """A convolution whose stride is its size: a linear map of each patch, (B, C, H, W) ->
    (B, O, H/ph, W/pw) (Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, equation 1).
    """

    axes = {"weight": ("out", "in", "h", "w"), "bias": ("out",)}

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], rng: np.random.Generator
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs * size[0] * size[1])
        weight = rng.uniform(-bound, bound, (outputs, inputs, *size))
        self._add_parameter("weight", weight.astype(np.float32))
        self._add_parameter("bias", rng.uniform(-bound, bound, outputs).astype(np.float32))

    def forward(self, x: Array) -> Array:
        batch, channels, height, width = self._shape = x.shape
        ph, pw = self.params["weight"].shape[2:]
        self._patches = x.reshape(batch, channels, height // ph, ph, width // pw, pw)
        y = array_namespace(x).einsum("bcpiqj,ocij->bopq", self._patches, self.params["weight"])
        return y + self.params["bias"][:, None, None]

    def backward(self, dy: Array) -> Array:
        xp = array_namespace(dy)
        self.accumulate("weight", xp.einsum("bopq,bcpiqj->ocij", dy, self._patches))
        self.accumulate("bias", dy.sum(axis=(0, 2, 3)))
        return xp.einsum("bopq,ocij->bcpiqj", dy, self.params["weight"]).reshape(self._shape)


class SelfAttention(CausalSelfAttention):
    """softmax(q kᵀ · scale) v for every head: each position attends to all."""

    def visible(self, scores: Array) -> Array:
        return array_namespace(scores).ones(scores.shape[-2:], dtype=bool)
