"""What the caller decides: a `WeightMap`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.names import canonical, similarity
from crosscheck.errors import InvalidArgument, capped
from crosscheck.weights.expressions import Source, sources
from crosscheck.weights.layouts import transforms
from crosscheck.weights.match import Matched
from crosscheck.weights.spelling import parsed
from crosscheck.weights.stacks import calls_of
from crosscheck.weights.transform import Transform

__all__ = ["WeightMap", "given_pairs"]

WeightMap = Mapping[str, Any]
"""{candidate parameter: value}, where a value is a reference parameter's name (the shapes decide on
the layout), or (name, transform). A transform is ``"transpose"``, a tuple of axes, a function of an
array, or text in the steps of `crosscheck.weights.spelling`, as `crosscheck weights` prints it:
``("attn.in_proj_weight", "part 0 0:8 | transpose | reshape 8 2 4")``, or with several parameters
``(["b_ih", "b_hh"], "sum")``. Parameters left out are matched automatically."""


def given_pairs(
    reference: Sequence[Parameter], candidate: Sequence[Parameter], given: WeightMap
) -> list[Matched]:
    """The pairs of a map.

    Raises:
        InvalidArgument: a parameter that does not exist, or a transform that does not fit.
    """
    ours, theirs = {p.name: p for p in reference}, {p.name: p for p in candidate}
    pairs = []
    for name, target in given.items():
        _require(name, theirs, "candidate")
        if isinstance(target, tuple) and len(target) == 2 and _is_text(target):
            pairs.append(_spelled_pair(ours, theirs[name], target))
            continue
        source, rule = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
        _require(source, ours, "reference")
        pairs.append(_given_pair(ours[source], theirs[name], rule))
    return pairs


def _is_text(target: tuple[Any, Any]) -> bool:
    """Whether a value is spelled in steps (``"transpose"`` alone is the same either way)."""
    return isinstance(target[1], str) and target[1] != "transpose"


def _require(name: Any, known: Mapping[str, Parameter], side: str) -> None:
    if not isinstance(name, str) or name not in known:
        tokens = canonical([*known, str(name)])
        near = sorted(known, key=lambda k: -similarity(tokens[k], tokens[str(name)]))[:3]
        raise InvalidArgument(
            f"weights= names the {side} parameter `{name}`, which does not exist; "
            f"nearest: {capped(near)}"
        )


def _spelled_pair(ours: Mapping[str, Parameter], candidate: Parameter, target: Any) -> Matched:
    def source(name: Any) -> Source:
        _require(name, ours, "reference")
        return Source(name, ours[name].value.shape)

    try:
        node = parsed(target, source)
    except InvalidArgument:
        raise
    except ValueError as error:
        raise InvalidArgument(
            f"weights=: the transform of `{candidate.name}` is {target[1]!r}: {error}; give "
            '"transpose", an order of axes, a function of an array, or steps as '
            "`crosscheck weights` prints them"
        ) from error
    names = sources(node)
    made_of = [ours[n] for n in names] or list(ours.values())[:1]
    calls = calls_of(node, made_of, candidate)
    more = tuple(made_of[1:])
    pair = Matched(made_of[0], candidate, Transform.of(node), more=more, calls=calls)
    _require_shape(pair, ", ".join(f"`{p.name}` {p.value.shape}" for p in made_of))
    return pair


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
            f"order of the {reference.value.ndim} axes, a function of an array, or steps as "
            "`crosscheck weights` prints them"
        )
    pair = Matched(reference, candidate, transform)
    _require_shape(pair, f"`{reference.name}` {reference.value.shape}")
    return pair


def _require_shape(pair: Matched, made_of: str) -> None:
    shape = pair.make().shape
    if shape != pair.candidate.value.shape:
        raise InvalidArgument(
            f"weights=: {made_of} becomes {shape} for `{pair.candidate.name}`, which is "
            f"{pair.candidate.value.shape}"
        )
