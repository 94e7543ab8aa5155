"""The variables of TensorFlow modules and functions: names, roles, kinds and axes (no runs).

Nothing in a ``tf.Module`` says what its variables are for. A module may name the axes of its own in
a class attribute ``axes = {"w": ("in", "out"), ...}``; else they are taken from names and shapes
where those leave no choice, and are otherwise left open for `crosscheck.weights`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from crosscheck.adapters.base import Parameter

__all__ = ["Found", "Slot", "discover", "named", "unique"]

_ROLES = (
    (re.compile(r"mean(_\d+)?$"), "mean"),
    (re.compile(r"var(iance)?(_\d+)?$"), "variance"),
    (re.compile(r"(^|_)(b|bias|biases|beta|offset|shift)(_\d+)?$"), "bias"),
    (
        re.compile(r"(^|_)(w|weights?|kernel|gamma|scale|embeddings?|table)(_\d+)?$"),
        "weight",
    ),
)
_KINDS = (
    ("conv", "conv"),
    ("norm", "norm"),
    ("embed", "embedding"),
    ("linear", "dense"),
    ("dense", "dense"),
)
_SPATIAL = {3: ("w",), 4: ("h", "w"), 5: ("d", "h", "w")}
_NOT_ATTRIBUTES = frozenset({"_name", "_name_scope", "signatures", "_obj_reference_counts_dict"})


@dataclass(frozen=True)
class Slot:
    """One variable and where it was found."""

    name: str
    layer: str
    variable: Any
    owner: Any = None

    @property
    def leaf(self) -> str:
        """Its name in its layer."""
        return self.name[len(self.layer) :].lstrip("/")

    def parameter(self, beside: Mapping[str, tuple[int, ...]]) -> Parameter:
        """The description of it; ``beside``: shapes of all variables of its layer."""
        role = next((r for p, r in _ROLES if p.search(self.leaf.lower())), "other")
        statistic = not self.variable.trainable and role in ("mean", "variance")
        kind, axes = self._layout(role, beside)
        return Parameter(
            name=self.name,
            value=self.variable.numpy(),
            layer=self.layer,
            role=role,
            kind=kind,
            axes=axes,
            trainable=bool(self.variable.trainable),
            buffer=statistic,
        )

    def _layout(
        self, role: str, beside: Mapping[str, tuple[int, ...]]
    ) -> tuple[str, tuple[str, ...] | None]:
        name = type(self.owner).__name__.lower()
        kind = next((k for word, k in _KINDS if word in name), "other")
        declared = getattr(self.owner, "axes", None)
        if isinstance(declared, Mapping) and self.leaf in declared:
            return kind, tuple(declared[self.leaf])
        shape = tuple(self.variable.shape)
        if kind == "dense":
            return kind, _dense_axes(shape, role, beside)
        plain = not any(word in name for word in ("transpose", "depth", "separable"))
        if kind == "conv" and role == "weight" and len(shape) in _SPATIAL and plain:
            return kind, (*_SPATIAL[len(shape)], "in", "out")  # as tf.nn.conv takes them
        if kind == "conv" and len(shape) == 1:
            return kind, ("out",)
        if kind == "norm" and len(shape) == 1:
            return kind, ("channel",)
        return kind, None


def _dense_axes(
    shape: tuple[int, ...], role: str, beside: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...] | None:
    """By the length of the layer's bias; None for a square kernel, which may be either way up."""
    if role == "bias" and len(shape) == 1:
        return ("out",)
    biases = {s for s in beside.values() if len(s) == 1}
    if role != "weight" or len(shape) != 2 or shape[0] == shape[1] or len(biases) != 1:
        return None
    (width,) = next(iter(biases))
    if width not in shape:
        return None
    return ("in", "out") if shape[1] == width else ("out", "in")


@dataclass
class Found:
    """What a model holds.

    Attributes:
        modules: path -> module, the model itself under ``""`` if it is one.
        slots: its variables, each once.
        keras: paths of the Keras layers inside it.
    """

    modules: dict[str, Any] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    keras: list[str] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def floating(self) -> list[Slot]:
        """The variables that are parameters or buffers: counters and flags are neither."""
        return [slot for slot in self.slots if slot.variable.dtype.is_floating]

    def parameters(self) -> tuple[Parameter, ...]:
        """All of them, described."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for slot in self.floating():
            shapes.setdefault(slot.layer, {})[slot.leaf] = tuple(slot.variable.shape)
        return tuple(slot.parameter(shapes[slot.layer]) for slot in self.floating())

    def add(self, name: str, layer: str, variable: Any, owner: Any) -> None:
        """A variable; the second place of a shared one is left out."""
        if id(variable) not in self._seen:
            self._seen.add(id(variable))
            self.slots.append(Slot(name, layer, variable, owner))

    def visit(self, value: Any, path: str, layer: str, owner: Any) -> None:
        """Everything below ``value``, in order of definition."""
        if isinstance(value, tf.Variable):
            self.add(path, layer, value, owner)
        elif _is_keras_layer(value):
            self._visit_keras(value, path)
        elif isinstance(value, (tf.Module, tf.__internal__.tracking.AutoTrackable)):
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
            self.modules[path] = value
            for name, child in list(vars(value).items()):
                if name not in _NOT_ATTRIBUTES and not name.startswith("_self_"):
                    self.visit(child, _joined(path, name), path, value)
        elif isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, child in list(items):
                self.visit(child, _joined(path, key), layer, owner)

    def _visit_keras(self, layer: Any, path: str) -> None:
        if id(layer) in self._seen:
            return
        from crosscheck.adapters.keras.parameters import discover as sublayers
        from crosscheck.adapters.keras.parameters import variables

        inside = sublayers(layer)
        self.keras.append(path)
        for below, sublayer in inside.items():
            self._seen.add(id(sublayer))
            self.modules[_joined(path, below)] = sublayer
        for name, below, sublayer, variable in variables(inside):
            self.add(_joined(path, name), _joined(path, below), variable._value, sublayer)


def discover(model: Any) -> Found:
    """The modules and variables of a ``tf.Module`` or of a loaded SavedModel."""
    found = Found()
    found.visit(model, "", "", model)
    return found


def named(given: Mapping[str, Any] | Iterable[Any]) -> Found:
    """The variables and modules that a function uses: under the names given, or else their own."""
    found = Found()
    if isinstance(given, Mapping):
        items = list(given.items())
    else:
        values = list(given)
        names = unique(value.name.partition(":")[0] for value in values)
        items = list(zip(names, values, strict=True))
    for name, value in items:
        if isinstance(value, tf.Variable):
            found.add(name, name.rpartition("/")[0], value, None)
        else:
            found.visit(value, name, name, None)
    return found


def unique(names: Iterable[str]) -> list[str]:
    """Names with a counter where several are the same."""
    taken: list[str] = []
    for name in names:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken.append(free)
    return taken


def _is_keras_layer(value: Any) -> bool:
    keras = sys.modules.get("keras")
    layer = getattr(getattr(keras, "layers", None), "Layer", None)
    return layer is not None and isinstance(value, layer)


def _joined(path: str, name: Any) -> str:
    last = re.sub(r"[:#]", "_", str(name))  # they have other uses in the name of a site
    return f"{path}/{last}" if path and last else path or last
