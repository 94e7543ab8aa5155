"""Flax NNX modules: state inside, so a run works on a copy; tapped at ``__call__``.

Every module of the copy carries its path in an attribute. Inside ``nnx.jit``, ``nnx.scan`` and
``nnx.remat`` modules are taken apart and put together again, and attributes survive that. They are
part of the cache's key too, so that blocks of equal structure are traced each under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crosscheck.adapters.jax.calls import patched
from crosscheck.adapters.jax.parameters import Slot, axes_of, kind_of
from crosscheck.adapters.jax.program import Program, check_shape, mode_arguments
from crosscheck.adapters.jax.taps import JaxSession

__all__ = ["NnxProgram"]

_PATH = "_crosscheck_path"
_NORMS = tuple(
    getattr(nnx, name)
    for name in ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")
    if hasattr(nnx, name)
)
# Cells whose gates lie side by side in one kernel, and their order there.
_PACKED = ((nnx.OptimizedLSTMCell, "ifgo"), (nnx.GRUCell, "rzn"))


@dataclass(frozen=True)
class _Found:
    """A variable, and the module that owns it."""

    name: str
    layer: str
    leaf: str
    owner: Any
    variable: Any


def _walk(model: nnx.Module) -> tuple[dict[str, nnx.Module], list[_Found]]:
    """(path -> module, variables): in order of definition, shared ones once, first path."""
    modules: dict[str, nnx.Module] = {}
    variables: list[_Found] = []
    seen: set[int] = set()

    def visit(node: Any, path: str, layer: str, owner: Any) -> None:
        if id(node) in seen or not isinstance(node, (nnx.Variable, nnx.Pytree, list, tuple, dict)):
            return
        seen.add(id(node))
        if isinstance(node, nnx.Variable):
            leaf = path[len(layer) :].lstrip(".")
            variables.append(_Found(path, layer, leaf, owner, node))
            return
        if isinstance(node, nnx.Module):
            modules[path] = node
            layer, owner = path, node
        for name, child in _children(node):
            visit(child, f"{path}.{name}" if path else name, layer, owner)

    visit(model, "", "", model)
    return modules, variables


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (list, tuple)):
        yield from ((str(index), child) for index, child in enumerate(node))
    else:
        items = node if isinstance(node, dict) else vars(node)
        yield from ((str(k), v) for k, v in items.items() if not str(k).startswith("_pytree__"))


class NnxProgram(Program):
    """``model(*inputs)``."""

    def __init__(self, model: nnx.Module) -> None:
        self.model = model
        self.layer, self.library = type(model).__name__, f"flax {flax.__version__}"
        self.function = model.__call__ if callable(model) else type(model)

    def slots(self) -> tuple[Slot, ...]:
        found = [f for f in _walk(self.model)[1] if isinstance(f.variable, _SHOWN) and _floats(f)]
        siblings: dict[str, dict[str, int]] = {}
        for f in found:
            siblings.setdefault(f.layer, {})[f.leaf] = f.variable.get_value().ndim
        modules = _walk(self.model)[0]
        slots = []
        for f in found:
            kind = _kind(f, siblings[f.layer])
            axes = _axes(f, kind, siblings[f.layer][f.leaf])
            cell = modules.get(f.layer.rpartition(".")[0])
            gates = next((g for cls, g in _PACKED if isinstance(cell, cls)), None)
            if gates is not None and axes is not None:
                axes = (*axes[:-1], f"gates:{gates}")
            buffer = isinstance(f.variable, nnx.BatchStat)
            slots.append(Slot(f.name, f.layer, f.leaf, kind, axes, not buffer, buffer))
        return tuple(slots)

    def values(self) -> dict[str, Any]:
        return {f.name: f.variable.get_value() for f in _walk(self.model)[1] if _floats(f)}

    def top_level(self) -> set[str]:
        return {path.partition(".")[0] for path in _walk(self.model)[0]}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        known = {f.name: f.variable for f in _walk(self.model)[1]}
        for name, array in values.items():
            own = known[name].get_value()
            check_shape(name, array, own)
            known[name].set_value(jnp.array(array, dtype=own.dtype))

    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        copy: Any = nnx.clone(self.model)
        if train:
            copy.train()
        else:
            copy.eval()
        modules, variables = _walk(copy)
        for path, module in modules.items():
            setattr(module, _PATH, path)
        for index, f in enumerate(variables):
            if f.name in values:
                f.variable.set_value(values[f.name])
            elif isinstance(f.variable, nnx.RngKey):
                f.variable.set_value(_key(f.variable.get_value(), seed, index))
            elif isinstance(f.variable, nnx.RngCount):
                f.variable.set_value(jnp.zeros_like(f.variable.get_value()))
        modes = mode_arguments(self.function, args, kwargs, train=train)
        output = copy(*args, **kwargs, **modes)
        after = [f for f in variables if isinstance(f.variable, nnx.BatchStat) and _floats(f)]
        return output, {f.name: f.variable.get_value() for f in after}

    def tapping(self, session: JaxSession) -> AbstractContextManager[None]:
        classes = {type(module) for module in _walk(self.model)[0].values()}
        return patched(classes, lambda module: getattr(module, _PATH, None), session)


_SHOWN = (nnx.Param, nnx.BatchStat)


def _floats(found: _Found) -> bool:
    value = found.variable.get_value()
    return isinstance(value, (jax.Array, np.ndarray)) and bool(
        jnp.issubdtype(value.dtype, jnp.floating)
    )


def _key(own: Any, seed: int, index: int) -> Any:
    """A seeded key in place of ``own``: of its kind and shape."""
    typed = jnp.issubdtype(own.dtype, jax.dtypes.prng_key)
    make = jax.random.key if typed else jax.random.PRNGKey
    key = make(seed, impl=jax.random.key_impl(own) if typed else None)
    key = jax.random.fold_in(key, index)
    shape = own.shape if typed else own.shape[:-1]
    return jax.random.split(key, shape) if shape else key


def _kind(found: _Found, siblings: Mapping[str, int]) -> str:
    if isinstance(found.owner, (nnx.Linear, nnx.LinearGeneral)):
        return "dense"
    if isinstance(found.owner, (nnx.Conv, nnx.ConvTranspose)):
        return "conv"
    if isinstance(found.owner, nnx.Embed):
        return "embedding"
    if isinstance(found.owner, _NORMS):
        return "norm"
    kind = kind_of(found.layer, siblings)
    return "other" if kind == "conv" else kind


def _axes(found: _Found, kind: str, ndim: int) -> tuple[str, ...] | None:
    owner = found.owner
    if isinstance(owner, nnx.LinearGeneral):
        given, made = (_split(name, n) for name, n in _general(owner))
        named = (*given, *made) if found.leaf == "kernel" else made
        return named if len(named) == ndim else None  # batch axes come before
    axes = axes_of(kind, found.leaf, ndim, found.layer)
    if isinstance(owner, nnx.ConvTranspose) and axes is not None and ndim > 1:
        if owner.transpose_kernel:
            return (*axes[:-2], "out", "in")
        # Flax does not turn the kernel unless asked to; a convolution's gradient has it turned.
        return (*(f"-{a}" for a in axes[:-2]), "in", "out")
    return axes


def _general(owner: Any) -> Iterator[tuple[str, int]]:
    """(name, how many axes) of what a `LinearGeneral` takes and gives."""
    for name, features in (("in", owner.in_features), ("out", owner.out_features)):
        yield name, len(features) if isinstance(features, (tuple, list)) else 1


def _split(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}/{k}" for k in range(count))
