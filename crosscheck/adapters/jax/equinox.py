"""Equinox modules: pytrees that are called; tapped at ``__call__``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox
import jax

from crosscheck.adapters.jax.calls import patched
from crosscheck.adapters.jax.parameters import Slot
from crosscheck.adapters.jax.program import TreeProgram, mode_arguments
from crosscheck.adapters.jax.taps import JaxSession

__all__ = ["EquinoxProgram"]

_SPATIAL = {3: ("w",), 4: ("h", "w"), 5: ("d", "h", "w")}
_NORMS = (equinox.nn.LayerNorm, equinox.nn.GroupNorm, equinox.nn.RMSNorm)


def _modules(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, module), the model itself first under ``""``."""
    if isinstance(node, equinox.Module):
        yield path, node
        items = [(f.name, getattr(node, f.name, None)) for f in dataclasses.fields(node)]
    elif isinstance(node, Mapping):
        items = [(str(key), child) for key, child in node.items()]
    elif isinstance(node, (list, tuple)):
        items = [(str(index), child) for index, child in enumerate(node)]
    else:
        return
    for name, child in items:
        yield from _modules(child, f"{path}.{name}" if path else name)


class EquinoxProgram(TreeProgram):
    """``model(*inputs)``, or that under ``jax.vmap`` over the first axis of every input."""

    def __init__(self, model: equinox.Module, *, batched: bool = False) -> None:
        self.layer, self.library = type(model).__name__, f"equinox {equinox.__version__}"
        self.batched = batched
        self.function = model.__call__ if callable(model) else type(model)
        self._paths: dict[int, str] = {}
        super().__init__(model)

    def outward(self, name: str, leaf: Any) -> Any:
        leaf = super().outward(name, leaf)
        layer, _, role = name.rpartition(".")
        owner = dict(_modules(self.tree)).get(layer)
        # The bias of a convolution is stored as (out, 1, 1).
        return leaf.reshape(-1) if isinstance(owner, _CONVS) and role == "bias" else leaf

    def inward(self, value: Any, own: Any) -> Any:
        return value.reshape(own.shape)

    def slots(self) -> tuple[Slot, ...]:
        owners = dict(_modules(self.tree))
        values = self.values()
        slots = []
        for name in self._names.values():
            layer, _, leaf = name.rpartition(".")
            kind = _kind(owners.get(layer))
            axes = _axes(owners.get(layer), kind, leaf, values[name].ndim)
            slots.append(Slot(name, layer, leaf, kind, axes))
        return tuple(slots)

    def top_level(self) -> set[str]:
        return {path.partition(".")[0] for path, _ in _modules(self.tree)}

    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        model: Any = equinox.nn.inference_mode(self.with_values(values), value=not train)
        self._paths.clear()
        for path, module in _modules(model):
            self._paths.setdefault(id(module), path)
        options: dict[str, Any] = mode_arguments(self.function, args, kwargs, train=train)
        takes = inspect.signature(self.function).parameters
        if "key" in takes and "key" not in kwargs:
            options["key"] = jax.random.key(seed)
        if not self.batched:
            return model(*args, **kwargs, **options), {}
        mapped: Any = jax.vmap(lambda a, k: model(*a, **k, **options))
        return mapped(args, kwargs), {}

    @contextmanager
    def tapping(self, session: JaxSession) -> Iterator[None]:
        classes = {type(module) for _, module in _modules(self.tree)}
        with patched(classes, lambda module: self._paths.get(id(module)), session):
            yield
        self._paths.clear()


_CELLS = ((equinox.nn.LSTMCell, "lstm", "ifgo"), (equinox.nn.GRUCell, "gru", "rzn"))
_CONVS = (equinox.nn.Conv, equinox.nn.ConvTranspose)


def _kind(owner: Any) -> str:
    if isinstance(owner, equinox.nn.Linear):
        return "dense"
    if isinstance(owner, _CONVS):
        return "conv"
    if isinstance(owner, equinox.nn.Embedding):
        return "embedding"
    if isinstance(owner, _NORMS):
        return "norm"
    return next((kind for cls, kind, _ in _CELLS if isinstance(owner, cls)), "other")


def _axes(owner: Any, kind: str, leaf: str, ndim: int) -> tuple[str, ...] | None:
    if kind in ("dense", "conv") and leaf == "bias":
        return ("out",)
    if kind == "dense":
        return ("out", "in")
    if isinstance(owner, equinox.nn.ConvTranspose):  # it does not turn its kernel
        return ("out", "in", *(f"-{a}" for a in _SPATIAL[ndim]))
    gates = next((gates for cls, _, gates in _CELLS if isinstance(owner, cls)), None)
    if gates is not None and leaf != "bias_n":
        return (f"gates:{gates}", "in")[:ndim]
    if isinstance(owner, equinox.nn.Conv):
        return ("out", "in", *_SPATIAL[ndim])
    if kind == "embedding":
        return ("row", "dim")
    return ("channel",) if ndim == 1 else None
