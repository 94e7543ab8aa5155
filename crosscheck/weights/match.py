"""What matching found: which candidate parameter is made of which of the reference's, and how."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.names import canonical, similarity
from crosscheck.errors import CannotCompare, capped
from crosscheck.weights.expressions import Applied, Joined, sources
from crosscheck.weights.transform import Transform

__all__ = ["Match", "Matched", "decisions", "layout_choices", "nearest"]


MOST_LISTED = 4  # names of what one parameter is made of


@dataclass(frozen=True)
class Matched:
    """One parameter of the candidate, and what it is made of.

    Attributes:
        reference: the (first) parameter of the reference that it is made of.
        transform: makes it; see `make`.
        alternatives: other transforms that names and shapes allow. Those of a `decision` belong
            together: the first of one parameter with the first of the others.
        more: further parameters of the reference that it is made of.
        tied: parameters of the reference that must equal ``reference``, since the candidate holds
            one for all of them (tied weights). Their gradients add up to the candidate's.
        decision: name of what is open about it, shared by all parameters decided together.
        calls: the layers that belong together by it, where one of them does in several calls what
            the other side does in several layers: (``layers.1.norm``, ``layers.norm#2``).
    """

    reference: Parameter
    candidate: Parameter
    transform: Transform
    alternatives: tuple[Transform, ...] = ()
    more: tuple[Parameter, ...] = ()
    tied: tuple[Parameter, ...] = ()
    decision: str = ""
    calls: tuple[tuple[str, str], ...] = ()

    @property
    def anchors(self) -> tuple[tuple[str, str], ...]:
        """(reference layer, candidate layer), or calls of them, that share it."""
        return self.calls or tuple((p.layer, self.candidate.layer) for p in self.references)

    @property
    def references(self) -> tuple[Parameter, ...]:
        """All parameters of the reference that it is made of, ties left out."""
        return (self.reference, *self.more)

    @property
    def reference_name(self) -> str:
        """Names of all of them, as a person reads it: a sum with ``+``, others with commas; of many
        the first and the last."""
        node = self.transform.expression
        while isinstance(node, Applied):
            node = node.node
        summed = isinstance(node, Joined) and node.how == "sum"
        names = [p.name for p in self.references]
        if len(names) > MOST_LISTED and not summed:
            names = [names[0], "...", names[-1]]
        return (" + " if summed else ", ").join(names)

    def make(self) -> np.ndarray:
        """The value that the candidate's parameter shall have."""
        return self.transform.make({p.name: p.value for p in self.references})

    @property
    def is_permutation(self) -> bool:
        """Whether it is one reference parameter, with its axes in some order."""
        return self.transform.function is None and self.transform.expression is None

    @property
    def truth(self) -> np.ndarray:
        """What the candidate's value is compared to: of a permutation in the reference's layout,
        else in the candidate's."""
        return self.reference.value if self.is_permutation else self.make()

    def feeds(self) -> tuple[str, ...]:
        """The names of the reference parameters whose values it really holds (zeros hold none)."""
        if self.transform.expression is not None:
            return sources(self.transform.expression)
        return (self.reference.name,)


@dataclass(frozen=True)
class Match:
    """All pairs, and what is left over.

    Attributes:
        lost: sentences on parts of reference parameters that the candidate has no place for.
        partial: the reference parameters with such a part, also where it is zero and so not lost.
    """

    pairs: tuple[Matched, ...]
    unmatched_reference: tuple[Parameter, ...]
    unmatched_candidate: tuple[Parameter, ...]
    lost: tuple[str, ...] = ()
    partial: frozenset[str] = frozenset()

    def values(self) -> dict[str, np.ndarray]:
        """candidate name -> the value to load."""
        return {m.candidate.name: m.make() for m in self.pairs}

    def anchors(self) -> list[tuple[str, str]]:
        """(reference layer, candidate layer) that share a parameter, once each."""
        return list(dict.fromkeys(anchor for m in self.pairs for anchor in m.anchors))

    def ambiguous(self) -> list[Matched]:
        """Pairs whose layout the shapes leave open."""
        return [m for m in self.pairs if m.alternatives]

    def choosing(self, choice: Mapping[str, Transform]) -> Match:
        """The same match with other transforms for some candidate parameters."""
        pairs = (
            replace(m, transform=choice[m.candidate.name], alternatives=())
            if m.candidate.name in choice
            else m
            for m in self.pairs
        )
        return replace(self, pairs=tuple(pairs))

    @property
    def left_over(self) -> int:
        """How many parameters have no counterpart."""
        return len(self.unmatched_reference) + len(self.unmatched_candidate)

    @property
    def complete(self) -> bool:
        """Whether nothing is left over on either side."""
        return not (self.unmatched_reference or self.unmatched_candidate or self.lost)

    def require_complete(self) -> None:
        """Raise `CannotCompare` for parameters without a counterpart, with what to do."""
        if self.lost:
            raise CannotCompare(self.lost[0])
        for mine, side, others, other in (
            (self.unmatched_candidate, "candidate", self.unmatched_reference, "reference"),
            (self.unmatched_reference, "reference", self.unmatched_candidate, "candidate"),
        ):
            if mine:
                raise CannotCompare(_unmatched_text(self, mine, side, others, other))
        self.require_equal_ties()

    def require_equal_ties(self) -> None:
        """Raise `CannotCompare` where the candidate has one parameter for unequal ones."""
        for m in self.pairs:
            for twin in m.tied:
                if not np.array_equal(twin.value, m.reference.value):
                    raise CannotCompare(
                        f"the candidate holds one parameter, `{m.candidate.name}`, for "
                        f"`{m.reference.name}` and `{twin.name}`, but in the reference these "
                        "differ.\n  Fix: tie them in the reference, or untie them in the candidate"
                    )


def _unmatched_text(
    match: Match,
    mine: Sequence[Parameter],
    side: str,
    others: Sequence[Parameter],
    other: str,
) -> str:
    first = mine[0]
    total = len(match.pairs) + len(mine)
    text = (
        f"{side} parameter `{first.name}` {first.value.shape} has no counterpart; "
        f"{len(match.pairs)} of {total} matched."
    )
    if len(mine) > 1:
        text += f"\n  Also without: {capped(p.name for p in mine[1:])}."
    near = nearest(first, others)
    if not near and not match.pairs:
        return (
            f"{text}\n  The {other} shows no parameter at all.\n  Fix: is it the model itself? A "
            "function that takes arguments is a model without parameters, not one that makes it; "
            "`crosscheck.adapt(function, params=...)` names those of a function."
        )
    if not near:
        text += f"\n  Every {other} parameter is in use."
        fix = f"does the {other} lack a layer or a bias that the {side} has? "
        return f'{text}\n  Fix: {fix}weights="keep" compares the models with their own weights.'
    text += f"\n  Nearest free {other} parameter: `{near[0].name}` {near[0].value.shape}."
    if first.name == near[0].name and first.value.size != near[0].value.size:
        return (
            f"{text}\n  Fix: build both models in the same size; no layout makes one of the other."
        )
    if side == "candidate" and (parts := _parts(first, others)):
        text += (
            f"\n  It could hold the {len(parts)} of this shape: {capped(p.name for p in parts)}."
        )
        listed = ", ".join(f'"{p.name}"' for p in parts[:2])
        long = first.value.shape
        axis = long.index(len(parts)) if len(parts) in long else 0
        how = f"stack {axis}" if len(long) > parts[0].value.ndim else "concat 0"
        return (
            f'{text}\n  Fix: weights={{"{first.name}": ([{listed}, ...], "{how}")}} (with further '
            "steps, as `| transpose`, where layouts differ)"
        )
    keys = (first.name, near[0].name) if side == "candidate" else (near[0].name, first.name)
    return (
        f'{text}\n  Fix: weights={{"{keys[0]}": "{keys[1]}"}} (with a transform where layouts '
        'differ), or weights="keep" if they are equal already.'
    )


def _parts(whole: Parameter, others: Sequence[Parameter]) -> list[Parameter]:
    """The free parameters like the nearest one that fill ``whole`` together; else none."""
    like = nearest(whole, others)[0]
    parts = [p for p in others if (p.value.shape, p.role) == (like.value.shape, like.role)]
    return parts if len(parts) > 1 and len(parts) * like.value.size == whole.value.size else []


def nearest(one: Parameter, others: Sequence[Parameter], limit: int = 1) -> list[Parameter]:
    """The parameters of the other side that are most like ``one`` in name and shape."""
    if not others:
        return []
    names = canonical([one.name, *(o.name for o in others)])

    def likeness(o: Parameter) -> float:
        same_shape = sorted(o.value.shape) == sorted(one.value.shape)
        alike = similarity(names[one.name], names[o.name])
        return alike + (o.value.size == one.value.size) + same_shape

    return sorted(others, key=likeness, reverse=True)[:limit]


# -- open decisions --------------------------------------------------------------------------------


def decisions(match: Match) -> list[list[dict[str, Transform]]]:
    """What is open, and for each of it the choices; the first is the match as it is.

    Layers of one type follow one convention, so the parameters of a (kind, dimensions) group are
    decided together, and so are those of a recurrent layer with its like.
    """
    groups: defaultdict[tuple[str, ...], list[Matched]] = defaultdict(list)
    for m in match.ambiguous():
        key = (m.decision,) if m.decision else (m.reference.kind, str(m.reference.value.ndim))
        groups[key].append(m)
    found = []
    for members in groups.values():
        if members[0].decision:
            found.append(_together(members))
            continue
        common = [members[0].transform, *members[0].alternatives]
        common = [t for t in common if all(t in (m.transform, *m.alternatives) for m in members)]
        settled = [{m.candidate.name: t for m in members} for t in common]
        # No convention that all of them allow: nothing to choose between, take each as it is.
        found.append(settled or [{m.candidate.name: m.transform for m in members}])
    return found


def _together(members: Sequence[Matched]) -> list[dict[str, Transform]]:
    columns = [[m.transform, *m.alternatives] for m in members]
    count = min(map(len, columns))
    return [
        {m.candidate.name: c[k] for m, c in zip(members, columns, strict=True)}
        for k in range(count)
    ]


def layout_choices(match: Match, *, limit: int = 8) -> list[dict[str, Transform]]:
    """Ways to settle everything that is open at once, at most ``limit``; see `decisions`."""
    combined = itertools.islice(itertools.product(*decisions(match)), limit)
    return [{k: t for part in combination for k, t in part.items()} for combination in combined]
