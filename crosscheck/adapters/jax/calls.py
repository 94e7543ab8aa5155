"""Taps at the layer calls of JAX modules: around one call, and by patching ``__call__``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from crosscheck.adapters.jax.taps import JaxSession, is_tensor
from crosscheck.structure import leaves, replace_leaves
from crosscheck.taps import active_session

__all__ = ["patched", "tapped_call"]


class _Sealed:
    """A module among the arguments of another: its fields are not arrays that were passed."""

    def __init__(self, module: Any) -> None:
        self.module = module


def _seal(value: Any) -> Any:
    return _Sealed(value) if dataclasses.is_dataclass(value) and callable(value) else value


def _unseal(value: Any) -> Any:
    return value.module if isinstance(value, _Sealed) else value


def tapped_call(
    session: JaxSession,
    path: str,
    layer: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a layer with its inputs and outputs tapped. The model itself (path ``""``) has none:
    its inputs and outputs are sites of the run."""
    if not path:
        return function(*args, **kwargs)
    sealed = tuple(map(_seal, args)), {key: _seal(value) for key, value in kwargs.items()}
    place = session.open(path, layer, [value for _, value in leaves(sealed, is_tensor)])

    def tap_input(suffix: str, value: Any) -> Any:
        return session.tap_at(place, suffix, "input", value)

    def tap_output(suffix: str, value: Any) -> Any:
        tapped = session.tap_at(place, suffix, "activation", value)
        session.made(tapped, place, suffix)
        return tapped

    new_args, new_kwargs = replace_leaves(sealed, is_tensor, tap_input)
    output = function(*map(_unseal, new_args), **{k: _unseal(v) for k, v in new_kwargs.items()})
    session.close(place)
    return replace_leaves(output, is_tensor, tap_output)


def _own_or_inherited(cls: type, name: str) -> Any:
    """The attribute as it stands in the class, not bound; a metaclass's does not count."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


@contextmanager
def patched(
    classes: Iterable[type], path_of: Callable[[Any], str | None], session: JaxSession
) -> Iterator[None]:
    """For the time of a run, calls of instances with a path are tapped; others pass through."""
    running: list[Any] = []
    found = {cls: _own_or_inherited(cls, "__call__") for cls in classes}
    originals = {cls: original for cls, original in found.items() if original is not None}
    own = {c for c in originals if "__call__" in vars(c)}

    def wrapper_of(original: Any) -> Any:
        @functools.wraps(original, updated=())
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            function = original.__get__(self, type(self))
            path = path_of(self)
            # Other threads and models pass; so does the call of the parent class's method.
            inside = bool(running) and running[-1] is self
            if path is None or inside or active_session() is not session:
                return function(*args, **kwargs)
            running.append(self)
            try:
                return tapped_call(session, path, type(self).__name__, function, args, kwargs)
            finally:
                running.pop()

        return call

    for cls, original in originals.items():
        type.__setattr__(cls, "__call__", wrapper_of(original))  # some metaclasses wrap methods
    try:
        yield
    finally:
        for cls, original in originals.items():
            if cls in own:
                type.__setattr__(cls, "__call__", original)
            else:
                type.__delattr__(cls, "__call__")
