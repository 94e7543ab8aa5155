"""Stage 2, transfer: reference parameters -> candidate parameters, verified after loading.

Parameters are matched layer by layer: two layers fit when every weight has a shape (under its named
axes, or under some order of axes where they are unknown) that the other's can take. Among those
that fit, the order of definition and the likeness of the paths decide. What remains is listed with
its nearest candidates; nothing is guessed silently.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.assignment import best_monotone
from crosscheck.errors import CannotCompare, InvalidArgument, capped
from crosscheck.names import Tokens, canonical, similarity

__all__ = ["Match", "Matched", "Transform", "WeightMap", "match_parameters"]

NAMESAKE = 0.75
"""Likeness of two paths from which on they are taken for the same layer, in whatever order."""


@dataclass(frozen=True)
class Transform:
    """From a reference parameter to the candidate's: a permutation of axes, or a function.

    Attributes:
        axes: ``candidate = reference.transpose(axes)``; None: as it is.
        function: instead of ``axes``; then gradients cannot be mapped back and are not compared.
    """

    axes: tuple[int, ...] | None = None
    function: Callable[[np.ndarray], np.ndarray] | None = None

    def to_candidate(self, reference: np.ndarray) -> np.ndarray:
        """The candidate's parameter (or gradient) from the reference's."""
        if self.function is not None:
            return np.asarray(self.function(np.array(reference)))
        return reference if self.axes is None else reference.transpose(self.axes)

    def to_reference(self, candidate: np.ndarray) -> np.ndarray | None:
        """The inverse; None where there is none (a function)."""
        if self.function is not None:
            return None
        return candidate if self.axes is None else candidate.transpose(np.argsort(self.axes))


WeightMap = Mapping[str, Any]
"""{candidate parameter: reference parameter, or (reference parameter, transform)}; a transform is
``"transpose"``, a tuple of axes, or a function of an array. Parameters left out are matched
automatically."""


@dataclass(frozen=True)
class Matched:
    """One pair of parameters."""

    reference: Parameter
    candidate: Parameter
    transform: Transform
    alternatives: tuple[Transform, ...] = ()  # other layouts that the shapes allow


@dataclass(frozen=True)
class Match:
    """All pairs, and what is left over."""

    pairs: tuple[Matched, ...]
    unmatched_reference: tuple[Parameter, ...]
    unmatched_candidate: tuple[Parameter, ...]

    def values(self) -> dict[str, np.ndarray]:
        """candidate name -> the value to load."""
        return {m.candidate.name: m.transform.to_candidate(m.reference.value) for m in self.pairs}

    def anchors(self) -> list[tuple[str, str]]:
        """(reference layer, candidate layer) that share a parameter, once each."""
        return list(dict.fromkeys((m.reference.layer, m.candidate.layer) for m in self.pairs))

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

    def require_complete(self) -> None:
        """Raise `CannotCompare` for parameters without a counterpart, with what to do."""
        for mine, side, others, other in (
            (self.unmatched_candidate, "candidate", self.unmatched_reference, "reference"),
            (self.unmatched_reference, "reference", self.unmatched_candidate, "candidate"),
        ):
            if mine:
                raise CannotCompare(_unmatched_text(self, mine, side, others, other))


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
    near = _nearest(first, others)
    if near is None:
        text += f"\n  Every {other} parameter is in use."
        fix = f"does the {other} lack a layer or a bias that the {side} has? "
        return f'{text}\n  Fix: {fix}weights="keep" compares the models with their own weights.'
    text += f"\n  Nearest free {other} parameter: `{near.name}` {near.value.shape}."
    names = (first.name, near.name) if side == "candidate" else (near.name, first.name)
    return (
        f'{text}\n  Fix: weights={{"{names[0]}": "{names[1]}"}} (with a transform where layouts '
        'differ), or weights="keep" if they are equal already.'
    )


def _nearest(one: Parameter, others: Sequence[Parameter]) -> Parameter | None:
    if not others:
        return None
    names = canonical([one.name, *(o.name for o in others)])
    return max(
        others,
        key=lambda o: (
            similarity(names[one.name], names[o.name])
            + (o.value.size == one.value.size)
            + (sorted(o.value.shape) == sorted(one.value.shape))
        ),
    )


# -- layouts of one pair -----------------------------------------------------------------------


def transforms(reference: Parameter, candidate: Parameter) -> list[Transform]:
    """The layouts that map one parameter onto the other, most likely first; empty if none does."""
    r, c = reference.value.shape, candidate.value.shape
    if sorted(r) != sorted(c):
        return []
    if reference.axes is not None and candidate.axes is not None:
        if sorted(reference.axes) != sorted(candidate.axes):
            if len(r) == 1:  # one axis, whatever it is called
                return [Transform()]
            return []
        order = tuple(reference.axes.index(name) for name in candidate.axes)
        return [_permuted(order)] if tuple(r[a] for a in order) == c else []
    return [_permuted(order) for order in _orders(len(r)) if tuple(r[a] for a in order) == c]


def _permuted(order: tuple[int, ...]) -> Transform:
    return Transform() if order == tuple(range(len(order))) else Transform(axes=order)


def _orders(ndim: int) -> list[tuple[int, ...]]:
    """Orders of axes in use: same, transposed, and those of convolution kernels."""
    same = tuple(range(ndim))
    if ndim < 2:
        return [same]
    space = same[2:]
    orders = [same, (1, 0, *space)]
    if ndim > 2:
        orders += [(*space, 1, 0), (0, *space, 1), (1, *space, 0), (*space, 0, 1)]
    return orders


# -- matching ------------------------------------------------------------------------------------


@dataclass
class _Layer:
    path: str
    parameters: dict[str, Parameter]  # role -> parameter

    @property
    def kind(self) -> str:
        return next(iter(self.parameters.values())).kind


_ROLE_PREFIX = re.compile(
    r"^(weights?|bias(es)?|kernel|gamma|beta|running_mean|running_var|moving_mean|moving_variance"
    r"|embeddings?|[wbugre])[_.]?",
    re.IGNORECASE,
)


def _layers(parameters: Sequence[Parameter]) -> list[_Layer]:
    """Group parameters by layer; a layer with several of a role is split by what follows the role
    in their names (``W1, b1, W2, b2``)."""
    groups: defaultdict[str, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.layer].append(parameter)
    layers: list[_Layer] = []
    for path, members in groups.items():
        roles = [m.role for m in members]
        if len(set(roles)) == len(roles):
            layers.append(_Layer(path, {m.role: m for m in members}))
            continue
        parts: defaultdict[str, dict[str, Parameter]] = defaultdict(dict)
        for member in members:
            leaf = re.split(r"[./]", member.name)[-1]
            key = _ROLE_PREFIX.sub("", leaf) or leaf
            parts[key if member.role not in parts[key] else leaf][member.role] = member
        layers.extend(_Layer(f"{path} {key}".strip(), part) for key, part in parts.items())
    return layers


def match_parameters(
    reference: Sequence[Parameter],
    candidate: Sequence[Parameter],
    *,
    given: WeightMap | None = None,
) -> Match:
    """Match parameters; see the module.

    Args:
        reference, candidate: in definition order.
        given: pairs that the caller has decided (`WeightMap`).

    Raises:
        InvalidArgument: ``given`` names a parameter that does not exist, or a transform that does
            not give the candidate's shape. (One reference parameter may feed several of the
            candidate's: tied weights.)
    """
    pairs = _given_pairs(reference, candidate, given or {})
    used_r = {m.reference.name for m in pairs}
    used_c = {m.candidate.name for m in pairs}
    free_r = [p for p in reference if p.name not in used_r]
    free_c = [p for p in candidate if p.name not in used_c]
    layers_r, layers_c = _layers(free_r), _layers(free_c)
    for i, j in _assign(*_scores(layers_r, layers_c)):
        for role, parameter in layers_c[j].parameters.items():
            twin = layers_r[i].parameters.get(role)
            options = transforms(twin, parameter) if twin is not None else []
            if twin is not None and options:
                pairs.append(Matched(twin, parameter, options[0], tuple(options[1:])))
    pairs = _by_convention(pairs)
    used_r = {m.reference.name for m in pairs}
    used_c = {m.candidate.name for m in pairs}
    return Match(
        pairs=tuple(pairs),
        unmatched_reference=tuple(p for p in reference if p.name not in used_r),
        unmatched_candidate=tuple(p for p in candidate if p.name not in used_c),
    )


def _tokens(layers: Sequence[_Layer], by_kind: bool) -> list[Tokens]:
    """The words of each layer's path; numbers are ranks among layers of its kind, if asked for."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        groups[layer.kind if by_kind else ""].append(layer.path)
    words = {kind: canonical(paths) for kind, paths in groups.items()}
    return [words[layer.kind if by_kind else ""][layer.path] for layer in layers]


