"""Stage 1, adapt: a user's model -> an Adapter.

A framework is recognised by looking in ``sys.modules``: a model of a framework that nobody has
imported cannot exist, so nothing is imported to find out.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument
from crosscheck.frames import plain
from crosscheck.trace import Trace

__all__ = ["adapt"]

# Framework module that must be loaded -> our module with ``find(model, **options)``. Keras comes
# first: on its PyTorch backend a layer is an nn.Module as well. NumPy comes last: it takes any
# object with a ``forward``, which an nn.Module has too.
_ADAPTERS = {
    "keras": "crosscheck.adapters.keras.adapter",
    "torch": "crosscheck.adapters.torch.adapter",
    "tensorflow": "crosscheck.adapters.tensorflow.adapter",
    "jax": "crosscheck.adapters.jax.adapter",
    "onnx": "crosscheck.adapters.onnx.adapter",
    "cupy": "crosscheck.adapters.cupy.adapter",
    "numpy": "crosscheck.adapters.numpy.adapter",
}


def is_trace(model: Any) -> bool:
    """Whether a side is a recorded run: a `RecordedTrace` or the path of a trace file."""
    if isinstance(model, (str, os.PathLike)):
        return str(model).lower().endswith(".safetensors")
    return isinstance(model, Trace)


def _file_of(model: Any) -> str | None:
    """The framework that reads the file or folder at this path; None for anything else."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    if str(model).lower().endswith(".onnx"):
        return "onnx"
    return "tensorflow" if os.path.isfile(os.path.join(model, "saved_model.pb")) else None


def adapt(model: Any, **options: Any) -> Adapter:
    """Make the adapter of a model explicit.

    Args:
        model: an ``nn.Module`` (a compiled or scripted one is observed at its ends only), a
            ``torch.export`` program, a Keras model, a ``tf.Module``, a ``tf.function``, a
            SavedModel (loaded, or its path), a Flax or Equinox module, an ONNX ModelProto
            or the path of an ``.onnx`` file, a NumPy or CuPy object with ``forward`` (and
            ``backward``), a list of such, a plain NumPy or JAX function, a recorded trace or the
            path of its ``.safetensors`` file, or an Adapter (returned as is).
        options: for a plain NumPy function: ``backward=``, ``params=`` and ``grads=`` (dicts); for
            a plain function of TensorFlow tensors ``variables=`` (a list or dict of tf.Variable
            and tf.Module), and ``eager=False`` to run every ``tf.function`` as compiled, seen at
            its ends; for a SavedModel ``signature=``; for a CuPy net that holds no array
            ``arrays="cupy"``; for a Flax Linen module ``variables=``; for a JAX function
            ``params=`` (a pytree; it is called ``function(params, *inputs)``); for an Equinox
            module ``batched=True`` (call it under vmap); for ONNX ``optimization=``,
            ``session_options=``, ``providers=``, and ``export="onnx"`` for a PyTorch module that
            ONNX Runtime shall run, with ``gradients=True`` its backward pass as well, and
            ``transform=`` for a function that changes the exported graph before it runs.

    Raises:
        InvalidArgument: nothing here knows what to do with the model, or with an option.
    """
    if isinstance(model, Adapter):
        if options:
            raise InvalidArgument("adapt: the model is an Adapter already; it takes no options")
        return model
    if is_trace(model):
        trace: Adapter = importlib.import_module("crosscheck.adapters.trace").find(model, **options)
        return trace
    kind = _file_of(model)
    if model is None or (isinstance(model, (str, bytes, int, float)) and kind is None):
        raise InvalidArgument(
            f"adapt: {model!r} is not a model. Give an nn.Module, a Keras model, the path of an "
            ".onnx or .safetensors file or of a SavedModel, an object with forward and backward, "
            "or a function"
        )
    adapter = _recognised(model, kind, options)
    if adapter is None:
        raise InvalidArgument(_not_recognised(model, options))
    return adapter


def _recognised(model: Any, kind: str | None, options: dict[str, Any]) -> Adapter | None:
    """What the first adapter that takes the model and the options makes of it.

    Args:
        kind: the framework that a file is of; None: the model is no file.
    """
    for framework, module in _ADAPTERS.items():
        # A path and export= bring no framework with them.
        wanted = framework == kind or (framework == "onnx" and "export" in options)
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
    return None


def _not_recognised(model: Any, options: Iterable[str]) -> str:
    kind = plain(f"{type(model).__module__}.{type(model).__qualname__}").replace("builtins.", "")
    what, hint = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}", ""
    if isinstance(model, type):
        what, hint = f"the class {model.__name__}", " Make an instance of it first."
    elif isinstance(model, Mapping):
        hint = " Weights alone cannot be run: give the model that holds them."
    elif isinstance(model, (list, tuple)):
        hint = " A list must hold layers with a forward, and nothing else."
    unknown = f" with options {sorted(options)}" if options else ""
    return (
        f"adapt: no adapter takes {what}{unknown}."
        f"{hint} Known: PyTorch modules, Keras models, TensorFlow modules and SavedModels, Flax "
        "and Equinox modules, ONNX files, NumPy objects with forward, functions"
    )
