"""Where a hand-written layer keeps its parameters and their gradients.

Recognised, in this order:

1. dicts: ``layer.params["W"]`` with ``layer.grads["W"]`` (or ``["dW"]``); buffers in
   ``layer.buffers``;
2. objects with a value and a gradient: ``layer.W.data`` (or ``.value``) and ``layer.W.grad``;
3. array attributes with a usual name (``W``, ``weight``, ``b``, ``gamma``, ``running_mean``, ...)
   or with a gradient beside them: ``layer.dW``, ``layer.W_grad``, ``layer.grad_W``, ``layer.d_W``.

A layer may name the axes of its parameters in a class attribute
``axes = {"weight": ("in", "out"), ...}``; else `crosscheck.weights` finds the layout from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.adapters.numpy.arrays import is_array, like, to_host
from crosscheck.arrays import is_float

__all__ = ["Slot", "attributes_of", "find_slots", "gradients_of", "slots_of"]

_USUAL = re.compile(
    r"""(w|b|(?-i:[URE])|weights?|bias(es)?|kernel|gamma|beta|embeddings?)  # plain
        ([_.]?\w{0,2}\d?)$                                                # W1, b_o, Wq, weight_1
        |(w|b|weight|bias)_\w+$
        |(running|moving)_(mean|var|variance)$""",
    re.IGNORECASE | re.VERBOSE,
)
# Parameters in a layer that has none of the usual names; else what forward keeps for backward.
_LOOSE = re.compile(r"(scale|shift|gain|table|g)\d?$", re.IGNORECASE)
_BUFFER = re.compile(r"(running|moving)_?(mean|var|variance)$", re.IGNORECASE)
Place = tuple[Callable[[], Any], str]
"""How to reach a dict or object that holds a gradient, and the key in it."""
_GRADIENT_NAMES = ("d{}", "d_{}", "{}_grad", "grad_{}", "g{}", "{}grad")


@dataclass(frozen=True)
class Slot:
    """One parameter's place: how to read and write it and its gradient."""

    name: str
    layer: str
    leaf: str
    axes: tuple[str, ...] | None
    layer_type: str
    buffer: bool
    get: Callable[[], np.ndarray]
    set: Callable[[np.ndarray], None]
    # Best first. Looked up when it is needed: a backward pass may fill an empty dict, or put a new
    # one in its place.
    gradients: tuple[Place, ...]

    def parameter(self) -> Parameter:
        """The description that `crosscheck.weights` works with."""
        kind = _kind(self.layer_type, self.axes)
        return Parameter(
            name=self.name,
            value=to_host(self.get()),
            layer=self.layer,
            role=_role(self.leaf),
            kind=kind,
            axes=self.axes,
            trainable=not self.buffer,
            buffer=self.buffer,
        )

    def _place(self) -> tuple[Any, str] | None:
        for reach, key in self.gradients:
            owner = reach()
            if isinstance(owner, Mapping):
                if is_array(owner.get(key)):
                    return owner, key
            elif is_array(getattr(owner, key, None)):
                return owner, key
        return None

    def gradient_array(self) -> np.ndarray | None:
        """The gradient; None where the layer keeps none that we recognise."""
        place = None if self.buffer else self._place()
        if place is None:
            return None
        owner, key = place
        value: np.ndarray = owner[key] if isinstance(owner, Mapping) else getattr(owner, key)
        return value

    def gradient(self) -> np.ndarray | None:
        """A copy of `gradient_array`."""
        array = self.gradient_array()
        return None if array is None else np.array(to_host(array))

    def may_be_elsewhere(self, claimed: Container[int]) -> bool:
        """Whether an array that fits lies beside under a name like ``dbias`` or ``bias_gradient``.

        Args:
            claimed: identities of the arrays that are known as gradients of other parameters.
        """
        shape = self.get().shape
        for reach, _ in self.gradients:
            owner = reach()
            beside = owner if isinstance(owner, Mapping) else attributes_of(owner)
            for name, value in beside.items():
                if is_array(value) and value.shape == shape:
                    like = isinstance(owner, Mapping) or re.search("^_?d|grad", str(name))
                    if like and id(value) not in claimed:
                        return True
        return False

    def zero_gradient(self) -> None:
        """Start from zero, whether the layer accumulates or overwrites."""
        place = self._place()
        if place is not None:
            value = self.get()
            _put(*place, like(np.zeros(value.shape, value.dtype), value))

    def save_gradient(self) -> tuple[tuple[Any, str], np.ndarray, np.ndarray] | None:
        """What `restore_gradient` needs: place, the array itself and its contents."""
        place = self._place()
        if place is None:
            return None
        owner, key = place
        array = owner[key] if isinstance(owner, Mapping) else getattr(owner, key)
        return place, array, array.copy()

    def restore_gradient(
        self, saved: tuple[tuple[Any, str], np.ndarray, np.ndarray] | None
    ) -> None:
        """Put back what `save_gradient` saw."""
        if saved is None:
            return
        place, array, value = saved
        array[...] = value
        _put(*place, array)


