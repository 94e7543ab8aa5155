"""The kit's models in plain TensorFlow: ``tf.Module`` objects."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

from crosscheck.adapters.tensorflow.adapter import TensorFlowAdapter, find
from crosscheck.adapters.tensorflow.parameters import discover
from crosscheck.taps import tap

from .kit import Kit

_RNG = np.random.default_rng(0)


def variable(*shape: int, name: str) -> Any:
    return tf.Variable(_RNG.normal(size=shape).astype(np.float32), name=name)


class Linear(tf.Module):
    axes = {"w": ("in", "out"), "b": ("out",)}  # noqa: RUF012

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.w, self.b = variable(rows, columns, name="w"), variable(columns, name="b")

    def __call__(self, x: Any) -> Any:
        return tf.matmul(x, self.w) + self.b


class Embed(tf.Module):
    axes = {"table": ("row", "dim")}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.table = variable(7, 4, name="table")

    def __call__(self, ids: Any) -> Any:
        return tf.nn.embedding_lookup(self.table, ids)


class Act(tf.Module):
    def __call__(self, x: Any) -> Any:
        return tf.nn.relu(x)


class Block(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = Linear(5, 5), Act()

    def __call__(self, h: Any) -> Any:
        return h + self.act(self.inner(h))


class BatchNorm(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = tf.Variable(tf.ones(3))
        self.beta = tf.Variable(tf.zeros(3))
        self.moving_mean = tf.Variable(tf.zeros(3), trainable=False)
        self.moving_var = tf.Variable(tf.ones(3), trainable=False)

    def __call__(self, x: Any, training: bool = False) -> Any:
        mean, var = self.moving_mean.value(), self.moving_var.value()
        if training:
            mean, var = tf.nn.moments(x, [0])
            self.moving_mean.assign(0.9 * self.moving_mean + 0.1 * mean)
            self.moving_var.assign(0.9 * self.moving_var + 0.1 * var)
        return (x - mean) * tf.math.rsqrt(var + 1e-5) * self.gamma + self.beta


class Dropout(tf.Module):
    def __call__(self, x: Any, training: bool = False) -> Any:
        return tf.nn.dropout(x, 0.5) if training else x


class Net(tf.Module):
    """Named modules, and a call that is given as a function of them."""

    def __init__(self, function: Any, **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.function = function

    def __call__(self, x: Any) -> Any:
        return self.function(self, x)


class Modal(Net):
    def __call__(self, x: Any, training: bool = False) -> Any:
        return self.function(self, x, training)


class TwoInputs(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fl, self.fr = Linear(4, 3), Linear(4, 3)

    def __call__(self, left: Any, right: Any) -> Any:
        return self.fl(left) - self.fr(right)


class Boom(tf.Module):
    def __init__(self, *, backward: bool) -> None:
        super().__init__()
        self.late = backward

    def __call__(self, x: Any) -> Any:
        if not self.late:
            raise ValueError("boom")

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def node(x: Any) -> Any:
            def gradient(dy: Any) -> Any:
                raise ValueError("boom")

            return tf.identity(x), gradient

        return node(x)


MODELS: dict[str, Any] = {
    "mlp": lambda: Net(
        lambda m, x: m.fc2(m.block(m.fc1(x))), fc1=Linear(4, 5), block=Block(), fc2=Linear(5, 3)
    ),
    "shared": lambda: Net(
        lambda m, x: m.head(m.cell(m.cell(x))), cell=Linear(4, 4), head=Linear(4, 3)
    ),
    "fan_out": lambda: Net(
        lambda m, x: (lambda h: m.a(h) + m.b(h) + m.c(h))(m.fc(x)),
        fc=Linear(4, 5),
        a=Linear(5, 3),
        b=Linear(5, 3),
        c=Linear(5, 3),
    ),
    "structured": lambda: Net(
        lambda m, x: (m.head(x), {"hidden": m.fc(x)}), head=Linear(4, 3), fc=Linear(4, 5)
    ),
    "returning": lambda: Net(
        lambda m, x: (lambda h: (m.head(h), h))(m.fc(x)), fc=Linear(4, 5), head=Linear(5, 3)
    ),
    "two_inputs": TwoInputs,
    "embedding": lambda: Net(lambda m, ids: m.head(m.table(ids)), table=Embed(), head=Linear(4, 3)),
    "cut": lambda: Net(
        lambda m, x: m.main(x) + tf.stop_gradient(m.side(x)),
        main=Linear(4, 3),
        side=Linear(4, 3),
    ),
    "norm": lambda: Modal(
        lambda m, x, training: m.bn(m.fc(x), training=training), fc=Linear(4, 3), bn=BatchNorm()
    ),
    "dropout": lambda: Modal(
        lambda m, x, training: m.drop(m.fc(x), training=training), fc=Linear(4, 3), drop=Dropout()
    ),
    "raising": lambda: Net(
        lambda m, x: m.boom(m.fc(x)), fc=Linear(4, 3), boom=Boom(backward=False)
    ),
    "raising_backward": lambda: Net(
        lambda m, x: m.boom(m.fc(x)), fc=Linear(4, 3), boom=Boom(backward=True)
    ),
    "tapped": lambda: Net(
        lambda m, x: m.head(tap("mid", m.attn(x))),
        attn=Net(lambda m, x: tap("scores", m.fc(x)), fc=Linear(4, 4)),
        head=Linear(4, 3),
    ),
}


class TensorFlowKit(Kit):
    separator = "/"

    def build(self, name: str) -> Any:
        return MODELS[name]()

    def adapt(self, model: Any) -> TensorFlowAdapter:
        adapter = find(model)
        assert isinstance(adapter, TensorFlowAdapter)
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        fed = [tf.constant(a) for a in inputs.values()]
        slots = [slot for slot in discover(model).floating() if slot.variable.trainable]
        with tf.GradientTape() as tape:
            tape.watch([t for t in fed if t.dtype.is_floating])
            outputs = tf.nest.flatten(model(*fed))
        found = tape.gradient(
            outputs,
            [slot.variable for slot in slots],
            output_gradients=[tf.constant(d) for d in dys],
        )
        gradients = {
            slot.name: tf.convert_to_tensor(g).numpy() for slot, g in zip(slots, found, strict=True)
        }
        return [o.numpy() for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        found = discover(model)
        every = [slot.variable for slot in found.slots]
        return {
            "values": [v.numpy() for v in every],
            "places": [(id(v), id(v._handle), v.dtype) for v in every],
            "calls": [id(vars(type(m)).get("__call__")) for m in found.modules.values()],
            "eager": tf.config.functions_run_eagerly(),
            "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
            "tf": (context.global_seed(), context.context()._rng.getstate()),
            "generator": id(stateful_random_ops.global_generator),
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
        }
