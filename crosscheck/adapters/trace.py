"""Recorded runs as one side of a check: nothing is run, what was recorded is shown again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter, Capabilities, CotangentSource, Parameter
from crosscheck.errors import InvalidArgument
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo
from crosscheck.traces.load import load_trace
from crosscheck.traces.recorded import RecordedTrace

__all__ = ["TraceAdapter", "find"]


class TraceAdapter(Adapter):
    """A `RecordedTrace` that can be looked at again, and not be forced, changed or widened."""

    def __init__(self, trace: RecordedTrace) -> None:
        self.trace = trace
        self.framework = trace.framework
        self.version = trace.version
        self.device = trace.device
        self.separator = "/" if any("/" in site for site in trace.info.layers) else "."
        self.capabilities = Capabilities(
            cotangents=trace.has_cotangents, float64=False, train=trace.train, forcing=False
        )

    @property
    def notes(self) -> tuple[str, ...]:
        where = f" from {self.trace.origin}" if self.trace.origin else ""
        return (f"a recorded run{where}",)

    def use(self, device: str) -> None:
        """A recorded run stays where it ran."""

    def parameters(self) -> tuple[Parameter, ...]:
        return self.trace.parameters

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        raise InvalidArgument("a recorded run takes no parameters: give the model itself")

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        """Show the recorded values in order; inputs and seeds are those of the recording."""
        for (kind, site), value in self.trace.values.items():
            backward = kind in ("cotangent", "input_cotangent")
            if (cotangents is not None or not backward) and (
                observer(site, kind, value) is not None
            ):
                raise InvalidArgument(f"a recorded run cannot be forced (the {kind} of `{site}`)")
        return self.trace.info


def find(model: Any, **options: Any) -> Adapter:
    """The adapter of a `RecordedTrace`, or of the path of a ``.safetensors`` file."""
    if isinstance(model, (str, os.PathLike)):
        model = load_trace(model)
    if not isinstance(model, RecordedTrace):
        raise InvalidArgument(
            "adapt: this trace does not know its inputs; crosscheck.record makes one that does"
        )
    if options:
        raise InvalidArgument(f"adapt: a trace takes no options, given {sorted(options)}")
    return TraceAdapter(model)
