"""The kinds of plain TensorFlow models behind one face: something to call, and what it holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from crosscheck.adapters.base import call_arguments
from crosscheck.adapters.tensorflow.parameters import Found, discover, named
from crosscheck.adapters.tensorflow.taps import TensorFlowSession, is_symbolic, tapped_call
from crosscheck.errors import InvalidArgument
from crosscheck.structure import leaves
from crosscheck.taps import active_session

__all__ = ["Program", "is_function", "is_model", "owner_of", "used_by"]

_MODES = ("training", "is_training", "train")


def is_function(model: Any) -> bool:
    """A ``tf.function``."""
    return isinstance(model, tf.types.experimental.PolymorphicFunction)


def is_model(value: Any) -> bool:
    """Something that holds variables, or one."""
    return isinstance(value, (tf.Variable, tf.Module))


class Program:
    """A ``tf.Module`` or a function.

    Attributes:
        function: what is called with the inputs.
        layer: name of the model's type, for the report.
        graph: it is run as a graph, not eagerly.
    """

    def __init__(self, function: Any, holds: Any, *, eager: bool = True) -> None:
        self.function = function
        self.graph = not eager
        self._holds = holds
        is_module = isinstance(holds, tf.Module)
        self.layer = type(holds).__name__ if is_module else "function"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a report should know about this kind of model."""
        compiled = "every tf.function ran compiled, and was not seen inside (eager=False)"
        return (compiled,) if self.graph else ()

    def found(self) -> Found:
        """Its modules and variables, as they are now."""
        held = self._holds
        return discover(held) if isinstance(held, tf.Module) else named(held)

    def declared(self, inputs: Collection[str]) -> Mapping[str, tuple[int | None, ...]]:
        """See `Adapter.declared`; Python says nothing of shapes."""
        return {}

    def call(self, inputs: Mapping[str, Any], *, train: bool) -> Any:
        """Run it; ``training=`` or the like is given where it is known and nobody gave it."""
        args, kwargs = call_arguments(self.function, inputs)
        return self.function(*args, **kwargs, **_mode(self.function, args, kwargs, train=train))


def _mode(
    function: Any, args: list[Any], kwargs: Mapping[str, Any], *, train: bool
) -> dict[str, bool]:
    try:
        parameters = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):  # some callables have no signature
        return {}
    free = parameters[len(args) :]
    return {name: train for name in _MODES if name in free and name not in kwargs}


# -- what a function uses --------------------------------------------------------------------------


def owner_of(function: Any) -> Any:
    """The module that ``function`` is a method of, or None; also behind a ``tf.function``."""
    plain = inspect.unwrap(getattr(function, "python_function", function))
    owner = getattr(plain, "__self__", None)
    owner = getattr(owner, "target", owner)  # a tf.function holds its module weakly
    return owner if isinstance(owner, tf.Module) else None


def used_by(function: Any) -> dict[str, Any]:
    """Variables and modules that the code of ``function`` refers to, by the names it uses."""
    plain = inspect.unwrap(getattr(function, "python_function", function))
    try:
        closure = inspect.getclosurevars(plain)
    except TypeError:  # not a Python function
        return {}
    names = {**closure.nonlocals, **closure.globals}

    def holds(value: Any) -> bool:
        many = value.values() if isinstance(value, Mapping) else value
        return is_model(value) or (
            isinstance(value, (Mapping, list, tuple)) and any(is_model(v) for v in many)
        )

    return {name: value for name, value in names.items() if holds(value)}


def require_variables(given: Any) -> None:
    """Refuse ``variables=`` that holds anything else.

    Raises:
        InvalidArgument: says what was given.
    """
    values: Iterable[Any] = given.values() if isinstance(given, Mapping) else given
    wrong = [type(v).__name__ for v in values if not is_model(v)]
    if wrong:
        raise InvalidArgument(
            f"variables= of a TensorFlow function holds a {wrong[0]}: it must be a list or a dict "
            "of tf.Variable and tf.Module objects"
        )


# -- taps at the calls of modules ------------------------------------------------------------------


@contextmanager
def patched_modules(session: TensorFlowSession, found: Found, root: Any) -> Iterator[None]:
    """For the time of a run, the calls of the model's modules are tapped; others pass through."""
    paths = {id(m): path for path, m in found.modules.items() if path and m is not root}
    classes = {type(m) for m in found.modules.values()}
    originals = {cls: original for cls in classes if (original := _inherited(cls)) is not None}
    own = {cls for cls in originals if "__call__" in vars(cls)}

    def wrapper_of(cls: type, original: Any) -> Any:
        @functools.wraps(original, updated=())
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            function = original.__get__(self, type(self))
            # Other threads and modules pass; so do the parent class's call and code being traced.
            if (
                type(self) is not cls
                or id(self) not in paths
                or active_session() is not session
                or leaves((args, kwargs), is_symbolic)
            ):
                return function(*args, **kwargs)
            name = type(self).__name__
            return tapped_call(session, paths[id(self)], name, function, args, kwargs)

        return call

    for cls, original in originals.items():
        type.__setattr__(cls, "__call__", wrapper_of(cls, original))
    try:
        yield
    finally:
        for cls, original in originals.items():
            if cls in own:
                type.__setattr__(cls, "__call__", original)
            else:
                type.__delattr__(cls, "__call__")


def _inherited(cls: type) -> Any:
    """``__call__`` as it stands in the class, not bound; a metaclass's does not count."""
    return next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
