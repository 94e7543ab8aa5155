"""The kit's models in Keras 3 on TensorFlow."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

from crosscheck.adapters.keras import KerasAdapter, find
from crosscheck.adapters.keras_parameters import discover, variables
from crosscheck.taps import tap

from .kit import IDS, Kit, X

layers = keras.layers


def named(name: str, units: int) -> Any:
    bias = keras.initializers.RandomNormal(seed=units)
    return layers.Dense(units, name=name, bias_initializer=bias)


class Block(layers.Layer):
    def __init__(self) -> None:
        super().__init__(name="block")
        self.inner, self.act = named("inner", 5), layers.ReLU(name="act")

    def call(self, h: Any) -> Any:
        return h + self.act(self.inner(h))


class Model(keras.Model):
    """Named layers, in a list, and a call that is given as a function of them."""

    def __init__(self, function: Any, *children: Any, **options: Any) -> None:
        super().__init__(**options)
        self.children = list(children)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(*self.children, x)


class TwoInputs(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.fl, self.fr = named("fl", 3), named("fr", 3)

    def call(self, left: Any, right: Any) -> Any:
        return self.fl(left) - self.fr(right)


class Boom(layers.Layer):
    def __init__(self, *, backward: bool) -> None:
        super().__init__(name="boom")
        self.late, self.armed = backward, False

    def call(self, x: Any) -> Any:
        if not self.armed:  # while the model is built
            return x
        if not self.late:
            raise ValueError("boom")

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def node(x: Any) -> Any:
            def gradient(dy: Any) -> Any:
                raise ValueError("boom")

            return tf.identity(x), gradient

        return node(x)


class KerasKit(Kit):
    separator = "/"

    def build(self, name: str) -> Any:
        keras.utils.set_random_seed(0)
        late = name == "raising_backward"
        boom = Boom(backward=late)
        model = {
            "mlp": lambda: Model(
                lambda fc1, block, fc2, x: fc2(block(fc1(x))),
                named("fc1", 5),
                Block(),
                named("fc2", 3),
            ),
            "shared": lambda: Model(
                lambda cell, head, x: head(cell(cell(x))), named("cell", 4), named("head", 3)
            ),
            "fan_out": lambda: Model(
                lambda fc, a, b, c, x: (lambda h: a(h) + b(h) + c(h))(fc(x)),
                named("fc", 5),
                *(named(n, 3) for n in "abc"),
            ),
            "structured": lambda: Model(
                lambda head, fc, x: (head(x), {"hidden": fc(x)}), named("head", 3), named("fc", 5)
            ),
            "returning": lambda: Model(
                lambda fc, head, x: (lambda h: (head(h), h))(fc(x)),
                named("fc", 5),
                named("head", 3),
            ),
            "two_inputs": TwoInputs,
            "embedding": lambda: Model(
                lambda table, head, ids: head(table(ids)),
                layers.Embedding(7, 4, name="table"),
                named("head", 3),
            ),
            "cut": lambda: Model(
                lambda main, side, x: main(x) + tf.stop_gradient(side(x)),
                named("main", 3),
                named("side", 3),
            ),
            "norm": lambda: Model(
                lambda fc, bn, x: bn(fc(x)),
                named("fc", 3),
                layers.BatchNormalization(name="bn", momentum=0.9, epsilon=1e-5),
            ),
            "dropout": lambda: Model(
                lambda fc, drop, x: drop(fc(x)), named("fc", 3), layers.Dropout(0.5, name="drop")
            ),
            "raising": lambda: Model(lambda fc, boom, x: boom(fc(x)), named("fc", 3), boom),
            "raising_backward": lambda: Model(
                lambda fc, boom, x: boom(fc(x)), named("fc", 3), boom
            ),
            "tapped": lambda: Model(
                lambda attn, head, x: head(tap("mid", attn(x))),
                Model(lambda fc, x: tap("scores", fc(x)), named("fc", 4), name="attn"),
                named("head", 3),
            ),
        }[name]()
        if name == "two_inputs":
            model(X, X)
        else:
            model(IDS if name == "embedding" else X)
        boom.armed = True
        return model

    def adapt(self, model: Any) -> KerasAdapter:
        adapter = find(model)
        assert adapter is not None
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        fed = [tf.constant(a) for a in inputs.values()]
        named_ = {name: v for name, _, _, v in variables(discover(model)) if v.trainable}
        with tf.GradientTape() as tape:
            tape.watch([t for t in fed if t.dtype.is_floating])
            result = model(*fed, training=False)
            outputs = keras.tree.flatten(result)
        found = tape.gradient(
            outputs,
            [v.value for v in named_.values()],
            output_gradients=[tf.constant(d) for d in dys],
        )
        gradients = {
            name: tf.convert_to_tensor(g).numpy() for name, g in zip(named_, found, strict=True)
        }
        return [o.numpy() for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        found = discover(model)
        every = [*model.variables]
        return {
            "values": [v.numpy() for v in every],
            "places": [(id(v), id(v._value), v.dtype) for v in every],
            "policies": [(id(la._dtype_policy), la.compute_dtype) for la in found.values()],
            "losses": [len(la._losses) for la in found.values()],
            "call": id(layers.Layer.__call__),
            "floatx": keras.config.floatx(),
            "eager": tf.config.functions_run_eagerly(),
            "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
            "tf": (context.global_seed(), context.context()._rng.getstate()),
            "generator": id(stateful_random_ops.global_generator),
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
        }
