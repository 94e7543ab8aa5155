"""Stage 8, locate: verdicts in execution order -> divergences, the first first.

In the forced run every aligned value is replaced by the reference's, so an error seen at a site was
introduced in the stretch of code that ends there. Whom to blame follows from what was wrong:

* a layer's output: the layer, since its inputs were right;
* a layer's input: the code between the layers (glue), never the layer. If one side has a layer
  without partner there, that layer; else the container whose code it is;
* the cotangent that a layer sends back through its input: the layer, since what it was given and
  its activations were right;
* the cotangent at a layer's output, where each consumer's own was right: the code that passes the
  output on (again a layer without partner, or the container).

Behind a cut in the backward pass nothing can be forced; `severed` sets that aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.layout import between
from crosscheck.arrays import is_float
from crosscheck.errors import capped
from crosscheck.locating.given import Given
from crosscheck.locating.gradients import layer_of, wrong_from
from crosscheck.locating.parts import Parts
from crosscheck.locating.severed import ancestors, is_cut_before, is_silent, released
from crosscheck.locating.surroundings import MOST_NAMED, Passages, Surroundings
from crosscheck.results import Divergence, SiteResult
from crosscheck.trace import Trace, owner

__all__ = ["Locator"]


@dataclass(frozen=True)
class _Blame:
    reference: str | None
    candidate: str | None
    statement: str
    between: tuple[str, ...] = ()


@dataclass(frozen=True)
class Locator:
    """Names the place of every difference; knows the structure of both runs."""

    alignment: Alignment
    reference: Trace
    candidate: Trace

    @cached_property
    def _around(self) -> Surroundings:
        return Surroundings(self.alignment, self.reference, self.candidate)

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self.alignment, self.reference, self.candidate)

    @cached_property
    def _given(self) -> Given:
        return Given(self.alignment, self.reference, self.candidate)

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.alignment, self.reference, self.candidate)

    def locate(self, results: Sequence[SiteResult]) -> tuple[Divergence, ...]:
        """The divergences (and suspects) among ``results``, which are in execution order."""
        found = []
        last_good: dict[str, str] = {}
        gradients = [r for r in results if r.phase == "parameter_gradient"]
        for result in results:
            if result.verdict == "agree":
                last_good[result.phase] = _place(result)
                continue
            blame = self._blame(result, gradients)
            found.append(
                Divergence(
                    phase=result.phase,
                    reference=blame.reference,
                    candidate=blame.candidate,
                    site=_place(result),
                    after=last_good.get(result.phase),
                    ratio=result.ratio,
                    metrics=result.metrics,
                    verdict="suspect" if result.verdict == "suspect" else "diverge",
                    statement=_statement(result, blame),
                    between=blame.between,
                    step=result.step,
                )
            )
        return tuple(found)

    def _blame(self, result: SiteResult, gradients: Sequence[SiteResult]) -> _Blame:
        if result.aligned_by == "loss":
            return _loss(result)
        if result.phase == "forward" and result.kind == "input":
            return self._glue_forward(result)
        if result.phase == "backward" and result.kind == "cotangent":
            return self._glue_backward(result, gradients)
        reference, candidate = result.reference, result.candidate
        if result.phase == "forward":
            return self._output(result)
        if result.phase == "backward":
            if is_cut_before(result, self.candidate):
                return self._cut(result)
            layer = owner(reference), owner(candidate)
            if self._parts.are_right(*layer):
                if self._parts.are_sent_the_same(*layer):
                    return self._own_of_parts(*layer)
                return _Blame(
                    *self._homes(result),
                    f"what comes back through `{layer[1]}` is wrong, though what it returns is "
                    "right: the code that uses that differs",
                )
            return _Blame(
                *layer,
                "the layer's own VJP is wrong: its activations and the cotangent "
                "that it was given are the reference's",
            )
        words = {
            "weights": "the parameter itself differs",
            "parameter_gradient": self._around.of_the_gradient(reference, candidate),
            "update": "the optimizer was given the reference's parameters and gradients; what is "
            "compared is the change that it makes",
            "buffer": "the buffer differs after the step",
        }
        return _Blame(reference, candidate, words.get(result.phase, ""))

    def _own_of_parts(self, reference: str, candidate: str) -> _Blame:
        """One layer for several, right forward and sent the same: what comes back is theirs."""
        ours, theirs = self._parts.of(reference, candidate)
        return _Blame(
            self._around.all_of(self.reference, ours),
            self._around.all_of(self.candidate, theirs),
            f"what {capped(theirs)} send back is wrong: what they return, and the cotangents that "
            "they were given, are the reference's",
        )

    def _output(self, result: SiteResult) -> _Blame:
        between = self._around.loose(result.candidate, "candidate")
        if self._given.is_something_else(result):
            return _Blame(
                *self._homes(result),
                f"what goes into `{owner(result.candidate)}` differs as well, and could not be "
                "forced: the code that calls it differs",
                between,
            )
        if (blame := self._before_what_hands_on(result, between)) is not None:
            return blame
        text = "everything that it was given is the reference's"
        if self._given.is_unseen(result):
            padded = self._given.is_padded(result)
            if padded is False:
                return _Blame(
                    *self._homes(result),
                    f"what goes into `{owner(result.candidate)}` has another size, and is not what "
                    "the reference is given with a border around it: the code before it differs",
                    between,
                )
            text = (
                "what it was given could not be compared, since the other side holds it in another "
                "form: the error may also be in the code that makes it"
            )
            if padded:
                text = "what it was given is the reference's, but for a border"
        if between:
            sites = "site" if len(between) == 1 else "sites"
            text += f"; {len(between)} candidate {sites} without partner before it"
        several = self._around.several_in(result)
        if several:
            text += f"; {several}"
        return _Blame(result.reference, result.candidate, text, between)

    def _before_what_hands_on(self, result: SiteResult, between: tuple[str, ...]) -> _Blame | None:
        """Where one of two layers only hands on what it is given, it is innocent: what made that is
        named, the layer with the other one's parameters or the code before it."""
        ours, theirs = self._given.handed_on(result)
        if ours is None and theirs is None:
            return None
        homes, unlike = self._homes(result), self._given.is_unseen(result)
        text = "only hands on what the code before it makes"
        if ours is not None:
            given = "" if unlike else "everything that it was given is the reference's; "
            maker = self._around.makers(ours, "reference", result.candidate) or homes[0]
            return _Blame(maker, result.candidate, f"{given}`{result.reference}` {text}", between)
        maker = self._around.makers(str(theirs), "candidate", result.reference)
        text = f"`{result.candidate}` {text}, which is not what `{result.reference}` returns"
        return _Blame(result.reference, maker or homes[1], text, between)

    def _homes(self, result: SiteResult) -> tuple[str | None, str | None]:
        """The containers whose code calls the layers of a result."""
        return (
            self.reference.info.parents.get(owner(result.reference)),
            self.candidate.info.parents.get(owner(result.candidate)),
        )

    # -- glue ------------------------------------------------------------------------------------

    def _glue_forward(self, result: SiteResult) -> _Blame:
        """What layer ``L`` is given differs, though every aligned site before it is right."""
        slots = self._passages.given(result.reference, result.candidate)
        result = replace(result, reference=slots[0], candidate=slots[1])
        permuted = self._is_permuted(result)
        between = self._around.loose(result.candidate, "candidate", "input")
        entered = self._around.entered(result)
        if entered is not None and not permuted:
            layers = owner(entered.reference), owner(entered.candidate)
            if self._parts.are_right(*layers):
                return _Blame(
                    *self._homes(result),
                    f"what goes into `{result.candidate}` is wrong, though what `{layers[1]}` "
                    "returned before it is right: the code between the layers differs",
                )
            text = f"what went into `{layers[1]}` before it was right"
            return _Blame(*layers, f"what goes into `{result.candidate}` is wrong; {text}", between)
        if not permuted:  # no layer does that: a reshape, a transpose, a concat
            blame = self._loose_before(result, between)
            if blame is not None:
                return blame
        wrong = "is wrong, though every layer before it is right"
        if permuted:
            wrong = "holds the right numbers in another order"
        return _Blame(
            *self._homes(result),
            f"what goes into `{result.candidate}` {wrong}: the code between the layers differs",
            between,
        )

    def _loose_before(self, result: SiteResult, between: tuple[str, ...]) -> _Blame | None:
        """The layers without partner that made a wrong input. Of several any may be wrong: then
        what they lie in is named, and they are listed."""
        ours = self._around.leading_to(self.reference, result.reference, "reference")
        theirs = self._around.leading_to(self.candidate, result.candidate, "candidate")
        if not ours and not theirs:
            return None
        text = "the layer that makes it has no partner on the other side"
        if len(theirs) > 1:
            between = tuple(theirs[-MOST_NAMED:])
            text = f"before it lie {len(theirs)} layers without partner: the error may be in any"
            text += ", or between them"
        elif len(ours) > 1 and not theirs:
            text = f"the code before it does what {len(ours)} layers do in the reference"
        return _Blame(
            self._around.all_of(self.reference, ours),
            self._around.all_of(self.candidate, theirs),
            f"what goes into `{result.candidate}` is wrong; {text}",
            between,
        )

    def _is_permuted(self, result: SiteResult) -> bool:
        """Whether the two sides hold the same numbers in another order."""
        ours = self.reference.values["input", result.reference]
        theirs = self.candidate.values["input", result.candidate]
        if not is_float(ours) or not is_float(theirs) or ours.size != theirs.size:
            return False
        a, b = (np.sort(v.ravel().astype(np.float64)) for v in (ours, theirs))
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))

    def _glue_backward(self, result: SiteResult, gradients: Sequence[SiteResult]) -> _Blame:
        """The summed cotangent is wrong, though every aligned consumer's own is right."""
        sites = self._passages.returned(result.reference, result.candidate)
        result = replace(result, reference=sites[0], candidate=sites[1])
        if ("cotangent", result.candidate) not in self.candidate.values:
            blame = self._released_by(result)
            if blame is not None:
                return blame
        ours = self._around.loose_consumers(self.reference, result.reference, "reference")
        theirs = self._around.loose_consumers(self.candidate, result.candidate, "candidate")
        reference, candidate = self._around.all_of(self.reference, ours), next(iter(theirs), None)
        several = self._around.behind(result.candidate)
        if candidate is not None and is_silent(self.candidate, "cotangent", result.candidate):
            several = self._around.silenced(candidate)
        if candidate and len(several) > 1:
            return _Blame(
                reference or self.reference.info.parents.get(owner(result.reference)),
                self._around.scope_of(self.candidate, several)
                or self._around.consumer_scope(self.candidate, result.candidate),
                f"the cotangent that arrives at `{result.candidate}` is wrong; behind it lie "
                f"{len(several)} sites without partner: the error may be in any, or between them",
                tuple(several[:MOST_NAMED]),
            )
        if len(theirs) > 1:
            return _Blame(
                self._around.scope_of(self.reference, ours)
                if len(ours) > 1
                else self._around.consumer_scope(self.reference, result.reference),
                self._around.all_of(self.candidate, theirs),
                f"the cotangent that arrives at `{result.candidate}` is wrong; it is the sum of "
                f"what {capped(theirs)} send back: the error may be in any",
                tuple(theirs[:MOST_NAMED]),
            )
        if ours and not theirs:
            place = self._around.orders["reference"].place
            stretch = wrong_from(gradients, place, self._around.aligned("reference"), ours)
            if stretch is not None:
                return self._before(result, *stretch)
        if reference or candidate:
            text = "the layer that sends it shows none of its own to compare"
            if len(ours) > 1 and not theirs:
                text = (
                    f"it is the sum of what {capped(ours)} send back, which the candidate does "
                    "not show: the error may be in any"
                )
            text = f"the cotangent that arrives at `{result.candidate}` is wrong; {text}"
            return _Blame(reference, candidate, text)
        text = (
            f"the cotangent that arrives at `{result.candidate}` is wrong, though each layer that "
            "consumes it sends back the right one: the code between the layers differs"
        )
        return _Blame(
            self._around.consumer_scope(self.reference, result.reference),
            self._around.consumer_scope(self.candidate, result.candidate),
            text,
        )

    def _before(self, result: SiteResult, right: SiteResult | None, wrong: SiteResult) -> _Blame:
        """The candidate shows no cotangent on the way; its gradients tell how far back it goes."""
        calls = [layer_of(one.reference) for one in (right, wrong) if one is not None]
        until = "the output" if right is None else f"the gradient of `{right.candidate}`"
        return _Blame(
            self._around.scope_of(self.reference, calls),
            self._around.consumer_scope(self.candidate, result.candidate),
            f"the cotangent that arrives at `{result.candidate}` is wrong, and so is the gradient "
            f"of `{wrong.candidate}` before it: the error is in the backward code between {until}, "
            "which is right, and that",
        )

    def _cut(self, result: SiteResult) -> _Blame:
        """What layer ``L`` is given is right forward, but no part of the candidate's graph."""
        return self._released_by(result) or _Blame(
            *self._homes(result),
            f"no cotangent can pass from `{owner(result.candidate)}` to what it is given: the code "
            "before it takes that out of the graph",
        )

    @cached_property
    def _released(self) -> dict[str, str]:
        return released(self.alignment, self.reference, self.candidate)

    def _released_by(self, result: SiteResult) -> _Blame | None:
        """The layer that returned a value outside the graph, of which ``result`` is the effect."""
        info, site = self.candidate.info, result.candidate
        made = site if result.kind == "cotangent" else info.sources.get(site)
        within = {c: ancestors(info, owner(c)) for c in self._released}
        exact = [c for c in within if made is not None and (c == made or owner(made) in within[c])]
        if not exact and result.kind != "cotangent":
            place = self._around.orders["candidate"].place
            here, scope = place.get(("input", site), 0), info.parents.get(owner(site))
            exact = [c for c in within if scope in within[c] and place["activation", c] < here]
        if not exact:
            return None
        last = exact[-1]
        return _Blame(
            owner(self._released[last]),
            owner(last),
            f"what `{owner(last)}` returns is out of the graph, so that no cotangent passes "
            "through it to what it is given",
        )


def _loss(result: SiteResult) -> _Blame:
    """The loss was given the reference's outputs, and what is behind it the reference's gradient"""
    if result.phase == "loss":
        return _Blame("loss", "loss", "the loss of the reference's own outputs differs")
    text = "the gradient that the loss sends into the outputs is wrong; they are the reference's"
    return _Blame("loss", "loss", text)


def _place(result: SiteResult) -> str:
    return result.reference


def _statement(result: SiteResult, blame: _Blame) -> str:
    if result.metrics is None:
        shapes = result.shape, result.candidate_shape
        text = f"shapes differ: reference {shapes[0]}, candidate {shapes[1]}; "
        if between(*shapes):  # a layout that is one within a model alone
            return f"{text}a model must return the reference's axes in its order, but for channels"
        return f"{text}no layout maps one onto the other"
    if result.metrics.nonfinite_mismatch:
        count = result.metrics.nonfinite_mismatch
        elements = "1 element is" if count == 1 else f"{count} elements are"
        return f"{elements} NaN or Inf on one side only, or of another sign; {blame.statement}"
    return blame.statement
