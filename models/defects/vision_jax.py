"""Defects of the vision models in Flax NNX: its defaults, and what JAX makes easy to get wrong.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
from typing import Any

from models.defects.base import Defect, alter, change
from models.defects.jax import silu


def pixel_after_pixel(self: Any, x: Any) -> Any:
    return x.reshape(len(x), -1)


def largest(self: Any, x: Any) -> Any:
    from flax import nnx

    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def steep_gate(self: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.clip(0.2 * x + 0.5, 0, 1)


def detached_scale(self: Any, x: Any) -> Any:
    import jax

    scale = self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))
    return x * jax.lax.stop_gradient(scale)[:, None, None, :]


def turned(layer: Any) -> None:
    layer.kernel[...] = layer.kernel[...][::-1, ::-1]


def channels_first_for_last(layer: Any) -> None:
    """The memory of (C, H, W) read as (H, W, C)."""
    kernel = layer.kernel[...]  # (H, W, 1, C)
    layer.kernel[...] = kernel.transpose(3, 0, 1, 2).reshape(kernel.shape)


def corners_on_corners(self: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    (height, width), (rows, columns) = x.shape[1:3], self.size
    scale = jnp.array([(rows - 1) / (height - 1), (columns - 1) / (width - 1)], x.dtype)
    shape, shift = (len(x), rows, columns, x.shape[-1]), 0.5 - 0.5 * scale
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, shift, "linear", antialias=False)


def nearest(self: Any, x: Any) -> Any:
    import jax

    return jax.image.resize(x, (len(x), *self.size, x.shape[-1]), "nearest")


def skip_last(self: Any, skip: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([x, skip], axis=-1)


def max_of_slices(self: Any, x: Any) -> Any:
    """A maximum over four shifted images, whose gradient JAX shares among equals."""
    import jax.numpy as jnp

    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return jnp.max(jnp.stack([x[:, i::2, j::2] for i in range(2) for j in range(2)]), axis=0)


def column_by_column(self: Any, x: Any) -> Any:
    return x.swapaxes(1, 2).reshape(len(x), -1, x.shape[-1])


def positions_from_one(self: Any, x: Any) -> Any:
    import jax.numpy as jnp

    from models.vit.jax_port import Embedding

    positions = self.positions[...]
    return Embedding.__call__(self, x) - positions + jnp.roll(positions, -1, axis=1)


def softmax_over_queries(query: Any, key: Any, value: Any, **options: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bqhd,bkhd->bhqk", query / query.shape[-1] ** 0.5, key)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-2), value)


def attend_over_queries(layer: Any) -> None:
    layer.attention_fn = softmax_over_queries


def mean_of_tokens(self: Any, x: Any) -> Any:
    """Global pooling in place of the class token."""
    import jax.numpy as jnp

    x = self.embedding(x)
    for block in self.blocks:
        x = block(x)
    return self.head(jnp.mean(self.ln(x), axis=1))


def detached_images(self: Any, z: Any, real: Any) -> Any:
    import jax

    made = jax.lax.stop_gradient(self.generator(z))
    return self.discriminator(real), self.discriminator(made)


def deviation_of_logvar(self: Any, mean: Any, logvar: Any, noise: Any) -> Any:
    import jax.numpy as jnp

    return mean + jnp.exp(logvar) * noise


def detached_deviation(self: Any, mean: Any, logvar: Any, noise: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return mean + jax.lax.stop_gradient(jnp.exp(logvar / 2)) * noise


lenet = functools.partial(Defect, family="lenet", candidate="jax")
mobilenet = functools.partial(Defect, family="mobilenet", candidate="jax")
unet = functools.partial(Defect, family="unet", candidate="jax")
vit = functools.partial(Defect, family="vit", candidate="jax")
dcgan = functools.partial(Defect, family="dcgan", candidate="jax")
vae = functools.partial(Defect, family="vae", candidate="jax")

DEFECTS: tuple[Defect, ...] = (
    lenet(
        name="lenet-jax-flatten-channels-last",
        mistake="maps flattened pixel after pixel, as Flax lays them out",
        source="",
        phase="forward",
        site="model_output",
        inject=change("flatten", __call__=pixel_after_pixel),
    ),
    lenet(
        name="lenet-jax-pool-max",
        mistake="subsampling by the maximum for the mean",
        source="",
        phase="forward",
        site="s4.pool",
        inject=change("s4.pool", __call__=largest),
    ),
    mobilenet(
        name="mobilenet-jax-strided-same",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1.depthwise",
        inject=change("block1.depthwise", padding="SAME"),
    ),
    mobilenet(
        name="mobilenet-jax-hardsigmoid-slope",
        mistake="hard sigmoid with slope 0.2 for 1/6",
        source="pytorch/pytorch#34545",
        phase="forward",
        site="block1.se.gate",
        inject=change("block1.se.gate", __call__=steep_gate),
    ),
    mobilenet(
        name="mobilenet-jax-silu-for-hardswish",
        mistake="SiLU for its piecewise form",
        source="",
        phase="forward",
        site="stem.act",
        inject=change("stem.act", __call__=silu),
    ),
    mobilenet(
        name="mobilenet-jax-scale-detached",
        mistake="stop_gradient on the scale of squeeze and excitation",
        source="paiml/aprender#3034",
        phase="backward",
        site="block2.se",
        inject=change("block2.se", __call__=detached_scale),
    ),
    mobilenet(
        name="mobilenet-jax-batchnorm-momentum",
        mistake="BatchNorm momentum 0.99, Flax' default, for 0.9",
        source="huggingface/transformers#19454",
        phase="buffer",
        site="block1.project_bn.mean",
        inject=change("block1.project_bn", momentum=0.99),
        train=True,
    ),
    mobilenet(
        name="mobilenet-jax-depthwise-channels-first",
        mistake="depthwise kernels (C, H, W) read as (H, W, C)",
        source="pytorch/executorch#18455",
        phase="weights",
        site="block1.depthwise.kernel",
        inject=alter("block1.depthwise", channels_first_for_last),
        keep_weights=True,
    ),
    unet(
        name="unet-jax-transposed-shifted",
        mistake="a transposed convolution pads on the other side: shifted by a pixel",
        source="keras-team/keras#22876",
        phase="forward",
        site="enlarge2",
        inject=change("enlarge2", padding=((2, 1), (2, 1))),
    ),
    unet(
        name="unet-jax-resize-align-corners",
        mistake="resize puts the corners on the corners",
        source="onnx/tensorflow-onnx#914",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", __call__=corners_on_corners),
    ),
    unet(
        name="unet-jax-resize-nearest",
        mistake="resize to the nearest pixel for bilinear",
        source="",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", __call__=nearest),
    ),
    unet(
        name="unet-jax-skip-last",
        mistake="the skip is joined behind for in front",
        source="",
        phase="forward",
        site="output",
        inject=change("", join=skip_last),
    ),
    unet(
        name="unet-jax-maxpool-shares-ties",
        mistake="tied maxima share the gradient; the reference gives it to the first",
        source="tensorflow/tensorflow#51682",
        phase="backward",
        site="pool1",
        inject=change("pool1", __call__=max_of_slices),
    ),
    unet(
        name="unet-jax-batchnorm-biased",
        mistake="running variance biased for unbiased",
        source="keras-team/keras#9028",
        phase="buffer",
        site="bottom.bn.var",
        inject=change("bottom.bn", unbiased=False),
        train=True,
    ),
    vit(
        name="vit-jax-gelu-tanh",
        mistake="GELU in its tanh form, Flax' default, for erf",
        source="huggingface/candle#900",
        phase="forward",
        site="blocks.1.mlp.gelu",
        inject=change("blocks.1.mlp.gelu", approximate=True),
    ),
    vit(
        name="vit-jax-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks.0.attn",
        inject=alter("blocks.0.attn", attend_over_queries),
    ),
    vit(
        name="vit-jax-patches-by-column",
        mistake="patches are read column by column",
        source="huggingface/pytorch-image-models#2284",
        phase="forward",
        site="embedding",
        inject=change("embedding", sequence=column_by_column),
    ),
    vit(
        name="vit-jax-positions-from-1",
        mistake="the table of positions is read from row 1",
        source="huggingface/transformers#20761",
        phase="forward",
        site="embedding",
        inject=change("embedding", __call__=positions_from_one),
    ),
    vit(
        name="vit-jax-mean-for-class-token",
        mistake="the mean of all tokens for the class token",
        source="",
        phase="forward",
        site="output",
        inject=change("", __call__=mean_of_tokens),
    ),
    dcgan(
        name="dcgan-jax-leaky-slope",
        mistake="LeakyReLU slope 0.01, JAX' default, for 0.2",
        source="jinyu121/DW2TF#2",
        phase="forward",
        site="discriminator.leaky1",
        inject=change("discriminator.leaky1", slope=0.01),
    ),
    dcgan(
        name="dcgan-jax-generator-detached",
        mistake="stop_gradient on the images: the generator does not learn",
        source="paiml/aprender#3034",
        phase="backward",
        site="output",
        inject=change("", __call__=detached_images),
    ),
    dcgan(
        name="dcgan-jax-kernel-not-turned",
        mistake="a kernel not turned for Flax' transposed convolution",
        source="jax-ml/jax#11252",
        phase="weights",
        site="generator.enlarge.kernel",
        inject=alter("generator.enlarge", turned),
        keep_weights=True,
    ),
    vae(
        name="vae-jax-variance-for-deviation",
        mistake="the noise is scaled by the variance for the standard deviation",
        source="",
        phase="forward",
        site="sample",
        inject=change("sample", __call__=deviation_of_logvar),
    ),
    vae(
        name="vae-jax-deviation-detached",
        mistake="stop_gradient on the standard deviation",
        source="paiml/aprender#3034",
        phase="backward",
        site="sample",
        inject=change("sample", __call__=detached_deviation),
    ),
)
