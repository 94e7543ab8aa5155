"""What a run changes in TensorFlow and in its variables, and puts back: values, dtypes, states."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import gen_math_ops, stateful_random_ops

__all__ = [
    "calls_of_functions",
    "exact_and_eager",
    "in_float64",
    "kept",
    "random_states",
    "with_values",
]

_FUNCTION: Any = type(tf.function(lambda: None))


@contextmanager
def exact_and_eager(*, eager: bool = True) -> Iterator[None]:
    """Float32 means float32, and ``tf.function`` runs eagerly (or as the user has it)."""
    before = tf.config.functions_run_eagerly()
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        tf.config.run_functions_eagerly(eager or before)
        tf.config.experimental.enable_tensor_float_32_execution(False)
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        tf.config.run_functions_eagerly(before)


@contextmanager
def calls_of_functions(found: list[str]) -> Iterator[None]:
    """Note in ``found`` the name of every ``tf.function`` that is called."""
    original = _FUNCTION.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self.python_function, "__name__", None) or "a tf.function"
        if name not in found:
            found.append(name)
        return original(self, *args, **kwargs)

    _FUNCTION.__call__ = call
    try:
        yield
    finally:
        _FUNCTION.__call__ = original


@contextmanager
def kept(variables: Iterable[Any]) -> Iterator[None]:
    """The values of ``variables`` are put back at the end."""
    # A read shares the variable's memory until that is written to.
    values = [(v, v.read_value()) for v in variables]
    try:
        yield
    finally:
        for variable, value in values:
            if variable.numpy().tobytes() != value.numpy().tobytes():
                variable.assign(value)


@contextmanager
def with_values(overrides: Sequence[tuple[Any, np.ndarray]]) -> Iterator[None]:
    """Other values for the time of a run. They are written into the variables themselves, where
    compiled functions see them, too."""
    with kept(variable for variable, _ in overrides):
        for variable, array in overrides:
            variable.assign(np.asarray(array).astype(variable.dtype.as_numpy_dtype))
        yield


@contextmanager
def in_float64(
    variables: Iterable[Any], overrides: Mapping[int, np.ndarray], owners: Iterable[Any]
) -> Iterator[None]:
    """Floating-point variables, and tensors that modules hold, are float64; casts to less do
    nothing.

    A variable takes the state of another one for the time of the run, wherever it is referred to
    (modules, lists, closures); its own value is not written to.

    Args:
        overrides: id of a variable -> value to use instead of its own.
        owners: modules, whose constants are cast as well.
    """
    with ExitStack() as stack:
        for variable in variables:
            if variable.dtype.is_floating:
                _become_float64(stack, variable, overrides.get(id(variable)))
        for owner in owners:
            for name, value in list(vars(owner).items()):
                if isinstance(value, tf.Tensor) and value.dtype.is_floating:
                    stack.callback(vars(owner).__setitem__, name, value)
                    vars(owner)[name] = tf.cast(value, tf.float64)
        stack.enter_context(_without_narrowing())
        yield


def _become_float64(stack: ExitStack, variable: Any, override: np.ndarray | None) -> None:
    value = variable.numpy() if override is None else override
    wide = tf.Variable(np.asarray(value, np.float64), trainable=variable.trainable)
    own = dict(vars(variable))

    def restore(keeping: Any) -> None:
        vars(variable).clear()
        vars(variable).update(own)

    stack.callback(restore, wide)  # its memory lives as long as it does
    vars(variable).update(vars(wide))


@contextmanager
def _without_narrowing() -> Iterator[None]:
    original = gen_math_ops.cast

    def cast(x: Any, DstT: Any, *args: Any, **kwargs: Any) -> Any:
        narrows = getattr(x, "dtype", None) == tf.float64 and tf.as_dtype(DstT).is_floating
        return x if narrows else original(x, DstT, *args, **kwargs)

    gen_math_ops.cast = cast
    try:
        yield
    finally:
        gen_math_ops.cast = original


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Seed every global generator within reach, and put them back at the end.

    TensorFlow keeps the counters of its stateful random ops inside cached kernels, where nobody
    can read them: those start over after a run, as they do after ``tf.random.set_seed``.
    """
    python, numpy_state = random.getstate(), np.random.get_state()
    eager = context.context()
    before, rng = eager._seed, getattr(eager, "_rng", None)
    generator = stateful_random_ops.global_generator
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        tf.random.set_seed(seed)
        tf.random.set_global_generator(tf.random.Generator.from_seed(seed))
        yield
    finally:
        eager._set_global_seed(before)
        if rng is not None:
            eager._rng = rng
        stateful_random_ops.global_generator = generator
        random.setstate(python)
        np.random.set_state(numpy_state)
