"""From the traces of a check to evidence: the values at one divergence, on any inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.compare import Difference, compare
from crosscheck.comparisons import Item, buffer_items, gradient_items, site_items, value_of
from crosscheck.comparisons import weight_items as items_of_weights
from crosscheck.explain.evidence import Evidence, Sibling, Use
from crosscheck.explain.hidden import hidden_by
from crosscheck.judging.again import fresh_runs
from crosscheck.judging.evidence import Evidence as Check
from crosscheck.judging.judge import Judge, in_reference_layout, without_fill
from crosscheck.judging.noise import Floor, unit_roundoff
from crosscheck.locating.given import Given
from crosscheck.locating.surroundings import Passages
from crosscheck.results import SiteResult
from crosscheck.trace import Trace, owner

__all__ = ["Sites", "at_weights", "on_fresh_inputs"]

LARGEST = 4_000_000  # elements; about a second of processor time for each million
MOST_BESIDE = 8  # layers of the same container that are looked at, either side of one


@dataclass(frozen=True)
class Sites:
    """Evidence at the sites of one pair of runs.

    Attributes:
        check: the alignment, the matched parameters and both sides.
        reference: the reference's trace; the candidate was forced onto it in ``candidate``.
        judge: for oracle and floors.
    """

    check: Check
    reference: Trace
    candidate: Trace
    judge: Judge
    backward: bool

    @cached_property
    def _items(self) -> dict[tuple[str, str, str, str], Item]:
        items, _ = site_items(
            self.check.alignment, self.reference, self.candidate, backward=self.backward
        )
        if self.backward:
            items += gradient_items(self.check.match, self.reference, self.candidate)[0]
        items += buffer_items(self.check.match, self.reference, self.candidate)
        return {(i.phase, i.kind, i.reference, i.candidate): i for i in items}

    @cached_property
    def _parameters(self) -> tuple[Parameter, ...]:
        return self.check.reference.parameters()

    def item(self, result: SiteResult) -> Item | None:
        """The comparison that a result is of; None where these runs do not show it."""
        return self._items.get((result.phase, result.kind, result.reference, result.candidate))

    def at(self, result: SiteResult) -> Evidence | None:
        """The evidence at a result; None where nothing can be said (shapes differ, too large)."""
        item = self.item(result)
        if item is None:
            return None
        reference = value_of(item, self.reference, side="reference")
        raw = value_of(item, self.candidate, side="candidate")
        if reference is None or reference.size > LARGEST:
            return None
        reference, raw = numbers(reference), None if raw is None else numbers(raw)
        if not is_float(reference):
            return None
        value = in_reference_layout(item, raw, reference)
        if value is None and raw is not None:
            value = _of_another_shape(raw, reference)
        if value is None or not is_float(value):
            return None
        truth = None
        if self.judge.oracle is not None:
            truth = value_of(item, self.judge.oracle, side="reference")
        truth = reference if truth is None else numbers(truth)
        evidence = Evidence(
            phase=result.phase,
            kind=result.kind,
            reference=wide(truth),
            candidate=wide(value),
            floor=self.judge.floor(item, value),
            own=_own_error(value, reference, truth),
            train=self.check.reference.train,
        )
        if result.phase in ("parameter_gradient", "buffer"):
            return self._with_parameter(evidence, result.reference)
        return self._with_layer(evidence, result)

    def _with_layer(self, evidence: Evidence, result: SiteResult) -> Evidence:
        site = owner(result.reference)
        given = (result.phase, result.kind) == ("forward", "input")
        if given:
            here = self._passages.given(result.reference, result.candidate)
            result = replace(result, reference=here[0], candidate=here[1])
            site = self.reference.info.parents.get(owner(here[0]), "")
        elif (result.phase, result.kind) == ("forward", "activation"):
            site = self._maker(result)
        slots = self.reference.inputs_of(owner(result.reference))
        backward, around = result.phase == "backward", result.kind == "cotangent"
        return replace(
            evidence,
            layer=self.reference.info.layers.get(site, ""),
            inputs=() if result.kind in ("input", "cotangent") else self._inputs(site),
            output=self._get("activation", site) if backward else None,
            given=self._get("cotangent", site) if backward else None,
            slot=slots.index(result.reference) if result.reference in slots else 0,
            which=_number(result.reference) if result.kind == "activation" else 0,
            parameters=self._owned(site),
            nearby=(nearby := self._nearby(result)),
            absent={name: self._unused(name) for name in nearby if name in self._without_partner},
            siblings=self._siblings(result.reference) if given or around else (),
        )

    def _maker(self, result: SiteResult) -> str:
        """The layer that makes a value: around one that only hands on what it is given (a dropout
        that is off), the one whose own code and parameters make that."""
        site = owner(result.reference)
        slot, _ = self._given.handed_on(result)
        home = self.reference.info.parents.get(site)
        if slot is None or home is None or self.reference.info.sources.get(slot) is not None:
            return site
        return home if self._owned(home) else site

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.check.alignment, self.check.free_reference, self.check.forced)

    @cached_property
    def _given(self) -> Given:
        return Given(self.check.alignment, self.reference, self.candidate)

    def _siblings(self, slot: str) -> tuple[Sibling, ...]:
        """The layers that are called beside one that is given a wrong input, the nearest ones."""
        info, home = self.reference.info, self.reference.info.parents.get(owner(slot))
        calls = [
            name
            for kind, name in self.reference.values
            if kind == "activation" and name in info.layers and info.parents.get(name) == home
        ]
        if owner(slot) not in calls:
            return ()
        here = calls.index(owner(slot))
        first = max(0, here - MOST_BESIDE)
        return tuple(
            Sibling(name, (i > here) - (i < here), self._inputs(name), made, self._owned(name))
            for i, name in enumerate(calls[first : here + MOST_BESIDE + 1], first)
            if (made := self._get("activation", name)) is not None and made.dtype.kind == "f"
        )

    @cached_property
    def _without_partner(self) -> frozenset[str]:
        return frozenset(self.check.alignment.unmatched_reference)

    def _unused(self, site: str) -> tuple[str, ...]:
        """The parameters of a layer that the candidate has no counterpart of."""
        layer = site.partition("#")[0].partition(":")[0]
        return tuple(p.name for p in self.check.match.unmatched_reference if p.layer == layer)

    def _with_parameter(self, evidence: Evidence, name: str) -> Evidence:
        parameter = next(p for p in self._parameters if p.name == name)
        uses = []
        for one in (parameter, *parameter.also):
            layer = one.layer
            if inputs := self._inputs(layer):  # some hold it for others, and are never called
                uses.append(Use(one.kind, inputs, self._get("cotangent", layer)))
        return replace(
            evidence,
            layer=self.reference.info.layers.get(parameter.layer, ""),
            inputs=self._inputs(parameter.layer),
            given=self._get("cotangent", parameter.layer),
            parameters=self._owned(parameter.layer),
            parameter=parameter,
            before=wide(parameter.value),
            uses=tuple(uses),
        )

    def _inputs(self, site: str) -> tuple[np.ndarray, ...]:
        slots = self.reference.inputs_of(site)
        return tuple(wide(self.reference.values["input", slot]) for slot in slots)

    def _get(self, kind: str, site: str) -> np.ndarray | None:
        value = self.reference.values.get((kind, site))  # type: ignore[arg-type]
        return None if value is None else wide(value)

    def _owned(self, site: str) -> tuple[Parameter, ...]:
        layer = site.partition("#")[0]
        called = {site.partition("#")[0] for site in self.reference.info.layers}
        mine = [
            one
            for p in self._parameters
            for one in (p, *p.also)
            if layer
            and (
                one.layer == layer
                # what a fused layer reads of a part that is never called
                or (one.layer.startswith(f"{layer}.") and one.layer not in called)
            )
        ]
        return tuple(replace(p, value=wide(p.value)) for p in mine)

    def _nearby(self, result: SiteResult) -> Mapping[str, np.ndarray]:
        if result.kind == "input":
            return self._before(result.reference)
        if result.kind == "cotangent":
            return self._around(result.reference)
        if result.kind == "activation":
            handed_on, _ = self._given.handed_on(result)
            inside = self._inside(owner(result.reference))
            return inside if inside or handed_on is None else self._before(handed_on)
        return self._sent_inside(owner(result.reference))

    def _inside(self, home: str) -> dict[str, np.ndarray]:
        """What a container's code had at hand: its inputs, and what its layers returned; nothing
        for a layer without layers in it."""
        info, values = self.reference.info, self.reference.values
        layers = {name for name in info.layers if info.parents.get(name) == home}
        if not home or not layers:
            return {}
        found: dict[str, np.ndarray] = {}
        for (kind, name), value in values.items():
            own = kind == "input" and owner(name) == home
            if is_float(value) and (own or (kind == "activation" and owner(name) in layers)):
                found[f"{name} (input)" if own else name] = wide(value)
        return found

    def _before(self, site: str) -> dict[str, np.ndarray]:
        """What the code in front of an input had at hand: its container's inputs, what the layers
        called there before returned, and what layers without a partner returned anywhere."""
        info, values = self.reference.info, self.reference.values
        home = info.parents.get(owner(site), "")
        found: dict[str, np.ndarray] = {}
        for kind, name in values:
            if (kind, name) == ("input", site):
                break
            inside = kind == "activation" and (
                info.parents.get(owner(name)) == home or name in self._without_partner
            )
            inside |= name.startswith("input:") and info.parents.get(home) is None
            own = kind == "input" and owner(name) == home
            if (inside or own) and is_float(values[kind, name]):
                found[name if inside else f"{name} (input)"] = wide(values[kind, name])
        return found

    def _around(self, site: str) -> dict[str, np.ndarray]:
        """The cotangents that may be summed at a site: what the layers of its container and its
        consumers send back, and what arrives at the container's output."""
        info, values = self.reference.info, self.reference.values
        home = info.parents.get(owner(site), "")
        found: dict[str, np.ndarray] = {}
        if ("cotangent", home) in values:
            found[f"{home} (output)"] = wide(values["cotangent", home])
        for kind, slot in values:
            sent = kind == "input_cotangent"
            if sent and (info.sources.get(slot) == site or info.parents.get(owner(slot)) == home):
                found[slot] = wide(values[kind, slot])
        return found

    def _sent_inside(self, home: str) -> dict[str, np.ndarray]:
        """The cotangents that a container's may be summed of: what its layers send back, and what
        arrives at its output."""
        info, values = self.reference.info, self.reference.values
        inside = {
            slot: wide(value)
            for (kind, slot), value in values.items()
            if kind == "input_cotangent" and info.parents.get(owner(slot)) == home
        }
        if inside and ("cotangent", home) in values:
            inside[f"{home} (output)"] = wide(values["cotangent", home])
        return inside


