"""The kit's models in Keras 3, on whichever backend it has."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.keras.adapter import find
from crosscheck.adapters.keras.parameters import discover, variables
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

    def __init__(self, function: Any, *parts: Any, **options: Any) -> None:
        super().__init__(**options)
        self.parts = list(parts)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(*self.parts, x)


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

        return _exploding(x)


def _exploding(x: Any) -> Any:
    """``x``; its gradient raises."""

    def gradient(*args: Any, **options: Any) -> Any:
        raise ValueError("boom")

    if keras.backend.backend() == "jax":  # keras.ops.custom_gradient traces the gradient at once
        import jax

        node = jax.custom_vjp(lambda x: x)
        node.defvjp(lambda x: (x, None), gradient)
        return node(x)
    return keras.ops.custom_gradient(lambda x: (x * 1.0, gradient))(x)


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
                lambda main, side, x: main(x) + keras.ops.stop_gradient(side(x)),
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

    def adapt(self, model: Any) -> Adapter:
        adapter = find(model)
        assert adapter is not None
        assert (adapter.framework, adapter.separator) == ("keras", "/")
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        trainable = {name: v for name, _, _, v in variables(discover(model)) if v.trainable}
        by_backend = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}
        evaluate = by_backend[keras.backend.backend()]
        outputs, found = evaluate(model, [*trainable.values()], [*inputs.values()], dys)
        gradients = dict(zip(trainable, map(np.asarray, found), strict=True))
        return [np.asarray(o) for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        found = discover(model)
        every = [*model.variables]
        places = [(id(v), v.dtype, id(v._value)) for v in every]
        return {
            "values": [keras.ops.convert_to_numpy(v) for v in every],
            "places": places,
            "policies": [(id(la._dtype_policy), la.compute_dtype) for la in found.values()],
            "losses": [len(la._losses) for la in found.values()],
            "call": id(layers.Layer.__call__),
            "floatx": keras.config.floatx(),
            "seed": global_state.get_global_attribute("global_random_seed"),
            "generator": id(global_state.get_global_attribute("global_seed_generator")),
            "scope": global_state.get_global_attribute("stateless_scope"),
            "backend": _backend_state(model),
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
        }


def _tensorflow(model: Any, weights: list[Any], inputs: list[Any], dys: list[Any]) -> Any:
    import tensorflow as tf

    fed = [tf.constant(a) for a in inputs]
    with tf.GradientTape() as tape:
        tape.watch([t for t in fed if t.dtype.is_floating])
        outputs = keras.tree.flatten(model(*fed, training=False))
    found = tape.gradient(
        outputs, [v.value for v in weights], output_gradients=[tf.constant(d) for d in dys]
    )
    return outputs, [tf.convert_to_tensor(g) for g in found]


def _torch(model: Any, weights: list[Any], inputs: list[Any], dys: list[Any]) -> Any:
    import torch

    fed = [torch.tensor(a) for a in inputs]
    fed = [t.requires_grad_() if t.is_floating_point() else t for t in fed]
    outputs = keras.tree.flatten(model(*fed, training=False))
    found = torch.autograd.grad(outputs, [v.value for v in weights], [torch.tensor(d) for d in dys])
    return [o.detach() for o in outputs], found


def _jax(model: Any, weights: list[Any], inputs: list[Any], dys: list[Any]) -> Any:
    import jax

    fed = [jax.numpy.array(a) for a in inputs]
    floats = [t for t in fed if t.dtype.kind == "f"]

    def function(values: Any, floats: Any) -> Any:
        given = iter(floats)
        tensors = [next(given) if t.dtype.kind == "f" else t for t in fed]
        with keras.StatelessScope(list(zip(weights, values, strict=True))):
            return keras.tree.flatten(model(*tensors, training=False))

    outputs, pullback = jax.vjp(function, [v.value for v in weights], floats)
    return outputs, pullback([jax.numpy.array(d) for d in dys])[0]


def _backend_state(model: Any) -> dict[str, Any]:
    if keras.backend.backend() == "torch":
        import torch

        return {
            "rng": torch.get_rng_state().numpy(),
            "dtype": str(torch.get_default_dtype()),
            "modes": [m.training for m in model.modules()],
            "gradients": [v.value.grad for v in model.variables],
            "requires": [v.value.requires_grad for v in model.variables],
        }
    if keras.backend.backend() == "jax":
        import jax

        return {
            "x64": jax.config.jax_enable_x64,
            "precision": jax.config.jax_default_matmul_precision,
            "device": jax.config.jax_default_device,
        }
    import tensorflow as tf
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    return {
        "eager": tf.config.functions_run_eagerly(),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "tf": (context.global_seed(), context.context()._rng.getstate()),
        "generator": id(stateful_random_ops.global_generator),
    }
