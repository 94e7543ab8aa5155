"""What a defect is, and how to plant one in a single instance without touching its class."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from models.scratch import Layer

Phase = Literal["forward", "backward", "parameter_gradient", "buffer", "weights"]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One planted mistake.

    ``site`` is where it has to be found, in the candidate's own names: the layer whose value is
    wrong ("forward"), the layer whose VJP is wrong ("backward"), or the parameter or buffer. For
    what a container does between its layers (a mask, a residual sum) it is the container.
    """

    name: str
    family: str  # a folder of `models/`
    candidate: str  # "numpy", "keras", "jax" or "onnx"
    mistake: str
    source: str  # where it was made: repository#issue; empty if nowhere that we know of
    phase: Phase
    site: str
    inject: Callable[[Any], None]  # alters a freshly built candidate
    train: bool = False  # shows in training mode only
    keep_weights: bool = False  # inject after the right weights have been copied, then keep them


def change(path: str, **changes: Any) -> Callable[[Any], None]:
    """An injection that sets attributes of the layer at ``path``; functions become methods.

    The methods go on a subclass made for this one instance, so the layer keeps its identity, its
    parameters and its place, and its class stays as it was for every other layer.
    """
    methods = {k: v for k, v in changes.items() if isinstance(v, types.FunctionType)}
    attributes = {k: v for k, v in changes.items() if k not in methods}

    def inject(model: Any) -> None:
        layer = find(model, path)
        if methods:
            cls = type(layer)
            layer.__class__ = type(cls.__name__, (cls,), methods)
        for name, value in attributes.items():
            setattr(layer, name, value)

    return inject


def alter(path: str, alteration: Callable[[Any], None]) -> Callable[[Any], None]:
    """An injection that calls ``alteration`` with the layer at ``path``."""
    return lambda model: alteration(find(model, path))


def find(model: Any, path: str) -> Any:
    """The layer at a site: ``blocks.0.attn`` in a NumPy net and in a Flax module, ``blocks_0/attn``
    in a Keras model; the model itself at an empty one."""
    if not path:
        return model
    if isinstance(model, Layer):
        return dict(model.named_layers())[path]
    if not hasattr(model, "get_layer"):
        for name in path.split("."):
            model = model[int(name)] if name.isdigit() else getattr(model, name)
        return model
    first, *rest = path.split("/")
    layer = model.get_layer(first)
    for name in rest:  # inside a block, attributes and names are the same
        layer = getattr(layer, name)
    return layer


def with_gradient(
    call: Callable[[Any], Any], gradient: Callable[[Any, Any], Any]
) -> Callable[[Any], Any]:
    """A TensorFlow function that computes ``call(x)`` and goes backward by ``gradient(x, dy)``."""
    import tensorflow as tf

    @tf.custom_gradient
    def function(x: Any) -> Any:
        return call(x), lambda dy: gradient(x, dy)

    return function
