"""Defects of LeNet, MobileNet and the U-Net from scratch. A defect without a source was made up."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.defects.cnn import (
    flip_kernel,
    forget_statistics,
    gamma_of_one,
    norm_with_detached_statistics,
    pool_keeping_ties,
    same_border,
    shared_ties,
)
from models.defects.mlp import hard_sigmoid, hard_sigmoid_derivative
from models.lenet.scratch_net import LeNet, Squash, Subsample
from models.mobilenet.scratch_net import InvertedResidual, SqueezeExcite
from models.scratch import (
    Array,
    AvgPool2d,
    BilinearResize,
    ConvTranspose2d,
    DepthwiseConv2d,
    Hardsigmoid,
    Layer,
)

# -- LeNet -----------------------------------------------------------------------------------------


def sum_of_window(self: AvgPool2d, x: Array) -> Array:
    return AvgPool2d.forward(self, x) * self.size**2


def bias_inside(self: Subsample, x: Array) -> Array:
    y = Subsample.forward(self, x)
    bias = self.params["bias"][:, None, None]
    return y + bias * (self.params["weight"][:, None, None] - 1)


def derivative_of_bare_tanh(self: Squash, dy: Array) -> Array:
    return dy * (1 - self._t**2)


def mean_coefficient_gradient(self: Subsample, dy: Array) -> Array:
    before = self.grads["weight"]
    dx = Subsample.backward(self, dy)
    self.grads["weight"] = before + (self.grads["weight"] - before) / len(dy)
    return dx


def pixel_after_pixel(self: LeNet, x: Array) -> Array:
    """Flattens (N, C, H, W) as if it were (N, H, W, C)."""
    x = self.squash2.forward(self.s2.forward(self.squash1.forward(self.c1.forward(x))))
    x = self.squash4.forward(self.s4.forward(self.squash3.forward(self.c3.forward(x))))
    self._maps = x.shape
    x = x.transpose(0, 2, 3, 1).reshape(len(x), -1)
    x = self.squash6.forward(self.f6.forward(self.squash5.forward(self.c5.forward(x))))
    return self.output.forward(x)


# -- MobileNet -------------------------------------------------------------------------------------


def steep_gate(self: Hardsigmoid, x: Array) -> Array:
    self._x = x
    return np.clip(0.2 * x + 0.5, 0, 1)


def steep_gate_derivative(self: Hardsigmoid, dy: Array) -> Array:
    return np.where(abs(self._x) < 2.5, 0.2 * dy, 0.0)


def same_forward(self: DepthwiseConv2d, x: Array) -> Array:
    size = self.params["weight"].shape[2]
    self._border = [same_border(length, size, self.stride) for length in x.shape[2:]]
    return DepthwiseConv2d.forward(self, np.pad(x, ((0, 0), (0, 0), *self._border)))


def same_backward(self: DepthwiseConv2d, dy: Array) -> Array:
    dx = DepthwiseConv2d.backward(self, dy)
    (top, bottom), (left, right) = self._border
    return dx[:, :, top : dx.shape[2] - bottom, left : dx.shape[3] - right]


def turned_kernel_gradient(self: DepthwiseConv2d, dy: Array) -> Array:
    before = self.grads["weight"]
    dx = DepthwiseConv2d.backward(self, dy)
    self.grads["weight"] = before + (self.grads["weight"] - before)[:, :, ::-1, ::-1]
    return dx


def channels_first_for_last(layer: DepthwiseConv2d) -> None:
    """The memory of (C, H, W) read as (H, W, C)."""
    weight = layer.params["weight"]
    channels, _, height, width = weight.shape
    read = weight.reshape(height, width, channels).transpose(2, 0, 1)
    layer.params["weight"] = np.ascontiguousarray(read[:, None])


def detached_scale(self: SqueezeExcite, dy: Array) -> Array:
    SqueezeExcite.backward(self, dy)  # the gradients of squeeze and excite are right
    return dy * self._scale


def without_residual(self: InvertedResidual, x: Array) -> Array:
    return InvertedResidual.forward(self, x) - x


# -- U-Net -----------------------------------------------------------------------------------------


def trim_same(self: ConvTranspose2d, full: Array) -> Array:
    """TensorFlow's SAME: the odd row and column go at the end."""
    return full[:, :, : full.shape[2] - 2, : full.shape[3] - 2]


def untrim_same(self: ConvTranspose2d, dy: Array) -> Array:
    return np.pad(dy, ((0, 0), (0, 0), (0, 2), (0, 2)))


