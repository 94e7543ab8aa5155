"""Hypotheses on attention that is one layer: projections, heads and the way out in one call.

Its inside is made again from its parameters, (3·C, C) and (C, C), and then differs as `heads` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.heads import Attention, variants
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


def _reference(e: Evidence) -> _Fused | None:
    """How many heads it has, whether it is causal, and which axis is the batch."""
    width = e.reference.shape[-1]
    for batch_first, mask, heads in itertools.product(
        (True, False), ("none", "causal"), range(1, MOST_HEADS + 1)
    ):
        if width % heads or e.reference.size * heads > MOST_ELEMENTS:
            continue
        attention = Attention("q", "k", heads, "flat", "v", mask=mask)
        fused = _Fused(attention, batch_first)
        if e.fits_reference(fused(e)):
            return fused
    return None