def gradients_of(slots: Sequence[Slot]) -> dict[str, np.ndarray]:
    """name -> gradient, after a backward pass.

    A layer that keeps gradients of some of its parameters has lost the others: those are zeros. A
    layer of which none is recognised may keep them elsewhere: those are left out.
    """
    found = {slot.name: g for slot in slots if (g := slot.gradient()) is not None}
    keeping = {slot.layer for slot in slots if slot.name in found}
    claimed = {id(array) for slot in slots if (array := slot.gradient_array()) is not None}
    for slot in slots:
        lost = slot.layer in keeping and slot.name not in found and not slot.buffer
        if lost and not slot.may_be_elsewhere(claimed):
            found[slot.name] = np.zeros_like(to_host(slot.get()))
    return found


def slots_of(value: Any) -> set[str]:
    """Names of the attributes that live in ``__slots__``."""
    found: set[str] = set()
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        found.update((names,) if isinstance(names, str) else names)
    return {name for name in found if hasattr(value, name)} - {"__dict__", "__weakref__"}


def attributes_of(value: Any) -> dict[str, Any]:
    """All attributes of an instance, in ``__slots__`` or not."""
    slotted = {name: getattr(value, name) for name in sorted(slots_of(value))}
    return slotted | getattr(value, "__dict__", {})


def _put(owner: Any, key: str, value: np.ndarray) -> None:
    if isinstance(owner, MutableMapping):
        owner[key] = value
    else:
        setattr(owner, key, value)


def find_slots(layers: Mapping[str, Any]) -> list[Slot]:
    """The parameters of all layers, in order; an array held in several places is listed once."""
    found: dict[int, list[Slot]] = {}
    for path, layer in layers.items():
        for slot in _slots_of(path, layer):
            found.setdefault(id(slot.get()), []).append(slot)
    return [_shared(slots) for slots in found.values()]


def _shared(slots: list[Slot]) -> Slot:
    """One parameter that is held in each of these places: the first names it, all are written.

    A net may keep its arrays in a dict and give them to layers, which keep the gradients. Of more
    than two places several may hold a share of the gradient: there only the first's own is taken.
    """
    first, *others = slots
    if not others:
        return first

    def put(value: np.ndarray) -> None:
        for slot in slots:
            slot.set(value)

    beside = others[0].gradients if len(others) == 1 else ()
    return replace(first, set=put, gradients=first.gradients + beside)


