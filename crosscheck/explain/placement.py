"""Hypotheses on the order of a norm and the layer beside it: y = f(norm(x)), or norm(x + f(x)).

(Pre-norm and post-norm: Xiong et al., 2020.) What differs first is what goes into a layer, and it
is the code that calls both which is wrong, neither of the layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal, Sibling
from crosscheck.explain.norms import Norm, apart, reference_norm
from crosscheck.explain.registry import register

__all__: list[str] = []


@register("forward")
def norm_before(e: Evidence) -> Iterator[Proposal]:
    """A norm that the reference applies behind a layer is applied to what goes into it."""
    here = _here(e)
    for sibling in e.siblings:
        norm = _norm(e, sibling) if sibling.when == 1 else None
        if here is None or norm is None:
            continue
        statement = (
            f"`{sibling.name}` is applied to what goes into `{here.name}`: the norm comes before "
            "that layer, not behind it"
        )
        # Where the norm has a partner, what it returns was forced: it is the reference's own.
        for made in (
            _Normalised(sibling.name, norm),
            functools.partial(_sum, names=(sibling.name,)),
        ):
            yield Proposal("norm_placement", statement, made)


@register("forward")
def norm_behind(e: Evidence) -> Iterator[Proposal]:
    """A norm that the reference applies before a layer is given what comes out of it."""
    here = _here(e)
    if here is None or _norm(e, here) is None:
        return
    streams = [s for s in e.siblings if s is not here and _norm(e, s) is not None]
    for sibling in e.siblings:
        if sibling.when != 1 or not _has_shape(e, sibling) or _only_hands_on(sibling):
            continue
        for first, what in (
            ((), "the output of"),
            (("",), "the sum of its own input and"),
            *(((s.name,), f"the sum of `{s.name}` and") for s in streams if s is not sibling),
        ):
            yield Proposal(
                "norm_placement",
                f"`{here.name}` is given {what} `{sibling.name}`: the norm comes behind that "
                "layer, not before it",
                functools.partial(_sum, names=(*first, sibling.name)),
            )


def _has_shape(e: Evidence, sibling: Sibling) -> bool:
    return sibling.output.shape == e.reference.shape


def _only_hands_on(sibling: Sibling) -> bool:
    """Whether a layer returns what it is given (a dropout that drops nothing): the layer before it
    is the one to name."""
    return any(np.array_equal(value, sibling.output) for value in sibling.inputs)


def _here(e: Evidence) -> Sibling | None:
    """The layer that is given the wrong value."""
    return next((s for s in e.siblings if s.when == 0), None)


def _norm(e: Evidence, sibling: Sibling) -> Norm | None:
    """The norm that a layer is, of values like the wrong one; None if it is none."""
    if not _has_shape(e, sibling):
        return None
    alone = replace(e, inputs=sibling.inputs, parameters=sibling.parameters)
    return reference_norm(alone, sibling.output, functools.partial(apart, sibling.output))


@dataclass(frozen=True)
class _Normalised:
    """What goes into a layer, normalised by another layer's norm."""

    name: str
    norm: Norm

    def __call__(self, e: Evidence) -> np.ndarray:
        owned = _named(e, self.name).parameters
        return self.norm(replace(e, inputs=(e.reference,), parameters=owned))


def _named(e: Evidence, name: str) -> Sibling:
    return next(s for s in e.siblings if s.name == name)


def _sum(e: Evidence, *, names: tuple[str, ...]) -> np.ndarray:
    """Of what layers return; ``""`` stands for what should go in."""
    terms = [_named(e, name).output if name else e.reference for name in names]
    return np.asarray(np.sum(terms, axis=0))
