"""Keras 3: functional, Sequential and subclassed models, tapped at the layer call.

For the time of a run ``keras.layers.Layer.__call__`` is patched; it acts on the layers of this
model and lets all others through (`calls`). Every layer call taps its inputs through nodes of
their own, so that the cotangent seen there is that layer's own VJP. How a value is tapped, and how
gradients are made, is the backend's affair; the backend is fixed when Keras is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import keras

from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument, capped

__all__ = ["find"]

_BACKENDS = ("tensorflow", "torch", "jax")


def find(model: Any) -> Adapter | None:
    """An adapter if ``model`` is a Keras 3 layer or model, else None.

    Raises:
        InvalidArgument: Keras runs on a backend that has no gradients.
    """
    if not isinstance(model, keras.layers.Layer):
        return None
    backend = keras.config.backend()
    if backend not in _BACKENDS:
        raise InvalidArgument(
            f"the keras model `{model.name}` runs on the {backend} backend; supported are "
            f"{capped(_BACKENDS)}.\n"
            "  Fix: set KERAS_BACKEND to one of them before keras is imported."
        )
    adapter: Adapter = import_module(f"crosscheck.adapters.keras.{backend}").KerasAdapter(model)
    return adapter
