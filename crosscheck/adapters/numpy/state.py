"""What a run of a hand-written net changes on its objects, and how that is put back."""

from __future__ import annotations

import copy
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from crosscheck.adapters.numpy.arrays import cupy_module
from crosscheck.adapters.numpy.parameters import Slot, attributes_of, slots_of

__all__ = ["install", "left_as_found"]


def install(stack: ExitStack, layer: Any, method: str, wrapper: Callable[..., Any]) -> None:
    """Wrap a method on the instance; `left_as_found` takes it off again.

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
def left_as_found(layers: Any, slots: list[Slot], *, seed: int) -> Iterator[None]:
    """Attributes, parameters, gradients and the global random states are put back."""
    attributes = [(layer, attributes_of(layer)) for layer in layers]
    # Layers keep what backward needs in lists and dicts; those are put back with their contents.
    containers = [
        (value, copy.copy(value))
        for _, values_of in attributes
        for value in values_of.values()
        if type(value) in (list, dict, set, defaultdict, deque)
    ]
    values = [(slot, slot.get(), slot.get().copy()) for slot in slots]
    gradients = [(slot, slot.save_gradient()) for slot in slots]
    try:
        with _seeded(seed):
            yield
    finally:
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and, where it is loaded, CuPy."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    cupy = cupy_module()
    device_state = None if cupy is None else cupy.random.get_random_state()
    if cupy is not None:
        cupy.random.set_random_state(cupy.random.RandomState(seed))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cupy is not None:
            cupy.random.set_random_state(device_state)


def _put_back(layer: Any, attributes: Mapping[str, Any]) -> None:
    for name in attributes_of(layer).keys() - attributes.keys():
        object.__delattr__(layer, name)
    slots = slots_of(layer)
    if hasattr(layer, "__dict__"):  # in their old order, past any __setattr__
        own = {name: value for name, value in attributes.items() if name not in slots}
        layer.__dict__.clear()
        layer.__dict__.update(own)
    for name in slots & attributes.keys():
        object.__setattr__(layer, name, attributes[name])
