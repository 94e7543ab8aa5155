"""Many evaluations of one model in eval mode, at other values of its parameters: compiled once.

Learning by heart and finite differences ask for hundreds of them, and a run that shows every layer
takes a hundred times as long where the framework would rather compile (JAX, Keras). Where nothing
can be compiled, or the compiled function gives something else, the adapter's runs do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crosscheck.adapters.base import Adapter, CotangentSource
from crosscheck.arrays import is_float
from crosscheck.observers import Recorder
from crosscheck.run import Runner

__all__ = ["ByRuns", "Evaluator", "Gradients", "agree", "compiled"]

Arrays = Mapping[str, np.ndarray]
SAME = 1e-3  # of the largest output, between compiled and eager arithmetic in float32


@dataclass(frozen=True)
class Gradients:
    """Outputs by site, and the gradients by parameter and by floating-point input."""

    outputs: Arrays
    parameters: Arrays
    inputs: Arrays


class Evaluator(Protocol):
    """A model in eval mode, for inputs of one shape."""

    def outputs(self, values: Arrays, inputs: Arrays) -> Arrays:
        """Outputs by site; ``values`` by name in place of the model's own."""

    def gradients(self, values: Arrays, inputs: Arrays, cotangents: CotangentSource) -> Gradients:
        """The same, and what comes back for the cotangents of those outputs."""


@dataclass(frozen=True)
class ByRuns:
    """Evaluations by runs of the adapter."""

    adapter: Adapter
    seed: int
    float64: bool

    def outputs(self, values: Arrays, inputs: Arrays) -> Arrays:
        return self._run(values, inputs, None).outputs

    def gradients(self, values: Arrays, inputs: Arrays, cotangents: CotangentSource) -> Gradients:
        return self._run(values, inputs, cotangents)

    def _run(self, values: Arrays, inputs: Arrays, source: CotangentSource | None) -> Gradients:
        runner = Runner("model", self.adapter, inputs, source, False, self.seed)
        ends = _Ends()
        trace = runner.record(
            recorder=ends, passive=not self.float64, float64=self.float64, overrides=values
        )
        back = {k: trace.values.get(("cotangent", f"input:{k}")) for k in inputs}
        return Gradients(
            trace.outputs(),
            trace.info.parameter_gradients,
            {k: v for k, v in back.items() if v is not None},
        )


class _Ends(Recorder):
    """Keeps what goes into the model and what comes out, and nothing in between."""

    def __call__(self, site: str, kind: Any, value: np.ndarray) -> None:
        if site.startswith(("input:", "output", "model_output")):
            super().__call__(site, kind, value)


def compiled(
    adapter: Adapter, inputs: Arrays, sites: Sequence[str], *, float64: bool, seed: int
) -> Evaluator | None:
    """The model as a compiled function; None where there is no such thing.

    Args:
        inputs: whose shapes and dtypes the function is compiled for.
        sites: of the outputs, in order.
    """
    kind = f"{type(adapter).__module__}.{type(adapter).__name__}"
    if kind == "crosscheck.adapters.jax.adapter.JaxAdapter":
        from crosscheck.adapters.jax.evaluating import JaxEvaluator

        return JaxEvaluator(adapter, inputs, sites, float64=float64, seed=seed)  # type: ignore[arg-type]
    if kind == "crosscheck.adapters.keras.tensorflow.KerasAdapter":
        from crosscheck.adapters.keras.evaluating import KerasEvaluator

        return KerasEvaluator(adapter, inputs, sites, float64=float64)  # type: ignore[arg-type]
    return None


def agree(ours: Arrays, theirs: Arrays) -> bool:
    """Whether outputs are the same up to rounding in float32."""
    if ours.keys() != theirs.keys() or any(ours[k].shape != v.shape for k, v in theirs.items()):
        return False
    for site, value in theirs.items():
        a, b = ours[site].astype(np.float64), value.astype(np.float64)
        if not is_float(value):
            if not np.array_equal(a, b):
                return False
            continue
        size = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        if not np.allclose(a, b, rtol=0.0, atol=SAME * max(size, 1e-12), equal_nan=True):
            return False
    return True
