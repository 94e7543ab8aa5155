"""Models made of a list of functions: just enough to make traces, free and forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.aligning.align import Aligner, Alignment
from crosscheck.observers import Forcer, Recorder, chain
from crosscheck.trace import RunInfo, Trace


@dataclass(frozen=True)
class Node:
    """``site = function(*sources)``; a function may return a tuple: ``site``, ``site:1``, ...

    Glue between layers (an operation without a site) is a node whose kind is empty: its value is
    computed, never shown, and an input taken from it has no source.
    """

    site: str
    kind: str
    function: Callable[..., Any]
    sources: tuple[str, ...]
    parent: str | None = None


@dataclass
class Graph:
    """Nodes in execution order; ``outputs`` name the values that the model returns."""

    outputs: Sequence[str] = ()
    nodes: list[Node] = field(default_factory=list)

    def add(
        self, site: str, kind: str, function: Callable[..., Any], *sources: str, parent: str = ""
    ) -> str:
        self.nodes.append(Node(site, kind, function, sources, parent or None))
        return site

    def run(self, forced: Mapping[Any, np.ndarray] | None = None, **inputs: np.ndarray) -> Trace:
        recorder = Recorder()
        observer = chain(recorder, Forcer(forced or {}))
        values: dict[str, np.ndarray] = {}
        sources: dict[str, str] = {}

        def show(site: str, kind: Any, value: np.ndarray) -> np.ndarray:
            other = observer(site, kind, value)
            return value if other is None else other.astype(value.dtype).reshape(value.shape)

        for name, value in inputs.items():
            values[f"input:{name}"] = show(f"input:{name}", "activation", value)
        for node in self.nodes:
            arguments = []
            for i, source in enumerate(node.sources):
                slot = node.site if i == 0 else f"{node.site}:{i}"
                value = values[source]
                if node.kind:
                    if self._kind(source) or source.startswith("input:"):
                        sources[slot] = source
                    value = show(slot, "input", value)
                arguments.append(value)
            result = node.function(*arguments)
            for i, value in enumerate(result if isinstance(result, tuple) else (result,)):
                slot = node.site if i == 0 else f"{node.site}:{i}"
                values[slot] = show(slot, "activation", value) if node.kind else value
        names = []
        for i, source in enumerate(self.outputs):
            names.append("output" if i == 0 else f"output:{i}")
            show(names[-1], "activation", values[source])
        info = RunInfo(
            inputs=tuple(f"input:{name}" for name in inputs),
            outputs=tuple(names),
            layers={n.site: n.kind for n in self.nodes if n.kind},
            sources=sources,
            parents={n.site: n.parent for n in self.nodes if n.parent and n.kind},
        )
        return Trace(recorder.values, info, "functions")

    def _kind(self, site: str) -> str:
        base = site.partition(":")[0]
        return next((n.kind for n in self.nodes if n.site == base), "")


def aligned(
    reference: Trace,
    candidate: Trace,
    *,
    explicit: Mapping[str, str] | None = None,
    anchors: Sequence[tuple[str, str]] = (),
    skip: Sequence[str] = (),
) -> Alignment:
    """The alignment of two free runs by value alone."""
    aligner = Aligner(reference, candidate, explicit=explicit or {}, anchors=anchors, skip=skip)
    return aligner.alignment()


def forced_alignment(
    reference: Trace,
    candidate: Graph,
    anchors: Sequence[tuple[str, str]] = (),
    *,
    rounds: int = 20,
    **inputs: np.ndarray,
) -> Alignment:
    """Force, match, refine, until nothing is new; what `crosscheck.pipeline.align` does."""
    free = candidate.run(**inputs)
    aligner = Aligner(reference, free, explicit={}, anchors=anchors, skip=())
    alignment = aligner.alignment(free)
    for _ in range(rounds):
        latest = candidate.run(alignment.forced_on_candidate(reference), **inputs)
        found = aligner.take_back(latest) or aligner.match_values(latest) or aligner.refine(latest)
        previous, alignment = alignment, aligner.alignment(latest)
        if not found and set(previous.edges) == set(alignment.edges):
            return alignment
    raise AssertionError("alignment does not settle")


def pairs(alignment: Alignment) -> dict[str, str]:
    """reference site -> candidate site, without the model's inputs and outputs."""
    return {
        p.reference: p.candidate
        for p in alignment.pairs
        if not p.reference.startswith(("input:", "output"))
    }


def trace(value: np.ndarray | None, **info: Any) -> Trace:
    """A run of which this is all that was seen."""
    values: Any = {} if value is None else {("activation", "fc"): value}
    fields: dict[str, Any] = {
        "inputs": (),
        "outputs": (),
        "layers": {},
        "sources": {},
        "parents": {},
    }
    return Trace(values, RunInfo(**(fields | info)), "")


RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)
W = [np.float32(RNG.normal(size=(6, 6)) / 2) for _ in range(12)]


def linear(i: int, factor: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.tanh(x @ W[i] * np.float32(factor))


def tower(names: list[str], factors: dict[int, float] | None = None, kind: str = "L") -> Graph:
    graph, here = Graph(), "input:x"
    for i, name in enumerate(names):
        here = graph.add(name, kind, linear(i, (factors or {}).get(i, 1.0)), here)
    graph.outputs = (here,)
    return graph
