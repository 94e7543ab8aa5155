"""What a run changes in a Keras model and in TensorFlow, and puts back: values, dtypes, states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
from keras.src.backend.common import global_state

from crosscheck.adapters.keras_parameters import (
    Layers,
    all_variables,
    seed_generators,
    variables,
)

if keras.config.backend() == "tensorflow":  # else `crosscheck.adapters.keras.find` says what to do
    import tensorflow as tf
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

__all__ = ["in_float64", "left_as_found", "with_values"]


@contextmanager
def with_values(
    layers: Layers, overrides: Mapping[str, np.ndarray], *, float64: bool
) -> Iterator[None]:
    """Other values, in other variables: the user's own are not written to, only set aside."""
    known = {name: variable for name, _, _, variable in variables(layers)}
    values = {id(known[name]): array for name, array in overrides.items()}
    every = all_variables(layers.values())
    floats = [v for v in every if keras.backend.is_float_dtype(v._dtype)]
    changed = [v for v in floats if float64 or id(v) in values]
    kept = [(v, v._value, v._dtype) for v in changed]
    try:
        for variable in changed:
            dtype = "float64" if float64 else variable._dtype
            value = tf.cast(values.get(id(variable), variable._value), dtype)
            variable._value = tf.Variable(value, trainable=variable.trainable)
            variable._dtype = dtype
        yield
    finally:
        for variable, own, dtype in kept:
            variable._value, variable._dtype = own, dtype


@contextmanager
def in_float64(layers: Layers) -> Iterator[None]:
    """Every layer computes in float64; so do the inputs that functional models cast to."""
    floatx = keras.config.floatx()
    policies = [
        (layer, layer._dtype_policy)
        for layer in layers.values()
        if keras.backend.is_float_dtype(layer.compute_dtype)
    ]
    models = [m for layer in layers.values() for m in (layer, getattr(layer, "_functional", None))]
    symbols = {id(t): t for model in models for t in getattr(model, "_inputs", None) or ()}
    dtypes = [(t, t._dtype) for t in symbols.values() if keras.backend.is_float_dtype(t.dtype)]
    try:
        keras.config.set_floatx("float64")
        for layer, _ in policies:
            layer._dtype_policy = keras.DTypePolicy("float64")
        for symbol, _ in dtypes:
            symbol._dtype = "float64"
        yield
    finally:
        keras.config.set_floatx(floatx)
        for layer, policy in policies:
            layer._dtype_policy = policy
        for symbol, dtype in dtypes:
            symbol._dtype = dtype


@contextmanager
def left_as_found(layers: Layers, *, seed: int) -> Iterator[None]:
    """Variables, losses, eager mode, precision flags and random states are put back."""
    eager = tf.config.functions_run_eagerly()
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    states = [g.state for g in seed_generators(layers.values())]
    # A read shares the variable's memory until that is written to.
    own = all_variables(layers.values())
    kept = [(v, v._value.read_value()) for v in (*own, *states)]
    losses = [(layer, list(layer._losses), set(layer._loss_ids)) for layer in layers.values()]
    try:
        with _random_states(seed):
            tf.config.run_functions_eagerly(True)
            tf.config.experimental.enable_tensor_float_32_execution(False)
            for index, state in enumerate(states):
                state.assign([(seed + index) % 2**31, 0])
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        tf.config.run_functions_eagerly(eager)
        for variable, value in kept:
            if not np.array_equal(variable._value.numpy(), value.numpy()):
                variable._value.assign(value)
        for layer, values, ids in losses:
            layer._losses[:] = values
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


@contextmanager
def _random_states(seed: int) -> Iterator[None]:
    """Seed every global generator within reach, and put them back at the end.

    TensorFlow keeps the counters of its stateful random ops inside cached kernels, where nobody
    can read them: those start over after a run, as they do after ``tf.random.set_seed``.
    """
    python, numpy_state = random.getstate(), np.random.get_state()
    eager = context.context()
    before, rng = eager._seed, getattr(eager, "_rng", None)
    names = ("global_random_seed", "global_seed_generator")
    attributes = [(name, global_state.get_global_attribute(name)) for name in names]
    generator = stateful_random_ops.global_generator
    try:
        keras.utils.set_random_seed(seed)
        tf.random.set_global_generator(tf.random.Generator.from_seed(seed))
        yield
    finally:
        eager._set_global_seed(before)
        if rng is not None:
            eager._rng = rng
        stateful_random_ops.global_generator = generator
        for name, value in attributes:
            global_state.set_global_attribute(name, value)
        random.setstate(python)
        np.random.set_state(numpy_state)
