"""Layers of a Keras model, and the names, roles and axes of their variables (no runs)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from crosscheck.adapters.base import Parameter

__all__ = ["Layers", "all_variables", "describe", "discover", "seed_generators", "variables"]

Layers = Mapping[str, keras.layers.Layer]
"""path -> layer, the model itself under ``""``."""

_SPATIAL = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}
_CONV = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_CELLS = (
    (keras.layers.LSTMCell, "lstm", "ifgo"),
    (keras.layers.GRUCell, "gru", "zrn"),
    (keras.layers.SimpleRNNCell, "rnn", "h"),
)
_NORMS = tuple(
    getattr(keras.layers, name)
    for name in (
        "BatchNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",  # Keras 3.9 and later
    )
    if hasattr(keras.layers, name)
)
_ROLES = (
    (re.compile(r"mean(_\d+)?$"), "mean"),
    (re.compile(r"var(iance)?(_\d+)?$"), "variance"),
    (re.compile(r"(bias|beta)(_\d+)?$"), "bias"),
    (re.compile(r"(kernel|weights?|gamma|scale|embeddings?)(_\d+)?$"), "weight"),
)


def discover(model: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """path -> layer, the model itself first under ``""``; a shared layer once, first path."""
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer, path: str) -> None:
        seen.add(id(layer))
        found[path] = layer
        children = [child for child in _children(layer) if id(child) not in seen]
        names = _unique(child.name for child in children)
        for child, name in zip(children, names, strict=True):
            if id(child) not in seen:  # an elder sibling may contain it
                visit(child, f"{path}/{name}" if path else name)

    visit(model, "")
    return found


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Direct sublayers in order of definition, without the inputs of functional models."""
    # Sequential runs through a Functional of its own making, which nobody calls.
    inner = getattr(layer, "_functional", None)
    children = {id(child): child for child in layer._layers if child is not inner}
    return [c for c in children.values() if not isinstance(c, keras.layers.InputLayer)]


def _unique(names: Iterable[str]) -> list[str]:
    """Names with a counter where siblings share one; ``:``, ``#`` and ``/`` have other uses."""
    wanted = [re.sub(r"[:#/]", "_", name) for name in names]
    unique: list[str] = []
    for name in wanted:
        free, count = name, 1
        while free in unique or (count > 1 and free in wanted):
            count += 1
            free = f"{name}_{count}"
        unique.append(free)
    return unique


def own_variables(layer: keras.layers.Layer) -> list[Any]:
    """The variables that this very layer made, states of random generators left out."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def all_variables(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    """Those of all layers, each once, with the states that a stateful RNN keeps to itself."""
    found = {}
    for layer in layers:
        states = keras.tree.flatten(getattr(layer, "states", None))
        for variable in (*own_variables(layer), *states):
            if isinstance(variable, keras.Variable) and variable._value is not None:
                found[id(variable)] = variable
    return list(found.values())


def seed_generators(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    """The random generators of all layers, each once."""
    return list({id(g): g for layer in layers for g in layer._seed_generators}.values())


def variables(
    layers: Layers,
) -> Iterator[tuple[str, str, keras.layers.Layer, Any]]:
    """(name, layer path, layer, variable) of all floating-point variables; shared ones once."""
    seen: set[int] = set()
    for path, layer in layers.items():
        own = [v for v in own_variables(layer) if id(v) not in seen]
        names = _unique(v.name for v in own)
        for name, variable in zip(names, own, strict=True):
            seen.add(id(variable))
            if keras.backend.is_float_dtype(variable.dtype):
                yield (f"{path}/{name}" if path else name), path, layer, variable


def describe(layers: Layers) -> tuple[Parameter, ...]:
    """All parameters and buffers, layer by layer."""
    described = []
    for name, path, layer, variable in variables(layers):
        buffer = any(variable is v for v in layer._non_trainable_variables)
        described.append(
            Parameter(
                name=name,
                value=keras.ops.convert_to_numpy(variable._value),
                layer=path,
                role=_role(variable.name),
                kind=_kind(layer),
                axes=_axes(layer, variable.name, len(variable.shape)),
                trainable=bool(variable.trainable) and not buffer,
                buffer=buffer,
            )
        )
    return tuple(described)


def _role(name: str) -> str:
    return next((role for pattern, role in _ROLES if pattern.search(name)), "other")


def _kind(layer: keras.layers.Layer) -> str:
    if isinstance(layer, keras.layers.Dense):
        return "dense"
    if isinstance(layer, (*_CONV, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)):
        return "conv"
    if isinstance(layer, _NORMS):
        return "norm"
    if isinstance(layer, keras.layers.Embedding):
        return "embedding"
    if isinstance(layer, keras.layers.EinsumDense) and _projected(layer) is not None:
        return "dense"
    return _cell(layer)[0]


def _cell(layer: keras.layers.Layer) -> tuple[str, str]:
    """(kind, order of its gates) of a recurrent cell; ``"other"`` and none for the rest."""
    return next(((k, gates) for cls, k, gates in _CELLS if isinstance(layer, cls)), ("other", ""))


def _projected(layer: keras.layers.EinsumDense) -> tuple[str, ...] | None:
    """Axes of an einsum kernel: ``in`` where it is summed over, ``out`` where the output keeps it.

    None for kernels with an axis of both kinds (one kernel for each position or head).
    """
    match = re.fullmatch(r"(\.{3})?(\w+),(\w+)->(\.{3})?(\w+)", layer.equation)
    if match is None:
        return None
    given, kernel, made = match[2], match[3], match[5]
    if any((letter in given) == (letter in made) for letter in kernel):
        return None
    axes = ["in" if letter in given else "out" for letter in kernel]
    counts = {name: axes.count(name) for name in axes}
    if 0 in (counts.get("in", 0), counts.get("out", 0)):
        return None
    seen: dict[str, int] = {}
    named = []
    for name in axes:
        named.append(name if counts[name] == 1 else f"{name}/{seen.get(name, 0)}")
        seen[name] = seen.get(name, 0) + 1
    return tuple(named)


def _axes(layer: keras.layers.Layer, name: str, ndim: int) -> tuple[str, ...] | None:
    declared = getattr(layer, "axes", None)  # custom layers may name the axes of their weights
    if isinstance(declared, Mapping) and name in declared:
        return tuple(declared[name])
    kind, gates = _kind(layer), _cell(layer)[1]
    if gates and name in ("kernel", "recurrent_kernel"):
        return ("in", f"gates:{gates}")
    if gates and name == "bias":
        return (f"gates:{gates}",) if ndim == 1 else None
    if isinstance(layer, keras.layers.EinsumDense) and kind == "dense":
        split = tuple(f"out/{k}" for k in range(ndim)) if ndim > 1 else ("out",)
        return _projected(layer) if name == "kernel" else split
    if kind in ("dense", "conv") and ndim == 1:
        return ("out",)
    if kind == "dense" and name == "kernel":
        return ("in", "out")
    if kind == "conv":
        spatial = _SPATIAL[ndim - 2]
        if isinstance(layer, _TRANSPOSED):
            return (*spatial, "out", "in")
        if isinstance(layer, _DEPTHWISE) or name == "depthwise_kernel":
            return (*spatial, "in", "mult")
        return (*spatial, "in", "out")
    if kind == "embedding" and name == "embeddings":
        return ("row", "dim")
    return ("channel",) if ndim == 1 else None
