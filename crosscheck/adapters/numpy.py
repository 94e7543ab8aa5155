"""Hand-written nets: objects with ``forward`` and ``backward``, or plain functions with taps.

Layers are found by walking the attributes of the model; a layer is anything with a ``forward``.
For the time of a run each layer's ``forward`` and ``backward`` are wrapped on the instance, and
everything the run changed on the objects is put back afterwards. How parameters and gradients are
found is in `crosscheck.adapters.numpy_parameters`.
"""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from crosscheck.adapters.numpy_parameters import (
    Slot,
    attributes_of,
    find_slots,
    gradients_of,
    slots_of,
)
from crosscheck.arrays import is_float
from crosscheck.errors import InvalidArgument
from crosscheck.structure import leaves, replace_leaves
from crosscheck.taps import Kind, Observer, Session
from crosscheck.trace import RunInfo

__all__ = ["NumpyAdapter", "find"]


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


class _NumpySession(Session):
    """Taps on arrays. The backward half is explicit: layers and `tap_cotangent` report it."""

    def __init__(
        self, observer: Observer, *, separator: str, root: str, passive: bool = False
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self._open_taps: defaultdict[str, list[str]] = defaultdict(list)

    def tap_value(self, site: str, kind: Kind, value: Any) -> Any:
        array = np.asarray(value)
        replacement = self.observe(site, kind, array)
        if replacement is not None and not (kind == "input" and np.array_equal(replacement, array)):
            return replacement
        return value

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
            self.session.expect_cotangent(site, kind, np.asarray(value))
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

    def __init__(self, model: Any) -> None:
        self.model = model
        self.version = np.__version__
        self._layers = discover(model)
        self._slots = find_slots(self._layers)
        has_backward = callable(getattr(model, "backward", None))
        self.capabilities = Capabilities(cotangents=has_backward)
        self._root = "output" if "output" not in self._layers else "model_output"

    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(slot.parameter() for slot in self._slots)

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        slots = {slot.name: slot for slot in self._slots}
        for name, array in values.items():
            before = slots[name].get()
            if before.shape != array.shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {before.shape}")
            if before.flags.writeable:
                before[...] = array  # in place: another layer may share it (a tied head)
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
            observer, separator=self.separator, root=self._root, passive=passive
        )
        layers = _Layers(session, self.model, self._layers)
        with ExitStack() as stack:
            stack.enter_context(_left_as_found(self._layers.values(), self._slots, seed=seed))
            self._prepare(overrides or {}, float64=float64, train=train)
            for layer, method, wrapper in list(layers.wrap()):
                _install(stack, layer, method, wrapper)
            stack.enter_context(session.active())
            tapped = {n: self._feed(session, n, a, float64) for n, a in inputs.items()}
            with guarded(session, "forward"):
                args, kwargs = call_arguments(_signature_of(self.model), tapped)
                self.model.forward(*args, **kwargs)
            gradients: dict[str, np.ndarray] = {}
            if cotangents is not None:
                self._backward(session, layers, cotangents, tapped)
                gradients = gradients_of(self._slots)
            buffers = {s.name: np.array(s.get()) for s in self._slots if s.buffer}
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in layers.outputs),
            parameter_gradients=gradients,
            buffers=buffers if train else None,
        )

    def _prepare(self, overrides: Mapping[str, np.ndarray], *, float64: bool, train: bool) -> None:
        for slot in self._slots:
            value = overrides.get(slot.name, slot.get())
            slot.set(np.array(value, dtype=np.float64 if float64 else slot.get().dtype))
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
        tapped = session.tap_value(site, "activation", value)
        session.produced(tapped, site)
        return tapped

    def _backward(
        self,
        session: _NumpySession,
        layers: _Layers,
        cotangents: CotangentSource,
        tapped: Mapping[str, Any],
    ) -> None:
        floats = [(site, value) for site, value in layers.outputs if is_float(value)]
        wanted = cotangents({site: np.asarray(value) for site, value in layers.outputs})
        arriving = [
            np.asarray(wanted[s], v.dtype) if s in wanted else np.zeros_like(v) for s, v in floats
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


class FunctionNet:
    """A plain function as a model: ``forward``, and ``backward`` where one was given.

    ``params`` and ``grads`` are the dicts that the functions read and fill.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        *,
        backward: Callable[..., Any] | None = None,
        params: dict[str, np.ndarray] | None = None,
        grads: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.function = forward
        self.params = params if params is not None else {}
        if grads is not None:
            self.grads = grads
        if backward is not None:
            self.backward = backward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class LayerList:
    """A list of layers as a model: one after the other, and back. Sites are ``0``, ``1``, ..."""

    def __init__(self, layers: list[Any] | tuple[Any, ...]) -> None:
        self._list = list(layers)
        for index, layer in enumerate(layers):
            setattr(self, str(index), layer)
        if not all(callable(getattr(layer, "backward", None)) for layer in layers):
            self.backward = None  # type: ignore[assignment, method-assign]

    def forward(self, value: Any) -> Any:
        for layer in self._list:
            value = layer.forward(value)
        return value

    def backward(self, gradient: Any) -> Any:
        for layer in reversed(self._list):
            gradient = layer.backward(gradient)
        return gradient


def discover(model: Any) -> dict[str, Any]:
    """path -> layer, the model itself first under ``""``; an object is listed once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(value: Any, path: str) -> None:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                visit(item, f"{path}.{index}" if path else str(index))
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{path}.{key}" if path else str(key))
        elif _is_layer(value) and id(value) not in seen:
            seen.add(id(value))
            found[path] = value
            for name, item in attributes_of(value).items():
                if not name.startswith("_"):
                    visit(item, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def _is_layer(value: Any) -> bool:
    return callable(getattr(value, "forward", None)) and not isinstance(
        value, (type, types.ModuleType)
    )


def _signature_of(model: Any) -> Any:
    forward = model.forward
    while isinstance(forward, functools.partial):  # our own wrapper
        forward = forward.args[2]
    return model.function if isinstance(model, FunctionNet) else forward


def _install(stack: ExitStack, layer: Any, method: str, wrapper: Callable[..., Any]) -> None:
    """Wrap a method on the instance; `_left_as_found` takes it off again.

    Instances without a ``__dict__`` and classes with ``__call__ = forward`` reach the method
    through the class, so there a dispatching function goes on the class for the time of the run.
    """
    cls = type(layer)
    called = method == "forward" and "__call__" in dir(cls)
    if called and _undispatched(cls, "__call__") is _undispatched(cls, method):
        _dispatch(stack, cls, "__call__", layer, wrapper)
    if hasattr(layer, "__dict__"):
        layer.__dict__[method] = wrapper
    else:
        _dispatch(stack, cls, method, layer, wrapper)


def _undispatched(cls: type, method: str) -> Any:
    """What the class itself defines, beneath what was put there for other layers of its class."""
    function = getattr(cls, method, cls)
    while hasattr(function, "_crosscheck_original"):
        function = function._crosscheck_original
    return function


def _dispatch(stack: ExitStack, cls: type, method: str, layer: Any, wrapper: Any) -> None:
    original = getattr(cls, method)
    own = method in vars(cls)

    def dispatching(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer:
            return wrapper(*args, **kwargs)
        return original(self, *args, **kwargs)

    dispatching._crosscheck_original = original  # type: ignore[attr-defined]
    setattr(cls, method, dispatching)
    stack.callback(setattr, cls, method, original) if own else stack.callback(delattr, cls, method)


@contextmanager
def _left_as_found(layers: Any, slots: list[Slot], *, seed: int) -> Iterator[None]:
    """Attributes, parameters, gradients and the global random states are put back."""
    attributes = [(layer, attributes_of(layer)) for layer in layers]
    # Layers keep what backward needs in lists and dicts; those are put back with their contents.
    containers = [
        (value, copy.copy(value))
        for _, values_of in attributes
        for value in values_of.values()
        if type(value) in (list, dict, set, defaultdict, deque)
    ]
    values = [(slot, slot.get(), np.array(slot.get())) for slot in slots]
    gradients = [(slot, slot.save_gradient()) for slot in slots]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for layer, before in attributes:
            _put_back(layer, before)
        for container, contents in containers:
            container.clear()
            (container.extend if hasattr(container, "extend") else container.update)(contents)
        for slot, array, value in values:
            array[...] = value  # the very array that was there, with what was in it
            slot.set(array)
        for slot, gradient in gradients:
            slot.restore_gradient(gradient)


def _put_back(layer: Any, attributes: Mapping[str, Any]) -> None:
    for name in attributes_of(layer).keys() - attributes.keys():
        object.__delattr__(layer, name)
    if hasattr(layer, "__dict__"):  # in their old order, past any __setattr__
        own = {name: value for name, value in attributes.items() if name not in slots_of(layer)}
        layer.__dict__.clear()
        layer.__dict__.update(own)
    for name in slots_of(layer) & attributes.keys():
        object.__setattr__(layer, name, attributes[name])


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
    is_list = isinstance(model, (list, tuple)) and model and all(map(_is_layer, model))
    if _is_layer(model) or is_list:
        if any(option is not None for option in (backward, params, grads)):
            raise InvalidArgument(
                "adapt: backward=, params= and grads= belong to a plain function; a "
                f"{type(model).__name__} has its own"
            )
        return NumpyAdapter(LayerList(model) if is_list else model)
    if callable(model) and not isinstance(model, type):
        return NumpyAdapter(FunctionNet(model, backward=backward, params=params, grads=grads))
    return None
