"""Rotary position embedding."""

from __future__ import annotations

from models.scratch.base import Array, Layer, array_namespace


class Rotary(Layer):
    """Turns each pair of channels by an angle that grows with the position:

        y₁ = x₁ cos - x₂ sin,  y₂ = x₂ cos + x₁ sin,  angle(t, i) = t · base^(-2i/hs)

    (Su et al., RoFormer, 2021). A pair is channel i of the first half and channel i of the second,
    as in GPT-NeoX and Llama; the paper pairs neighbours. A rotation's derivative turns back, and
    depends on no input: one layer serves the queries and the keys.
    """

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Array) -> Array:
        return self.turn(x, *self.angles(x))

    def backward(self, dy: Array) -> Array:
        cos, sin = self.angles(dy)
        return self.turn(dy, cos, -sin)

    def angles(self, x: Array) -> tuple[Array, Array]:
        """cos and sin of the angles, (T, hs/2) each, for x (B, nh, T, hs)."""
        xp, (length, size) = array_namespace(x), x.shape[-2:]
        frequency = self.base ** (-xp.arange(0, size, 2) / size)  # (hs/2,)
        angle = xp.arange(length)[:, None] * frequency  # (T, hs/2)
        return xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)

    def turn(self, x: Array, cos: Array, sin: Array) -> Array:
        xp = array_namespace(x)
        first, second = xp.split(x, 2, axis=-1)  # (B, nh, T, hs/2) each
        turned = [first * cos - second * sin, second * cos + first * sin]
        return xp.concatenate(turned, axis=-1)
