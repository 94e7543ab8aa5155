"""One run of an ONNX model: what is fed, what is forced, and what it shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

from crosscheck.adapters.base import input_site
from crosscheck.adapters.onnx.feeds import numpy_type
from crosscheck.adapters.onnx.fetching import sent
from crosscheck.adapters.onnx.sessions import Sessions
from crosscheck.adapters.onnx.structure import Structure
from crosscheck.adapters.onnx.wide import as_wide, wide_type
from crosscheck.kernels.on_device import DeviceArray
from crosscheck.observers import Key

__all__ = ["GraphRun"]


class GraphRun:
    """One run's feeds and weights; `values` executes it with given replacements.

    Args:
        overridden: initializers to use instead of the model's own.
        changes_only: compute and show only what those reach past the replacements.
        only: compute and show only these values; None: all.
        wide: in float64; what is fed and overridden is converted here.

    Attributes:
        events: what can be shown (values of types that NumPy has), without the model's inputs.
    """

    def __init__(
        self,
        sessions: Sessions,
        structure: Structure,
        feeds: Mapping[str, np.ndarray],
        overridden: Mapping[str, np.ndarray],
        *,
        changes_only: bool = False,
        only: Collection[Key] | None = None,
        wide: bool = False,
    ) -> None:
        self.sessions, self.structure = sessions, structure
        self.feeds, self.overridden = feeds, overridden
        if wide:
            self.feeds = {name: as_wide(value) for name, value in feeds.items()}
            self.overridden = {name: as_wide(value) for name, value in overridden.items()}
        device = sessions.options.device
        self.feeds = {name: sent(value, device) for name, value in self.feeds.items()}
        self._changes_only, self._only, self._wide = changes_only, only, wide
        self.events = [e for e in structure.events if self._type(e.value) is not None]

    @cached_property
    def keys(self) -> dict[Key, str]:
        """Everything that can be shown and replaced -> the value in the graph, in order."""
        inputs: dict[Key, str] = {("activation", input_site(name)): name for name in self.feeds}
        return inputs | {event.key: event.value for event in self.events}

    def _type(self, value: str) -> np.dtype | None:
        if value in self.feeds:
            return self.feeds[value].dtype
        dtype = numpy_type(self.sessions.types[value])
        return wide_type(dtype) if self._wide and dtype is not None else dtype

    def values(self, plan: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """Key -> value as produced, with the replacements of ``plan`` in effect behind it."""
        if self._only is not None:
            taken = self.sessions.taken_by(self._only, plan)[0]
            plan = {key: value for key, value in plan.items() if key in taken}
        passed: dict[Key, Key | None] = {}
        for event in self.events:
            earlier = [key for key in self.structure.before(event) if key in plan]
            passed[event.key] = earlier[-1] if earlier else None
        wanted = [e.value for e in self.events if passed[e.key] is None]
        names = list(dict.fromkeys(v for v in wanted if v not in self.feeds))
        fed = {key: self._prepared(key, value) for key, value in plan.items()}
        if self._only is not None:
            values = {e.value for e in self.events if e.key in self._only}
            names = [name for name in names if name in values]
        elif self._changes_only:
            return self._changed(names, passed, fed)
        alone = self._only is not None
        found = self.sessions.run(
            names, self.feeds, fed, self.overridden, alone=alone, wide=self._wide
        )
        produced = {**found, **self.feeds}
        shown = {}
        for key, value in self.keys.items():
            if self._only is not None and key not in self._only and value not in self.feeds:
                continue
            source = passed.get(key)
            shown[key] = produced[value] if source is None else fed[source]
        return shown

    def _changed(
        self,
        names: Sequence[str],
        passed: Mapping[Key, Key | None],
        fed: Mapping[Key, np.ndarray],
    ) -> dict[Key, np.ndarray]:
        """What the overridden initializers reach; nothing else is computed."""
        reached = self.sessions.reached(self.overridden, fed)
        names = [name for name in names if name in reached]
        found = self.sessions.run(
            names, self.feeds, fed, self.overridden, alone=True, wide=self._wide
        )
        return {
            key: found[value]
            for key, value in self.keys.items()
            if value in found and passed.get(key) is None
        }

    def _prepared(self, key: Key, replacement: np.ndarray) -> np.ndarray:
        dtype = self._type(self.keys[key])
        if isinstance(replacement, DeviceArray):
            return replacement.astype(dtype, copy=False)  # type: ignore[no-any-return]
        return np.asarray(replacement, dtype, order="C")

    def bare(self) -> dict[Key, np.ndarray]:
        """The outputs of the model as it is, nothing shown."""
        outputs = [e for e in self.events if e.call == 0]
        names = list(dict.fromkeys(e.value for e in outputs))
        found = self.sessions.run_bare(names, self.feeds, self.overridden)
        return {e.key: found[e.value] for e in outputs}