def at_weights(check: Check, result: SiteResult) -> Evidence | None:
    """The evidence at a parameter that is not what was (or should have been) loaded."""
    now = {p.name: p.value for p in check.candidate.parameters()}
    for item, pair in zip(items_of_weights(check.match), check.match.pairs, strict=True):
        if (item.reference, item.candidate) != (result.reference, result.candidate):
            continue
        truth = pair.truth
        value = in_reference_layout(item, now[item.candidate], truth)
        if value is None or truth.size > LARGEST or not is_float(truth):
            return None
        others = {
            p.name: wide(p.value)
            for p in check.reference.parameters()
            if p.value.shape == truth.shape and p.name != item.reference and is_float(p.value)
        }
        return Evidence(
            phase="weights",
            kind="parameter",
            reference=wide(truth),
            candidate=wide(value),
            floor=Floor(unit=unit_roundoff(value.dtype, truth.dtype)),
            own=compare(truth, truth),
            parameter=pair.reference,
            others=others,
        )
    return None


def on_fresh_inputs(
    check: Check, judge: Judge, *, backward: bool, only: Sequence[Item]
) -> Sites | None:
    """The sites of ``only`` on other inputs; None where there are no others (`fresh_runs`).

    Raises:
        CrosscheckError: a model cannot take the new inputs, or gives nothing to compare.
    """
    runs = fresh_runs(check, judge, seed=check.seed, backward=backward, only=only)
    if runs is None:
        return None
    reference, candidate, again = runs
    return Sites(check, reference, candidate, again, backward)


