"""What a framework brings to the contract: the same small models, and a run without crosscheck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.observers import Key, Recorder, chain
from crosscheck.trace import RunInfo

Values = dict[Key, np.ndarray]
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
DY = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
IDS = np.array([[1, 2, 2], [0, 5, 1]])


class Kit(ABC):
    """The same models in one framework, built and with seeded weights. `x` is (6, 4), `y` (6, 3).

    mlp:         fc1 (4, 5); block: h + act(inner(h)), inner (5, 5), act is ReLU; fc2 (5, 3)
    shared:      cell (4, 4) twice, then head (4, 3)
    fan_out:     fc (4, 5), then a(h) + b(h) + c(h), each (5, 3)
    structured:  (head(x), {"hidden": fc(x)}); head (4, 3), fc (4, 5)
    two_inputs:  call(left, right): fl(left) - fr(right), each (4, 3)
    embedding:   call(ids): head(table(ids)), table (7, 4), head (4, 3)
    cut:         main(x) + stop(side(x)), each (4, 3); no gradient passes `stop`
    norm:        bn(fc(x)), fc (4, 3), BatchNorm with momentum 0.1 (of the new value)
    dropout:     drop(fc(x)), fc (4, 3)
    raising:     boom(fc(x)): boom raises ValueError("boom") in forward, or in backward
    returning:   h = fc(x); (head(h), h); fc (4, 5), head (5, 3)
    tapped:      head(tap("mid", attn(x))); attn(x): tap("scores", fc(x)), fc (4, 4); head (4, 3)
    """

    separator: ClassVar[str] = "."

    @abstractmethod
    def build(self, name: str) -> Any:
        """One of the models above (`raising`: also `raising_backward`)."""

    @abstractmethod
    def adapt(self, model: Any) -> Adapter:
        """Its adapter."""

    @abstractmethod
    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """(outputs, parameter gradients) of a run without crosscheck, in eval mode."""

    @abstractmethod
    def state(self, model: Any) -> dict[str, Any]:
        """Everything that a run must leave alone, as arrays and plain values."""


def ones(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.ones_like(v) for k, v in outputs.items() if v.dtype.kind == "f"}


def given(dy: np.ndarray = DY) -> Any:
    return lambda outputs: {next(iter(outputs)): dy}


def record(
    adapter: Adapter, inputs: Any = None, observer: Any = None, **options: Any
) -> tuple[Values, RunInfo]:
    """Run with cotangents `DY` on the first output; values as produced."""
    recorder = Recorder()
    options.setdefault("cotangents", given())
    seen = recorder if observer is None else chain(recorder, observer)
    info = adapter.run({"x": X} if inputs is None else inputs, seen, **options)
    return recorder.values, info


def equal(a: Values, b: Values) -> set[Key]:
    """Keys of equal values; both must have the same ones."""
    assert a.keys() == b.keys()
    return {key for key in a if a[key].tobytes() == b[key].tobytes()}


class Suite:
    """Helpers of the contract's tests. The test class of a framework sets `kit`."""

    kit: ClassVar[Kit]

    def model(self, name: str) -> tuple[Any, Adapter]:
        model = self.kit.build(name)
        return model, self.kit.adapt(model)

    def adapter(self, name: str) -> Adapter:
        return self.model(name)[1]

    def path(self, dotted: str) -> str:
        return dotted.replace(".", self.kit.separator)

    def keys(self, kind: str, *paths: str) -> list[Any]:
        return [(kind, self.path(path)) for path in paths]

    def weights(self, adapter: Adapter) -> dict[str, np.ndarray]:
        """``fc1.weight`` -> float64 (in, out); ``fc1.bias`` -> (out,)."""
        found = {}
        for p in adapter.parameters():
            value = p.value.astype(np.float64)
            name = f"{p.layer.replace(self.kit.separator, '.')}.{p.role}"
            found[name] = value.T if p.axes == ("out", "in") else value
        return found

    def gradients(self, adapter: Adapter, info: RunInfo) -> dict[str, np.ndarray]:
        """By dotted name, (in, out)."""
        found = {}
        for p in adapter.parameters():
            if p.name in info.parameter_gradients:
                value = info.parameter_gradients[p.name]
                assert value.shape == p.value.shape
                name = f"{p.layer.replace(self.kit.separator, '.')}.{p.role}"
                found[name] = value.T if p.axes == ("out", "in") else value
        return found