def _slots_of(path: str, layer: Any) -> Iterator[Slot]:
    """What a layer keeps in dicts, and beside them as attributes."""
    for bag in ("params", "parameters", "buffers"):
        store = getattr(layer, bag, None)
        if isinstance(store, MutableMapping):
            holders = [_attribute(layer, "grads"), _attribute(layer, "gradients")]
            for key, value in store.items():
                if _is_float_array(value):
                    places = [(g, k) for g in holders for k in (key, *_gradient_names(key))]
                    yield _slot(path, layer, key, store, key, places + _beside(layer, key))
    for name, value in attributes_of(layer).items():
        if name.startswith("_"):
            continue
        if _is_float_array(value) and _is_parameter(layer, name):
            yield _slot(path, layer, name, layer, name, _beside(layer, name))
        elif hasattr(value, "grad") and not callable(getattr(value, "forward", None)):
            inner = next(
                (k for k in ("data", "value") if _is_float_array(getattr(value, k, None))), None
            )
            if inner is not None:
                yield _slot(path, layer, name, value, inner, [(_the(value), "grad")])


def _slot(path: str, layer: Any, leaf: str, owner: Any, key: str, gradients: list[Place]) -> Slot:
    """The slot ``leaf`` of a layer, which is kept as ``owner[key]`` or ``owner.key``."""
    names = _axes_of(layer).get(leaf)
    is_dict = isinstance(owner, Mapping)
    return Slot(
        name=f"{path}.{leaf}" if path else leaf,
        layer=path,
        leaf=leaf,
        axes=tuple(names) if names else None,
        layer_type=type(layer).__name__,
        buffer=bool(_BUFFER.search(leaf)) or owner is getattr(layer, "buffers", None),
        get=(lambda: owner[key]) if is_dict else (lambda: getattr(owner, key)),
        set=lambda value: _put(owner, key, value),
        gradients=tuple(gradients),
    )


def _axes_of(layer: Any) -> Mapping[str, Any]:
    """The axes that a layer's class declares, by parameter."""
    axes = getattr(layer, "axes", None)
    return axes if isinstance(axes, Mapping) else {}


def _is_float_array(value: Any) -> bool:
    return is_array(value) and is_float(value)


def _is_parameter(layer: Any, name: str) -> bool:
    if (
        name in _axes_of(layer)
        or _USUAL.match(name)
        or (_LOOSE.match(name) and not _has_usual(layer))
    ):
        # `dW` beside `W` is its gradient, however usual its name.
        return not any(
            name in _gradient_names(other) for other in attributes_of(layer) if other != name
        )
    return any(hasattr(layer, gradient) for gradient in _gradient_names(name))


def _has_usual(layer: Any) -> bool:
    return any(_USUAL.match(n) and _is_float_array(v) for n, v in attributes_of(layer).items())


def _gradient_names(name: str) -> list[str]:
    return [pattern.format(name) for pattern in _GRADIENT_NAMES]


def _beside(layer: Any, name: str) -> list[Place]:
    return [(_the(layer), gradient) for gradient in _gradient_names(name)]


def _the(owner: Any) -> Callable[[], Any]:
    return lambda: owner


def _attribute(owner: Any, name: str) -> Callable[[], Any]:
    """The dict that is there now; anything else (a method named ``grads``) has no gradients."""

    def reach() -> Any:
        value = getattr(owner, name, None)
        return value if isinstance(value, Mapping) else None

    return reach


def _role(leaf: str) -> str:
    name = leaf.lower()
    if "mean" in name:
        return "mean"
    if "var" in name:
        return "variance"
    if re.match(r"(b(ias)?|beta|shift|bias(es)?)([_.]?\w{0,2}\d?)$|bias_|b_", name):
        return "bias"
    return "weight" if _USUAL.match(leaf) or _LOOSE.match(leaf) else "other"


def _kind(layer_type: str, axes: tuple[str, ...] | None) -> str:
    name = layer_type.lower()
    for word, kind in (
        ("conv", "conv"),
        ("norm", "norm"),
        ("embed", "embedding"),
        ("linear", "dense"),
        ("dense", "dense"),
        ("affine", "dense"),
        ("fullyconnected", "dense"),
        ("lstm", "lstm"),
        ("gru", "gru"),
        ("rnn", "rnn"),
    ):
        if word in name:
            return kind
    return "other"