def numbers(value: np.ndarray) -> np.ndarray:
    """Flags as zeros and ones, everything else as it is."""
    return value.astype(np.float32) if value.dtype.kind == "b" else value


def wide(value: np.ndarray) -> np.ndarray:
    """Floats in float64, everything else as it is."""
    return value.astype(np.float64) if is_float(value) else value


def _own_error(value: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> Difference:
    """The reference's against the oracle, without what stands for minus infinity on both sides."""
    if value.shape != reference.shape:
        return compare(reference, truth)
    hidden = hidden_by(truth)
    if hidden is not None:
        return compare(reference[~hidden], truth[~hidden])
    return compare(*without_fill(value, reference, truth)[1:])


def _of_another_shape(raw: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """A candidate's value whose inner axes have other lengths, its batch and channels in place."""
    if raw.ndim != reference.ndim or raw.ndim < 3:
        return None
    first, last = raw, np.moveaxis(raw, -1, 1)
    layouts = [first, last, np.moveaxis(raw, 1, -1)]
    ends = (reference.shape[0], reference.shape[1]), (reference.shape[0], reference.shape[-1])
    for value in layouts:
        if value.shape[:2] == ends[0] or (value.shape[0], value.shape[-1]) == ends[1]:
            return value
    return None


def _number(site: str) -> int:
    """Which output of a layer a site is: ``rnn:1`` is its second."""
    last = site.rpartition(":")[2]
    return int(last) if last.isdigit() and ":" in site else 0
