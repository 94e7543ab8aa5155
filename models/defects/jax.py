"""Defects of the Flax NNX ports: the defaults of Flax, and what JAX makes easy to get wrong.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from models.defects.base import Defect, alter, change

jax_defect = functools.partial(Defect, candidate="jax")


def plain_relu(self: Any, x: Any) -> Any:
    from flax import nnx

    return nnx.relu(x)


def silu(self: Any, x: Any) -> Any:
    from flax import nnx

    return nnx.silu(x)


def zero_border(self: Any, x: Any) -> Any:
    import jax.numpy as jnp
    from flax import nnx

    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nnx.max_pool(padded, (3, 3), strides=(2, 2), padding="VALID")


def without_shortcut(self: Any, x: Any) -> Any:
    return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))


def pool_over_batch(self: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.mean(x, axis=(1, 2)) - jnp.mean(x, axis=(0, 1, 2)) + jnp.mean(x)


def everything_visible(self: Any, length: int) -> Any:
    import jax.numpy as jnp

    return jnp.ones((length, length), bool)


def split_per_head(self: Any, qkv: Any) -> Any:
    from models.gpt.jax_port import DIM, HEADS

    batch, length, _ = qkv.shape
    return qkv.reshape(batch, length, HEADS, 3, DIM // HEADS).transpose(3, 0, 2, 1, 4)


def detached_value(self: Any, qkv: Any) -> Any:
    import jax

    from models.gpt.jax_port import CausalSelfAttention

    q, k, v = CausalSelfAttention.split_qkv(self, qkv)
    return q, k, jax.lax.stop_gradient(v)


def softmax_without_sum(self: Any, x: Any) -> Any:
    """Backward y · dy in place of y · (dy − Σ y dy)."""
    import jax

    @jax.custom_vjp
    def softmax(x: Any) -> Any:
        return jax.nn.softmax(x, axis=-1)

    def forward(x: Any) -> Any:
        y = jax.nn.softmax(x, axis=-1)
        return y, y

    softmax.defvjp(forward, lambda y, dy: (y * dy,))
    return softmax(x)


def detached_branch(self: Any, x: Any) -> Any:
    import jax

    x = jax.lax.stop_gradient(x) + self.attn(self.ln1(x))
    return x + self.mlp(self.ln2(x))


def detached_table(self: Any, x: Any, table: Any) -> Any:
    import jax

    return x @ jax.lax.stop_gradient(table).T


def transposed(layer: Any) -> None:
    layer.kernel[...] = layer.kernel[...].T


DEFECTS: tuple[Defect, ...] = (
    jax_defect(
        name="mlp-jax-layernorm-eps-1e-6",
        family="mlp",
        mistake="LayerNorm eps 1e-6, Flax' default, for 1e-5",
        source="huggingface/transformers#15332",
        phase="forward",
        site="norm",
        inject=change("norm", epsilon=1e-6),
    ),
    jax_defect(
        name="mlp-jax-relu-for-leaky",
        family="mlp",
        mistake="ReLU for LeakyReLU",
        source="",
        phase="forward",
        site="act1",
        inject=change("act1", __call__=plain_relu),
    ),
    jax_defect(
        name="mlp-jax-silu-for-hardswish",
        family="mlp",
        mistake="SiLU for its piecewise form",
        source="",
        phase="forward",
        site="act2",
        inject=change("act2", __call__=silu),
    ),
    jax_defect(
        name="cnn-jax-strided-same",
        family="cnn",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1.conv1",
        inject=change("block1.conv1", padding="SAME"),
    ),
    jax_defect(
        name="cnn-jax-maxpool-zero-border",
        family="cnn",
        mistake="max-pool pads with 0 for -inf",
        source="tensorflow/tensorflow#48105",
        phase="forward",
        site="stem.pool",
        inject=change("stem.pool", __call__=zero_border),
    ),
    jax_defect(
        name="cnn-jax-avgpool-counts-padding",
        family="cnn",
        mistake="average pool counts its padding, Flax' default",
        source="microsoft/onnxruntime#16203",
        phase="forward",
        site="block1.shortcut.pool",
        inject=change("block1.shortcut.pool", count_include_pad=True),
    ),
    jax_defect(
        name="cnn-jax-shortcut-missing",
        family="cnn",
        mistake="the residual sum lacks its shortcut",
        source="",
        phase="forward",
        site="block2",
        inject=change("block2", __call__=without_shortcut),
    ),
    jax_defect(
        name="cnn-jax-pool-centred-over-batch",
        family="cnn",
        mistake="the global mean mixes the images of a batch",
        source="",
        phase="forward",
        site="pool",
        inject=change("pool", __call__=pool_over_batch),
    ),
    jax_defect(
        name="cnn-jax-batchnorm-biased",
        family="cnn",
        mistake="running variance biased for unbiased",
        source="tinygrad/tinygrad#807",
        phase="buffer",
        site="block1.shortcut.bn.var",
        inject=change("block1.shortcut.bn", unbiased=False),
        train=True,
    ),
    jax_defect(
        name="gpt-jax-gelu-tanh",
        family="gpt",
        mistake="GELU in its tanh form, Flax' default, for erf",
        source="huggingface/candle#900",
        phase="forward",
        site="blocks.1.mlp.gelu",
        inject=change("blocks.1.mlp.gelu", approximate=True),
    ),
    jax_defect(
        name="gpt-jax-scale-of-all-heads",
        family="gpt",
        mistake="scores scaled by the model's width for a head's",
        source="",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", scale=1 / math.sqrt(48)),
    ),
    jax_defect(
        name="gpt-jax-mask-missing",
        family="gpt",
        mistake="attention without its mask: the future leaks",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", visible=everything_visible),
    ),
    jax_defect(
        name="gpt-jax-qkv-per-head",
        family="gpt",
        mistake="packed q, k, v split per head for flat",
        source="lablup/mlxcel#928",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", split_qkv=split_per_head),
    ),
    jax_defect(
        name="gpt-jax-softmax-axis",
        family="gpt",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks.1.attn.softmax",
        inject=change("blocks.1.attn.softmax", axis=-2),
    ),
    jax_defect(
        name="gpt-jax-softmax-backward",
        family="gpt",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks.0.attn.softmax",
        inject=change("blocks.0.attn.softmax", __call__=softmax_without_sum),
    ),
    jax_defect(
        name="gpt-jax-value-detached",
        family="gpt",
        mistake="stop_gradient on the value: no gradient reaches it",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", split_qkv=detached_value),
    ),
    jax_defect(
        name="gpt-jax-residual-detached",
        family="gpt",
        mistake="stop_gradient on the residual path: gradients pass through the layers only",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks.0",
        inject=change("blocks.0", __call__=detached_branch),
    ),
    jax_defect(
        name="gpt-jax-head-stale",
        family="gpt",
        mistake="the tied head's gradient does not reach the table",
        source="Lightning-AI/litgpt#1727",
        phase="parameter_gradient",
        site="wte.embedding",
        inject=change("lm_head", __call__=detached_table),
    ),
    jax_defect(
        name="gpt-jax-square-not-transposed",
        family="gpt",
        mistake="a square kernel not transposed by the conversion",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks.1.attn.c_proj.kernel",
        inject=alter("blocks.1.attn.c_proj", transposed),
        keep_weights=True,
    ),
)
