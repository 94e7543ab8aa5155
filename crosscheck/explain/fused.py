"""Hypotheses on attention that is one layer: projections, heads and the way out in one call.

Its inside is made again from its parameters, (3·C, C) and (C, C), and then differs as `heads` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.flags import flags_in
from crosscheck.explain.heads import POLARITIES, Attention, head_counts, variants
from crosscheck.explain.registry import register

__all__: list[str] = []

MOST_ELEMENTS = 2_000_000  # of the input, times heads that are tried
MOST_HEADS = 16


@dataclass(frozen=True)
class _Fused:
    """A layer around an attention.

    Attributes:
        batch_first: inputs are (B, T, C), else (T, B, C).
    """

    attention: Attention
    batch_first: bool

    def __call__(self, e: Evidence) -> np.ndarray:
        weight, bias = (_parameter(e, f"out_proj.{what}") for what in ("weight", "bias"))
        if weight is None:
            raise ValueError("no projection on the way out")
        y = self.attention(inside(e, self.batch_first)) @ weight.T
        y = y if bias is None else y + bias
        return np.asarray(y if self.batch_first else y.swapaxes(0, 1))


def inside(e: Evidence, batch_first: bool) -> Evidence:
    """The evidence as if queries, keys and values were layers, (B, T, C) each."""
    weight, bias = _parameter(e, "in_proj_weight"), _parameter(e, "in_proj_bias")
    if weight is None:
        raise ValueError("no packed projection")
    fed = [x for x in e.inputs if x.dtype.kind == "f" and x.ndim == 3]
    fed = (fed * 3)[:3] if len(fed) == 1 else fed[:3]
    biases = np.zeros(len(weight)) if bias is None else bias
    parts = zip("qkv", fed, np.split(weight, 3), np.split(biases, 3), strict=True)
    made = {name: x @ w.T + b for name, x, w, b in parts}
    if not batch_first:
        made = {name: value.swapaxes(0, 1) for name, value in made.items()}
    shape = e.reference.shape if batch_first else e.reference.swapaxes(0, 1).shape
    return replace(e, nearby=made, reference=np.zeros(shape))


def _parameter(e: Evidence, end: str) -> np.ndarray | None:
    return next((p.value for p in e.parameters if p.name.endswith(end)), None)


@register("forward")
def fused_attention(e: Evidence) -> Iterator[Proposal]:
    """Scale, mask, softmax axis and heads of an attention in one layer."""
    if _parameter(e, "in_proj_weight") is None or e.reference.ndim != 3 or e.which:
        return
    ours = _reference(e)
    if ours is None:
        return
    for proposal in variants(inside(e, ours.batch_first), ours.attention):
        if isinstance(proposal.predict, Attention):
            yield replace(proposal, predict=replace(ours, attention=proposal.predict))


def _masks(e: Evidence) -> tuple[str, ...]:
    """What may hide keys: nothing, the order, or flags that the layer is given."""
    return (*POLARITIES, "none", "causal") if flags_in(e) else ("none", "causal")


def _reference(e: Evidence) -> _Fused | None:
    """How many heads it has, what is masked, and which axis is the batch."""
    width = e.reference.shape[-1]
    for batch_first, mask, heads in itertools.product(
        (True, False), _masks(e), range(1, MOST_HEADS + 1)
    ):
        if width % heads or e.reference.size * heads > MOST_ELEMENTS:
            continue
        attention = Attention("q", "k", heads, "flat", "v", mask=mask)
        fused = _Fused(attention, batch_first)
        if _fits(e, fused):
            return fused
    return None


def _fits(e: Evidence, made: Callable[[Evidence], np.ndarray]) -> bool:
    try:
        return e.fits_reference(made(e))
    except ValueError:  # flags of another shape
        return False


# -- without projections ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bare:
    """A layer that is given queries, keys and values."""

    attention: Attention

    def __call__(self, e: Evidence) -> np.ndarray:
        return self.attention(_with_names(e))


def _with_names(e: Evidence) -> Evidence:
    floats = [x for x in e.inputs if x.dtype.kind == "f"]
    return replace(e, nearby=dict(zip("qkv", floats, strict=False)))


@register("forward")
def bare_attention(e: Evidence) -> Iterator[Proposal]:
    """Scale, mask and heads of an attention whose inputs are queries, keys and values."""
    floats = [x for x in e.inputs if x.dtype.kind == "f"]
    if len(floats) != 3 or e.parameters or e.which or {x.ndim for x in floats} not in ({3}, {4}):
        return
    ours = _bare_reference(e, floats[0])
    for proposal in variants(_with_names(e), ours.attention) if ours else ():
        if isinstance(proposal.predict, Attention):
            yield replace(proposal, predict=_Bare(proposal.predict))


def _bare_reference(e: Evidence, q: np.ndarray) -> _Bare | None:
    """How the reference attends; None where it does not."""
    layouts = ("flat",) if q.ndim == 3 else ("heads first", "heads second")
    for layout, mask in itertools.product(layouts, _masks(e)):
        counts = head_counts(e, q) if q.ndim == 3 else [q.shape[1 if layout[-5:] == "first" else 2]]
        for heads in counts:
            if e.reference.size * heads > MOST_ELEMENTS:
                continue
            merged = "flat" if layout != "heads first" else "unmoved"
            for blank in (np.nan, 0.0):
                made = Attention(
                    "q", "k", heads, layout, "v", mask=mask, merged=merged, blank=blank
                )
                if _fits(e, _Bare(made)):
                    return _Bare(made)
    return None
