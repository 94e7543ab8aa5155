"""Part of stage 8, locate: what cannot be judged because the candidate's backward pass is cut off.

Forcing replaces a cotangent that arrives. Where none arrives (a detached branch, a backward that
stops early) there is nothing to replace, and everything behind the cut is zero although no layer
there is wrong. The cut itself stays a result; what follows from it is set aside and listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from crosscheck.aligning.alignment import Alignment
from crosscheck.arrays import is_float
from crosscheck.errors import capped
from crosscheck.results import SiteResult
from crosscheck.taps import Kind
from crosscheck.trace import RunInfo, Trace, owner

__all__ = ["Severed", "ancestors", "is_cut_before", "is_silent", "released"]


def is_cut_before(result: SiteResult, candidate: Trace) -> bool:
    """Whether a layer's input is no part of the candidate's graph: it was cut before the layer."""
    return result.kind == "input_cotangent" and (result.kind, result.candidate) not in (
        candidate.values
    )


def is_silent(trace: Trace, kind: Kind, site: str) -> bool:
    """No cotangent arrived there, or nothing but zeros."""
    value = trace.values.get((kind, site))
    return value is None or not value.astype(bool).any()


def released(alignment: Alignment, reference: Trace, candidate: Trace) -> dict[str, str]:
    """Layers of the candidate that return a value outside its graph, the innermost ones.

    What they are given is in the graph, or their own parameters would be, and the reference sends
    a cotangent into what they return.

    Returns:
        candidate site -> reference site.
    """
    found = {}
    for pair in alignment.pairs:
        key: tuple[Kind, str] = ("cotangent", pair.candidate)
        expected = reference.values.get(("cotangent", pair.reference))
        if expected is None or not expected.astype(bool).any() or pair.layout is None:
            continue
        if key in candidate.values or key in candidate.info.unobservable:
            continue
        ours = _in_graph(reference, pair.reference), _in_graph(candidate, pair.candidate)
        if (ours[1] or not ours[0]) and pair.candidate not in candidate.info.inputs:
            found[pair.candidate] = pair.reference
    around = set().union(*(ancestors(candidate.info, owner(c)) for c in found)) if found else set()
    return {c: r for c, r in found.items() if owner(c) not in around}


def _in_graph(trace: Trace, site: str) -> bool:
    """Whether a layer is given anything that a cotangent can pass to."""
    return any(("input_cotangent", slot) in trace.values for slot in trace.inputs_of(owner(site)))


def ancestors(info: RunInfo, call: str) -> set[str]:
    """The calls during which ``call`` was made."""
    found: set[str] = set()
    parent = info.parents.get(call)
    while parent is not None and parent not in found:
        found.add(parent)
        parent = info.parents.get(parent)
    return found


@dataclass
class Severed:
    """Sorts the results of one check: to judge, or set aside.

    Attributes:
        kept: the results that say something about the place where they were seen.
        not_compared: lines for the coverage.
    """

    reference: Trace
    candidate: Trace  # forced
    results: Sequence[SiteResult]
    kept: tuple[SiteResult, ...] = field(init=False)
    not_compared: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        flagged = [r for r in self.results if r.phase == "backward" and r.verdict != "agree"]
        self._silent = {
            (r.kind, name)
            for r in flagged
            if r.kind in ("cotangent", "input_cotangent") and self._is_silent(r.kind, r.candidate)  # type: ignore[arg-type]
            for name in (("reference", r.reference), ("candidate", r.candidate))
        }
        silent_sites = [site for _, (side, site) in self._silent if side == "candidate"]
        self._compared = {r.candidate for r in self.results if r.kind == "cotangent"}
        self._place = {site: i for i, site in enumerate(self.candidate.activations())}
        self._last_cut = max((self._place.get(owner(s), -1) for s in silent_sites), default=-1)
        self._around_silence = set().union(*(self._ancestors(owner(s)) for s in silent_sites))
        self._cut_before = {owner(r.candidate) for r in flagged if is_cut_before(r, self.candidate)}
        unfed = [r.candidate for r in self.results if self._is_unfed(r)]
        aside = [r for r in self.results if r.verdict != "agree" and (unfed or self._follows(r))]
        aside = [r for r in aside if r.phase in ("backward", "parameter_gradient")]
        if len(aside) >= sum(r.verdict != "agree" for r in self.results):
            aside = []  # a consequence needs a cause
        gone = {id(r) for r in aside}
        self.kept = tuple(r for r in self.results if id(r) not in gone)
        cotangents = dict.fromkeys(r.candidate for r in aside if r.phase == "backward")
        gradients = [r.candidate for r in aside if r.phase == "parameter_gradient"]
        why = "no cotangent comes this far in the candidate"
        if unfed:
            why = f"of another shape, so no cotangent was sent in: candidate output {capped(unfed)}"
        self.not_compared = tuple(
            f"{what} {capped(names)}: {why}"
            for what, names in (("backward of", cotangents), ("gradient of", gradients))
            if names
        )

    def _is_unfed(self, result: SiteResult) -> bool:
        """Whether this is an output whose shape differs, so that no cotangent could be sent in."""
        is_output = result.phase == "forward" and result.candidate in self.candidate.info.outputs
        return is_output and result.metrics is None

    def _is_silent(self, kind: Kind, site: str) -> bool:
        return is_silent(self.candidate, kind, site)

    def _follows(self, result: SiteResult) -> bool:
        """Whether a wrong result is no more than what a cut elsewhere entails."""
        if result.phase == "parameter_gradient":
            return any(self._is_starved(call) for call in self._calls(result.candidate))
        call = owner(result.candidate)
        around = self._ancestors(call)
        if result.kind == "input_cotangent":
            if self._is_starved(call):
                return True
            if call in self._cut_before:  # and so is what the layer is called in, perhaps
                return not around.isdisjoint(self._cut_before)
            # The cotangent that a container sends back lacks what is cut off inside it.
            return call in self._around_silence
        consumers = self.candidate.consumers.get(result.candidate, ())
        return (
            result.candidate in self._read_by_starved
            or any(self._is_starved(container) for container in around)
            or any(self._is_starved_alone(owner(consumer)) for consumer in consumers)
            or any(
                ("input_cotangent", (side, consumer)) in self._silent
                for side, trace in (("reference", self.reference), ("candidate", self.candidate))
                for consumer in trace.consumers.get(getattr(result, side), ())
            )
        )

    def _is_starved(self, call: str) -> bool:
        """Nothing arrives at the layer's outputs, though the reference sends something."""
        outputs = self.candidate.outputs_of.get(call, ())
        expected = any(("cotangent", ("candidate", s)) in self._silent for s in outputs)
        silent = all(self._is_silent("cotangent", s) for s in outputs)
        return (expected and silent) or self._is_starved_alone(call)

    def _is_starved_alone(self, call: str) -> bool:
        """Nothing arrives at the outputs of a layer without partner that runs before a cut."""
        outputs = self.candidate.outputs_of.get(call, ())
        if self._place.get(call, self._last_cut) >= self._last_cut or not outputs:
            return False
        return self._compared.isdisjoint(outputs) and all(
            is_float(self.candidate.values["activation", s])
            and ("cotangent", s) not in self.candidate.info.unobservable
            and self._is_silent("cotangent", s)
            for s in outputs
        )

    @cached_property
    def _read_by_starved(self) -> frozenset[str]:
        """Sites whose value code between the layers hands to a layer at which nothing arrives: the
        last ones that were compared before it."""
        found, latest = set(), ""
        made = self.candidate.info.sources
        for kind, site in self.candidate.values if self._last_cut >= 0 else ():
            if kind == "activation" and site in self._compared:
                latest = site
            elif kind == "input" and site not in made and self._is_starved(owner(site)):
                found.add(latest)
        return frozenset(found)

    def _ancestors(self, call: str) -> set[str]:
        return ancestors(self.candidate.info, call)

    def _calls(self, parameter: str) -> list[str]:
        """The calls of the layer that owns a parameter: of the longest path that it begins with."""
        ends = [i for i, letter in enumerate(parameter) if letter in "./"]
        paths = (parameter[:end] for end in reversed(ends))
        return next((self._by_path[path] for path in paths if path in self._by_path), [])

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for site in self.candidate.info.layers:
            found[site.partition("#")[0]].append(site)
        return dict(found)
