"""Flax Linen modules with their variables, tapped by method interception."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax
import jax
from flax import linen

from crosscheck.adapters.jax.calls import tapped_call
from crosscheck.adapters.jax.parameters import Slot
from crosscheck.adapters.jax.program import TreeProgram, mode_arguments
from crosscheck.adapters.jax.taps import JaxSession
from crosscheck.errors import InvalidArgument
from crosscheck.taps import active_session

__all__ = ["LinenProgram"]


class LinenProgram(TreeProgram):
    """``module.apply(variables, *inputs)``."""

    def __init__(self, module: linen.Module, variables: Mapping[str, Any]) -> None:
        if not isinstance(variables, Mapping) or "params" not in variables:
            keys = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
            raise InvalidArgument(
                f"adapt: variables= has no collection 'params' (it is {keys}). "
                "Give what module.init returned: {'params': ...} and, say, 'batch_stats'"
            )
        self.module = module
        self.layer, self.library = type(module).__name__, f"flax {flax.__version__}"
        self.function = module.__call__ if callable(module) else module.apply
        super().__init__(variables)

    def name_of(self, path: tuple[Any, ...]) -> str:
        collection, *rest = path
        name = super().name_of(tuple(rest))
        if collection.key in ("params", "batch_stats"):
            return name
        return f"{collection.key}.{name}"  # caches and the like

    def slots(self) -> tuple[Slot, ...]:
        by_collection = {name: path[0].key for path, name in self._names.items()}
        shown = [n for n in self._names.values() if by_collection[n] in ("params", "batch_stats")]
        order: dict[str, int] = {}
        for name in shown:
            order.setdefault(name.rpartition(".")[0], len(order))
        slots = [
            slot
            if by_collection[slot.name] == "params"
            else Slot(slot.name, slot.layer, slot.leaf, slot.kind, slot.axes, False, True)
            for slot in self._slots(shown)
        ]
        return tuple(sorted(slots, key=lambda slot: order[slot.layer]))

    def call(
        self,
        values: Mapping[str, Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        train: bool,
        seed: int,
    ) -> tuple[Any, dict[str, Any]]:
        modes: dict[str, Any] = mode_arguments(self.function, args, kwargs, train=train)
        variables = self.with_values(values)
        state = [name for name in variables if name != "params"] if train else []
        output = self.module.apply(
            variables,
            *args,
            rngs=_Streams(seed),
            mutable=state or False,
            **kwargs,
            **modes,
        )
        if not state:
            return output, {}
        output, after = output
        found = jax.tree_util.tree_flatten_with_path(dict(after))[0]
        named = {self._names[path]: leaf for path, leaf in found if path in self._names}
        return output, {s.name: named[s.name] for s in self.slots() if s.buffer}

    @contextmanager
    def tapping(self, session: JaxSession) -> Iterator[None]:
        def intercept(function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or active_session() is not session:
                return function(*args, **kwargs)
            module = context.module
            layer = type(module).__name__
            return tapped_call(session, ".".join(module.path), layer, function, args, kwargs)

        with linen.intercept_methods(intercept):
            yield


def _Streams(seed: int) -> dict[str, Any]:
    """Flax falls back on ``params`` for streams of any other name."""
    return {"params": jax.random.key(seed), "dropout": jax.random.key(seed)}
