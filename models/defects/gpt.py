"""Defects of the GPT."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change, with_gradient
from models.gpt.scratch_net import Block
from models.scratch import (
    GELU,
    Array,
    CausalSelfAttention,
    Embedding,
    LayerNorm,
    Linear,
    Softmax,
    TiedHead,
)

SPACE = 1  # the token of a blank, the most frequent one


def tanh_gelu(self: GELU, x: Array) -> Array:
    self._x = x
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def tanh_gelu_backward(self: GELU, dy: Array) -> Array:
    x, c = self._x, math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return dy * ((1 + t) / 2 + x * (1 - t**2) / 2 * c * (1 + 3 * 0.044715 * x**2))


def quick_gelu(self: GELU, x: Array) -> Array:
    self._x, self._s = x, 1 / (1 + np.exp(-1.702 * x))
    return x * self._s


def quick_gelu_backward(self: GELU, dy: Array) -> Array:
    return dy * self._s * (1 + 1.702 * self._x * (1 - self._s))


def one_plus_weight(self: LayerNorm, x: Array) -> Array:
    return LayerNorm.forward(self, x) + self._xhat


def rounded_before_the_weight(self: LayerNorm, x: Array) -> Array:
    LayerNorm.forward(self, x)
    rounded = self._xhat.astype(np.float16).astype(x.dtype)
    return rounded * self.params["weight"] + self.params["bias"]


def two_rows_on(self: Embedding, index: Array) -> Array:
    return Embedding.forward(self, index + 2)


def frozen_row(self: Embedding, dy: Array) -> None:
    Embedding.backward(self, np.where((self._index == SPACE)[..., None], 0.0, dy))


def no_gradient(self: Embedding, dy: Array) -> None:
    return None


def stale_copy(self: TiedHead, dy: Array) -> Array:
    return dy @ self._embedding.params["weight"]  # the gradient went to a copy


def one_into_the_future(self: CausalSelfAttention, scores: Array) -> Array:
    return np.tril(np.ones(scores.shape[-2:], dtype=bool), k=1)


def unscaled_backward(self: CausalSelfAttention, dy: Array) -> Array:
    scale, self.scale = self.scale, 1.0
    dx = CausalSelfAttention.backward(self, dy)
    self.scale = scale
    return dx


def softmax_without_sum(self: Softmax, dy: Array) -> Array:
    return self._p * dy


def residual_overwritten(self: Block, x: Array) -> Array:
    x = self.ln1.forward(x)  # in place, so the sum below adds the normalised x
    x = x + self.attn.forward(x)
    return x + self.mlp.forward(self.ln2.forward(x))


def residual_overwritten_backward(self: Block, dy: Array) -> Array:
    dy = dy + self.ln2.backward(self.mlp.backward(dy))
    return self.ln1.backward(dy + self.attn.backward(dy))


def transpose_weight(layer: Linear) -> None:
    layer.params["weight"] = layer.params["weight"].T.copy()


def transpose_kernel(layer: Any) -> None:
    layer.kernel.assign(layer.kernel.numpy().T)


def keras_tanh_gelu(self: Any, x: Any) -> Any:
    from keras import activations

    return activations.gelu(x, approximate=True)


def everything_visible(self: Any, length: int) -> Any:
    from keras import ops

    return ops.ones((length, length), dtype="bool")


def split_per_head(self: Any, qkv: Any) -> Any:
    """Reads the columns as (head, q k v, hs); they are (q k v, head, hs)."""
    from keras import ops

    from models.gpt.keras_port import DIM, HEADS

    batch, length, _ = qkv.shape
    qkv = ops.reshape(qkv, (batch, length, HEADS, 3, DIM // HEADS))
    return ops.unstack(ops.transpose(qkv, (3, 0, 2, 1, 4)), 3)


def detached_key(self: Any, qkv: Any) -> Any:
    from keras import ops

    q, k, v = type(self).__base__.split_qkv(self, qkv)
    return q, ops.stop_gradient(k), v


def keras_softmax_without_sum(self: Any, x: Any, mask: Any = None) -> Any:
    from keras import ops

    return with_gradient(ops.softmax, lambda x, dy: ops.softmax(x) * dy)(x)


def detached_residual(self: Any, x: Any) -> Any:
    from keras import ops

    x = x + self.attn(self.ln1(x))
    return ops.stop_gradient(x) + self.mlp(self.ln2(x))


def detached_table(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.matmul(x, ops.transpose(ops.stop_gradient(self.table())))


numpy_defect = functools.partial(Defect, family="gpt", candidate="numpy")
keras_defect = functools.partial(Defect, family="gpt", candidate="keras")

DEFECTS: tuple[Defect, ...] = (
    numpy_defect(
        name="gpt-numpy-gelu-tanh",
        mistake="GELU in its tanh form for erf",
        source="chelsea0x3b/dfdx#804",
        phase="forward",
        site="blocks.0.mlp.gelu",
        inject=change("blocks.0.mlp.gelu", forward=tanh_gelu, backward=tanh_gelu_backward),
    ),
    numpy_defect(
        name="gpt-numpy-gelu-quick",
        mistake="GELU as x · σ(1.702 x) for erf",
        source="huggingface/pytorch-image-models#2031",
        phase="forward",
        site="blocks.1.mlp.gelu",
        inject=change("blocks.1.mlp.gelu", forward=quick_gelu, backward=quick_gelu_backward),
    ),
    numpy_defect(
        name="gpt-numpy-layernorm-eps-1e-12",
        mistake="LayerNorm eps 1e-12 for 1e-5",
        source="mindspore-lab/mindone#225",
        phase="forward",
        site="ln_f",
        inject=change("ln_f", eps=1e-12),
    ),
    numpy_defect(
        name="gpt-numpy-layernorm-one-plus-weight",
        mistake="LayerNorm multiplies by 1 + weight for weight",
        source="linkedin/Liger-Kernel#74",
        phase="forward",
        site="blocks.1.ln2",
        inject=change("blocks.1.ln2", forward=one_plus_weight),
    ),
    numpy_defect(
        name="gpt-numpy-layernorm-cast-early",
        mistake="LayerNorm rounds to half precision before the weight is applied",
        source="vllm-project/vllm#42379",
        phase="forward",
        site="blocks.1.ln1",
        inject=change("blocks.1.ln1", forward=rounded_before_the_weight),
    ),
    numpy_defect(
        name="gpt-numpy-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks.0.attn.softmax",
        inject=change("blocks.0.attn.softmax", axis=-2),
    ),
    numpy_defect(
        name="gpt-numpy-future-leaks",
        mistake="the mask lets a position see its successor",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", visible=one_into_the_future),
    ),
    numpy_defect(
        name="gpt-numpy-scale-missing",
        mistake="attention scores not divided by the root of the head size",
        source="ml-explore/mlx-swift-examples#99",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", scale=1.0),
    ),
    numpy_defect(
        name="gpt-numpy-residual-overwritten",
        mistake="an in-place norm overwrites the residual",
        source="GeeeekExplorer/nano-vllm#170",
        phase="forward",
        site="blocks.0",
        inject=change(
            "blocks.0", forward=residual_overwritten, backward=residual_overwritten_backward
        ),
    ),
    numpy_defect(
        name="gpt-numpy-position-offset",
        mistake="position embeddings read two rows further on",
        source="huggingface/transformers#20761",
        phase="forward",
        site="wpe",
        inject=change("wpe", forward=two_rows_on),
    ),
    numpy_defect(
        name="gpt-numpy-gelu-backward",
        mistake="GELU right, its derivative that of the tanh form",
        source="huggingface/candle#900",
        phase="backward",
        site="blocks.1.mlp.gelu",
        inject=change("blocks.1.mlp.gelu", backward=tanh_gelu_backward),
    ),
    numpy_defect(
        name="gpt-numpy-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks.1.attn.softmax",
        inject=change("blocks.1.attn.softmax", backward=softmax_without_sum),
    ),
    numpy_defect(
        name="gpt-numpy-scale-backward",
        mistake="attention's backward forgets the scale",
        source="ml-explore/mlx-swift-examples#99",
        phase="backward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", backward=unscaled_backward),
    ),
    numpy_defect(
        name="gpt-numpy-padding-row-frozen",
        mistake="a padding index freezes the row of the blank",
        source="huggingface/transformers#19265",
        phase="parameter_gradient",
        site="wte.weight",
        inject=change("wte", backward=frozen_row),
    ),
    numpy_defect(
        name="gpt-numpy-head-stale",
        mistake="the tied head's gradient goes to a stale copy",
        source="Lightning-AI/litgpt#1727",
        phase="parameter_gradient",
        site="wte.weight",
        inject=change("lm_head", backward=stale_copy),
    ),
    numpy_defect(
        name="gpt-numpy-positions-detached",
        mistake="position embeddings receive no gradient",
        source="paiml/aprender#3034",
        phase="parameter_gradient",
        site="wpe.weight",
        inject=change("wpe", backward=no_gradient),
    ),
    numpy_defect(
        name="gpt-numpy-square-not-transposed",
        mistake="a square weight not transposed by the conversion",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks.0.attn.c_proj.weight",
        inject=alter("blocks.0.attn.c_proj", transpose_weight),
        keep_weights=True,
    ),
    keras_defect(
        name="gpt-keras-gelu-tanh",
        mistake="GELU in its tanh form for erf",
        source="huggingface/candle#900",
        phase="forward",
        site="blocks_1/mlp/gelu",
        inject=change("blocks_1/mlp/gelu", call=keras_tanh_gelu),
    ),
    keras_defect(
        name="gpt-keras-layernorm-eps-1e-3",
        mistake="LayerNorm eps 1e-3, Keras' default, for 1e-5",
        source="huggingface/transformers#15332",
        phase="forward",
        site="blocks_0/ln2",
        inject=change("blocks_0/ln2", epsilon=1e-3),
    ),
    keras_defect(
        name="gpt-keras-mask-missing",
        mistake="attention without its mask: the future leaks",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks_0/attn",
        inject=change("blocks_0/attn", visible=everything_visible),
    ),
    keras_defect(
        name="gpt-keras-qkv-per-head",
        mistake="packed q, k, v split per head for flat",
        source="lablup/mlxcel#928",
        phase="forward",
        site="blocks_1/attn",
        inject=change("blocks_1/attn", split_qkv=split_per_head),
    ),
    keras_defect(
        name="gpt-keras-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks_1/attn/softmax",
        inject=change("blocks_1/attn/softmax", axis=-2),
    ),
    keras_defect(
        name="gpt-keras-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks_0/attn/softmax",
        inject=change("blocks_0/attn/softmax", call=keras_softmax_without_sum),
    ),
    keras_defect(
        name="gpt-keras-key-detached",
        mistake="the key is detached: no gradient reaches it",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks_1/attn",
        inject=change("blocks_1/attn", split_qkv=detached_key),
    ),
    keras_defect(
        name="gpt-keras-residual-detached",
        mistake="the residual path is detached: gradients pass through the layers only",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks_0",
        inject=change("blocks_0", call=detached_residual),
    ),
    keras_defect(
        name="gpt-keras-head-stale",
        mistake="the tied head's gradient does not reach the table",
        source="Lightning-AI/litgpt#1727",
        phase="parameter_gradient",
        site="wte/embeddings",
        inject=change("lm_head", call=detached_table),
    ),
    keras_defect(
        name="gpt-keras-square-not-transposed",
        mistake="a square kernel not transposed by the conversion",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks_1/attn/c_proj/kernel",
        inject=alter("blocks_1/attn/c_proj", transpose_kernel),
        keep_weights=True,
    ),
)
