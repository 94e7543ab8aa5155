"""Layers that one side holds one behind the other in one array: a scan over layers, experts in one
product. The other side has them one by one, under numbers (``layers.0.norm.weight``, ...), or in
one array as well, but in other pieces (gate and up projections of all experts, packed).

One of a series stands for all of it, and the first slice for the whole array; these are matched as
any others are. What belongs together there belongs together in all of the series.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import (
    Applied,
    Joined,
    Node,
    Part,
    Reshape,
    Source,
    Transpose,
    replaced,
)
from crosscheck.weights.match import Match, Matched
from crosscheck.weights.transform import Transform

__all__ = ["calls_of", "lengths_of_stacks", "stacked_pairs"]

_Calls = tuple[tuple[str, str], ...]
_NUMBER = re.compile(r"(?:^|(?<=[./_\[]))\d+(?=$|[./_\]])")


def lengths_of_stacks(plain: Match) -> set[int]:
    """How many layers arrays without a counterpart may hold, to go by their first axes."""
    left = (*plain.unmatched_reference, *plain.unmatched_candidate)
    return {p.value.shape[0] for p in left if p.value.ndim and p.value.shape[0] > 1}


def stacked_pairs(
    reference: Sequence[Parameter],
    candidate: Sequence[Parameter],
    length: int,
    match: Callable[[Sequence[Parameter], Sequence[Parameter]], Match],
    match_plain: Callable[[Sequence[Parameter], Sequence[Parameter]], Match],
) -> list[Matched]:
    """The pairs of series of ``length``, or arrays of that many slices, on one side with arrays of
    that many slices on the other.

    Args:
        match: matches parameters of either side.
        match_plain: the same, with no arrays taken apart. (Slices of both sides hold no series that
            the arrays do not.)
    """
    ours, theirs = _Side.of(reference, length), _Side.of(candidate, length)
    found: list[Matched] = []
    if ours.series and theirs.stacks:
        for m in match(ours.with_one_of_each(), theirs.with_slices()).pairs:
            if _within(m, ours.series) and m.candidate.name in theirs.stacks:
                found += [_stack(m, ours.series, theirs.stacks[m.candidate.name])]
    if ours.stacks and theirs.series:
        for m in match(ours.with_slices(), theirs.with_one_of_each()).pairs:
            if _within(m, ours.stacks) and m.candidate.name in theirs.series:
                found += _unstack(m, ours.stacks, theirs.series[m.candidate.name])
    ours, theirs = ours.of_products(), theirs.of_products()
    if ours.stacks and theirs.stacks:
        for m in match_plain(ours.with_slices(), theirs.with_slices()).pairs:
            if _within(m, ours.stacks) and m.candidate.name in theirs.stacks:
                found += [_slice_by_slice(m, ours.stacks, theirs.stacks[m.candidate.name])]
    return found


@dataclass
class _Side:
    """The parameters of one side.

    Attributes:
        series: name of the one that stands for it -> the members, by number.
        stacks: name -> a parameter with as many slices.
    """

    parameters: Sequence[Parameter]
    series: Mapping[str, Sequence[Parameter]]
    stacks: Mapping[str, Parameter]

    @classmethod
    def of(cls, parameters: Sequence[Parameter], length: int) -> _Side:
        stacks = {p.name: p for p in parameters if p.value.shape[:1] == (length,)}
        return cls(parameters, _series(parameters, length), stacks)

    def of_products(self) -> _Side:
        """With the stacks that hold matrices for a product of their own, and what is beside these
        (biases). Slices of anything smaller, or of a layer that is known, go with too much."""
        bare = {n: p for n, p in self.stacks.items() if p.kind == "other" and p.axes is None}
        homes = {p.home for p in bare.values() if p.value.ndim == 3}
        kept = {n: p for n, p in bare.items() if p.home in homes and p.value.ndim > 1}
        return replace(self, stacks=kept)

    def with_one_of_each(self) -> list[Parameter]:
        """Those that are in no series, and one for each of these, where its first member is."""
        first = {members[0].name: name for name, members in self.series.items()}
        others = {p.name for members in self.series.values() for p in members} - first.keys()
        return [
            _standing_for(p, first[p.name]) if p.name in first else p
            for p in self.parameters
            if p.name not in others
        ]

    def with_slices(self) -> list[Parameter]:
        """Of stacks the first slice."""
        return [self._slice(p) if p.name in self.stacks else p for p in self.parameters]

    def _slice(self, p: Parameter) -> Parameter:
        """Its axes are those of a layer of its kind that is in no stack; what an adapter makes of
        an axis too many is a guess."""
        like = (
            o.axes
            for o in self.parameters
            if o.name not in self.stacks
            and (o.kind, o.role, o.value.ndim) == (p.kind, p.role, p.value.ndim - 1)
        )
        return replace(p, value=np.asarray(p.value[0]), axes=next(like, None), also=())


def _series(parameters: Iterable[Parameter], length: int) -> dict[str, Sequence[Parameter]]:
    """Parameters that only a number in their names tells apart, from the outermost number on."""
    numbered: defaultdict[tuple[str, str, object], dict[int, Parameter]] = defaultdict(dict)
    for p in parameters:
        kind = p.value.shape, p.role, p.kind, p.trainable, p.buffer
        for number in _NUMBER.finditer(p.name):
            ends = p.name[: number.start()], p.name[number.end() :]
            numbered[*ends, kind][int(number[0])] = p
    found: dict[str, Sequence[Parameter]] = {}
    taken: set[str] = set()
    for key in sorted(numbered, key=lambda key: len(key[0])):
        by_number = sorted(numbered[key].items())
        numbers, members = zip(*by_number, strict=True)
        names = {p.name for p in members}
        if len(members) == length == numbers[-1] - numbers[0] + 1 and taken.isdisjoint(names):
            found[f"{key[0]}*{key[1]}"] = members
            taken |= names
    return found


def _standing_for(p: Parameter, name: str) -> Parameter:
    """One of a series, under the series' name."""
    before = name.partition("*")[0]
    layer = p.home
    if len(layer) > len(before):
        layer = before + _NUMBER.sub("*", layer[len(before) :], count=1)
    return replace(p, name=name, layer=layer, named="", also=())


