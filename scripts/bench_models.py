"""The pairs that `bench_check` measures: a reference, an honest port of it, and their inputs.

The transformers are pre-norm encoders. The port names everything otherwise and computes attention
with PyTorch's fused kernel where the reference spells it out: equal up to rounding, not bit for
bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CASES", "Case", "Sizes", "made"]


@dataclass(frozen=True)
class Sizes:
    """Of a transformer: ``width`` d, ``depth`` blocks, ``words`` in its vocabulary."""

    width: int
    depth: int
    heads: int
    words: int
    batch: int
    length: int


@dataclass(frozen=True)
class Case:
    """One pair.

    Attributes:
        sizes: of the transformer; None for the network of `models.mlp`.
        candidate: ``"torch"``, ``"numpy"``, ``"keras"`` or ``"onnx"``.
        gradients: False where the candidate has no backward pass of its own.
    """

    what: str
    sizes: Sizes | None
    candidate: str = "torch"
    gradients: bool = True


MEDIUM = Sizes(width=384, depth=8, heads=6, words=8192, batch=4, length=128)
LARGE = Sizes(width=768, depth=12, heads=12, words=10000, batch=4, length=128)
CASES = {
    "small": Case("mlp of the zoo, NumPy", None, "numpy"),
    "medium": Case("20 M transformer, torch", MEDIUM),
    "medium-keras": Case("20 M transformer, Keras", MEDIUM, "keras"),
    "medium-onnx": Case("20 M transformer, ONNX, forward", MEDIUM, "onnx", gradients=False),
    "large": Case("100 M transformer, torch", LARGE),
}


def made(case: Case) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Reference, candidate (with other weights) and inputs of a case."""
    if case.sizes is None:
        from models.mlp.pair import pair

        return pair.reference(), pair.candidate["numpy"](), pair.inputs(0)
    s = case.sizes
    ids = np.random.default_rng(0).integers(0, s.words, (s.batch, s.length))
    return reference(s), _candidate(case), {"ids": ids}


def _candidate(case: Case) -> Any:
    assert case.sizes is not None
    if case.candidate == "keras":
        return keras_port(case.sizes)
    if case.candidate == "onnx":
        import crosscheck

        return crosscheck.adapt(reference(case.sizes), export="onnx")
    return port(case.sizes)


def reference(s: Sizes) -> Any:
    """Token ids (B, T) -> logits (B, T, words)."""
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(s.width, s.width) for _ in range(3))
            self.out = nn.Linear(s.width, s.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, t, d = x.shape

            def split(y: torch.Tensor) -> torch.Tensor:
                return y.view(b, t, s.heads, -1).transpose(1, 2)  # (B, nh, T, hs)

            q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
            scores = q @ k.transpose(-1, -2) / (d // s.heads) ** 0.5
            return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
            self.attention = Attention()
            self.up, self.gelu = nn.Linear(s.width, 4 * s.width), nn.GELU()
            self.down = nn.Linear(4 * s.width, s.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x))
            return x + self.down(self.gelu(self.up(self.norm2(x))))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(s.words, s.width)
            self.places = nn.Parameter(0.02 * torch.randn(s.length, s.width))
            self.blocks = nn.ModuleList(Block() for _ in range(s.depth))
            self.norm = nn.LayerNorm(s.width)
            self.head = nn.Linear(s.width, s.words, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids) + self.places[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    return Encoder().eval()


def port(s: Sizes) -> Any:
    """The same function, as another person would write it."""
    import torch
    from torch import nn
    from torch.nn import functional

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
            self.v_proj, self.o_proj = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shape = (*x.shape[:2], s.heads, -1)
            q = self.q_proj(x).reshape(shape).transpose(1, 2)
            k = self.k_proj(x).reshape(shape).transpose(1, 2)
            v = self.v_proj(x).reshape(shape).transpose(1, 2)
            y = functional.scaled_dot_product_attention(q, k, v)
            return self.o_proj(y.transpose(1, 2).flatten(2))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_attn, self.attn = nn.LayerNorm(s.width), SelfAttention()
            self.ln_mlp = nn.LayerNorm(s.width)
            self.fc1, self.fc2 = nn.Linear(s.width, 4 * s.width), nn.Linear(4 * s.width, s.width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.attn(self.ln_attn(x)) + x
            return self.fc2(functional.gelu(self.fc1(self.ln_mlp(x)))) + x

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(s.words, s.width)
            self.position = nn.Parameter(torch.zeros(s.length, s.width))
            self.layers = nn.ModuleList(Layer() for _ in range(s.depth))
            self.ln_final = nn.LayerNorm(s.width)
            self.lm_head = nn.Linear(s.width, s.words, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.token_embedding(ids) + self.position[: ids.shape[1]]
            for layer in self.layers:
                x = layer(x)
            return self.lm_head(self.ln_final(x))

    return Port().eval()


def keras_port(s: Sizes) -> Any:
    """The same function in Keras, on TensorFlow."""
    import keras
    from keras import layers, ops

    def norm(name: str) -> Any:
        return layers.LayerNormalization(epsilon=1e-5, name=name)

    class Attention(layers.Layer):
        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            for part in ("query", "key", "value", "out"):
                setattr(self, part, layers.Dense(s.width, name=part))

        def call(self, x: Any) -> Any:
            shape = (s.batch, s.length, s.heads, s.width // s.heads)
            q, k, v = (
                ops.transpose(ops.reshape(part(x), shape), (0, 2, 1, 3))
                for part in (self.query, self.key, self.value)
            )
            scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) / (s.width // s.heads) ** 0.5
            y = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
            return self.out(ops.reshape(y, (s.batch, s.length, s.width)))

    class Block(layers.Layer):
        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            self.norm1, self.norm2 = norm("norm1"), norm("norm2")
            self.attention = Attention("attention")
            self.up, self.down = layers.Dense(4 * s.width), layers.Dense(s.width)

        def call(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.down(keras.activations.gelu(self.up(self.norm2(x)), False))

    class Encoder(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="encoder")
            self.words = layers.Embedding(s.words, s.width, name="words")
            self.places = self.add_weight(shape=(s.length, s.width), name="places")
            self.blocks = [Block(f"blocks_{i}") for i in range(s.depth)]
            self.norm, self.head = norm("norm"), layers.Dense(s.words, use_bias=False, name="head")

        def call(self, ids: Any) -> Any:
            x = self.words(ids) + self.places
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    model = Encoder()
    model(np.zeros((s.batch, s.length), "int64"))
    return model
