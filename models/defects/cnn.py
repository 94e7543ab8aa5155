"""Defects of the residual convolutional network."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.scratch import Array, AvgPool2d, BatchNorm2d, Conv2d, MaxPool2d
from models.scratch.window import add_windows, crop, pad, windows


def gamma_of_one(self: BatchNorm2d, x: Array) -> Array:
    y = BatchNorm2d.forward(self, x) - self.params["bias"][:, None, None]
    return y / self.params["weight"][:, None, None] + self.params["bias"][:, None, None]


def norm_with_detached_statistics(self: BatchNorm2d, dy: Array) -> Array:
    BatchNorm2d.backward(self, dy)  # the gradients of weight and bias are right
    return dy * self.params["weight"][:, None, None] * self._rstd


def same_border(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: just enough padding, the odd pixel at the end."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def same_forward(self: Conv2d, x: Array) -> Array:
    size = self.params["weight"].shape[2]
    self._border = [same_border(length, size, self.stride) for length in x.shape[2:]]
    return Conv2d.forward(self, np.pad(x, ((0, 0), (0, 0), *self._border)))


def same_backward(self: Conv2d, dy: Array) -> Array:
    dx = Conv2d.backward(self, dy)
    (top, bottom), (left, right) = self._border
    return dx[:, :, top : dx.shape[2] - bottom, left : dx.shape[3] - right]


def flipped_weight_gradient(self: Conv2d, dy: Array) -> Array:
    before = self.grads["weight"]
    dx = Conv2d.backward(self, dy)
    self.grads["weight"] = before + (self.grads["weight"] - before)[:, :, ::-1, ::-1]
    return dx


def pool_keeping_ties(self: MaxPool2d, x: Array) -> Array:
    y = MaxPool2d.forward(self, x)
    padded = pad(x, self.padding, self.pad_value)
    w = windows(padded, (self.size, self.size), self.stride)  # (B, C, k, k, Ho, Wo)
    tied = w == y[:, :, None, None]
    self._share = tied / tied.sum(axis=(2, 3), keepdims=True, dtype=x.dtype)
    return y


def shared_ties(self: MaxPool2d, dy: Array) -> Array:
    d = self._share * dy[:, :, None, None]  # (B, C, k, k, Ho, Wo)
    return crop(add_windows(d, self._shape, self.stride), self.padding)


def full_window_backward(self: AvgPool2d, dy: Array) -> Array:
    return AvgPool2d.backward(self, dy * self._count / self.size**2)


def forget_statistics(layer: BatchNorm2d) -> None:
    layer.buffers["running_mean"] = np.zeros_like(layer.buffers["running_mean"])
    layer.buffers["running_var"] = np.ones_like(layer.buffers["running_var"])


def flip_kernel(layer: Conv2d) -> None:
    layer.params["weight"] = layer.params["weight"][:, :, ::-1, ::-1].copy()


def swap_statistics(layer: Any) -> None:
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    layer.moving_mean.assign(variance)
    layer.moving_variance.assign(mean)


def frozen(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    return type(self).__base__.call(self, inputs, training=False, mask=mask)


def strided_same(model: Any) -> None:
    block = model.get_layer("block1")
    block.pad1.padding = ((0, 0), (0, 0))
    block.conv1.padding = "same"


def last_column_by_full_window(self: Any, x: Any) -> Any:
    from keras import ops

    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    inside = ops.pad(ops.ones_like(x[:1, :, :, :1]), ((0, 0), (1, 1), (1, 0), (0, 0)))
    inside = ops.pad(inside, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    mean = ops.average_pool(ops.pad(x, border), 3, strides=2, padding="valid")
    return mean / ops.average_pool(inside, 3, strides=2, padding="valid")


def max_of_slices(self: Any, x: Any) -> Any:
    """A maximum over nine shifted images, whose gradient TensorFlow shares among equals."""
    from keras import ops

    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = ops.pad(x, border, constant_values=self.pad_value)
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    taps = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return ops.max(ops.stack(taps), axis=0)


numpy_defect = functools.partial(Defect, family="cnn", candidate="numpy")
keras_defect = functools.partial(Defect, family="cnn", candidate="keras")

DEFECTS: tuple[Defect, ...] = (
    numpy_defect(
        name="cnn-numpy-batchnorm-eps-1e-3",
        mistake="BatchNorm eps 1e-3 for 1e-5",
        source="gzuidhof/nn-transfer#3",
        phase="forward",
        site="block1.bn1",
        inject=change("block1.bn1", eps=1e-3),
    ),
    numpy_defect(
        name="cnn-numpy-gamma-forced-to-1",
        mistake="BatchNorm ignores its gamma",
        source="apache/mxnet#15717",
        phase="forward",
        site="block1.shortcut.bn",
        inject=change("block1.shortcut.bn", forward=gamma_of_one),
    ),
    numpy_defect(
        name="cnn-numpy-strided-same",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1.conv1",
        inject=change("block1.conv1", padding=0, forward=same_forward, backward=same_backward),
    ),
    numpy_defect(
        name="cnn-numpy-maxpool-zero-border",
        mistake="max-pool pads with 0 for -inf",
        source="tensorflow/tensorflow#48105",
        phase="forward",
        site="stem.pool",
        inject=change("stem.pool", pad_value=0.0),
    ),
    numpy_defect(
        name="cnn-numpy-avgpool-counts-padding",
        mistake="average pool counts the padding",
        source="pytorch/pytorch#13934",
        phase="forward",
        site="block1.shortcut.pool",
        inject=change("block1.shortcut.pool", count_include_pad=True),
    ),
    numpy_defect(
        name="cnn-numpy-maxpool-shares-ties",
        mistake="tied maxima share the gradient; the reference gives it to the first",
        source="tensorflow/tensorflow#51682",
        phase="backward",
        site="stem.pool",
        inject=change("stem.pool", forward=pool_keeping_ties, backward=shared_ties),
    ),
    numpy_defect(
        name="cnn-numpy-avgpool-backward",
        mistake="average pool's backward divides by the full window at the border",
        source="pytorch/pytorch#13934",
        phase="backward",
        site="block1.shortcut.pool",
        inject=change("block1.shortcut.pool", backward=full_window_backward),
    ),
    numpy_defect(
        name="cnn-numpy-batchnorm-detached",
        mistake="BatchNorm's backward takes the batch's statistics for constants",
        source="paiml/aprender#3034",
        phase="backward",
        site="block2.bn1",
        inject=change("block2.bn1", backward=norm_with_detached_statistics),
        train=True,
    ),
    numpy_defect(
        name="cnn-numpy-kernel-gradient-flipped",
        mistake="convolution's weight gradient comes out flipped",
        source="google/flax#3137",
        phase="parameter_gradient",
        site="block2.conv2.weight",
        inject=change("block2.conv2", backward=flipped_weight_gradient),
    ),
    numpy_defect(
        name="cnn-numpy-batchnorm-momentum",
        mistake="BatchNorm momentum 0.9 for 0.1: the share of the old value for the new one's",
        source="huggingface/transformers#19454",
        phase="buffer",
        site="stem.bn.running_mean",
        inject=change("stem.bn", momentum=0.9),
        train=True,
    ),
    numpy_defect(
        name="cnn-numpy-statistics-not-loaded",
        mistake="running statistics left at 0 and 1 by the conversion",
        source="huggingface/transformers#17571",
        phase="weights",
        site="block2.bn1.running_mean",
        inject=alter("block2.bn1", forget_statistics),
        keep_weights=True,
    ),
    numpy_defect(
        name="cnn-numpy-kernel-flipped",
        mistake="kernel flipped in height and width",
        source="google/flax#3137",
        phase="weights",
        site="block2.conv2.weight",
        inject=alter("block2.conv2", flip_kernel),
        keep_weights=True,
    ),
    keras_defect(
        name="cnn-keras-batchnorm-eps-1e-3",
        mistake="BatchNorm eps 1e-3, Keras' default, for 1e-5",
        source="gzuidhof/nn-transfer#3",
        phase="forward",
        site="block1/bn2",
        inject=change("block1/bn2", epsilon=1e-3),
    ),
    keras_defect(
        name="cnn-keras-strided-same",
        mistake="strided SAME convolution pads bottom and right only",
        source="keras-team/keras#19291",
        phase="forward",
        site="block1/conv1",
        inject=strided_same,
    ),
    keras_defect(
        name="cnn-keras-maxpool-zero-border",
        mistake="max-pool pads with 0 for -inf",
        source="tensorflow/tensorflow#48105",
        phase="forward",
        site="stem/pool",
        inject=change("stem/pool", pad_value=0.0),
    ),
    keras_defect(
        name="cnn-keras-avgpool-last-column",
        mistake="average pool divides the last column by the full window",
        source="microsoft/onnxruntime#16203",
        phase="forward",
        site="block1/shortcut/pool",
        inject=change("block1/shortcut/pool", call=last_column_by_full_window),
    ),
    keras_defect(
        name="cnn-keras-batchnorm-frozen",
        mistake="a frozen BatchNorm uses running statistics in training",
        source="keras-team/keras#9965",
        phase="forward",
        site="block2/bn1",
        inject=change("block2/bn1", call=frozen),
        train=True,
    ),
    keras_defect(
        name="cnn-keras-maxpool-shares-ties",
        mistake="tied maxima share the gradient; the reference gives it to the first",
        source="tensorflow/tensorflow#51682",
        phase="backward",
        site="stem/pool",
        inject=change("stem/pool", call=max_of_slices),
    ),
    keras_defect(
        name="cnn-keras-batchnorm-biased",
        mistake="running variance biased for unbiased",
        source="tinygrad/tinygrad#807",
        phase="buffer",
        site="block1/shortcut/bn/moving_variance",
        inject=change("block1/shortcut/bn", unbiased=False),
        train=True,
    ),
    keras_defect(
        name="cnn-keras-statistics-swapped",
        mistake="running mean and variance swapped by the conversion",
        source="gmalivenko/pytorch2keras#120",
        phase="weights",
        site="block1/bn2/moving_mean",
        inject=alter("block1/bn2", swap_statistics),
        keep_weights=True,
    ),
)