def _within(m: Matched, known: Mapping[str, object]) -> bool:
    return not m.tied and all(p.name in known for p in m.references)


def _stack(m: Matched, series: Mapping[str, Sequence[Parameter]], whole: Parameter) -> Matched:
    """The pair of the series that ``m`` is made of and the array that holds them."""
    columns = [series[p.name] for p in m.references]
    rows = list(zip(*columns, strict=True))  # the members of each slice

    def transform(one: Transform) -> Transform:
        node = one.node(m.reference.name, m.reference.value.shape)
        if one.expression is None:  # the same order of axes in all: once for the whole
            every: Node = Joined("stack", 0, tuple(map(_source, columns[0])))
            axes = (0, *(a + 1 for a in one.axes)) if one.axes is not None else None
            return Transform.of(every if axes is None else Applied(Transpose(axes), every))
        slices = (
            {p.name: _source(q) for p, q in zip(m.references, row, strict=True)} for row in rows
        )
        return Transform.of(Joined("stack", 0, tuple(replaced(node, by) for by in slices)))

    made_of = [p for row in rows for p in row]
    return _as_whole(m, made_of, whole, transform, _calls(rows, whole))


def _unstack(
    m: Matched, stacks: Mapping[str, Parameter], members: Sequence[Parameter]
) -> Iterator[Matched]:
    """The pairs of arrays with the series that each holds."""
    wholes = [stacks[p.name] for p in m.references]
    for k, member in enumerate(members):

        def transform(one: Transform, k: int = k) -> Transform:
            node = one.node(m.reference.name, m.reference.value.shape)
            by = {w.name: _slice_of(w, k) for w in wholes}
            return Transform.of(replaced(node, by))

        calls = tuple((f"{w.layer}#{k + 1}", member.layer) for w in wholes)
        yield _as_whole(m, wholes, member, transform, calls)


def _slice_by_slice(m: Matched, stacks: Mapping[str, Parameter], whole: Parameter) -> Matched:
    """The pair of arrays of which each has a slice for every layer."""
    made_of = [stacks[p.name] for p in m.references]

    def transform(one: Transform) -> Transform:
        node = one.node(m.reference.name, m.reference.value.shape)
        slices = ({p.name: _slice_of(p, k) for p in made_of} for k in range(len(whole.value)))
        return Transform.of(Joined("stack", 0, tuple(replaced(node, by) for by in slices)))

    return _as_whole(m, made_of, whole, transform, ())


def _as_whole(
    m: Matched,
    made_of: Sequence[Parameter],
    candidate: Parameter,
    transform: Callable[[Transform], Transform],
    calls: _Calls,
) -> Matched:
    """What ``m`` says of those that stand for others, of these. What is open about one is open
    about all; layers of one kind follow one convention."""
    decision = f"layout of stacked {m.candidate.kind}" if m.alternatives else ""
    return Matched(
        made_of[0],
        candidate,
        transform(m.transform),
        tuple(map(transform, m.alternatives)),
        more=tuple(made_of[1:]),
        decision=m.decision or decision,
        calls=calls,
    )


def calls_of(node: Node, members: Sequence[Parameter], whole: Parameter) -> _Calls:
    """`Matched.calls` of an array that somebody says is made of these; nothing if it is no stack of
    a series."""
    while isinstance(node, Applied):
        node = node.node
    if not isinstance(node, Joined) or node.how != "stack" or len(node.nodes) != len(members):
        return ()
    names = [p.name for p in members]
    series = _series(members, len(members)).values()
    in_order = any([p.name for p in one] == names for one in series)
    return _calls([[p] for p in members], whole) if in_order else ()


def _calls(rows: Sequence[Sequence[Parameter]], whole: Parameter) -> _Calls:
    return tuple((p.layer, f"{whole.layer}#{k + 1}") for k, row in enumerate(rows) for p in row)


def _source(p: Parameter) -> Source:
    return Source(p.name, p.value.shape)


def _slice_of(whole: Parameter, k: int) -> Node:
    return Applied(Reshape(whole.value.shape[1:]), Applied(Part(0, k, k + 1), _source(whole)))
