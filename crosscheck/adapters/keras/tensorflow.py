"""Keras 3 on TensorFlow: everything runs eagerly, or the values inside a ``tf.function`` would
stay out of sight; gradients come from a tape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crosscheck.adapters.base import Adapter, CotangentSource, Parameter, guarded, input_site
from crosscheck.adapters.keras.calls import (
    arguments,
    built_layers,
    capabilities_of,
    declared,
    load_values,
    patched_layers,
    root_of,
    version_of,
)
from crosscheck.adapters.keras.parameters import Layers, all_variables, describe, variables
from crosscheck.adapters.keras.state import in_float64, losses_kept, seed_states, seeds_kept
from crosscheck.adapters.tensorflow.device import on_device, place_of, require_device
from crosscheck.adapters.tensorflow.state import exact_and_eager, kept, random_states
from crosscheck.adapters.tensorflow.taps import (
    TensorFlowSession,
    cotangents_on,
    dense_gradient,
    feed,
    gradients,
    is_symbolic,
    is_tensor,
    observe_outputs,
    show_watched,
    tap_model_input,
    tapped_call,
)
from crosscheck.structure import leaves
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

__all__ = ["KerasAdapter"]


class KerasAdapter(Adapter):
    """A Keras 3 layer or model on TensorFlow, on the CPU or on a CUDA device."""

    framework = "keras"
    separator = "/"

    def __init__(self, model: keras.layers.Layer) -> None:
        self.model = model
        self.version = version_of("tensorflow", tf.__version__)
        self.capabilities = capabilities_of(model)

    def use(self, device: str) -> None:
        place_of(device)
        self.device = device

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(built_layers(self.model))

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        load_values(built_layers(self.model), values)

    def declared(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int | None, ...]]:
        return declared(self.model, inputs)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        layers = built_layers(self.model)
        session = TensorFlowSession(
            observer, separator=self.separator, root=root_of(layers), passive=passive
        )
        with ExitStack() as stack:
            stack.enter_context(_left_as_found(layers, seed=seed))
            stack.enter_context(_with_values(layers, overrides or {}, float64=float64))
            if float64:
                stack.enter_context(in_float64(layers))
            stack.enter_context(_patched(session, layers))
            stack.enter_context(on_device(self.device))
            fed = {name: feed(array, float64=float64) for name, array in inputs.items()}
            tape = tf.GradientTape(watch_accessed_variables=False)
            with session.active(), tape if cotangents is not None else ExitStack():
                if cotangents is not None:
                    tape.watch([*_sources(layers, fed).values()])
                output = self._forward(session, fed, train=train)
            outputs = observe_outputs(session, tape, output)
            require_device(outputs, self.device)
            found: dict[str, np.ndarray] = {}
            if cotangents is not None:
                wanted = cotangents({site: t.numpy() for site, t in outputs})
                sent = cotangents_on(session, outputs, wanted)
                with guarded(session, "backward"), session.active():
                    found = _backward(session, tape, output, sent, _sources(layers, fed))
                session.flush()
            buffers = {p.name: np.array(p.value) for p in describe(layers) if p.buffer}
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in outputs),
            parameter_gradients=found,
            buffers=buffers if train else None,
        )

    def _forward(self, session: TensorFlowSession, fed: Mapping[str, Any], *, train: bool) -> Any:
        tapped = {name: tap_model_input(session, input_site(name), t) for name, t in fed.items()}
        args, kwargs = arguments(self.model, tapped)
        with guarded(session, "forward"):
            return self.model(*args, training=train, **kwargs)


def _patched(session: TensorFlowSession, layers: Layers) -> Any:
    def tapped(path: str, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
        return tapped_call(session, path or session.root, layer, function, args, kwargs)

    def symbolic(value: Any) -> bool:
        return isinstance(value, keras.KerasTensor) or is_symbolic(value)

    return patched_layers(session, layers, tapped, is_tensor, symbolic=symbolic)


def _sources(layers: Layers, fed: Mapping[str, Any]) -> dict[str, Any]:
    """What the tape starts from: the trainable variables, by name, and the floating-point inputs,
    by site."""
    weights = {name: v._value for name, _, _, v in variables(layers) if v.trainable}
    floats = {input_site(name): t for name, t in fed.items() if t.dtype.is_floating}
    return weights | floats


def _backward(
    session: TensorFlowSession, tape: Any, output: Any, sent: list[Any], own: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    session.turned = True
    tensors = [tensor for _, tensor in leaves(output, is_tensor)]
    sources = [*own.values(), *(tensor for _, tensor in session.watched)]
    found = gradients(tape, tensors, sent, sources)
    show_watched(session, found[len(own) :])
    return {
        name: dense_gradient(source, gradient)
        for (name, source), gradient in zip(own.items(), found, strict=False)
        if isinstance(source, tf.Variable)
    }


@contextmanager
def _with_values(
    layers: Layers, overrides: Mapping[str, np.ndarray], *, float64: bool
) -> Iterator[None]:
    """Other values, in other variables: the user's own are not written to, only set aside."""
    known = {name: variable for name, _, _, variable in variables(layers)}
    values = {id(known[name]): array for name, array in overrides.items()}
    every = all_variables(layers.values())
    floats = [v for v in every if keras.backend.is_float_dtype(v._dtype)]
    changed = [v for v in floats if float64 or id(v) in values]
    before = [(v, v._value, v._dtype) for v in changed]
    try:
        for variable in changed:
            dtype = "float64" if float64 else variable._dtype
            value = tf.cast(values.get(id(variable), variable._value), dtype)
            variable._value = tf.Variable(value, trainable=variable.trainable)
            variable._dtype = dtype
        yield
    finally:
        for variable, own, dtype in before:
            variable._value, variable._dtype = own, dtype


@contextmanager
def _left_as_found(layers: Layers, *, seed: int) -> Iterator[None]:
    """Variables, losses, eager mode, precision flags and random states are put back."""
    states = seed_states(layers, seed)
    own = [*all_variables(layers.values()), *(state for state, _ in states)]
    with (
        kept([variable._value for variable in own]),
        losses_kept(layers),
        random_states(seed),
        seeds_kept(seed),
        exact_and_eager(),
    ):
        for state, value in states:
            state.assign(value)
        yield
