"""What a run changes in Keras itself, on every backend, and puts back: dtypes, losses, seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from crosscheck.adapters.keras.parameters import Layers, seed_generators

__all__ = ["in_float64", "losses_kept", "reseed", "seed_states", "seeds_kept"]

_SEED, _GENERATOR = "global_random_seed", "global_seed_generator"


@contextmanager
def in_float64(layers: Layers) -> Iterator[None]:
    """Every layer computes in float64; so do the inputs that functional models cast to."""
    floatx = keras.config.floatx()
    policies = [
        (layer, layer._dtype_policy)
        for layer in layers.values()
        if keras.backend.is_float_dtype(layer.compute_dtype)
    ]
    models = [m for layer in layers.values() for m in (layer, getattr(layer, "_functional", None))]
    symbols = {id(t): t for model in models for t in getattr(model, "_inputs", None) or ()}
    dtypes = [(t, t._dtype) for t in symbols.values() if keras.backend.is_float_dtype(t.dtype)]
    try:
        keras.config.set_floatx("float64")
        for layer, _ in policies:
            layer._dtype_policy = keras.DTypePolicy("float64")
        for symbol, _ in dtypes:
            symbol._dtype = "float64"
        yield
    finally:
        keras.config.set_floatx(floatx)
        for layer, policy in policies:
            layer._dtype_policy = policy
        for symbol, dtype in dtypes:
            symbol._dtype = dtype


@contextmanager
def losses_kept(layers: Layers) -> Iterator[None]:
    """The losses that layers have added are put back."""
    losses = [(layer, list(layer._losses), set(layer._loss_ids)) for layer in layers.values()]
    try:
        yield
    finally:
        for layer, values, ids in losses:
            layer._losses[:] = values
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


def seed_states(layers: Layers, seed: int) -> list[tuple[Any, list[int]]]:
    """The state of every layer's random generator, and what ``seed`` makes of it."""
    generators = seed_generators(layers.values())
    return [(g.state, [(seed + index) % 2**31, 0]) for index, g in enumerate(generators)]


def reseed(seed: int) -> None:
    """Seed Python's, NumPy's and Keras' global generators; the backend has one of its own."""
    global_state.set_global_attribute(_SEED, seed)
    global_state.set_global_attribute(_GENERATOR, None)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeds_kept(seed: int, backend: Callable[[int], Any] = lambda seed: None) -> Iterator[None]:
    """Global generators are seeded, with that of the ``backend``, and put back at the end."""
    python, numpy_state = random.getstate(), np.random.get_state()
    attributes = [(name, global_state.get_global_attribute(name)) for name in (_SEED, _GENERATOR)]
    try:
        reseed(seed)
        backend(seed)
        yield
    finally:
        for name, value in attributes:
            global_state.set_global_attribute(name, value)
        random.setstate(python)
        np.random.set_state(numpy_state)
