"""Defects of the Llama-style decoder.

A defect without a source was made up. Two parameters of one shape that have changed places are no
weights that differ, if each side's own are kept: the values say which belong together, and the
container that uses them the wrong way round is the place to look.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.llama.scratch_net import Block
from models.scratch import Array, GroupedQueryAttention, RMSNorm, Rotary, SwiGLU


def one_plus_weight(self: RMSNorm, x: Array) -> Array:
    return RMSNorm.forward(self, x) + self._xhat


def eps_beside_the_root(self: RMSNorm, x: Array) -> Array:
    root = np.sqrt((x * x).mean(axis=-1, keepdims=True))
    self._rrms = 1 / (root + self.eps)
    self._xhat = x * self._rrms
    return self._xhat * self.params["weight"]


def rounded_before_the_weight(self: RMSNorm, x: Array) -> Array:
    RMSNorm.forward(self, x)
    return self._xhat.astype(np.float16).astype(x.dtype) * self.params["weight"]


def slope_left_out(self: RMSNorm, dy: Array) -> Array:
    RMSNorm.backward(self, dy)
    return dy * self.params["weight"] * self._rrms


def residual_overwritten(self: Block, x: Array) -> Array:
    x = self.norm1.forward(x)  # in place, so the sum below adds the normalised x
    x = x + self.attn.forward(x)
    return x + self.mlp.forward(self.norm2.forward(x))


def tiled(self: GroupedQueryAttention, x: Array) -> Array:
    return np.tile(x, (1, self.heads // self.kv_heads, 1, 1))


def mean_of_the_group(self: GroupedQueryAttention, d: Array) -> Array:
    return GroupedQueryAttention.gather(self, d) / (self.heads // self.kv_heads)


def neighbours_paired(self: Rotary, x: Array, cos: Array, sin: Array) -> Array:
    """Channels 2i and 2i + 1 turn together, as in the paper."""
    first, second = x[..., ::2], x[..., 1::2]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return np.stack(turned, axis=-1).reshape(x.shape)


def angles_repeated(self: Rotary, x: Array, cos: Array, sin: Array) -> Array:
    """Each angle twice in a row, as neighbouring pairs need it, for two halves."""
    cos, sin = np.repeat(cos, 2, axis=-1), np.repeat(sin, 2, axis=-1)
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-second, first], axis=-1) * sin


def turned_again(self: Rotary, dy: Array) -> Array:
    return self.turn(dy, *self.angles(dy))


def gate_for_up(self: SwiGLU, x: Array) -> Array:
    self._gate = self.silu.forward(self.up.forward(x))
    self._up = self.gate.forward(x)
    return self.down.forward(self._gate * self._up)


def key_value_swapped(attention: GroupedQueryAttention) -> None:
    k, v = attention.k.params, attention.v.params
    k["weight"], v["weight"] = v["weight"], k["weight"]


def keras_one_plus_weight(self: Any, x: Any) -> Any:
    from keras import ops

    mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(mean + self.epsilon) * (1 + self.scale)


def keras_tiled(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.tile(x, (1, 3, 1, 1))


def keras_neighbours_paired(self: Any, x: Any, cos: Any, sin: Any) -> Any:
    from keras import ops

    first, second = x[..., ::2], x[..., 1::2]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return ops.reshape(ops.stack(turned, axis=-1), x.shape)


def keras_one_into_the_future(self: Any, length: int) -> Any:
    from keras import ops

    return ops.tril(ops.ones((length, length), dtype="bool"), k=1)


def keras_gelu(self: Any, x: Any) -> Any:
    from keras import activations

    return activations.gelu(x, approximate=False)


def keras_key_detached(self: Any, q: Any, k: Any, v: Any) -> Any:
    from keras import ops

    return type(self).__base__.call(self, q, ops.stop_gradient(k), v)


def keras_residual_detached(self: Any, x: Any) -> Any:
    from keras import ops

    x = x + self.attn(self.norm1(x))
    return ops.stop_gradient(x) + self.mlp(self.norm2(x))


numpy_defect = functools.partial(Defect, family="llama", candidate="numpy")
keras_defect = functools.partial(Defect, family="llama", candidate="keras")

DEFECTS: tuple[Defect, ...] = (
    numpy_defect(
        name="llama-numpy-rmsnorm-one-plus-weight",
        mistake="RMSNorm multiplies by 1 + weight for weight",
        source="linkedin/Liger-Kernel#74",
        phase="forward",
        site="blocks.0.norm2",
        inject=change("blocks.0.norm2", forward=one_plus_weight),
    ),
    numpy_defect(
        name="llama-numpy-rmsnorm-eps-beside-the-root",
        mistake="x / (rms + eps) for x / √(mean square + eps)",
        source="allenai/OLMo#281",
        phase="forward",
        site="blocks.0.norm1",
        inject=change("blocks.0.norm1", forward=eps_beside_the_root),
    ),
    numpy_defect(
        name="llama-numpy-rmsnorm-cast-early",
        mistake="RMSNorm rounds to half precision before the weight is applied",
        source="vllm-project/vllm#42379",
        phase="forward",
        site="norm",
        inject=change("norm", forward=rounded_before_the_weight),
    ),
    numpy_defect(
        name="llama-numpy-rmsnorm-backward",
        mistake="RMSNorm's backward takes the root mean square for a constant",
        source="",
        phase="backward",
        site="blocks.1.norm1",
        inject=change("blocks.1.norm1", backward=slope_left_out),
    ),
    numpy_defect(
        name="llama-numpy-residual-overwritten",
        mistake="an in-place norm overwrites the residual",
        source="GeeeekExplorer/nano-vllm#170",
        phase="forward",
        site="blocks.1",
        inject=change("blocks.1", forward=residual_overwritten),
    ),
    numpy_defect(
        name="llama-numpy-heads-tiled",
        mistake="key heads tiled for repeated: query heads look at the wrong ones",
        source="onnx/onnx#7274",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", spread=tiled),
    ),
    numpy_defect(
        name="llama-numpy-group-averaged-backward",
        mistake="backward averages over the queries that share a key for adding up",
        source="",
        phase="backward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", gather=mean_of_the_group),
    ),
    numpy_defect(
        name="llama-numpy-rotary-neighbours",
        mistake="neighbouring channels rotate together for one of each half",
        source="hipfire#241",
        phase="forward",
        site="blocks.1.attn.rotary",
        inject=change("blocks.1.attn.rotary", turn=neighbours_paired),
    ),
    numpy_defect(
        name="llama-numpy-rotary-angles-repeated",
        mistake="cos and sin laid out for neighbours, the rotation for halves",
        source="how-to-train-your-gpt#7",
        phase="forward",
        site="blocks.0.attn.rotary",
        inject=change("blocks.0.attn.rotary", turn=angles_repeated),
    ),
    numpy_defect(
        name="llama-numpy-rotary-base",
        mistake="rotary base 500000, as in Llama 3, for 10000",
        source="",
        phase="forward",
        site="blocks.1.attn.rotary",
        inject=change("blocks.1.attn.rotary", base=500000.0),
    ),
    numpy_defect(
        name="llama-numpy-rotary-backward",
        mistake="backward turns in the direction of forward",
        source="",
        phase="backward",
        site="blocks.1.attn.rotary#2",
        inject=change("blocks.1.attn.rotary", backward=turned_again),
    ),
    numpy_defect(
        name="llama-numpy-scale-missing",
        mistake="attention scores not divided by the root of the head size",
        source="ml-explore/mlx-swift-examples#99",
        phase="forward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", scale=1.0),
    ),
    numpy_defect(
        name="llama-numpy-gate-for-up",
        mistake="SiLU is applied to the other branch of SwiGLU",
        source="",
        phase="forward",
        site="blocks.0.mlp",
        inject=change("blocks.0.mlp", forward=gate_for_up),
    ),
    numpy_defect(
        name="llama-numpy-key-value-swapped",
        mistake="key and value loaded into each other's place",
        source="",
        phase="forward",
        site="blocks.1.attn",
        inject=alter("blocks.1.attn", key_value_swapped),
        keep_weights=True,
    ),
    keras_defect(
        name="llama-keras-rmsnorm-one-plus-weight",
        mistake="RMSNorm multiplies by 1 + weight for weight",
        source="linkedin/Liger-Kernel#74",
        phase="forward",
        site="blocks_1/norm1",
        inject=change("blocks_1/norm1", call=keras_one_plus_weight),
    ),
    keras_defect(
        name="llama-keras-rmsnorm-eps-1e-3",
        mistake="RMSNorm eps 1e-3 for 1e-5: the reference's setting is ignored",
        source="",
        phase="forward",
        site="norm",
        inject=change("norm", epsilon=1e-3),
    ),
    keras_defect(
        name="llama-keras-heads-tiled",
        mistake="key heads tiled for repeated: query heads look at the wrong ones",
        source="apple/axlearn#842",
        phase="forward",
        site="blocks_1/attn",
        inject=change("blocks_1/attn", spread=keras_tiled),
    ),
    keras_defect(
        name="llama-keras-rotary-neighbours",
        mistake="neighbouring channels rotate together for one of each half",
        source="hipfire#241",
        phase="forward",
        site="blocks_0/attn/rotary",
        inject=change("blocks_0/attn/rotary", turn=keras_neighbours_paired),
    ),
    keras_defect(
        name="llama-keras-future-leaks",
        mistake="the mask lets a position see its successor",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks_1/attn/core",
        inject=change("blocks_1/attn/core", visible=keras_one_into_the_future),
    ),
    keras_defect(
        name="llama-keras-gelu-for-silu",
        mistake="GELU for SiLU",
        source="",
        phase="forward",
        site="blocks_0/mlp/silu",
        inject=change("blocks_0/mlp/silu", call=keras_gelu),
    ),
    keras_defect(
        name="llama-keras-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks_0/attn/core/softmax",
        inject=change("blocks_0/attn/core/softmax", axis=-2),
    ),
    keras_defect(
        name="llama-keras-key-detached",
        mistake="no gradient reaches the key",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks_0/attn/core",
        inject=change("blocks_0/attn/core", call=keras_key_detached),
    ),
    keras_defect(
        name="llama-keras-residual-detached",
        mistake="no gradient passes along the residual path",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks_1",
        inject=change("blocks_1", call=keras_residual_detached),
    ),
)
