"""The random states of the process: Python's, NumPy's, and of every framework that is loaded."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["random_states_kept"]

Undo = Callable[[], Any]


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put them back at the end. JAX has none: its keys are the caller's."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the caller's)
    undo = [*_of_torch(), *_of_tensorflow(), *_of_keras()]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for put_back in undo:
            put_back()


def _of_torch() -> list[Undo]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    state = torch.random.get_rng_state()
    undo: list[Undo] = [lambda: torch.random.set_rng_state(state)]
    if torch.cuda.is_initialized():
        of_devices = torch.cuda.get_rng_state_all()
        undo.append(lambda: torch.cuda.set_rng_state_all(of_devices))
    return undo


def _of_tensorflow() -> list[Undo]:
    """The global generator if there is one already (asking must not make it), and the counter
    behind operations without a seed of their own."""
    undo: list[Undo] = []
    module = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    generator = None if module is None else getattr(module, "global_generator", None)
    if generator is not None:
        state = np.array(generator.state)
        undo.append(lambda: generator.state.assign(state))
    module = sys.modules.get("tensorflow.python.eager.context")
    context: Any = None if module is None else module.context()
    counter = getattr(context, "_rng", None)
    if counter is not None:
        place = counter.getstate()
        undo.append(lambda: counter.setstate(place))
        # A kernel that is made for a seed goes on from where it was used last.
        undo.append(context.clear_kernel_cache)
    return undo


def _of_keras() -> list[Undo]:
    states = sys.modules.get("keras.src.backend.common.global_state")
    if states is None:
        return []
    names = ("global_random_seed", "global_seed_generator")
    before = {name: states.get_global_attribute(name) for name in names}
    generator = before["global_seed_generator"]
    value = None if generator is None else np.array(generator.state)

    def put_back() -> None:
        for name, attribute in before.items():
            states.set_global_attribute(name, attribute)
        if generator is not None:
            generator.state.assign(value)

    return [put_back]
