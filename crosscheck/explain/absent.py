"""Hypotheses on what only the reference has: a layer without a partner, and what it did there.

A site may lack a partner because the two sides cut their code into layers differently. Here it is
said to be missing only where leaving it out of the reference gives the candidate's value.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.registry import register

__all__: list[str] = []


@register("forward")
def absent_term(e: Evidence) -> Iterator[Proposal]:
    """A term or a factor that only the reference has."""
    for name in _absent(e):
        value = e.nearby[name]
        if value.shape != e.reference.shape[e.reference.ndim - value.ndim :]:
            continue
        yield Proposal(
            "absent_term",
            f"{_said(e, name)}; its output is the difference",
            functools.partial(_without, name=name),
        )
        if np.all(value):
            yield Proposal(
                "absent_factor",
                f"{_said(e, name)}; its output is the quotient",
                functools.partial(_divided, name=name),
            )


@register("forward")
def absent_layer(e: Evidence) -> Iterator[Proposal]:
    """A layer left out: what it was given goes on in the place of what it made of it."""
    for name in _absent(e):
        if not _is(e, name):
            continue
        for other, value in e.nearby.items():
            if other != name and value.shape == e.reference.shape:
                yield Proposal(
                    "absent_layer",
                    f"{_said(e, name)}; `{other}` takes the place of its output",
                    functools.partial(_instead, name=other),
                )


def _absent(e: Evidence) -> list[str]:
    """The layers without a partner that gave something at hand."""
    return [name for name in e.nearby if name in e.absent]


def _said(e: Evidence, name: str) -> str:
    unused = ", ".join(f"`{p}`" for p in e.absent[name])
    return f"the candidate has no `{name}`" + (f" and does not use {unused}" if unused else "")


def _is(e: Evidence, name: str) -> bool:
    value = e.nearby[name]
    return value.shape == e.reference.shape and e.fits_reference(value)


def _without(e: Evidence, *, name: str) -> np.ndarray:
    return np.asarray(e.reference - e.nearby[name])


def _divided(e: Evidence, *, name: str) -> np.ndarray:
    return np.asarray(e.reference / e.nearby[name])


def _instead(e: Evidence, *, name: str) -> np.ndarray:
    return e.nearby[name]