def _scores(ours: Sequence[_Layer], theirs: Sequence[_Layer]) -> tuple[np.ndarray, np.ndarray]:
    """How well every two layers fit (0: not at all), and how alike the paths of those that do."""
    score = np.zeros((len(ours), len(theirs)))
    likeness = np.zeros_like(score)
    by_kind = all(layer.kind != "other" for layer in (*ours, *theirs))
    words = _tokens(ours, by_kind), _tokens(theirs, by_kind)
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            score[i, j] = _fit(a, b)
            if score[i, j] > 0.0:
                likeness[i, j] = similarity(words[0][i], words[1][j])
                score[i, j] += 3.0 * likeness[i, j] ** 2  # a shared path weighs more than a fit
    return score, likeness


def _fit(a: _Layer, b: _Layer) -> float:
    shared = [role for role in a.parameters if role in b.parameters]
    fits = [r for r in shared if transforms(a.parameters[r], b.parameters[r])]
    if not fits or len(fits) < len(shared):
        return 0.0
    missing = len(a.parameters) + len(b.parameters) - 2 * len(fits)
    kinds = {p.kind for p in a.parameters.values()} & {p.kind for p in b.parameters.values()}
    return max(0.25, 1.0 + 0.5 * bool(kinds - {"other"}) - 0.25 * missing)


