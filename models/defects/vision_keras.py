"""Defects of the vision models in Keras: its defaults, and what it makes easy to get wrong.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.defects.cnn import frozen, swap_statistics
from models.defects.gpt import keras_tanh_gelu
from models.defects.mlp import detached_gate


def pixel_after_pixel(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.reshape(x, (x.shape[0], -1))


def largest(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.max_pool(x, 2, strides=2)


def bare_tanh(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.tanh(x * (2 / 3))


def steep_gate(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.clip(0.2 * x + 0.5, 0, 1)


def strided_same(model: Any) -> None:
    block = model.get_layer("block1")
    block.pad.padding = ((0, 0), (0, 0))
    block.depthwise.padding = "same"


def channels_first_for_last(layer: Any) -> None:
    """The memory of (C, H, W) read as (H, W, C)."""
    kernel = layer.kernel.numpy()
    layer.kernel.assign(kernel.transpose(2, 3, 0, 1).reshape(kernel.shape))


def turned(layer: Any) -> None:
    layer.kernel.assign(layer.kernel.numpy()[::-1, ::-1])


def corners_on_corners(self: Any, x: Any) -> Any:
    import tensorflow as tf

    return tf.compat.v1.image.resize_bilinear(x, self.size, align_corners=True)


def as_tensorflow_1(self: Any, x: Any) -> Any:
    import tensorflow as tf

    return tf.compat.v1.image.resize_bilinear(x, self.size)


def nearest(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.image.resize(x, self.size, interpolation="nearest")


def skip_last(self: Any, skip: Any, x: Any) -> Any:
    from keras import ops

    return ops.concatenate([x, skip], axis=-1)


def detached_skip(self: Any, skip: Any, x: Any) -> Any:
    from keras import ops

    return ops.concatenate([ops.stop_gradient(skip), x], axis=-1)


def max_of_slices(self: Any, x: Any) -> Any:
    """A maximum over four shifted images, whose gradient TensorFlow shares among equals."""
    from keras import ops

    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    taps = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
    return ops.max(ops.stack(taps), axis=0)


def column_by_column(self: Any, x: Any) -> Any:
    from keras import ops

    batch, height, width, dim = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch, height * width, dim))


def detached_class_token(self: Any, x: Any) -> Any:
    from keras import ops

    x = self.sequence(self.projection(x))
    token = ops.broadcast_to(ops.stop_gradient(self.class_token), (len(x), 1, x.shape[-1]))
    return ops.concatenate([token, x], axis=1) + self.positions


def detached_images(self: Any, z: Any, real: Any) -> Any:
    from keras import ops

    made = ops.stop_gradient(self.generator(z))
    return self.discriminator(real), self.discriminator(made)


def uncropped_same(model: Any) -> None:
    generator = model.get_layer("generator")
    generator.enlarge.padding = "same"
    generator.crop.cropping = ((0, 0), (0, 0))


def variance_for_deviation(self: Any, mean: Any, logvar: Any, noise: Any) -> Any:
    from keras import ops

    return mean + ops.exp(logvar) * noise


def detached_deviation(self: Any, mean: Any, logvar: Any, noise: Any) -> Any:
    from keras import ops

    return mean + ops.stop_gradient(ops.exp(logvar / 2)) * noise


def unchanged(self: Any, x: Any) -> Any:
    return x


def half_precision(layer: Any) -> None:
    layer.kernel.assign(layer.kernel.numpy().astype(np.float16).astype(np.float32))


lenet = functools.partial(Defect, family="lenet", candidate="keras")
mobilenet = functools.partial(Defect, family="mobilenet", candidate="keras")
unet = functools.partial(Defect, family="unet", candidate="keras")
vit = functools.partial(Defect, family="vit", candidate="keras")
dcgan = functools.partial(Defect, family="dcgan", candidate="keras")
vae = functools.partial(Defect, family="vae", candidate="keras")

DEFECTS: tuple[Defect, ...] = (
    lenet(
        name="lenet-keras-flatten-channels-last",
        mistake="maps flattened pixel after pixel, as Keras lays them out",
        source="",
        phase="forward",
        site="output",
        inject=change("flatten", call=pixel_after_pixel),
    ),
    lenet(
        name="lenet-keras-pool-max",
        mistake="subsampling by the maximum for the mean",
        source="",
        phase="forward",
        site="s2/pool",
        inject=change("s2/pool", call=largest),
    ),
    lenet(
        name="lenet-keras-tanh-amplitude",
        mistake="tanh without its amplitude of 1.7159",
        source="",
        phase="forward",
        site="squash5",
        inject=change("squash5", call=bare_tanh),
    ),
    lenet(
        name="lenet-keras-weight-float16",
        mistake="a weight rounded to float16 by the conversion",
        source="",
        phase="weights",
        site="c3/kernel",
        inject=alter("c3", half_precision),
        keep_weights=True,
    ),
    mobilenet(
        name="mobilenet-keras-hardsigmoid-slope",
        mistake="hard sigmoid with slope 0.2, Keras 2's, for 1/6",
        source="PaddlePaddle/Paddle#44820",
        phase="forward",
        site="block2/se/gate",
        inject=change("block2/se/gate", call=steep_gate),
    ),
    mobilenet(
        name="mobilenet-keras-strided-same",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1/depthwise",
        inject=strided_same,
    ),
    mobilenet(
        name="mobilenet-keras-batchnorm-eps-1e-3",
        mistake="BatchNorm eps 1e-3, Keras' default, for 1e-5",
        source="gzuidhof/nn-transfer#3",
        phase="forward",
        site="block2/bn",
        inject=change("block2/bn", epsilon=1e-3),
    ),
    mobilenet(
        name="mobilenet-keras-batchnorm-frozen",
        mistake="a frozen BatchNorm uses running statistics in training",
        source="keras-team/keras#9965",
        phase="forward",
        site="last/bn",
        inject=change("last/bn", call=frozen),
        train=True,
    ),
    mobilenet(
        name="mobilenet-keras-hardswish-detached",
        mistake="Hardswish's gate is detached: its derivative lacks a term",
        source="paiml/aprender#3034",
        phase="backward",
        site="act",
        inject=change("act", call=detached_gate),
    ),
    mobilenet(
        name="mobilenet-keras-batchnorm-momentum",
        mistake="BatchNorm momentum 0.1, PyTorch's number, for 0.9",
        source="huggingface/transformers#19454",
        phase="buffer",
        site="block1/bn/moving_mean",
        inject=change("block1/bn", momentum=0.1),
        train=True,
    ),
    mobilenet(
        name="mobilenet-keras-batchnorm-biased",
        mistake="running variance biased for unbiased",
        source="tinygrad/tinygrad#807",
        phase="buffer",
        site="block2/expand/bn/moving_variance",
        inject=change("block2/expand/bn", unbiased=False),
        train=True,
    ),
    mobilenet(
        name="mobilenet-keras-depthwise-channels-first",
        mistake="depthwise kernels (C, H, W) read as (H, W, C)",
        source="pytorch/executorch#18455",
        phase="weights",
        site="block2/depthwise/kernel",
        inject=alter("block2/depthwise", channels_first_for_last),
        keep_weights=True,
    ),
    mobilenet(
        name="mobilenet-keras-statistics-swapped",
        mistake="running mean and variance swapped by the conversion",
        source="gmalivenko/pytorch2keras#120",
        phase="weights",
        site="stem/bn/moving_mean",
        inject=alter("stem/bn", swap_statistics),
        keep_weights=True,
    ),
    unet(
        name="unet-keras-resize-align-corners",
        mistake="resize puts the corners on the corners",
        source="onnx/tensorflow-onnx#914",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", call=corners_on_corners),
    ),
    unet(
        name="unet-keras-resize-tensorflow-1",
        mistake="resize without half-pixel centres, as in TensorFlow 1",
        source="microsoft/onnxruntime#28086",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", call=as_tensorflow_1),
    ),
    unet(
        name="unet-keras-resize-nearest",
        mistake="resize to the nearest pixel for bilinear",
        source="",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", call=nearest),
    ),
    unet(
        name="unet-keras-skip-last",
        mistake="the skip is joined behind for in front",
        source="",
        phase="forward",
        site="output",
        inject=change("", join=skip_last),
    ),
    unet(
        name="unet-keras-skip-detached",
        mistake="nothing goes back through the skips",
        source="paiml/aprender#3034",
        phase="backward",
        site="output",
        inject=change("", join=detached_skip),
    ),
    unet(
        name="unet-keras-maxpool-shares-ties",
        mistake="tied maxima share the gradient; the reference gives it to the first",
        source="tensorflow/tensorflow#51682",
        phase="backward",
        site="pool2",
        inject=change("pool2", call=max_of_slices),
    ),
    unet(
        name="unet-keras-transposed-kernel-turned",
        mistake="a transposed convolution's kernel turned by 180 degrees",
        source="google/flax#3137",
        phase="weights",
        site="enlarge2/kernel",
        inject=alter("enlarge2", turned),
        keep_weights=True,
    ),
    vit(
        name="vit-keras-layernorm-eps-1e-3",
        mistake="LayerNorm eps 1e-3, Keras' default, for 1e-6",
        source="huggingface/transformers#15332",
        phase="forward",
        site="blocks_1/ln2",
        inject=change("blocks_1/ln2", epsilon=1e-3),
    ),
    vit(
        name="vit-keras-gelu-tanh",
        mistake="GELU in its tanh form for erf",
        source="chelsea0x3b/dfdx#804",
        phase="forward",
        site="blocks_0/mlp/gelu",
        inject=change("blocks_0/mlp/gelu", call=keras_tanh_gelu),
    ),
    vit(
        name="vit-keras-scale-missing",
        mistake="attention scores without their scale",
        source="ml-explore/mlx-swift-examples#99",
        phase="forward",
        site="blocks_0/attn",
        inject=change("blocks_0/attn", _inverse_sqrt_key_dim=1.0),
    ),
    vit(
        name="vit-keras-patches-by-column",
        mistake="patches are read column by column",
        source="huggingface/pytorch-image-models#2284",
        phase="forward",
        site="embedding",
        inject=change("embedding", sequence=column_by_column),
    ),
    vit(
        name="vit-keras-class-token-frozen",
        mistake="no gradient reaches the class token",
        source="paiml/aprender#3034",
        phase="parameter_gradient",
        site="embedding/class_token",
        inject=change("embedding", call=detached_class_token),
    ),
    dcgan(
        name="dcgan-keras-leaky-slope",
        mistake="LeakyReLU slope 0.3, Keras' default, for 0.2",
        source="jinyu121/DW2TF#2",
        phase="forward",
        site="discriminator/leaky2",
        inject=change("discriminator/leaky2", negative_slope=0.3),
    ),
    dcgan(
        name="dcgan-keras-transposed-same",
        mistake="transposed SAME convolution is shifted by a pixel",
        source="keras-team/keras#22876",
        phase="forward",
        site="generator/enlarge",
        inject=uncropped_same,
    ),
    dcgan(
        name="dcgan-keras-generator-detached",
        mistake="no gradient of the discriminator reaches the generator",
        source="paiml/aprender#3034",
        phase="backward",
        site="output",
        inject=change("", call=detached_images),
    ),
    dcgan(
        name="dcgan-keras-transposed-kernel-turned",
        mistake="a transposed convolution's kernel turned by 180 degrees",
        source="google/flax#3137",
        phase="weights",
        site="generator/project/kernel",
        inject=alter("generator/project", turned),
        keep_weights=True,
    ),
    vae(
        name="vae-keras-variance-for-deviation",
        mistake="the noise is scaled by the variance for the standard deviation",
        source="",
        phase="forward",
        site="sample",
        inject=change("sample", call=variance_for_deviation),
    ),
    vae(
        name="vae-keras-deviation-detached",
        mistake="no gradient reaches the log-variance through the noise",
        source="paiml/aprender#3034",
        phase="backward",
        site="sample",
        inject=change("sample", call=detached_deviation),
    ),
    vae(
        name="vae-keras-activation-missing",
        mistake="an activation was left out",
        source="",
        phase="forward",
        site="decoder/tanh",
        inject=change("decoder/tanh", call=unchanged),
    ),
)
