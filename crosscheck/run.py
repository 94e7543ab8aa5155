"""Stage 4, run: an adapter and an observer -> a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from crosscheck.adapters.base import Adapter, CotangentSource, ModelRaised, Parameter
from crosscheck.errors import SideFailed
from crosscheck.memory import spilled
from crosscheck.observers import Recorder, chain
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo, Trace

__all__ = ["Runner"]

SideName = Literal["reference", "candidate", "model"]


@dataclass
class Runner:
    """One side of a check: its adapter and what every run of it is given.

    Attributes:
        side: for error messages.
        cotangents: None where there is no backward pass to compare.
        values: parameters and buffers by name, instead of the model's own.
    """

    side: SideName
    adapter: Adapter
    inputs: Mapping[str, np.ndarray]
    cotangents: CotangentSource | None = None
    train: bool = False
    seed: int = 0
    values: Mapping[str, np.ndarray] = field(default_factory=dict)

    def parameters(self) -> tuple[Parameter, ...]:
        """The model's, with the values that it is run with."""
        own = self.adapter.parameters()
        if not self.values:
            return tuple(own)
        return tuple(replace(p, value=self.values.get(p.name, p.value)) for p in own)

    def run(
        self,
        observer: Observer,
        *,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        passive: bool = False,
    ) -> RunInfo:
        """Run once.

        Raises:
            SideFailed: the model raised; says where.
        """
        try:
            return self.adapter.run(
                self.inputs,
                observer,
                cotangents=self.cotangents,
                float64=float64,
                overrides={**self.values, **(overrides or {})} or None,
                train=self.train,
                seed=self.seed,
                passive=passive,
            )
        except ModelRaised as raised:
            cause = raised.__cause__
            assert cause is not None
            raise SideFailed(
                self.side,
                raised.site,
                stage=raised.stage,
                framework=self.adapter.framework,
                cause=cause,
            ) from cause

    def record(
        self,
        *observers: Observer,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        recorder: Recorder | None = None,
        passive: bool = False,
    ) -> Trace:
        """Run once and keep every value (before any other observer replaces it).

        Args:
            observers: consulted after the recorder; may replace values.
            recorder: pass one in to have what was recorded even if the run fails.
            passive: a free run, bit for bit what the model does without taps.
        """
        recorder = recorder or Recorder(borrows=self.adapter.capabilities.lends)
        info = self.run(
            chain(recorder, *observers), float64=float64, overrides=overrides, passive=passive
        )
        if info.overwritten:  # the adapter knows it from now on, and gives copies of that
            recorder.restart()
            return self.record(
                *observers,
                float64=float64,
                overrides=overrides,
                recorder=recorder,
                passive=passive,
            )
        return Trace(values=recorder.values, info=spilled(info), framework=self.adapter.framework)
