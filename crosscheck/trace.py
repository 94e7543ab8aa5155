"""What one run leaves behind: its values in order, and the structure they were seen in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crosscheck.observers import Key
from crosscheck.taps import Kind, Session

__all__ = ["RunInfo", "Trace", "is_beside", "owner"]


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
        overwritten: (kind, site) whose value the observer was lent, and which has changed since.
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
    overwritten: frozenset[Key] = frozenset()

    @classmethod
    def of(
        cls,
        session: Session,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        parameter_gradients: Mapping[str, np.ndarray] | None = None,
        buffers: Mapping[str, np.ndarray] | None = None,
        overwritten: frozenset[Key] = frozenset(),
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
            overwritten=overwritten,
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

    def activations(self) -> Mapping[str, np.ndarray]:
        """site -> activation, in forward order; each is fetched when it is asked for."""
        return _OfKind(self.values, "activation", self._sites("activation"))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """site -> shape of the activation, in forward order; no value is touched."""
        shape_of = getattr(self.values, "shape_of", None)
        if shape_of is None:
            return {site: value.shape for site, value in self.activations().items()}
        return {site: shape_of(("activation", site)) for site in self._sites("activation")}

    def _sites(self, kind: Kind) -> dict[str, None]:
        return dict.fromkeys(site for of, site in self.values if of == kind)

    def outputs(self) -> dict[str, np.ndarray]:
        """site -> activation of the model's own outputs."""
        return {site: self.values["activation", site] for site in self.info.outputs}

    def inputs_of(self, site: str) -> list[str]:
        """The input sites of the layer call at ``site``: ``site``, ``site:1``, ..."""
        return self._inputs.get(site, [])

    @cached_property
    def place(self) -> dict[Key, int]:
        """Of every value, in the order of the run."""
        return {key: i for i, key in enumerate(self.values)}

    @cached_property
    def consumers(self) -> dict[str, list[str]]:
        """site -> the input sites that are given its very value."""
        return _inverted(self.info.sources)

    @cached_property
    def _calls(self) -> dict[str, list[str]]:
        return _inverted(self.info.parents)

    def inside(self, call: str) -> Iterator[str]:
        """The calls that are made during ``call``, at any depth; each once, also where a damaged
        recording says that one lies within itself."""
        known, todo = {call}, [iter(self._calls.get(call, ()))]
        while todo:
            one = next(todo[-1], None)
            if one is None:
                todo.pop()
            elif one not in known:
                known.add(one)
                yield one
                todo.append(iter(self._calls.get(one, ())))

    @cached_property
    def outputs_of(self) -> dict[str, list[str]]:
        """layer call -> the sites of what it returned: ``rnn``, ``rnn:1``, ..."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for site in self._sites("activation"):
            found[owner(site)].append(site)
        return dict(found)

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for kind, site in self.values:
            if kind == "input":
                found[owner(site)].append(site)
        return dict(found)


class _OfKind(Mapping[str, np.ndarray]):
    """The values of one kind, by site."""

    def __init__(
        self, values: Mapping[Key, np.ndarray], kind: Kind, sites: Mapping[str, None]
    ) -> None:
        self._values, self._kind, self._sites = values, kind, sites

    def __getitem__(self, site: str) -> np.ndarray:
        return self._values[self._kind, site]

    def __contains__(self, site: object) -> bool:
        return site in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _inverted(mapping: Mapping[str, str]) -> dict[str, list[str]]:
    """value -> its keys."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in mapping.items():
        found[value].append(key)
    return dict(found)


def owner(site: str) -> str:
    """The layer call that a site belongs to: ``rnn#2:1`` -> ``rnn#2``."""
    return site.partition(":")[0]


def is_beside(site: str) -> bool:
    """Whether a site is what a layer returns beside its result: ``attn:1``."""
    layer, _, rest = site.partition(":")
    return bool(rest) and layer not in ("input", "output")
