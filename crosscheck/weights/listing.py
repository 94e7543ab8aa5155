"""A match as text that people read and edit: a `WeightMap`, with comments on what is open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crosscheck.adapters.base import Parameter
from crosscheck.weights.layouts import transforms
from crosscheck.weights.match import Match, Matched, nearest
from crosscheck.weights.spelling import spelled

__all__ = ["map_text"]


def map_text(match: Match) -> str:
    """A Python dict literal that `crosscheck run --weights-map` and ``weights=`` take.

    Comments list what is open (several layouts fit), tied, lost, and what has no counterpart, with
    the nearest free parameters.
    """
    lines = ["# candidate parameter: what it is made of", "{"]
    for m in match.pairs:
        lines += [f"    {line}" for line in _pair_lines(m)]
    for side, mine, others in (
        ("candidate", match.unmatched_candidate, match.unmatched_reference),
        ("reference", match.unmatched_reference, match.unmatched_candidate),
    ):
        lines += [f"    {line}" for line in _unmatched_lines(side, mine, others)]
    lines += ["}", *(f"# {line}" for text in match.lost for line in text.splitlines())]
    return "\n".join(lines)


def _pair_lines(m: Matched) -> Iterator[str]:
    if m.transform.function is not None:
        yield f"# {m.candidate.name!r}: ({m.reference.name!r}, a function: not to be written down)"
        return
    if m.alternatives:
        yield f"# open: {1 + len(m.alternatives)} layouts fit; an input decides by running"
    if m.tied:
        names = ", ".join(f"`{p.name}`" for p in m.tied)
        yield f"# tied: stands for {names} as well"
    yield f"{m.candidate.name!r}: {_value(m)!r},"


def _value(m: Matched) -> object:
    """The name alone where the shapes leave no choice, else with the steps."""
    plain = not m.more and transforms(m.reference, m.candidate) == [m.transform]
    if plain:
        return m.reference.name
    value = spelled(m.transform.node(m.reference.name, m.reference.value.shape))
    return (value, "same") if isinstance(value, str) else value


def _unmatched_lines(
    side: str, mine: Sequence[Parameter], others: Sequence[Parameter]
) -> Iterator[str]:
    for p in mine:
        near = ", ".join(f"`{o.name}` {o.value.shape}" for o in nearest(p, others, limit=3))
        tail = f"nearest free: {near}" if near else "nothing is free on the other side"
        yield f"# {side} parameter `{p.name}` {p.value.shape} has no counterpart; {tail}"
