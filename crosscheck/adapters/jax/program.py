"""The kinds of JAX models behind one face: a pure function of named values.

A `Program` is called with every parameter given to it, so that ``jax.vjp`` can differentiate it,
and gives its outputs and its buffers back. What is stored as a pytree shares `TreeProgram`.
"""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.adapters.jax.parameters import Slot, axes_of, kind_of
from crosscheck.adapters.jax.taps import JaxSession
from crosscheck.errors import InvalidArgument

__all__ = ["FunctionProgram", "Program", "TreeProgram", "check_shape", "mode_arguments"]


class Program(abc.ABC):
    """A model as a function.

    Attributes:
        function: what takes the inputs, for its signature.
        layer: name of the model's type.
        library: what it is written in, for the report; empty for JAX itself.
    """

    function: Callable[..., Any]
    layer: str
    library: str = ""

    @abc.abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """Parameters and buffers, layer by layer."""

    @abc.abstractmethod
    def values(self) -> dict[str, Any]:
        """name -> array, of all floating-point state (also what is no parameter)."""

    @abc.abstractmethod
    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Write values by name, cast to their own dtypes; see `Adapter.load`."""

    @abc.abstractmethod
    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        """Run with these values; gives the output and the buffers after it. Changes nothing."""

    def tapping(self, session: JaxSession) -> AbstractContextManager[None]:
        """While this is open, the calls of the model's layers are tapped."""
        return nullcontext()

    def top_level(self) -> set[str]:
        """Names that a site at the top may have: the model's own output is called otherwise."""
        return {slot.layer.partition(".")[0] for slot in self.slots()}

    def parameters(self) -> tuple[Parameter, ...]:
        """Described, with their present values."""
        values = self.values()
        return tuple(slot.parameter(np.asarray(values[slot.name])) for slot in self.slots())


class TreeProgram(Program):
    """A model whose state is a pytree that the program owns: `load` makes a new one."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
        paths = [path for path, leaf in found if _is_float_array(leaf)]
        self._order = sorted(paths, key=lambda path: _position(tree, path))
        self._names = {path: self.name_of(path) for path in self._order}

    def name_of(self, path: tuple[Any, ...]) -> str:
        """The name of the leaf at ``path``."""
        return ".".join(map(_part, path)) or "params"

    def values(self) -> dict[str, Any]:
        found = dict(jax.tree_util.tree_flatten_with_path(self.tree)[0])
        return {name: self.outward(name, found[path]) for path, name in self._names.items()}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        own = self.values()
        new = {}
        for name, array in values.items():
            check_shape(name, array, own[name])
            new[name] = jnp.array(array, dtype=own[name].dtype)
        self.tree = self.with_values(new)

    def with_values(self, values: Mapping[str, Any]) -> Any:
        """The tree with these leaves in place of its own."""

        def leaf(path: tuple[Any, ...], own: Any) -> Any:
            name = self._names.get(path, "")
            return own if name not in values else self.inward(values[name], own)

        return jax.tree_util.tree_map_with_path(leaf, self.tree)

    def after_step(self, returned: Any) -> Any:
        """The same program with the parameters that a training step returned, alone or in a tuple.

        Raises:
            InvalidArgument: it returned no such tree; a tree cannot be changed in place.
        """
        wanted: Any = jax.tree.structure(self.tree)
        options = [returned, *(returned if isinstance(returned, (tuple, list)) else ())]
        if isinstance(self.tree, Mapping) and "params" in self.tree:
            options += [{**self.tree, "params": option} for option in list(options)]
        for option in options:
            if jax.tree.structure(option) == wanted:
                stepped = copy.copy(self)
                stepped.tree = option
                return stepped
        raise InvalidArgument(
            "step=: a JAX model that holds no state cannot be changed in place; the step must "
            f"return the new parameters, as the model's ({wanted}), alone or in a tuple"
        )

    def outward(self, name: str, leaf: Any) -> Any:
        """A leaf as it is shown."""
        return jnp.asarray(leaf)

    def inward(self, value: Any, own: Any) -> Any:
        """What is shown, as a leaf in place of ``own``."""
        return value

    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots(self._names.values()))

    def _slots(self, names: Iterable[str], **options: Any) -> list[Slot]:
        values = self.values()
        split = {name: name.rpartition(".")[::2] for name in names}
        layers: dict[str, dict[str, int]] = {}
        for name, (layer, leaf) in split.items():
            layers.setdefault(layer, {})[leaf] = values[name].ndim
        kinds = {layer: kind_of(layer, leaves) for layer, leaves in layers.items()}
        return [
            Slot(
                name,
                layer,
                leaf,
                kinds[layer],
                axes_of(kinds[layer], leaf, values[name].ndim, layer),
                **options,
            )
            for name, (layer, leaf) in split.items()
        ]


class FunctionProgram(TreeProgram):
    """``function(params, *inputs)``; its sites are what it taps."""

    layer = "function"

    def __init__(self, function: Callable[..., Any], params: Any) -> None:
        super().__init__(params)
        self._call = function
        self.function = _without_first(function)

    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        modes = mode_arguments(self.function, args, kwargs, train=train)
        return self._call(self.with_values(values), *args, **kwargs, **modes), {}


def check_shape(name: str, array: np.ndarray, own: Any) -> None:
    """Raise ValueError for a value that is not of the parameter's shape."""
    if tuple(own.shape) != np.shape(array):
        raise ValueError(f"{name}: shape {np.shape(array)}, expected {tuple(own.shape)}")


_MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}


def mode_arguments(
    function: Callable[..., Any], args: list[Any], kwargs: Mapping[str, Any], *, train: bool
) -> dict[str, bool]:
    """``train=``, ``deterministic=``, ...: those that ``function`` takes and nobody gave."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables have no signature
        return {}
    free = [*parameters][len(args) :]
    return {
        name: train if in_train else not train
        for name, in_train in _MODES.items()
        if name in free and name not in kwargs
    }


def _without_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """Something with the signature of ``function`` after its first argument."""

    def takes(*args: Any, **kwargs: Any) -> None: ...

    try:
        signature = inspect.signature(function)
        first, *rest = signature.parameters.values()
    except (TypeError, ValueError):  # no signature, or one without arguments
        return takes
    if first.kind is first.VAR_POSITIONAL:
        rest = [first, *rest]
    takes.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    return takes


def _is_float_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and bool(
        jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _part(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _position(tree: Any, path: tuple[Any, ...]) -> tuple[int, ...]:
    """Where a leaf stands: JAX sorts the keys of dicts, their own order is that of definition."""
    position = []
    for key in path:
        if isinstance(tree, Mapping):
            position.append(list(tree).index(key.key))
            tree = tree[key.key]
        elif hasattr(key, "idx"):
            position.append(key.idx)
            tree = tree[key.idx] if isinstance(tree, (list, tuple)) else None
        elif hasattr(key, "name"):
            fields = [*getattr(tree, "__dataclass_fields__", vars(tree))]
            position.append(fields.index(key.name))
            tree = getattr(tree, key.name)
        else:
            break
    return tuple(position)
