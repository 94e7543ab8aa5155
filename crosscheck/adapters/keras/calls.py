"""What Keras is on every backend: layers found, their calls patched, inputs nested as they should.

The backends differ in how a value is tapped, how gradients are made and where values are kept:
`tensorflow`, `torch` and `jax` beside it bring an adapter each, on the taps of their own
framework.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from crosscheck.adapters.base import Capabilities, call_arguments
from crosscheck.adapters.keras.parameters import Layers, discover, variables
from crosscheck.errors import InvalidArgument, capped
from crosscheck.structure import leaves
from crosscheck.taps import Session, active_session

__all__ = [
    "TappedCall",
    "arguments",
    "built_layers",
    "capabilities_of",
    "declared",
    "load_values",
    "patched_layers",
    "root_of",
    "version_of",
]

TappedCall = Callable[[str, str, Callable[..., Any], Any, Any], Any]
"""(path, type of the layer, function, args, kwargs) -> what the layer call gives."""


def version_of(framework: str, version: str) -> str:
    """For the report."""
    return f"{keras.__version__} ({framework} {version})"


def capabilities_of(model: keras.layers.Layer) -> Capabilities:
    """Quantized layers compute in integers, and not in float64."""
    quantized = any(layer.quantization_mode for layer in discover(model).values())
    return Capabilities(float64=not quantized, cuda=True)


def built_layers(model: keras.layers.Layer) -> Layers:
    """The model's layers, once it is built: before that it has neither all nor weights.

    Raises:
        InvalidArgument: it is not built yet.
    """
    layers = discover(model)
    unbuilt = [path for path, layer in layers.items() if path and not layer.built]
    # A model without a `build` of its own calls itself built before it was ever called;
    # one that was called may still own layers that nobody uses.
    called = getattr(model, "_called", False)
    if not model.built or (unbuilt and not called):
        which = f" (no weights yet in {capped(unbuilt)})" if unbuilt else ""
        raise InvalidArgument(
            f"the keras model `{model.name}` is not built{which}.\n"
            "  Fix: call it once on data of the right shape, model(x), before the check."
        )
    return layers


def root_of(layers: Layers) -> str:
    """The site of the model itself: ``output``, unless a layer is called so."""
    taken = any(path.partition("/")[0] == "output" for path in layers)
    return "model_output" if taken else "output"


def load_values(layers: Layers, values: Mapping[str, np.ndarray]) -> None:
    """Write variables by name; see `Adapter.load`."""
    known = {name: variable for name, _, _, variable in variables(layers)}
    for name, array in values.items():
        expected = tuple(known[name].shape)
        if expected != array.shape:
            raise ValueError(f"{name}: shape {array.shape}, expected {expected}")
        known[name].assign(np.asarray(array))


@contextmanager
def patched_layers(
    session: Session,
    layers: Layers,
    tapped: TappedCall,
    is_tensor: Callable[[Any], bool],
    *,
    symbolic: Callable[[Any], bool] = lambda value: isinstance(value, keras.KerasTensor),
) -> Iterator[None]:
    """For the time of a run, calls of these layers go through ``tapped``.

    The model itself has the path ``""``. ``is_tensor`` says what is tapped. Other threads and
    layers pass, and so does a call that only works out shapes: one inside Keras' symbolic scope,
    or with an argument that is ``symbolic``.
    """
    original = keras.layers.Layer.__call__
    paths = {id(layer): path for path, layer in layers.items()}

    def call(layer: keras.layers.Layer, /, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(id(layer))
        if (
            path is None
            or active_session() is not session
            or in_symbolic_scope()
            or leaves((args, kwargs), symbolic)
        ):
            return original(layer, *args, **kwargs)
        function = functools.partial(original, layer)
        return masked(path, type(layer).__name__, function, args, kwargs)

    masked = _carrying_masks(tapped, is_tensor)
    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def _carrying_masks(tapped: TappedCall, is_tensor: Callable[[Any], bool]) -> TappedCall:
    """Keras hangs the mask of a value on the object, and a tapped value is another object."""

    def masks_of(values: Any) -> list[Any]:
        return [get_keras_mask(tensor) for _, tensor in leaves(values, is_tensor)]

    def carry(masks: list[Any], values: Any) -> None:
        for (_, tensor), mask in zip(leaves(values, is_tensor), masks, strict=True):
            if mask is not None and get_keras_mask(tensor) is None:
                set_keras_mask(tensor, mask)

    def call(path: str, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
        given, made = masks_of((args, kwargs)), list[Any]()

        def inner(*args: Any, **kwargs: Any) -> Any:
            carry(given, (args, kwargs))
            output = function(*args, **kwargs)
            made[:] = masks_of(output)
            return output

        output = tapped(path, layer, inner, args, kwargs)
        carry(made, output)
        return output

    return call


def arguments(
    model: keras.layers.Layer, inputs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """How this model takes its inputs: as its `Input`s are nested, or as its `call` names them."""
    struct = getattr(model, "_inputs_struct", None)
    if struct is not None:
        if isinstance(struct, Mapping) and set(struct) == set(inputs):
            return [{key: inputs[key] for key in struct}], {}
        names = [t.name for t in keras.tree.flatten(struct)]
        if len(names) != len(inputs):
            raise InvalidArgument(
                f"the keras model `{model.name}` takes {len(names)} inputs ({capped(names)}), "
                f"not {len(inputs)} ({capped(inputs)})"
            )
        by_name = set(names) == set(inputs)
        flat = [inputs[n] for n in names] if by_name else list(inputs.values())
        return [keras.tree.pack_sequence_as(struct, flat)], {}
    if len(inputs) > 1 and _takes_one(model.call):
        # `call(self, inputs)` with several inputs: nested as they were when the model was built.
        shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
        if len(shapes) == 1 and isinstance(shapes[0], (list, tuple)):
            return [type(shapes[0])(inputs.values())], {}
        return [dict(inputs)], {}
    return call_arguments(model.call, inputs)


def declared(
    model: keras.layers.Layer, inputs: Mapping[str, Any]
) -> dict[str, tuple[int | None, ...]]:
    """The shapes of the model's `Input`s, by the names of what `arguments` gives each; a model that
    has none, or takes another number of inputs, declares nothing."""
    if isinstance(model, keras.Sequential):
        model = getattr(model, "_functional", None) or model
    struct = getattr(model, "_inputs_struct", None)
    if struct is None or len(keras.tree.flatten(struct)) != len(inputs):
        return {}
    (given,), _ = arguments(model, {name: name for name in inputs})
    names, tensors = keras.tree.flatten(given), keras.tree.flatten(struct)
    return {name: tuple(t.shape) for name, t in zip(names, tensors, strict=True)}


def _takes_one(call: Any) -> bool:
    """Whether ``call`` has one argument for all its inputs."""
    parameters = inspect.signature(call).parameters.values()
    positional = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in ("training", "mask")
    ]
    return len(positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)
