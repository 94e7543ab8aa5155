"""How a script makes one layer again, in plain code of its framework.

A stock layer of PyTorch or Keras from its class and constructor arguments; a layer of the user's by
importing its file: a module from constructor arguments that it keeps under their own names, an
object written by hand from its attributes. Nothing here imports a framework.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.frames import LOADED

__all__ = ["Build", "CannotBuild", "build"]

DEPTH = 4  # objects within objects
RECURRENT = (
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
)
NOT_WANTED = ("device", "dtype", "self", "_weight", "_freeze")


class CannotBuild(Exception):
    """A layer that a script cannot make again; says why."""


@dataclass
class Build:
    """Lines that make a layer under the name of its side.

    Attributes:
        style: ``"torch"``, ``"numpy"`` or ``"keras"``: how it is called.
        modules: import lines.
        folders: to put in front of ``sys.path``.
        lines: of code; they read arrays as ``data["KEY"]``.
        arrays: what they read.
        layer: the layer itself.
        gradients: of a layer by hand, parameter -> the attributes that may hold its gradient.
    """

    style: str
    layer: Any
    modules: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, tuple[str, ...]] = field(default_factory=dict)


def build(adapter: Adapter, path: str, side: str, *, train: bool) -> Build:
    """The code that makes the layer at ``path``, named ``side``.

    Raises:
        CannotBuild: another framework, a class that cannot be imported, unknown arguments.
    """
    model: Any = getattr(adapter, "model", None)
    if adapter.framework == "torch" and hasattr(model, "get_submodule"):
        return _torch(model.get_submodule(path), side, train)
    if adapter.framework == "numpy":
        from crosscheck.adapters.numpy.layers import discover

        return _by_hand(discover(model)[path], side)
    if adapter.framework == "keras" and "tensorflow" in adapter.version:
        from crosscheck.adapters.keras.parameters import discover as layers_of

        return _keras(layers_of(model)[path], side)
    raise CannotBuild(f"layers of {adapter.framework} are not made again in a script")


# -- PyTorch ---------------------------------------------------------------------------------------


def _torch(module: Any, side: str, train: bool) -> Build:
    made = Build("torch", module, ["import torch"])
    made.lines.append(f"{side} = {_torch_expression(module, made)}")
    state = {name: _host(tensor) for name, tensor in module.state_dict().items()}
    for name, value in state.items():
        made.arrays[f"{side}.{name}"] = value
    if state:
        made.lines += [
            f"names = {list(state)!r}",
            f'state = {{name: torch.from_numpy(data["{side}." + name]) for name in names}}',
            f"{side}.load_state_dict(state)",
        ]
    made.lines.append(f"{side}.train({train})")
    return made


def _torch_expression(module: Any, made: Build) -> str:
    cls = type(module)
    if cls.__module__.startswith("torch.nn."):
        name = f"torch.nn.{cls.__name__}"
    else:
        name = _imported(cls, made)
    if cls.__name__ == "Sequential":
        inner = [_torch_expression(child, made) for child in module._modules.values()]
        return f"{name}({', '.join(inner)})"
    return f"{name}({_arguments(module, cls)})"


def _arguments(module: Any, cls: type) -> str:
    parameters = inspect.signature(cls).parameters
    names = [n for n in parameters if n not in NOT_WANTED]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        names = [n for n in RECURRENT if hasattr(module, n)]
    found = []
    for name in names:
        if not hasattr(module, name):
            if name in parameters and parameters[name].default is inspect.Parameter.empty:
                raise CannotBuild(f"{cls.__name__} does not keep its argument `{name}`")
            continue
        value = getattr(module, name)
        if name == "bias" and (value is None or hasattr(value, "detach")):
            value = value is not None
        found.append(f"{name}={_literal(value, f'{cls.__name__}.{name}')}")
    return ", ".join(found)


def _host(tensor: Any) -> np.ndarray:
    try:
        return np.array(tensor.detach().cpu().numpy())
    except TypeError as error:  # bfloat16
        raise CannotBuild(f"NumPy has no {tensor.dtype}") from error


# -- Keras -----------------------------------------------------------------------------------------


def _keras(layer: Any, side: str) -> Build:
    cls = type(layer)
    made = Build("keras", layer, ["import keras", "import tensorflow as tf"])
    stock = cls.__module__.startswith("keras.src.layers.")
    name = f"keras.layers.{cls.__name__}" if stock else _imported(cls, made)
    config = _literal(_plain(layer.get_config()), cls.__name__)
    made.lines.append(f"{side} = {name}.from_config({config})")
    for i, value in enumerate(layer.get_weights()):
        made.arrays[f"{side}.{i}"] = np.asarray(value)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    return value


# -- by hand ---------------------------------------------------------------------------------------


def _by_hand(layer: Any, side: str) -> Build:
    from crosscheck.adapters.numpy.parameters import find_slots

    made = Build("numpy", layer)
    _object(layer, side, made, side, 0)
    for slot in find_slots({"": layer}):
        names = tuple(key for reach, key in slot.gradients if reach() is layer)
        if names:
            made.gradients[slot.leaf] = names
    return made


def _object(value: Any, variable: str, made: Build, key: str, depth: int) -> None:
    """An object of a class in a file, attribute by attribute."""
    if depth > DEPTH:
        raise CannotBuild(f"`{key}` holds objects within objects within objects")
    name = _imported(type(value), made)
    made.lines.append(f"{variable} = {name}.__new__({name})")
    for attribute, held in vars(value).items():
        place, inner = f"{variable}.{attribute}", f"{key}.{attribute}"
        if hasattr(held, "__dict__") and not isinstance(held, (type, np.ndarray)):
            if callable(held) and not hasattr(held, "forward"):
                raise CannotBuild(f"`{inner}` is a function that was put there at run time")
            _object(held, place, made, inner, depth + 1)
        else:
            made.lines.append(f"{place} = {_expression(held, inner, made)}")


def _expression(value: Any, key: str, made: Build) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        made.arrays[key] = np.asarray(value)
        return f'data["{key}"]' + ("" if isinstance(value, np.ndarray) else "[()]")
    if isinstance(value, dict):
        items = (f"{k!r}: {_expression(v, f'{key}.{k}', made)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        inner = ", ".join(_expression(v, f"{key}.{i}", made) for i, v in enumerate(value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return _literal(value, key)


# -- shared ----------------------------------------------------------------------------------------


def _literal(value: Any, name: str) -> str:
    """``value`` as Python writes it; numbers, texts and containers of these only."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, slice)):
        if isinstance(value, float) and value != value or value in (float("inf"), -float("inf")):
            return f'float("{value}")'
        return repr(value)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_literal(v, name) for v in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_literal(v, name)}" for k, v in value.items()) + "}"
    raise CannotBuild(f"`{name}` is a {type(value).__name__}, which no script can write down")


def _imported(cls: type, made: Build) -> str:
    """The class's name in the script, with the import that brings it."""
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        raise CannotBuild(f"{cls.__qualname__} lies in no file that can be imported")
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        raise CannotBuild(f"{cls.__qualname__} lies in no file that can be imported")
    path, module = Path(file).resolve(), cls.__module__
    if module.startswith(LOADED):  # a lone file, loaded under a name of its own
        module, root = path.stem, path.parent
    else:
        depth = module.count(".") + (path.name == "__init__.py")
        root = path.parents[depth]
    if str(root) not in made.folders and "site-packages" not in root.parts:
        made.folders.append(str(root))
    top = cls.__qualname__.partition(".")[0]
    line = f"from {module} import {top}"
    if line not in made.modules:
        made.modules.append(line)
    return cls.__qualname__
