"""Hand-written nets: objects with ``forward`` and ``backward``, or plain functions with taps.

Layers are found by walking the attributes of the model; a layer is anything with a ``forward``.
For the time of a run each layer's ``forward`` and ``backward`` are wrapped on the instance, and
everything the run changed on the objects is put back afterwards. How parameters and gradients are
found is in `crosscheck.adapters.numpy.parameters`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    call_arguments,
    guarded,
    input_site,
)
from crosscheck.adapters.numpy.arrays import content, is_on_device, like, shown, to_host
from crosscheck.adapters.numpy.layers import FunctionNet, LayerList, discover, is_layer
from crosscheck.adapters.numpy.overlooked import overlooked
from crosscheck.adapters.numpy.parameters import find_slots, gradients_of
from crosscheck.adapters.numpy.state import install, left_as_found
from crosscheck.arrays import is_float
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.kernels.on_device import equal
from crosscheck.structure import leaves, replace_leaves
from crosscheck.taps import Kind, Observer, Session
from crosscheck.trace import RunInfo

__all__ = ["NumpyAdapter", "find"]


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) or is_on_device(value)


class _NumpySession(Session):
    """Taps on arrays. The backward half is explicit: layers and `tap_cotangent` report it."""

    def __init__(
        self,
        observer: Observer,
        *,
        separator: str,
        root: str,
        passive: bool = False,
        on_device: bool = False,
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self._on_device = on_device
        self._open_taps: defaultdict[str, list[str]] = defaultdict(list)

    def tap_value(self, site: str, kind: Kind, value: Any) -> Any:
        if self._on_device and isinstance(value, np.ndarray) and value.ndim:
            raise DeviceUnavailable(
                f"`{site}` is a NumPy array on the host, in a net that runs on the GPU: somewhere "
                "before it the computation left the device.\n  Fix: keep it in CuPy arrays"
            )
        array = shown(value)
        replacement = self.observe(site, kind, array)
        if replacement is not None and not (kind == "input" and equal(replacement, array)):
            return like(replacement, value)
        return value

    def content(self, value: Any) -> Any:
        return content(value)

    def tap(self, name: str, value: Any) -> Any:
        path = self._scoped(name)
        site = self.new_site(path, "tap")
        value = self.tap_value(site, "activation", value)
        self._open_taps[path].append(site)
        self.unobservable.add(("cotangent", site))  # until tap_cotangent reports it
        self.produced(value, site)
        return value

    def tap_cotangent(self, name: str, value: Any) -> Any:
        path = self._scoped(name)
        if not self._open_taps[path]:
            raise InvalidArgument(
                f"tap_cotangent({name!r}) was called more often than tap({name!r}) "
                f"inside `{self.current or self.root}`: use the same name once in each direction"
            )
        site = self._open_taps[path].pop()  # backward visits repeated calls in reverse
        self.unobservable.discard(("cotangent", site))
        return self.tap_value(site, "cotangent", value)


@dataclass
class _Call:
    """What the backward pass needs to know of one forward call of a layer."""

    site: str
    inputs: list[str] = field(default_factory=list)  # sites of its floating-point inputs
    outputs: list[str] = field(default_factory=list)


class _Layers:
    """The wrapped layers of one run."""

    def __init__(self, session: _NumpySession, model: Any, layers: Mapping[str, Any]) -> None:
        self.session = session
        self.outputs: list[tuple[str, Any]] = []
        self._root = model
        self._layers = layers
        self._open: defaultdict[str, list[_Call]] = defaultdict(list)

    def wrap(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """(object, method name, wrapper) of everything to wrap."""
        for path, layer in self._layers.items():
            yield layer, "forward", functools.partial(self._forward, path, layer, layer.forward)
            if callable(getattr(layer, "backward", None)):
                wrapper = functools.partial(self._backward, path, layer, layer.backward)
                yield layer, "backward", wrapper

    def _forward(self, path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        call = _Call(session.begin(path or session.root, type(layer).__name__))
        has_backward = callable(getattr(layer, "backward", None))

        def tap_input(suffix: str, value: Any) -> Any:
            site = call.site + suffix
            source = session.producer(value)
            if source is not None:
                session.sources[site] = source
            value = session.tap_value(site, "input", value)
            if is_float(value):
                call.inputs.append(site)
                self._expect(site, "input", value, has_backward)
            return value

        def tap_output(suffix: str, value: Any) -> Any:
            site = call.site + suffix
            value = session.tap_value(site, "activation", value)
            session.produced(value, site)
            if is_float(value):
                call.outputs.append(site)
                self._expect(site, "activation", value, has_backward)
            if layer is self._root:
                self.outputs.append((site, value))
            return value

        if layer is not self._root:  # the model's own inputs are sites already
            args, kwargs = replace_leaves((args, kwargs), _is_array, tap_input)
        output = original(*args, **kwargs)
        session.end()
        output = replace_leaves(output, _is_array, tap_output)
        self._open[path].append(call)
        return output

    def _expect(self, site: str, kind: Kind, value: Any, has_backward: bool) -> None:
        if has_backward:
            self.session.expect_cotangent(site, kind, value)
        else:
            self.session.forget_cotangent(site, kind)

    def _backward(self, path: str, layer: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        session = self.session
        if not self._open[path]:
            raise RuntimeError(f"backward of `{path}` was called more often than its forward")
        call = self._open[path].pop()  # repeated calls go backward in reverse order
        session.enter(call.site)
        arriving = iter(call.outputs)

        def tap_arriving(_: str, value: Any) -> Any:
            site = next(arriving, None)
            return value if site is None else session.tap_value(site, "cotangent", value)

        args, kwargs = replace_leaves((args, kwargs), _is_array, tap_arriving)
        gradient = original(*args, **kwargs)
        session.end()
        leaving = iter(call.inputs)

        def tap_leaving(_: str, value: Any) -> Any:
            site = next(leaving, None)
            return value if site is None else session.tap_value(site, "input_cotangent", value)

        # None stands for an input without gradient (token ids); those were never in call.inputs.
        return replace_leaves(gradient, _is_array, tap_leaving)


class NumpyAdapter(Adapter):
    """A NumPy net with a hand-written backward pass (or none: then backward is not compared)."""

    framework = "numpy"
    version = np.__version__

    def __init__(self, model: Any) -> None:
        self.model = model
        self._layers = discover(model)
        self._slots = find_slots(self._layers)
        has_backward = callable(getattr(model, "backward", None))
        self.capabilities = Capabilities(cotangents=has_backward, transparent=True)
        self._root = "output" if "output" not in self._layers else "model_output"

    def use(self, device: str) -> None:
        if device != self.device:
            raise DeviceUnavailable(
                "NumPy computes on the host.\n"
                "  Fix: write the net with CuPy arrays (pip install 'crosscheck[cupy]')"
            )

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(slot.parameter() for slot in self._slots)

    def overlooked(self) -> dict[str, tuple[int, ...]]:
        return overlooked(self.model, self._slots)

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        slots = {slot.name: slot for slot in self._slots}
        for name, array in values.items():
            before = slots[name].get()
            if before.shape != array.shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {before.shape}")
            if getattr(before.flags, "writeable", True):
                before[...] = like(array, before)  # in place: another layer may share it
            else:
                slots[name].set(np.array(array, dtype=before.dtype, order="C"))

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
        session = _NumpySession(
            observer,
            separator=self.separator,
            root=self._root,
            passive=passive,
            on_device=self.device == "cuda",
        )
        layers = _Layers(session, self.model, self._layers)
        with ExitStack() as stack:
            stack.enter_context(left_as_found(self._layers.values(), self._slots, seed=seed))
            self._prepare(overrides or {}, float64=float64, train=train)
            for layer, method, wrapper in list(layers.wrap()):
                install(stack, layer, method, wrapper)
            stack.enter_context(session.active())
            tapped = {n: self._feed(session, n, a, float64) for n, a in inputs.items()}
            with guarded(session, "forward"):
                args, kwargs = call_arguments(_signature_of(self.model), tapped)
                self.model.forward(*args, **kwargs)
            gradients: dict[str, np.ndarray] = {}
            if cotangents is not None:
                self._backward(session, layers, cotangents, tapped)
                gradients = gradients_of(self._slots)
            buffers = {s.name: np.array(to_host(s.get())) for s in self._slots if s.buffer}
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in layers.outputs),
            parameter_gradients=gradients,
            buffers=buffers if train else None,
        )

    def _prepare(self, overrides: Mapping[str, np.ndarray], *, float64: bool, train: bool) -> None:
        for slot in self._slots:
            own = slot.get()
            value = to_host(overrides.get(slot.name, own))
            slot.set(like(np.asarray(value, np.float64 if float64 else own.dtype), own))
        if callable(getattr(self.model, "zero_grad", None)):
            self.model.zero_grad()
        for slot in self._slots:
            slot.zero_gradient()
        mode = getattr(self.model, "train" if train else "eval", None)
        if callable(mode):
            mode()
        for layer in self._layers.values():
            for flag in ("training", "is_training", "train_mode"):
                if isinstance(getattr(layer, flag, None), bool):
                    setattr(layer, flag, train)

    def _feed(self, session: _NumpySession, name: str, array: np.ndarray, float64: bool) -> Any:
        site = input_site(name)
        session.layers[site] = "input"
        value = np.array(array, order="C")
        if float64 and is_float(value):
            value = value.astype(np.float64)
        tapped = session.tap_value(site, "activation", self._made(value))
        session.produced(tapped, site)
        return tapped

    def _made(self, value: np.ndarray) -> Any:
        """An array of the kind that the net computes with."""
        return value

    def _backward(
        self,
        session: _NumpySession,
        layers: _Layers,
        cotangents: CotangentSource,
        tapped: Mapping[str, Any],
    ) -> None:
        floats = [(site, value) for site, value in layers.outputs if is_float(value)]
        wanted = cotangents({site: to_host(value) for site, value in layers.outputs})
        arriving = [
            like(np.asarray(wanted[s], v.dtype) if s in wanted else np.zeros(v.shape, v.dtype), v)
            for s, v in floats
        ]
        float_inputs = [n for n, v in tapped.items() if is_float(v)]
        for name in float_inputs:
            session.expect_cotangent(input_site(name), "activation", tapped[name])
        with guarded(session, "backward"):
            gradient = self.model.backward(*arriving)
        # What backward returns is its inputs' cotangents; without any, they stay unseen.
        returned = [value for _, value in leaves(gradient, _is_array)]
        for index, name in enumerate(float_inputs):
            if index < len(returned):
                session.tap_value(input_site(name), "cotangent", returned[index])
            elif gradient is None:
                session.forget_cotangent(input_site(name), "activation")
        session.flush()


def _signature_of(model: Any) -> Any:
    forward = model.forward
    while isinstance(forward, functools.partial):  # our own wrapper
        forward = forward.args[2]
    return model.function if isinstance(model, FunctionNet) else forward


def find(
    model: Any,
    *,
    backward: Callable[..., Any] | None = None,
    params: dict[str, np.ndarray] | None = None,
    grads: dict[str, np.ndarray] | None = None,
) -> NumpyAdapter | None:
    """An adapter for a layer object, a list of layers or a plain function; None for others.

    Raises:
        InvalidArgument: options for anything but a plain function.
    """
    is_list = isinstance(model, (list, tuple)) and model and all(map(is_layer, model))
    if is_layer(model) or is_list:
        if any(option is not None for option in (backward, params, grads)):
            raise InvalidArgument(
                "adapt: backward=, params= and grads= belong to a plain function; a "
                f"{type(model).__name__} has its own"
            )
        return NumpyAdapter(LayerList(model) if is_list else model)
    if callable(model) and not isinstance(model, type):
        return NumpyAdapter(FunctionNet(model, backward=backward, params=params, grads=grads))
    return None