def aligned_corners(self: BilinearResize, i: Array, old: int, new: int) -> Array:
    return i * (old - 1) / (new - 1)


def asymmetric(self: BilinearResize, i: Array, old: int, new: int) -> Array:
    return i * old / new


def back_by_aligned_corners(self: BilinearResize, dy: Array) -> Array:
    height, width = self._rows.shape[1], self._columns.shape[1]
    at = aligned_corners(self, np.arange(self.size[0]), height, self.size[0])
    rows = np.maximum(1 - abs(at[:, None] - np.arange(height)), 0).astype(dy.dtype)
    at = aligned_corners(self, np.arange(self.size[1]), width, self.size[1])
    columns = np.maximum(1 - abs(at[:, None] - np.arange(width)), 0).astype(dy.dtype)
    return rows.T @ dy @ columns


def skip_last(self: Any, skip: Array, x: Array) -> Array:
    return np.concatenate([x, skip], axis=1)


def split_skip_last(self: Any, d: Array, skipped: int) -> tuple[Array, Array]:
    return d[:, -skipped:], d[:, :-skipped]


def through_float16(layer: Layer) -> None:
    layer.params["weight"] = layer.params["weight"].astype(np.float16).astype(np.float32)


lenet = functools.partial(Defect, family="lenet", candidate="numpy")
mobilenet = functools.partial(Defect, family="mobilenet", candidate="numpy")
unet = functools.partial(Defect, family="unet", candidate="numpy")

