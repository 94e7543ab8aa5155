"""A module that behaves like CuPy where the adapter touches it, and computes with NumPy.

Its arrays are no NumPy arrays, refuse to become one by themselves, and refuse to be mixed with one.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class FakeArray(NDArrayOperatorsMixin):
    """Like ``cupy.ndarray``."""

    def __init__(self, held: np.ndarray) -> None:
        self._held = held

    shape = property(lambda self: self._held.shape)
    dtype = property(lambda self: self._held.dtype)
    strides = property(lambda self: self._held.strides)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    T = property(lambda self: FakeArray(self._held.T))

    @property
    def flags(self) -> Any:  # CuPy's know nothing of writeable
        return types.SimpleNamespace(c_contiguous=self._held.flags.c_contiguous)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return _call(getattr(ufunc, method), args, kwargs)

    def __array_function__(self, function: Any, types_: Any, args: Any, kwargs: Any) -> Any:
        return _call(function, args, kwargs)

    def __dlpack__(self, **options: Any) -> Any:
        return self._held.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._held.__dlpack_device__()

    def __getitem__(self, index: Any) -> Any:
        return FakeArray(np.asarray(self._held[_held(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._held[_held(index)] = _held(value)

    def __len__(self) -> int:
        return len(self._held)

    def __int__(self) -> int:
        return int(self._held)


def _forward(name: str) -> Any:
    def method(self: FakeArray, *args: Any, **kwargs: Any) -> Any:
        return _call(getattr(self._held, name), args, kwargs)

    return method


_FORWARDED = (
    *("any", "astype", "copy", "max", "mean", "min", "ravel", "reshape", "sum", "tobytes"),
    *("transpose", "var", "view"),
)
for _name in _FORWARDED:
    setattr(FakeArray, _name, _forward(_name))


def _held(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}: an array of the host among the device's")
    if isinstance(value, (tuple, list)):
        return type(value)(_held(item) for item in value)
    return value._held if isinstance(value, FakeArray) else value


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    result = function(*_held(args), **{k: _held(v) for k, v in kwargs.items()})
    return FakeArray(np.asarray(result)) if isinstance(result, (np.ndarray, np.generic)) else result


def module() -> types.ModuleType:
    """A fresh ``cupy`` for ``sys.modules``."""
    fake = types.ModuleType("cupy")
    state = [np.random.RandomState(7)]
    fake.__dict__.update(
        __version__="13.9.0",
        ndarray=FakeArray,
        asarray=lambda value: value if isinstance(value, FakeArray) else FakeArray(np.array(value)),
        array=lambda value, **how: FakeArray(np.array(value._held, **how)),
        from_dlpack=lambda value: FakeArray(np.from_dlpack(value)),
        asnumpy=lambda value: value._held.copy(),
        zeros=lambda *args: FakeArray(np.zeros(*args)),
        ones=lambda *args: FakeArray(np.ones(*args)),
        random=types.SimpleNamespace(
            RandomState=np.random.RandomState,
            get_random_state=lambda: state[0],
            set_random_state=lambda new: state.__setitem__(0, new),
            random=lambda shape: FakeArray(state[0].random_sample(shape)),
        ),
        cuda=types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=0),
            get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
            runtime=types.SimpleNamespace(getDeviceProperties=lambda i: {"name": b"Fake GPU"}),
        ),
    )
    return fake
