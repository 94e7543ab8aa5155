"""Defects of the BERT-style encoder.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from models.bert.scratch_net import Embeddings
from models.data import PADDING
from models.defects.base import Defect, alter, change, with_gradient
from models.scratch import Array, Embedding, PaddedSelfAttention, ScaledDotProduct, Softmax


def types_left_out(self: Embeddings, tokens: Array, types: Array) -> Array:
    x = self.tokens.forward(tokens) + self.positions.forward(np.arange(tokens.shape[1]))
    self.types.forward(types)
    return self.norm.forward(x)


def positions_after_padding(self: Embedding, index: Array) -> Array:
    return Embedding.forward(self, index + 2)


def padding_frozen(self: Embedding, dy: Array) -> None:
    Embedding.backward(self, np.where((self._index == PADDING)[..., None], 0.0, dy))


def inverted(self: PaddedSelfAttention, present: Array) -> Array:
    return ~PaddedSelfAttention.visible(self, present)


def padding_visible(self: PaddedSelfAttention, present: Array) -> Array:
    return np.ones_like(PaddedSelfAttention.visible(self, present))


def softmax_without_sum(self: Softmax, dy: Array) -> Array:
    return self._p * dy


def query_for_key(self: ScaledDotProduct, dy: Array) -> tuple[Array, Array, Array]:
    dq, dk, dv = ScaledDotProduct.backward(self, dy)
    return dk, dq, dv


def keras_types_left_out(self: Any, tokens: Any, types: Any) -> Any:
    from keras import ops

    self.types(types)
    return self.norm(self.tokens(tokens) + self.positions(ops.arange(tokens.shape[1])))


def keras_padding_visible(self: Any, present: Any) -> Any:
    from keras import ops

    return ops.ones_like(type(self).__base__.visible(self, present))


def keras_tanh_gelu(self: Any, x: Any) -> Any:
    from keras import activations

    return activations.gelu(x, approximate=True)


def keras_softmax_without_sum(self: Any, x: Any, mask: Any = None) -> Any:
    from keras import ops

    return with_gradient(ops.softmax, lambda x, dy: ops.softmax(x) * dy)(x)


def keras_heads_not_swapped(self: Any, x: Any) -> Any:
    """The numbers as (B, nh, T, hs) without the axes having changed places."""
    from keras import ops

    from models.bert.keras_port import DIM, HEADS

    batch, length, _ = x.shape
    return ops.reshape(x, (batch, HEADS, length, DIM // HEADS))


def keras_residual_left_out(self: Any, x: Any, present: Any) -> Any:
    x = self.ln1(self.attn(x, present))
    return self.ln2(x + self.mlp(x))


def keras_transposed(layer: Any) -> None:
    layer.kernel.assign(layer.kernel.numpy().T)


def jax_masked_by_infinity(self: Any, q: Any, k: Any, v: Any, visible: Any) -> Any:
    import jax.numpy as jnp

    scores = q @ k.swapaxes(-1, -2) * self.scale
    return self.softmax(jnp.where(visible, scores, -jnp.inf)) @ v


def jax_masked_after_softmax(self: Any, q: Any, k: Any, v: Any, visible: Any) -> Any:
    att = self.softmax(q @ k.swapaxes(-1, -2) * self.scale)
    return (att * visible) @ v


def jax_positions_after_padding(self: Any, index: Any) -> Any:
    return type(self).__base__.__call__(self, index + 1)


def jax_value_detached(self: Any, q: Any, k: Any, v: Any, visible: Any) -> Any:
    import jax

    return type(self).__base__.__call__(self, q, k, jax.lax.stop_gradient(v), visible)


def jax_inverted(self: Any, present: Any) -> Any:
    return ~type(self).__base__.visible(self, present)


def jax_transposed(layer: Any) -> None:
    layer.kernel[...] = layer.kernel[...].T


numpy_defect = functools.partial(Defect, family="bert", candidate="numpy")
keras_defect = functools.partial(Defect, family="bert", candidate="keras")
jax_defect = functools.partial(Defect, family="bert", candidate="jax")

DEFECTS: tuple[Defect, ...] = (
    numpy_defect(
        name="bert-numpy-layernorm-eps-1e-5",
        mistake="LayerNorm eps 1e-5, PyTorch's default, for 1e-12",
        source="huggingface/transformers#15332",
        phase="forward",
        site="blocks.0.ln2",
        inject=change("blocks.0.ln2", eps=1e-5),
    ),
    numpy_defect(
        name="bert-numpy-types-left-out",
        mistake="the sum of the embeddings lacks that of the token type",
        source="",
        phase="forward",
        site="embeddings",
        inject=change("embeddings", forward=types_left_out),
    ),
    numpy_defect(
        name="bert-numpy-positions-after-padding",
        mistake="position embeddings read two rows further on",
        source="huggingface/transformers#20761",
        phase="forward",
        site="embeddings.positions",
        inject=change("embeddings.positions", forward=positions_after_padding),
    ),
    numpy_defect(
        name="bert-numpy-padding-row-frozen",
        mistake="the padding token's row receives no gradient",
        source="huggingface/transformers#19265",
        phase="parameter_gradient",
        site="embeddings.tokens.weight",
        inject=change("embeddings.tokens", backward=padding_frozen),
    ),
    numpy_defect(
        name="bert-numpy-mask-inverted",
        mistake="the padding is seen and the tokens are not",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", visible=inverted),
    ),
    numpy_defect(
        name="bert-numpy-mask-missing",
        mistake="attention looks at padding",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", visible=padding_visible),
    ),
    numpy_defect(
        name="bert-numpy-masked-by-infinity",
        mistake="scores masked with -inf for a finite number: NaN where everything is masked",
        source="huggingface/transformers#15326",
        phase="forward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", masked=-math.inf),
    ),
    numpy_defect(
        name="bert-numpy-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks.1.attn.core.softmax",
        inject=change("blocks.1.attn.core.softmax", axis=-2),
    ),
    numpy_defect(
        name="bert-numpy-scale-of-all-heads",
        mistake="scores scaled by the model's width for a head's",
        source="",
        phase="forward",
        site="blocks.1.attn.core",
        inject=change("blocks.1.attn.core", scale=1 / math.sqrt(30)),
    ),
    numpy_defect(
        name="bert-numpy-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks.0.attn.core.softmax",
        inject=change("blocks.0.attn.core.softmax", backward=softmax_without_sum),
    ),
    numpy_defect(
        name="bert-numpy-query-for-key-backward",
        mistake="backward gives the query's gradient to the key and the key's to the query",
        source="",
        phase="backward",
        site="blocks.1.attn.core",
        inject=change("blocks.1.attn.core", backward=query_for_key),
    ),
    keras_defect(
        name="bert-keras-layernorm-eps-1e-3",
        mistake="LayerNorm eps 1e-3, Keras' default, for 1e-12",
        source="huggingface/transformers#15332",
        phase="forward",
        site="embeddings/norm",
        inject=change("embeddings/norm", epsilon=1e-3),
    ),
    keras_defect(
        name="bert-keras-types-left-out",
        mistake="the sum of the embeddings lacks that of the token type",
        source="",
        phase="forward",
        site="embeddings",
        inject=change("embeddings", call=keras_types_left_out),
    ),
    keras_defect(
        name="bert-keras-mask-missing",
        mistake="attention looks at padding",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks_0/attn",
        inject=change("blocks_0/attn", visible=keras_padding_visible),
    ),
    keras_defect(
        name="bert-keras-gelu-tanh",
        mistake="GELU in its tanh form for erf",
        source="huggingface/candle#900",
        phase="forward",
        site="blocks_1/mlp/gelu",
        inject=change("blocks_1/mlp/gelu", call=keras_tanh_gelu),
    ),
    keras_defect(
        name="bert-keras-heads-not-swapped",
        mistake="heads split by a reshape without exchanging axes",
        source="lablup/mlxcel#928",
        phase="forward",
        site="blocks_0/attn",
        inject=change("blocks_0/attn", split_heads=keras_heads_not_swapped),
    ),
    keras_defect(
        name="bert-keras-residual-left-out",
        mistake="the sum behind the attention lacks the residual",
        source="",
        phase="forward",
        site="blocks_1",
        inject=change("blocks_1", call=keras_residual_left_out),
    ),
    keras_defect(
        name="bert-keras-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks_1/attn/core/softmax",
        inject=change("blocks_1/attn/core/softmax", call=keras_softmax_without_sum),
    ),
    keras_defect(
        name="bert-keras-square-not-transposed",
        mistake="a square kernel not transposed by the conversion",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks_0/attn/query/kernel",
        inject=alter("blocks_0/attn/query", keras_transposed),
        keep_weights=True,
    ),
    jax_defect(
        name="bert-jax-layernorm-eps-1e-5",
        mistake="the inner norm with an eps of its own, 1e-5 for 1e-12",
        source="",
        phase="forward",
        site="blocks.1.ln1",
        inject=change("blocks.1.ln1", epsilon=1e-5),
    ),
    jax_defect(
        name="bert-jax-masked-by-infinity",
        mistake="scores masked with -inf for a finite number: NaN where everything is masked",
        source="huggingface/transformers#15326",
        phase="forward",
        site="blocks.1.attn.core",
        inject=change("blocks.1.attn.core", __call__=jax_masked_by_infinity),
    ),
    jax_defect(
        name="bert-jax-masked-after-softmax",
        mistake="padding masked behind the softmax: the weights no longer sum to one",
        source="",
        phase="forward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", __call__=jax_masked_after_softmax),
    ),
    jax_defect(
        name="bert-jax-mask-inverted",
        mistake="the padding is seen and the tokens are not",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", visible=jax_inverted),
    ),
    jax_defect(
        name="bert-jax-scale-missing",
        mistake="attention scores not divided by the root of the head size",
        source="ml-explore/mlx-swift-examples#99",
        phase="forward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", scale=1.0),
    ),
    jax_defect(
        name="bert-jax-positions-after-padding",
        mistake="position embeddings read one row further on",
        source="huggingface/transformers#20761",
        phase="forward",
        site="embeddings.positions",
        inject=change("embeddings.positions", __call__=jax_positions_after_padding),
    ),
    jax_defect(
        name="bert-jax-value-detached",
        mistake="no gradient reaches the value",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", __call__=jax_value_detached),
    ),
    jax_defect(
        name="bert-jax-square-not-transposed",
        mistake="a square kernel not transposed by the conversion",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks.1.attn.key.kernel",
        inject=alter("blocks.1.attn.key", jax_transposed),
        keep_weights=True,
    ),
)