DEFECTS: tuple[Defect, ...] = (
    lenet(
        name="lenet-numpy-tanh-slope",
        mistake="tanh(x) for tanh(2x/3)",
        source="",
        phase="forward",
        site="squash3",
        inject=change("squash3", slope=1.0),
    ),
    lenet(
        name="lenet-numpy-pool-sums",
        mistake="subsampling sums the window for its mean",
        source="",
        phase="forward",
        site="s2.pool",
        inject=change("s2.pool", forward=sum_of_window),
    ),
    lenet(
        name="lenet-numpy-bias-inside",
        mistake="the bias is added before the coefficient for after",
        source="",
        phase="forward",
        site="s4",
        inject=change("s4", forward=bias_inside),
    ),
    lenet(
        name="lenet-numpy-flatten-channels-last",
        mistake="maps flattened pixel after pixel for map after map",
        source="",
        phase="forward",
        site="model_output",
        inject=change("", forward=pixel_after_pixel),
    ),
    lenet(
        name="lenet-numpy-tanh-derivative",
        mistake="the derivative of tanh(x) for that of the scaled tanh",
        source="",
        phase="backward",
        site="squash2",
        inject=change("squash2", backward=derivative_of_bare_tanh),
    ),
    lenet(
        name="lenet-numpy-coefficient-gradient-mean",
        mistake="gradient of a coefficient averaged over the batch for summed",
        source="huggingface/transformers#34191",
        phase="parameter_gradient",
        site="s2.weight",
        inject=change("s2", backward=mean_coefficient_gradient),
    ),
    mobilenet(
        name="mobilenet-numpy-hardswish-without-x",
        mistake="Hardswish computes the hard sigmoid: the factor x is missing",
        source="onnxruntime/onnxruntime-qnn#392",
        phase="forward",
        site="block1.act",
        inject=change("block1.act", forward=hard_sigmoid, backward=hard_sigmoid_derivative),
    ),
    mobilenet(
        name="mobilenet-numpy-hardsigmoid-slope",
        mistake="hard sigmoid with slope 0.2 for 1/6",
        source="PaddlePaddle/Paddle#44820",
        phase="forward",
        site="block1.se.gate",
        inject=change("block1.se.gate", forward=steep_gate, backward=steep_gate_derivative),
    ),
    mobilenet(
        name="mobilenet-numpy-batchnorm-eps-1e-3",
        mistake="BatchNorm eps 1e-3 for 1e-5",
        source="gzuidhof/nn-transfer#3",
        phase="forward",
        site="block2.project_bn",
        inject=change("block2.project_bn", eps=1e-3),
    ),
    mobilenet(
        name="mobilenet-numpy-gamma-forced-to-1",
        mistake="BatchNorm ignores its gamma",
        source="apache/mxnet#15717",
        phase="forward",
        site="last.bn",
        inject=change("last.bn", forward=gamma_of_one),
    ),
    mobilenet(
        name="mobilenet-numpy-strided-same",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1.depthwise",
        inject=change("block1.depthwise", padding=0, forward=same_forward, backward=same_backward),
    ),
    mobilenet(
        name="mobilenet-numpy-residual-missing",
        mistake="a residual sum was left out",
        source="",
        phase="forward",
        site="block2",
        inject=change("block2", forward=without_residual),
    ),
    mobilenet(
        name="mobilenet-numpy-scale-detached",
        mistake="the scale of squeeze and excitation is taken for a constant",
        source="paiml/aprender#3034",
        phase="backward",
        site="block1.se",
        inject=change("block1.se", backward=detached_scale),
    ),
    mobilenet(
        name="mobilenet-numpy-depthwise-gradient-turned",
        mistake="the depthwise kernel's gradient comes out turned",
        source="google/flax#3137",
        phase="parameter_gradient",
        site="block2.depthwise.weight",
        inject=change("block2.depthwise", backward=turned_kernel_gradient),
    ),
    mobilenet(
        name="mobilenet-numpy-batchnorm-momentum",
        mistake="BatchNorm momentum 0.9 for 0.1: the share of the old value for the new one's",
        source="huggingface/transformers#19454",
        phase="buffer",
        site="block1.bn.running_mean",
        inject=change("block1.bn", momentum=0.9),
        train=True,
    ),
    mobilenet(
        name="mobilenet-numpy-depthwise-channels-first",
        mistake="depthwise kernels (C, H, W) read as (H, W, C)",
        source="pytorch/executorch#18455",
        phase="weights",
        site="block1.depthwise.weight",
        inject=alter("block1.depthwise", channels_first_for_last),
        keep_weights=True,
    ),
    mobilenet(
        name="mobilenet-numpy-statistics-not-loaded",
        mistake="running statistics left at 0 and 1 by the conversion",
        source="huggingface/transformers#17571",
        phase="weights",
        site="stem.bn.running_mean",
        inject=alter("stem.bn", forget_statistics),
        keep_weights=True,
    ),
    unet(
        name="unet-numpy-transposed-same",
        mistake="transposed SAME convolution is shifted by a pixel",
        source="keras-team/keras#22876",
        phase="forward",
        site="enlarge2",
        inject=change("enlarge2", trim=trim_same, untrim=untrim_same),
    ),
    unet(
        name="unet-numpy-resize-align-corners",
        mistake="resize puts the corners on the corners",
        source="onnx/tensorflow-onnx#914",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", source=aligned_corners),
    ),
    unet(
        name="unet-numpy-resize-asymmetric",
        mistake="resize without half-pixel centres",
        source="microsoft/onnxruntime#28086",
        phase="forward",
        site="enlarge1",
        inject=change("enlarge1", source=asymmetric),
    ),
    unet(
        name="unet-numpy-skip-last",
        mistake="the skip is joined behind for in front",
        source="",
        phase="forward",
        site="output",
        inject=change("", join=skip_last, split=split_skip_last),
    ),
    unet(
        name="unet-numpy-resize-backward",
        mistake="resize goes backward by aligned corners",
        source="onnx/tensorflow-onnx#914",
        phase="backward",
        site="enlarge1",
        inject=change("enlarge1", backward=back_by_aligned_corners),
    ),
    unet(
        name="unet-numpy-maxpool-shares-ties",
        mistake="tied maxima share the gradient; the reference gives it to the first",
        source="tensorflow/tensorflow#51682",
        phase="backward",
        site="pool1",
        inject=change("pool1", forward=pool_keeping_ties, backward=shared_ties),
    ),
    unet(
        name="unet-numpy-batchnorm-detached",
        mistake="BatchNorm's backward takes the batch's statistics for constants",
        source="paiml/aprender#3034",
        phase="backward",
        site="up1.bn",
        inject=change("up1.bn", backward=norm_with_detached_statistics),
        train=True,
    ),
    unet(
        name="unet-numpy-transposed-kernel-turned",
        mistake="a transposed convolution's kernel turned by 180 degrees",
        source="jax-ml/jax#11252",
        phase="weights",
        site="enlarge2.weight",
        inject=alter("enlarge2", flip_kernel),
        keep_weights=True,
    ),
    unet(
        name="unet-numpy-weight-float16",
        mistake="a weight rounded to float16 by the conversion",
        source="",
        phase="weights",
        site="up2.conv.weight",
        inject=alter("up2.conv", through_float16),
        keep_weights=True,
    ),
)
