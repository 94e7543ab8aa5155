"""Keras 3 on PyTorch: the taps and the backward pass of the PyTorch adapter, at Keras' layer calls.

A Keras layer is an ``nn.Module`` here. What is seen is Keras' layer call even so, with Keras' names
and axes: module hooks would see the same values under the names of Keras' internals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import torch
from keras.src.backend.torch.core import device_scope

from crosscheck.adapters.base import CotangentSource, Parameter
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
from crosscheck.adapters.torch.adapter import Tensors, TorchAdapter
from crosscheck.adapters.torch.hooks import Boundaries
from crosscheck.adapters.torch.taps import TorchSession, from_host, is_tensor
from crosscheck.structure import replace_leaves
from crosscheck.taps import Kind, Observer
from crosscheck.trace import RunInfo

__all__ = ["KerasAdapter"]


class KerasAdapter(TorchAdapter):
    """A Keras 3 layer or model on PyTorch, on the CPU or on a CUDA device."""

    framework = "keras"
    separator = "/"

    def __init__(self, model: keras.layers.Layer) -> None:
        super().__init__(model)
        self.version = version_of("torch", self.version)
        self.capabilities = capabilities_of(model)
        self._train = False

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(built_layers(self.model))

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        load_values(built_layers(self.model), values)

    def declared(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int | None, ...]]:
        return declared(self.model, inputs)

    def operations(self, *args: Any, **options: Any) -> tuple[Any, ...]:
        return ()

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
        self._root = root_of(built_layers(self.model))
        self._train = train  # Keras' modes are arguments of the call
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

    def _prepare(self, stack: ExitStack, *, train: bool, seed: int, float64: bool) -> None:
        layers = built_layers(self.model)
        super()._prepare(stack, train=train, seed=seed, float64=float64)
        states = seed_states(layers, seed)
        stack.enter_context(_kept([*all_variables(layers.values()), *(s for s, _ in states)]))
        stack.enter_context(losses_kept(layers))
        stack.enter_context(seeds_kept(seed))
        stack.enter_context(device_scope(self.device))
        for state, value in states:
            state.assign(value)
        if float64:
            stack.enter_context(in_float64(layers))

    def _replaced(
        self,
        overrides: Mapping[str, np.ndarray],
        *,
        float64: bool,
        but: frozenset[str] = frozenset(),
    ) -> Tensors:
        """Values to run with instead of the variables' own, by name (`_named`)."""
        named = _named(built_layers(self.model))
        replaced = {}
        for name, variable in named.items():
            own = variable._value.detach().to(self.device)
            wide = own.double() if float64 and own.is_floating_point() else own
            value = from_host(overrides[name], wide) if name in overrides else wide
            moved = own.device != variable._value.device
            if name in overrides or moved or value.dtype != own.dtype:
                replaced[name] = value.clone().requires_grad_(variable._value.requires_grad)
        return replaced

    def _boundaries(self, session: TorchSession, replaced: Tensors, *, float64: bool) -> Boundaries:
        return _Calls(session, built_layers(self.model))

    def _in_place_of(self, stack: ExitStack, replaced: Tensors) -> Tensors:
        named = _named(built_layers(self.model))
        for name, value in replaced.items():
            variable = named[name]
            stack.callback(vars(variable).update, _value=variable._value, _dtype=variable._dtype)
            variable._value = value
            variable._dtype = keras.backend.standardize_dtype(value.dtype)
        return {name: variable._value for name, variable in named.items()}

    def _forward(self, seen: Boundaries, tapped: dict[str, Any]) -> Any:
        args, kwargs = arguments(self.model, tapped)
        return self.model(*args, training=self._train, **kwargs)

    def _leaves(self, replaced: Tensors) -> Tensors:
        trainable = {p.name for p in self.parameters() if p.trainable}
        return {name: t for name, t in replaced.items() if name in trainable}


def _named(layers: Layers) -> dict[str, Any]:
    """Variables by name; the states of recurrent layers, which are no parameters, by number."""
    named = {name: variable for name, _, _, variable in variables(layers)}
    known = {id(variable) for variable in named.values()}
    rest = [v for v in all_variables(layers.values()) if id(v) not in known]
    return named | {f"#{index}": variable for index, variable in enumerate(rest)}


@contextmanager
def _kept(kept: list[Any]) -> Iterator[None]:
    """The values of variables are put back at the end, into the tensors that held them."""
    values = [(v._value, v._value.detach().clone()) for v in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


class _Calls(Boundaries):
    """Taps at Keras' layer calls."""

    def __init__(self, session: TorchSession, layers: Layers) -> None:
        super().__init__(session)
        self._layers = layers

    @contextmanager
    def installed(self) -> Iterator[None]:
        with patched_layers(self.session, self._layers, self._tapped, is_tensor):
            yield

    def _tapped(self, path: str, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
        if self.session.replaying:
            return self._again(path, function, args, kwargs)
        site = self.enter(path or self.session.root, layer)

        def tap(suffix: str, tensor: Any) -> Any:
            return self.tap_input(site + suffix, tensor)

        if path:
            args, kwargs = replace_leaves((args, kwargs), is_tensor, tap)
        output = function(*args, **kwargs)
        while self.session.current != site:  # the model caught what one of its layers raised
            self.session.end()
            self._open.pop()
        return self.leave(output, is_root=not path)

    def _again(self, path: str, function: Any, args: Any, kwargs: Any) -> Any:
        """A layer of a checkpointed part, computed once more for the backward pass."""
        self.session.enter_again(path or self.session.root)

        def tap(kind: Kind) -> Any:
            return lambda suffix, tensor: self.session.tap_again(path, suffix, kind, tensor)

        if path:
            args, kwargs = replace_leaves((args, kwargs), is_tensor, tap("input"))
        return replace_leaves(function(*args, **kwargs), is_tensor, tap("activation"))
