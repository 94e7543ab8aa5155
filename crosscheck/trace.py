"""What one run leaves behind: its values in order, and the structure they were seen in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crosscheck.observers import Key
from crosscheck.taps import Session

__all__ = ["RunInfo", "Trace"]


@dataclass(frozen=True)
class RunInfo:
    """What an adapter says of a run, beside the values that it showed to the observer.

    Attributes:
        inputs: sites of the model's inputs (``input:x``), in order.
        outputs: sites of the model's outputs (``output``, ``output:1``, ...), in order.
        layers: site -> type of the layer.
        sources: input site -> the site whose activation it is (the very same object).
        parents: site -> the site during whose call it was called.
        unobservable: (kind, site) that the framework could not show.
        parameter_gradients: name -> gradient, in the parameter's own shape; a parameter that got
            none has zeros. Empty when the run had no backward pass.
        buffers: name -> value after the run (train mode), before it was put back.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: Mapping[str, str]
    sources: Mapping[str, str]
    parents: Mapping[str, str]
    unobservable: frozenset[Key] = frozenset()
    parameter_gradients: Mapping[str, np.ndarray] = field(default_factory=dict)
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        session: Session,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parameter_gradients: Mapping[str, np.ndarray] | None = None,
        buffers: Mapping[str, np.ndarray] | None = None,
    ) -> RunInfo:
        """Collect what ``session`` saw."""
        return cls(
            inputs=inputs,
            outputs=outputs,
            layers=dict(session.layers),
            sources=dict(session.sources),
            parents=dict(session.parents),
            unobservable=frozenset(session.unobservable),
            parameter_gradients=parameter_gradients or {},
            buffers=buffers or {},
        )


@dataclass(frozen=True)
class Trace:
    """The ordered record of one run.

    Attributes:
        values: (kind, site) -> array, in the order in which the run produced them.
        info: structure, parameter gradients and buffers.
        framework: the side's framework, for messages.
    """

    values: Mapping[Key, np.ndarray]
    info: RunInfo
    framework: str

    def activations(self) -> dict[str, np.ndarray]:
        """site -> activation, in forward order."""
        return {site: v for (kind, site), v in self.values.items() if kind == "activation"}

    def outputs(self) -> dict[str, np.ndarray]:
        """site -> activation of the model's own outputs."""
        return {site: self.values["activation", site] for site in self.info.outputs}

    def inputs_of(self, site: str) -> list[str]:
        """The input sites of the layer call at ``site``: ``site``, ``site:1``, ..."""
        return self._inputs.get(site, [])

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for kind, site in self.values:
            if kind == "input":
                found[owner(site)].append(site)
        return dict(found)


def owner(site: str) -> str:
    """The layer call that a site belongs to: ``rnn#2:1`` -> ``rnn#2``."""
    return site.partition(":")[0]
