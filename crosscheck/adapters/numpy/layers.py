"""Hand-written nets as a tree of layers: what counts as one, and models made of functions."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from crosscheck.adapters.numpy.parameters import attributes_of

__all__ = ["FunctionNet", "LayerList", "discover", "is_layer"]


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
        elif is_layer(value) and id(value) not in seen:
            seen.add(id(value))
            found[path] = value
            for name, item in attributes_of(value).items():
                if not name.startswith("_"):
                    visit(item, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def is_layer(value: Any) -> bool:
    return callable(getattr(value, "forward", None)) and not isinstance(
        value, (type, types.ModuleType)
    )