def _assign(score: np.ndarray, likeness: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column): namesakes first, then repeatedly the best order-preserving alignment.

    Namesakes are defined in any order (query, key and value; the branches of a block). For the
    others one round suffices where both sides define their layers in the same order; further
    rounds pick up branches that are defined in another order.
    """
    found = _namesakes(likeness)
    rows = [i for i in range(score.shape[0]) if i not in {i for i, _ in found}]
    columns = [j for j in range(score.shape[1]) if j not in {j for _, j in found}]
    while rows and columns:
        pairs = best_monotone(score[np.ix_(rows, columns)])
        if not pairs:
            break
        found += [(rows[i], columns[j]) for i, j in pairs]
        taken_r, taken_c = {i for i, _ in pairs}, {j for _, j in pairs}
        rows = [r for i, r in enumerate(rows) if i not in taken_r]
        columns = [c for j, c in enumerate(columns) if j not in taken_c]
    return sorted(found)


def _namesakes(likeness: np.ndarray) -> list[tuple[int, int]]:
    """Pairs alike in name that are, by a margin, each other's most alike."""
    if not likeness.size:
        return []
    found = []
    for i, j in enumerate(likeness.argmax(axis=1).tolist()):
        best = likeness[i, j]
        others = [*np.delete(likeness[i], j), *np.delete(likeness[:, j], i)]
        if best >= NAMESAKE and max(others, default=0.0) <= best - 0.05:
            found.append((i, j))
    return found


def _by_convention(pairs: list[Matched]) -> list[Matched]:
    """Settle open layouts (square matrices) by those that layers of the same kind show."""
    shown: defaultdict[tuple[str, int], set[Transform]] = defaultdict(set)
    for m in pairs:
        if not m.alternatives:
            shown[m.reference.kind, m.reference.value.ndim].add(m.transform)
    settled = []
    for m in pairs:
        known = shown[m.reference.kind, m.reference.value.ndim]
        options = [t for t in (m.transform, *m.alternatives) if t in known]
        if m.alternatives and len(options) == 1:
            m = replace(m, transform=options[0], alternatives=())
        settled.append(m)
    return settled


def _given_pairs(
    reference: Sequence[Parameter], candidate: Sequence[Parameter], given: WeightMap
) -> list[Matched]:
    ours, theirs = {p.name: p for p in reference}, {p.name: p for p in candidate}
    pairs = []
    for name, target in given.items():
        source, rule = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
        for side, known, wanted in (("candidate", theirs, name), ("reference", ours, source)):
            if not isinstance(wanted, str) or wanted not in known:
                tokens = canonical([*known, str(wanted)])
                near = sorted(known, key=lambda k: -similarity(tokens[k], tokens[str(wanted)]))[:3]
                raise InvalidArgument(
                    f"weights= names the {side} parameter `{wanted}`, which does not exist; "
                    f"nearest: {capped(near)}"
                )
        pairs.append(_given_pair(ours[source], theirs[name], rule))
    return pairs


def _given_pair(reference: Parameter, candidate: Parameter, rule: Any) -> Matched:
    if rule is None:
        options = transforms(reference, candidate)
        if options:
            return Matched(reference, candidate, options[0], tuple(options[1:]))
        transform = Transform()
    elif rule == "transpose":
        transform = Transform(axes=tuple(reversed(range(reference.value.ndim))))
    elif callable(rule):
        transform = Transform(function=rule)
    elif isinstance(rule, Sequence) and set(rule) == set(range(reference.value.ndim)) == set(
        range(len(rule))
    ):
        transform = Transform(axes=tuple(rule))
    else:
        raise InvalidArgument(
            f'weights=: the transform of `{candidate.name}` is {rule!r}; give "transpose", an '
            f"order of the {reference.value.ndim} axes, or a function of an array"
        )
    shape = transform.to_candidate(reference.value).shape
    if shape != candidate.value.shape:
        raise InvalidArgument(
            f"weights=: `{reference.name}` {reference.value.shape} becomes {shape} for "
            f"`{candidate.name}`, which is {candidate.value.shape}"
        )
    return Matched(reference, candidate, transform)


def layout_choices(match: Match, *, limit: int = 8) -> list[dict[str, Transform]]:
    """Ways to settle the open layouts of a match: one decision for each kind of layer.

    Layers of one type follow one convention, so the parameters of a (kind, dimensions) group are
    decided together. The first choice is the match as it is.
    """
    groups: defaultdict[tuple[str, int], list[Matched]] = defaultdict(list)
    for m in match.ambiguous():
        groups[m.reference.kind, m.reference.value.ndim].append(m)
    options = []
    for members in groups.values():
        common = [members[0].transform, *members[0].alternatives]
        common = [t for t in common if all(t in (m.transform, *m.alternatives) for m in members)]
        settled = [{m.candidate.name: t for m in members} for t in common]
        # No convention that all of them allow: nothing to choose between, take each as it is.
        options.append(settled or [{m.candidate.name: m.transform for m in members}])
    combined = itertools.islice(itertools.product(*options), limit)
    return [{k: t for part in combination for k, t in part.items()} for combination in combined]
