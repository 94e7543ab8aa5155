"""A Keras model on TensorFlow as one compiled function of its variables and inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crosscheck.adapters.base import CotangentSource
from crosscheck.adapters.keras.calls import arguments, built_layers
from crosscheck.adapters.keras.parameters import Layers, variables
from crosscheck.adapters.keras.state import in_float64, losses_kept
from crosscheck.adapters.keras.tensorflow import KerasAdapter
from crosscheck.adapters.tensorflow.device import on_device
from crosscheck.adapters.tensorflow.state import exact_and_eager
from crosscheck.auditing.evaluating import Arrays, Gradients
from crosscheck.structure import leaves

__all__ = ["KerasEvaluator"]


class KerasEvaluator:
    """A ``tf.function`` in which every floating-point variable stands for an argument.

    It is traced when this is made; the model's own variables are neither read by it nor written.
    """

    def __init__(
        self, adapter: KerasAdapter, inputs: Arrays, sites: Sequence[str], *, float64: bool
    ) -> None:
        self._model, self._device = adapter.model, adapter.device
        self._sites, self._names, self._float64 = list(sites), list(inputs), float64
        layers = built_layers(adapter.model)
        self._variables = {name: variable for name, _, _, variable in variables(layers)}
        self._own = {n: self._cast(v._value, v._dtype) for n, v in self._variables.items()}
        fed = [self._fed(inputs[name]) for name in self._names]
        with self._tracing(layers):
            self._function = tf.function(self._traced).get_concrete_function(
                [tf.TensorSpec(v.shape, v.dtype) for v in self._own.values()],
                [tf.TensorSpec(v.shape, v.dtype) for v in fed],
            )

    def outputs(self, values: Arrays, inputs: Arrays) -> Arrays:
        with self._computing():
            own, fed = self._given(values, inputs)
            found = self._function(list(own.values()), list(fed.values()))
            return {s: t.numpy() for s, t in zip(self._sites, found, strict=True)}

    def gradients(self, values: Arrays, inputs: Arrays, cotangents: CotangentSource) -> Gradients:
        with self._computing():
            own, fed = self._given(values, inputs)
            weights = {n: v for n, v in own.items() if self._variables[n].trainable}
            floats = {n: v for n, v in fed.items() if v.dtype.is_floating}
            sources = [*weights.values(), *floats.values()]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                found = self._function(list(own.values()), list(fed.values()))
            outputs = {s: t.numpy() for s, t in zip(self._sites, found, strict=True)}
            wanted = cotangents(dict(outputs))
            ends = [(s, t) for s, t in zip(self._sites, found, strict=True) if s in wanted]
            back = tape.gradient(
                [t for _, t in ends],
                sources,
                output_gradients=[tf.cast(tf.constant(wanted[s]), t.dtype) for s, t in ends],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            arrays = [tf.convert_to_tensor(gradient).numpy() for gradient in back]
            own_gradients = dict(zip(weights, arrays, strict=False))
            return Gradients(
                outputs, own_gradients, dict(zip(floats, arrays[len(weights) :], strict=True))
            )

    def _traced(self, own: list[Any], fed: list[Any]) -> list[Any]:
        mapping = list(zip(self._variables.values(), own, strict=True))
        args, kwargs = arguments(self._model, dict(zip(self._names, fed, strict=True)))
        with keras.StatelessScope(state_mapping=mapping):
            output = self._model(*args, training=False, **kwargs)
        return [tensor for _, tensor in leaves(output, tf.is_tensor)]

    def _given(self, values: Arrays, inputs: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        changed = {n: self._cast(v, self._own[n].dtype) for n, v in values.items()}
        return {**self._own, **changed}, {n: self._fed(inputs[n]) for n in self._names}

    def _cast(self, value: Any, dtype: Any) -> Any:
        return tf.cast(tf.convert_to_tensor(value), tf.float64 if self._float64 else dtype)

    def _fed(self, value: np.ndarray) -> Any:
        tensor = tf.convert_to_tensor(np.asarray(value))
        return tf.cast(tensor, tf.float64) if self._float64 and tensor.dtype.is_floating else tensor

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with on_device(self._device), exact_and_eager(eager=False):
            yield

    @contextmanager
    def _tracing(self, layers: Layers) -> Iterator[None]:
        with self._computing(), losses_kept(layers):
            if not self._float64:
                yield
                return
            dtypes = [(v, v._dtype) for v in self._variables.values()]
            try:
                for variable, _ in dtypes:
                    variable._dtype = "float64"  # what operations take its value to be
                with in_float64(layers):
                    yield
            finally:
                for variable, dtype in dtypes:
                    variable._dtype = dtype
