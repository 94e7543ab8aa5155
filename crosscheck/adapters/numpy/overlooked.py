"""Arrays that a hand-written net holds where nothing is taken for a parameter.

They are told where parameters are missing: in lists, in objects without ``forward``, behind
private names, or under names that say nothing.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any

from crosscheck.adapters.numpy.arrays import is_array
from crosscheck.adapters.numpy.parameters import Slot, attributes_of
from crosscheck.arrays import is_float

__all__ = ["overlooked"]

_MOST = 10_000  # objects looked at: a net may hold its data set


def overlooked(model: Any, slots: Iterable[Slot]) -> dict[str, tuple[int, ...]]:
    """path -> shape of the floating-point arrays that are no slot's, and no gradient by name."""
    seen = {id(slot.get()) for slot in slots}
    found: dict[str, tuple[int, ...]] = {}
    waiting = [("", model)]
    while waiting and len(seen) < _MOST:
        path, value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_array(value):
            if is_float(value):
                found[path] = tuple(value.shape)
            continue
        waiting += [
            (f"{path}.{name}" if path else str(name), inner)
            for name, inner in _inside(value).items()
            if "grad" not in str(name).lower()
        ]
    return found


def _inside(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    return {} if isinstance(value, code) else attributes_of(value)
