"""Keras 3 on JAX: a Keras model as a program of the JAX adapter, with its taps and its ``jax.vjp``.

Variables get their values, and keep the new ones, in Keras' stateless scope: nothing is written to
the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from crosscheck.adapters.base import CotangentSource, Parameter
from crosscheck.adapters.jax.adapter import JaxAdapter
from crosscheck.adapters.jax.calls import tapped_call
from crosscheck.adapters.jax.parameters import Slot
from crosscheck.adapters.jax.program import Program
from crosscheck.adapters.jax.taps import JaxSession, is_tensor
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
from crosscheck.adapters.keras.state import (
    in_float64,
    losses_kept,
    reseed,
    seed_states,
    seeds_kept,
)
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

__all__ = ["KerasAdapter"]


class KerasProgram(Program):
    """A Keras model as a function of its variables."""

    def __init__(self, model: keras.layers.Layer) -> None:
        self.model = model
        self.layer = type(model).__name__

    def function(self, **inputs: Any) -> None:
        """Takes any inputs by name; which they are is for Keras to say (`arguments`)."""

    def layers(self) -> Layers:
        """path -> layer."""
        return built_layers(self.model)

    def slots(self) -> tuple[Slot, ...]:
        return tuple(
            Slot(
                p.name,
                p.layer,
                p.name[len(p.layer) :].lstrip("/"),
                p.kind,
                p.axes,
                trainable=p.trainable,
                buffer=p.buffer,
            )
            for p in self.parameters()
        )

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(self.layers())

    def values(self) -> dict[str, Any]:
        return {name: v._value for name, _, _, v in variables(self.layers())}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        load_values(self.layers(), values)

    def top_level(self) -> set[str]:
        return set()  # the adapter asks the layers of a built model

    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        layers = self.layers()
        inputs = kwargs or {f"input_{index}": value for index, value in enumerate(args)}
        nested, named = arguments(self.model, inputs)
        known = {name: variable for name, _, _, variable in variables(layers)}
        reseed(seed)
        scope = keras.StatelessScope()
        scope.state_mapping.update(_states(layers, values))
        scope.state_mapping.update({id(known[name]): value for name, value in values.items()})
        scope.state_mapping.update(
            {id(state): jnp.array(new, state.dtype) for state, new in seed_states(layers, seed)}
        )
        with scope:
            output = self.model(*nested, training=train, **named)
        buffers = [slot.name for slot in self.slots() if slot.buffer]
        return output, {name: scope.get_current_value(known[name]) for name in buffers}

    @contextmanager
    def tapping(self, session: JaxSession) -> Iterator[None]:
        def tapped(path: str, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
            return tapped_call(session, path, layer, function, args, kwargs)

        with patched_layers(session, self.layers(), tapped, is_tensor):
            yield


def _states(layers: Layers, values: Mapping[str, Any]) -> dict[int, Any]:
    """The states of recurrent layers, which are no parameters, in the precision of the run."""
    wide = any(value.dtype == jnp.float64 for value in values.values())
    every = [v for v in all_variables(layers.values()) if keras.backend.is_float_dtype(v._dtype)]
    return {id(v): v._value.astype(jnp.float64) if wide else v._value for v in every}


class KerasAdapter(JaxAdapter):
    """A Keras 3 layer or model on JAX, on the CPU or on a CUDA device."""

    framework = "keras"
    separator = "/"

    def __init__(self, model: keras.layers.Layer) -> None:
        super().__init__(KerasProgram(model))
        self.model = model
        self.version = version_of("jax", jax.__version__)
        self.capabilities = capabilities_of(model)

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
        self._root = root_of(layers)
        with ExitStack() as stack:
            stack.enter_context(losses_kept(layers))
            stack.enter_context(seeds_kept(seed))
            if float64:
                stack.enter_context(in_float64(layers))
                stack.enter_context(_variables_called_float64(layers))
            return super().run(
                inputs,
                observer,
                cotangents=cotangents,
                float64=float64,
                overrides=overrides,
                train=train,
                seed=seed,
                passive=passive,
            )


@contextmanager
def _variables_called_float64(layers: Layers) -> Iterator[None]:
    """Their values in the scope are; what is assigned to them is cast to what they say."""
    every = [v for v in all_variables(layers.values()) if keras.backend.is_float_dtype(v._dtype)]
    before = [(v, v._dtype) for v in every]
    try:
        for variable in every:
            variable._dtype = "float64"
        yield
    finally:
        for variable, dtype in before:
            variable._dtype = dtype
