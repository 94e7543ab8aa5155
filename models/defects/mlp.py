"""Defects of the multilayer perceptron."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change, with_gradient
from models.scratch import Array, Hardswish, LayerNorm, LeakyReLU, Linear


def eps_outside_the_root(self: LayerNorm, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True))
    self._rstd = 1 / (deviation + self.eps)
    self._xhat = centred * self._rstd
    return self._xhat * self.params["weight"] + self.params["bias"]


def norm_with_detached_statistics(self: LayerNorm, dy: Array) -> Array:
    LayerNorm.backward(self, dy)  # the gradients of weight and bias are right
    return dy * self.params["weight"] * self._rstd


def hard_sigmoid(self: Hardswish, x: Array) -> Array:
    self._x = x
    return np.clip(x + 3, 0, 6) / 6


def hard_sigmoid_derivative(self: Hardswish, dy: Array) -> Array:
    return dy * (abs(self._x) < 3) / 6


def steep_backward(self: LeakyReLU, dy: Array) -> Array:
    return np.where(self._x > 0, dy, 0.1 * dy)


def bias_twice(self: Linear, x: Array) -> Array:
    return Linear.forward(self, x) + self.params["bias"]


def reduced_precision(self: Linear, x: Array) -> Array:
    """TF32 keeps ten bits of mantissa, as float16 does."""
    Linear.forward(self, x)
    weight = self.params["weight"].astype(np.float16).astype(x.dtype)
    return x.astype(np.float16).astype(x.dtype) @ weight + self.params["bias"]


def mean_weight_gradient(self: Linear, dy: Array) -> Array:
    before = self.grads["weight"]
    dx = Linear.backward(self, dy)
    self.grads["weight"] = before + (self.grads["weight"] - before) / len(dy)
    return dx


def no_bias_gradient(self: Linear, dy: Array) -> Array:
    before = self.grads["bias"]
    dx = Linear.backward(self, dy)
    self.grads["bias"] = before
    return dx


def forget_bias(layer: Linear) -> None:
    layer.params["bias"] = np.zeros_like(layer.params["bias"])


def steep_hard_swish(self: Any, x: Any) -> Any:
    from keras import ops

    return x * ops.clip(0.2 * x + 0.5, 0, 1)


def detached_gate(self: Any, x: Any) -> Any:
    from keras import ops

    return x * ops.stop_gradient(ops.relu6(x + 3) / 6)


def gamma_of_one(self: Any, x: Any) -> Any:
    from keras import ops

    mean, variance = ops.moments(x, axes=-1, keepdims=True)
    return (x - mean) * ops.rsqrt(variance + self.epsilon) + self.beta


def nan_from_the_other_branch(self: Any, x: Any) -> Any:
    """A where() whose other branch has an infinite derivative: masked, 0 · inf is NaN."""
    from keras import ops

    def gradient(x: Any, dy: Any) -> Any:
        mask = ops.cast(x > 0, dy.dtype)
        other = ops.where(x > 0, 0.0, np.inf)
        return ops.where(x > 0, dy, self.negative_slope * dy) + mask * other

    return with_gradient(lambda x: ops.leaky_relu(x, self.negative_slope), gradient)(x)


def kernel_gradient_halved(self: Any, x: Any, training: bool | None = None) -> Any:
    """Two micro-batches whose gradients are averaged although the loss is a sum."""
    from keras import ops

    kernel = with_gradient(lambda k: k, lambda k, dy: dy / 2)(ops.convert_to_tensor(self.kernel))
    return ops.matmul(x, kernel) + self.bias


numpy_defect = functools.partial(Defect, family="mlp", candidate="numpy")
keras_defect = functools.partial(Defect, family="mlp", candidate="keras")

DEFECTS: tuple[Defect, ...] = (
    numpy_defect(
        name="mlp-numpy-layernorm-eps-1e-6",
        mistake="LayerNorm eps 1e-6 for 1e-5",
        source="huggingface/transformers#15332",
        phase="forward",
        site="norm",
        inject=change("norm", eps=1e-6),
    ),
    numpy_defect(
        name="mlp-numpy-layernorm-eps-outside",
        mistake="eps added to the standard deviation for the variance",
        source="allenai/OLMo#281",
        phase="forward",
        site="norm",
        inject=change("norm", forward=eps_outside_the_root),
    ),
    numpy_defect(
        name="mlp-numpy-leaky-slope",
        mistake="LeakyReLU slope 0.2 for 0.01",
        source="jinyu121/DW2TF#2",
        phase="forward",
        site="act1",
        inject=change("act1", slope=0.2),
    ),
    numpy_defect(
        name="mlp-numpy-hardswish-without-x",
        mistake="Hardswish computes the hard sigmoid: the factor x is missing",
        source="onnxruntime/onnxruntime-qnn#392",
        phase="forward",
        site="act2",
        inject=change("act2", forward=hard_sigmoid, backward=hard_sigmoid_derivative),
    ),
    numpy_defect(
        name="mlp-numpy-bias-twice",
        mistake="a bias counted twice",
        source="onnx/keras-onnx#103",
        phase="forward",
        site="fc2",
        inject=change("fc2", forward=bias_twice),
    ),
    numpy_defect(
        name="mlp-numpy-reduced-precision",
        mistake="matrix product on operands with ten bits of mantissa for float32",
        source="jax-ml/jax#10413",
        phase="forward",
        site="fc1",
        inject=change("fc1", forward=reduced_precision),
    ),
    numpy_defect(
        name="mlp-numpy-layernorm-detached",
        mistake="LayerNorm's backward takes mean and variance for constants",
        source="paiml/aprender#3034",
        phase="backward",
        site="norm",
        inject=change("norm", backward=norm_with_detached_statistics),
    ),
    numpy_defect(
        name="mlp-numpy-leaky-backward",
        mistake="LeakyReLU's derivative uses slope 0.1 for 0.01",
        source="jinyu121/DW2TF#2",
        phase="backward",
        site="act1",
        inject=change("act1", backward=steep_backward),
    ),
    numpy_defect(
        name="mlp-numpy-weight-gradient-mean",
        mistake="weight gradient averaged over the batch for summed",
        source="huggingface/transformers#34191",
        phase="parameter_gradient",
        site="fc2.weight",
        inject=change("fc2", backward=mean_weight_gradient),
    ),
    numpy_defect(
        name="mlp-numpy-bias-gradient-missing",
        mistake="the gradient of a bias never arrives",
        source="paiml/aprender#3034",
        phase="parameter_gradient",
        site="fc1.bias",
        inject=change("fc1", backward=no_bias_gradient),
    ),
    numpy_defect(
        name="mlp-numpy-bias-not-loaded",
        mistake="a bias left at 0 by the conversion",
        source="onnx/keras-onnx#103",
        phase="weights",
        site="fc3.bias",
        inject=alter("fc3", forget_bias),
        keep_weights=True,
    ),
    keras_defect(
        name="mlp-keras-layernorm-eps-1e-3",
        mistake="LayerNorm eps 1e-3, Keras' default, for 1e-5",
        source="huggingface/transformers#15332",
        phase="forward",
        site="norm",
        inject=change("norm", epsilon=1e-3),
    ),
    keras_defect(
        name="mlp-keras-layernorm-eps-1e-12",
        mistake="LayerNorm eps 1e-12 for 1e-5",
        source="mindspore-lab/mindone#225",
        phase="forward",
        site="norm",
        inject=change("norm", epsilon=1e-12),
    ),
    keras_defect(
        name="mlp-keras-gamma-forced-to-1",
        mistake="the norm ignores its gamma",
        source="apache/mxnet#15717",
        phase="forward",
        site="norm",
        inject=change("norm", call=gamma_of_one),
    ),
    keras_defect(
        name="mlp-keras-leaky-slope",
        mistake="LeakyReLU slope 0.1 for 0.01",
        source="jinyu121/DW2TF#2",
        phase="forward",
        site="act1",
        inject=change("act1", negative_slope=0.1),
    ),
    keras_defect(
        name="mlp-keras-hardswish-slope",
        mistake="hard sigmoid with slope 0.2 for 1/6 inside Hardswish",
        source="PaddlePaddle/Paddle#44820",
        phase="forward",
        site="act2",
        inject=change("act2", call=steep_hard_swish),
    ),
    keras_defect(
        name="mlp-keras-hardswish-detached",
        mistake="Hardswish's gate is detached: its derivative lacks a term",
        source="paiml/aprender#3034",
        phase="backward",
        site="act2",
        inject=change("act2", call=detached_gate),
    ),
    keras_defect(
        name="mlp-keras-nan-gradient",
        mistake="NaN gradient from a masked infinity",
        source="keras-team/keras#23063",
        phase="backward",
        site="act1",
        inject=change("act1", call=nan_from_the_other_branch),
    ),
    keras_defect(
        name="mlp-keras-kernel-gradient-mean",
        mistake="gradients of two micro-batches averaged for summed",
        source="pytorch/torchtune#1875",
        phase="parameter_gradient",
        site="fc2/kernel",
        inject=change("fc2", call=kernel_gradient_halved),
    ),
)
