"""Mistakes that any layer of any port may have, planted at every kind of place of a pair.

The other modules of this package hold mistakes that people made. These are made up: the same few
changes at layer after layer, so that no place of a model is left out because nobody thought of it.
Where they can be planted is asked of a check of the honest pair: a layer that it aligned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.pair import Pair
from models.defects.around import Change, around
from models.defects.base import Defect, alter, change, find

FACTOR, SHIFT = 1.001, 0.01
VISIBLE_EPS = 1e-7  # beside a variance of one, float32 cannot hold a smaller one
HALF = np.float16


@dataclass(frozen=True)
class Place:
    """A layer of a candidate that the honest check aligned.

    Attributes:
        shape: of its output, in the candidate's layout.
        sends_back: whether what it sends back through its first input is compared.
        parameters: of the layer, name -> value.
    """

    path: str
    shape: tuple[int, ...]
    sends_back: bool
    parameters: dict[str, np.ndarray]


def systematic(
    pair: Pair, family: str, candidate: str, *, per_kind: int = 1, seed: int = 0
) -> list[Defect]:
    """``per_kind`` defects of every kind that the candidate has a place for.

    Args:
        candidate: ``numpy``, ``keras``, ``jax`` or ``torch``.
        seed: decides which of the possible places are taken.
    """
    models: list[Any] = []
    report = pair.check(candidate, alter=models.append, explain=False)
    found = places(models[0], report)
    rng = random.Random(f"{family} {candidate} {seed}")  # noqa: S311  (a choice, not a secret)
    defects = []
    for kind, plant in KINDS:
        possible = [d for place in found for d in plant(models[0], candidate, place)]
        for site, phase, mistake, inject, keep in rng.sample(
            possible, min(per_kind, len(possible))
        ):
            defects.append(
                Defect(
                    name=f"{family}-{candidate}-{kind}@{site}",
                    family=family,
                    candidate=candidate,
                    mistake=f"{mistake}, at {site}",
                    source="",
                    phase=phase,
                    site=site,
                    inject=inject,
                    keep_weights=keep,
                )
            )
    return defects


def places(model: Any, report: Any) -> list[Place]:
    """The layers of a model whose outputs the check compared, in order."""
    owned: dict[str, dict[str, np.ndarray]] = {}
    for parameter in adapt(model).parameters():
        if parameter.trainable and not parameter.also:
            owned.setdefault(parameter.layer, {})[parameter.name] = np.array(parameter.value)
    back = {s.candidate for s in report.sites if s.kind == "input_cotangent"}
    found = []
    for site in report.sites:
        if site.phase != "forward" or site.kind != "activation" or not site.dtype.startswith("f"):
            continue
        path = site.candidate
        if any(mark in path for mark in ":#") or path == "output" or not _is_layer(model, path):
            continue
        shape = tuple(site.candidate_shape or site.shape)
        found.append(Place(path, shape, path in back, owned.get(path, {})))
    return found


def _is_layer(model: Any, path: str) -> bool:
    try:
        layer = find(model, path)
    except (AttributeError, KeyError, ValueError, IndexError, TypeError):
        return False
    return any(hasattr(type(layer), name) for name in ("forward", "call", "__call__"))


# -- the kinds -------------------------------------------------------------------------------------

Planted = tuple[str, Any, str, Callable[[Any], None], bool]
"""Site, phase, mistake, injection, whether the weights are kept."""


def output(mistake: str, made: Change, *, width: int = 1) -> Callable[..., Iterator[Planted]]:
    """A change of what a layer returns, where its last axis is at least ``width``."""

    def plant(model: Any, framework: str, place: Place) -> Iterator[Planted]:
        if not place.shape or place.shape[-1] < width:
            return
        inject = around(framework, place.path, change=made)
        yield place.path, "forward", mistake, inject, False

    return plant


def sent_back(mistake: str, factor: float) -> Callable[..., Iterator[Planted]]:
    """A change of what a layer sends back through its first input."""

    def plant(model: Any, framework: str, place: Place) -> Iterator[Planted]:
        if place.sends_back:
            inject = around(framework, place.path, sent_back=factor)
            yield place.path, "backward", mistake, inject, False

    return plant


def weight(
    mistake: str,
    made: Callable[[np.ndarray], np.ndarray | None],
    suits: Callable[[np.ndarray], bool] = lambda value: True,
) -> Callable[..., Iterator[Planted]]:
    """A change of one parameter after it has been loaded."""

    def plant(model: Any, framework: str, place: Place) -> Iterator[Planted]:
        for name, value in place.parameters.items():
            if suits(value) and not np.array_equal(made(value), value):
                yield name, "weights", mistake, _rewritten(name, made), True

    return plant


def _rewritten(name: str, made: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    def inject(model: Any) -> None:
        adapter = adapt(model)
        (value,) = [np.array(p.value) for p in adapter.parameters() if p.name == name]
        adapter.load({name: np.ascontiguousarray(made(value)).astype(value.dtype)})

    return inject


def exchanged(model: Any, framework: str, place: Place) -> Iterator[Planted]:
    """Two parameters of one layer and one shape, one loaded into the other."""
    names = list(place.parameters)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = place.parameters[first], place.parameters[second]
            if a.shape == b.shape and not np.array_equal(a, b):

                def inject(model: Any, first: str = first, second: str = second) -> None:
                    adapter = adapt(model)
                    held = {p.name: np.array(p.value) for p in adapter.parameters()}
                    adapter.load({first: held[second], second: held[first]})

                yield first, "weights", f"exchanged with {second}", inject, True


def eps(factor: float) -> Callable[..., Iterator[Planted]]:
    """Another eps of a norm."""

    def plant(model: Any, framework: str, place: Place) -> Iterator[Planted]:
        layer = find(model, place.path)
        for name in ("eps", "epsilon"):
            value = getattr(layer, name, None)
            if isinstance(value, float) and value >= VISIBLE_EPS:
                mistake = f"eps {value * factor:g} for {value:g}"
                inject = change(place.path, **{name: value * factor})
                yield place.path, "forward", mistake, inject, False

    return plant


def gradient(mistake: str, factor: float) -> Callable[..., Iterator[Planted]]:
    """A change of what a hand-written layer adds to a gradient."""

    def plant(model: Any, framework: str, place: Place) -> Iterator[Planted]:
        if framework != "numpy":
            return
        for name in place.parameters:
            own = name.removeprefix(f"{place.path}.")

            def scale(layer: Any, own: str = own) -> None:
                cls = type(layer)

                def accumulate(self: Any, which: str, value: Any) -> None:
                    right = np.asarray(factor if which == own else 1.0, value.dtype)
                    cls.accumulate(self, which, value * right)

                layer.__class__ = type(cls.__name__, (cls,), {"accumulate": accumulate})

            yield name, "parameter_gradient", mistake, alter(place.path, scale), False

    return plant


def _mask(y: Any) -> np.ndarray:
    mask = np.ones(y.shape)
    mask[-1] = 0.0
    return mask


def _is_square(value: np.ndarray) -> bool:
    return value.ndim == 2 and value.shape[0] == value.shape[1]


KINDS: tuple[tuple[str, Callable[..., Iterator[Planted]]], ...] = (
    ("scaled", output("output × 1.001", Change(lambda a, y: y * FACTOR, lambda dy: dy * FACTOR))),
    ("shifted", output("output + 0.01", Change(lambda a, y: y + SHIFT, lambda dy: dy))),
    ("sign", output("sign of the output", Change(lambda a, y: -y, lambda dy: -dy))),
    (
        "rolled",
        output(
            "output rolled by one along the last axis",
            Change(lambda a, y: a.roll(y, -1), lambda dy: np.roll(dy, -1, -1)),
            width=3,  # of two, it is an exchange
        ),
    ),
    (
        "last-example",
        output(
            "the last example of the batch is zero",
            Change(lambda a, y: y * a.constant(_mask(y), y), lambda dy: dy * _mask(dy)),
        ),
    ),
    (
        "bfloat16",
        output(
            "output rounded to bfloat16", Change(lambda a, y: a.through(y, "bfloat16"), lambda d: d)
        ),
    ),
    (
        "float16",
        output(
            "output rounded to float16", Change(lambda a, y: a.through(y, "float16"), lambda d: d)
        ),
    ),
    ("eps-tenfold", eps(10.0)),
    ("eps-tenth", eps(0.1)),
    ("sent-back-doubled", sent_back("the input's gradient counted twice", 2.0)),
    ("sent-back-sign", sent_back("sign of the input's gradient", -1.0)),
    ("sent-back-near", sent_back("the input's gradient × 1.001", FACTOR)),
    ("detached", sent_back("no gradient to the input", 0.0)),
    (
        "weight-scaled",
        weight("a weight × 1.001", lambda v: v * np.float32(FACTOR), lambda v: v.size > 3),
    ),
    (
        "weight-float16",
        weight("a weight through float16", lambda v: v.astype(HALF).astype(v.dtype)),
    ),
    ("weight-not-loaded", weight("a parameter left at zero", np.zeros_like)),
    ("weight-transposed", weight("a square weight transposed", lambda v: v.T, _is_square)),
    ("weights-exchanged", exchanged),
    ("gradient-halved", gradient("half the gradient of a parameter", 0.5)),
    ("gradient-sign", gradient("sign of a parameter's gradient", -1.0)),
)
