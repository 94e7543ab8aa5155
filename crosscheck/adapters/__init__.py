"""Stage 1, adapt: a user's model -> an Adapter.

A framework is recognised by looking in ``sys.modules``: a model of a framework that nobody has
imported cannot exist, so nothing is imported to find out.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument

__all__ = ["adapt"]

# Framework module that must be loaded -> our module with ``find(model, **options)``. NumPy comes
# last: it takes any object with a ``forward``, which an nn.Module has too.
_ADAPTERS = {
    "torch": "crosscheck.adapters.torch",
    "keras": "crosscheck.adapters.keras",
    "jax": "crosscheck.adapters.jax",
    "onnx": "crosscheck.adapters.onnx",
    "numpy": "crosscheck.adapters.numpy",
}


def adapt(model: Any, **options: Any) -> Adapter:
    """Make the adapter of a model explicit.

    Args:
        model: an ``nn.Module``, a Keras model, a Flax or Equinox module, an ONNX ModelProto or the
            path of an ``.onnx`` file, a NumPy object with ``forward`` (and ``backward``), a list
            of such, a plain NumPy or JAX function, or an Adapter (returned as is).
        options: for a plain NumPy function: ``backward=``, ``params=`` and ``grads=`` (dicts); for
            a Flax Linen module ``variables=``; for a JAX function ``params=`` (a pytree; it is
            called ``function(params, *inputs)``); for an Equinox module ``batched=True`` (call it
            under vmap); for ONNX ``optimization=``, ``session_options=``, and ``export="onnx"``
            for a PyTorch module that ONNX Runtime shall run.

    Raises:
        InvalidArgument: nothing here knows what to do with the model, or with an option.
    """
    if isinstance(model, Adapter):
        if options:
            raise InvalidArgument("adapt: the model is an Adapter already; it takes no options")
        return model
    is_file = isinstance(model, (str, os.PathLike)) and str(model).lower().endswith(".onnx")
    if model is None or (isinstance(model, (str, bytes, int, float)) and not is_file):
        raise InvalidArgument(
            f"adapt: {model!r} is not a model. Give an nn.Module, a Keras model, the path of an "
            ".onnx file, an object with forward and backward, or a function"
        )
    for framework, module in _ADAPTERS.items():
        # A path and export= bring no framework with them.
        wanted = framework == "onnx" and (is_file or "export" in options)
        if framework in sys.modules or wanted:
            find = importlib.import_module(module).find
            try:
                adapter: Adapter | None = find(model, **options)
            except TypeError as error:
                if options and "unexpected keyword" in str(error):
                    continue
                raise
            if adapter is not None:
                return adapter
    what = f"a {type(model).__module__}.{type(model).__qualname__}".replace("builtins.", "")
    hint = ""
    if isinstance(model, type):
        what, hint = f"the class {model.__name__}", " Make an instance of it first."
    elif isinstance(model, Mapping):
        hint = " Weights alone cannot be run: give the model that holds them."
    elif isinstance(model, (list, tuple)):
        hint = " A list must hold layers with a forward, and nothing else."
    unknown = f" with options {sorted(options)}" if options else ""
    raise InvalidArgument(
        f"adapt: no adapter takes {what}{unknown}."
        f"{hint} Known: PyTorch modules, Keras models, Flax and Equinox modules, ONNX files, "
        "NumPy objects with forward, functions"
    )
