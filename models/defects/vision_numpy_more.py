"""Defects of the vision transformer, the DCGAN and the VAE from scratch.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.defects.cnn import flip_kernel
from models.defects.gpt import softmax_without_sum
from models.defects.mlp import bias_twice, forget_bias
from models.defects.vision_numpy import trim_same, untrim_same
from models.scratch import GELU, Array, BatchNorm2d, Sigmoid
from models.scratch.special import erf
from models.vae.scratch_net import Encoder, Sample
from models.vit.scratch_net import HEADS, Embedding

# -- ViT -------------------------------------------------------------------------------------------


def positions_from_one(self: Embedding, x: Array) -> Array:
    y = Embedding.forward(self, x)
    positions = self.params["positions"]
    return y - positions + np.roll(positions, -1, axis=1)


def class_token_last(self: Embedding, x: Array) -> Array:
    y = Embedding.forward(self, x) - self.params["positions"]
    return np.roll(y, -1, axis=1) + self.params["positions"]


def column_by_column(self: Embedding, x: Array) -> Array:
    y = Embedding.forward(self, x)
    batch, dim, height, width = self._grid
    patches = (y - self.params["positions"])[:, 1:].reshape(batch, height, width, dim)
    y[:, 1:] = patches.swapaxes(1, 2).reshape(batch, -1, dim) + self.params["positions"][:, 1:]
    return y


def mean_position_gradient(self: Embedding, dy: Array) -> Array:
    before = self.grads["positions"]
    dx = Embedding.backward(self, dy)
    self.grads["positions"] = before + (self.grads["positions"] - before) / len(dy)
    return dx


def sigmoid_gelu(self: GELU, x: Array) -> Array:
    self._x, self._cdf = x, (1 + erf(x / np.sqrt(2).astype(x.dtype))) / 2
    return x / (1 + np.exp(-1.702 * x))


def columns_per_head(layer: Any) -> None:
    """The columns (q k v, head, hs) laid out as (head, q k v, hs)."""
    for name, value in layer.params.items():
        packed = value.reshape(*value.shape[:-1], 3, HEADS, -1)
        layer.params[name] = np.ascontiguousarray(packed.swapaxes(-3, -2)).reshape(value.shape)


# -- DCGAN -----------------------------------------------------------------------------------------


def on_both(**changes: Any) -> Any:
    """A change of the discriminator, which lies in the net twice (see `models.scratch.twin`)."""

    def inject(net: Any) -> None:
        for name in ("discriminator", "discriminator_of_made"):
            change(f"{name}.leaky1", **changes)(net)

    return inject


def sigmoid_for_tanh(self: Any, x: Array) -> Array:
    self._y = np.tanh(x)
    return (1 + np.tanh(x / 2)) / 2


def does_not_follow(self: BatchNorm2d, name: str, batch: Array) -> None:
    return None


def follows_biased(self: BatchNorm2d, name: str, batch: Array) -> None:
    n = self._counted
    BatchNorm2d._follow(self, name, batch * ((n - 1) / n) if name == "running_var" else batch)


def counting(self: BatchNorm2d, x: Array) -> Array:
    self._counted = x.size / x.shape[1]
    return BatchNorm2d.forward(self, x)


# -- VAE -------------------------------------------------------------------------------------------


def variance_for_deviation(self: Sample, mean: Array, logvar: Array, noise: Array) -> Array:
    self._sigma, self._noise = np.exp(logvar), noise
    return mean + self._sigma * noise


def without_half(self: Sample, dz: Array) -> tuple[Array, Array, Array]:
    return dz, dz * self._noise * self._sigma, dz * self._sigma


def only_through_mean(self: Encoder, dmean: Array, dlogvar: Array) -> Array:
    self.logvar.backward(dlogvar)
    return self.hidden.backward(self.tanh.backward(self.mean.backward(dmean)))


def derivative_in_the_loss(self: Sigmoid, dy: Array) -> Array:
    return dy


vit = functools.partial(Defect, family="vit", candidate="numpy")
dcgan = functools.partial(Defect, family="dcgan", candidate="numpy")
vae = functools.partial(Defect, family="vae", candidate="numpy")

DEFECTS: tuple[Defect, ...] = (
    vit(
        name="vit-numpy-layernorm-eps-1e-5",
        mistake="LayerNorm eps 1e-5, PyTorch's default, for 1e-6",
        source="huggingface/transformers#15332",
        phase="forward",
        site="blocks.0.ln1",
        inject=change("blocks.0.ln1", eps=1e-5),
    ),
    vit(
        name="vit-numpy-gelu-sigmoid",
        mistake="x times the sigmoid of 1.702 x for GELU",
        source="huggingface/pytorch-image-models#2031",
        phase="forward",
        site="blocks.1.mlp.gelu",
        inject=change("blocks.1.mlp.gelu", forward=sigmoid_gelu),
    ),
    vit(
        name="vit-numpy-softmax-axis",
        mistake="softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn.softmax", axis=-2),
    ),
    vit(
        name="vit-numpy-scale-missing",
        mistake="attention scores without their scale",
        source="ml-explore/mlx-swift-examples#99",
        phase="forward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn", scale=1.0),
    ),
    vit(
        name="vit-numpy-positions-from-1",
        mistake="the table of positions is read from row 1",
        source="huggingface/transformers#20761",
        phase="forward",
        site="embedding",
        inject=change("embedding", forward=positions_from_one),
    ),
    vit(
        name="vit-numpy-class-token-last",
        mistake="the class token stands behind the patches for in front",
        source="",
        phase="forward",
        site="embedding",
        inject=change("embedding", forward=class_token_last),
    ),
    vit(
        name="vit-numpy-patches-by-column",
        mistake="patches are read column by column",
        source="huggingface/pytorch-image-models#2284",
        phase="forward",
        site="embedding",
        inject=change("embedding", forward=column_by_column),
    ),
    vit(
        name="vit-numpy-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks.1.attn",
        inject=change("blocks.1.attn.softmax", backward=softmax_without_sum),
    ),
    vit(
        name="vit-numpy-position-gradient-mean",
        mistake="gradient of the positions averaged over the batch for summed",
        source="huggingface/transformers#34191",
        phase="parameter_gradient",
        site="embedding.positions",
        inject=change("embedding", backward=mean_position_gradient),
    ),
    vit(
        name="vit-numpy-qkv-per-head",
        mistake="packed q, k, v laid out per head for one after the other",
        source="lablup/mlxcel#928",
        phase="weights",
        site="blocks.0.attn.c_attn.weight",
        inject=alter("blocks.0.attn.c_attn", columns_per_head),
        keep_weights=True,
    ),
    dcgan(
        name="dcgan-numpy-leaky-slope",
        mistake="LeakyReLU slope 0.01 for 0.2",
        source="jinyu121/DW2TF#2",
        phase="forward",
        site="discriminator.leaky1",
        inject=on_both(slope=0.01),
    ),
    dcgan(
        name="dcgan-numpy-transposed-same",
        mistake="transposed SAME convolution is shifted by a pixel",
        source="keras-team/keras#22876",
        phase="forward",
        site="generator.enlarge",
        inject=change("generator.enlarge", trim=trim_same, untrim=untrim_same),
    ),
    dcgan(
        name="dcgan-numpy-sigmoid-for-tanh",
        mistake="pixels in (0, 1) for (-1, 1)",
        source="",
        phase="forward",
        site="generator.tanh",
        inject=change("generator.tanh", forward=sigmoid_for_tanh),
    ),
    dcgan(
        name="dcgan-numpy-batchnorm-biased",
        mistake="running variance biased for unbiased",
        source="tinygrad/tinygrad#807",
        phase="buffer",
        site="generator.bn1.running_var",
        inject=change("generator.bn1", forward=counting, _follow=follows_biased),
        train=True,
    ),
    dcgan(
        name="dcgan-numpy-statistics-follow-once",
        mistake="running statistics follow the real images only",
        source="",
        phase="buffer",
        site="discriminator.bn.running_mean",
        inject=change("discriminator_of_made.bn", _follow=does_not_follow),
        train=True,
    ),
    dcgan(
        name="dcgan-numpy-transposed-kernel-turned",
        mistake="a transposed convolution's kernel turned by 180 degrees",
        source="jax-ml/jax#11252",
        phase="weights",
        site="generator.paint.weight",
        inject=alter("generator.paint", flip_kernel),
        keep_weights=True,
    ),
    vae(
        name="vae-numpy-variance-for-deviation",
        mistake="the noise is scaled by the variance for the standard deviation",
        source="",
        phase="forward",
        site="sample",
        inject=change("sample", forward=variance_for_deviation),
    ),
    vae(
        name="vae-numpy-bias-twice",
        mistake="a bias counted twice",
        source="onnx/keras-onnx#103",
        phase="forward",
        site="decoder.hidden",
        inject=change("decoder.hidden", forward=bias_twice),
    ),
    vae(
        name="vae-numpy-half-missing",
        mistake="the derivative of exp(logvar/2) lacks its factor ½",
        source="",
        phase="backward",
        site="sample",
        inject=change("sample", backward=without_half),
    ),
    vae(
        name="vae-numpy-logvar-detached",
        mistake="nothing goes back through the log-variance",
        source="paiml/aprender#3034",
        phase="backward",
        site="encoder",
        inject=change("encoder", backward=only_through_mean),
    ),
    vae(
        name="vae-numpy-sigmoid-derivative",
        mistake="the derivative of the sigmoid is left to the loss",
        source="",
        phase="backward",
        site="decoder.sigmoid",
        inject=change("decoder.sigmoid", backward=derivative_in_the_loss),
    ),
    vae(
        name="vae-numpy-bias-not-loaded",
        mistake="a bias left at 0 by the conversion",
        source="onnx/keras-onnx#103",
        phase="weights",
        site="encoder.logvar.bias",
        inject=alter("encoder.logvar", forget_bias),
        keep_weights=True,
    ),
)
