"""Which output and which target a loss reads, along which axis: settled from shapes, and checked.

A mistake here would be found on both sides alike, and so by nobody; what can be read in two ways is
therefore refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.aligning.layout import SAME, Layout
from crosscheck.arrays import is_float
from crosscheck.errors import InvalidArgument, capped
from crosscheck.inputs import make_inputs
from crosscheck.losses.spec import Loss, Term

__all__ = ["Outputs", "Resolved", "Targets", "for_candidate", "make_targets", "resolve"]

Outputs = Mapping[str, np.ndarray]
Targets = Any  # None, an array, or a dict of arrays
Places = Mapping[str, tuple[str, Layout]]
"""Reference output -> the candidate's, and the layout between them."""


@dataclass(frozen=True)
class Resolved:
    """A term that can be evaluated.

    Attributes:
        outputs: sites.
        options: with ``axis`` (of the classes) or ``batch_axis`` where the loss has one.
        target: in the layout of the output.
    """

    name: str
    options: Mapping[str, Any]
    factor: float
    outputs: tuple[str, ...]
    target: Targets


def make_targets(targets: Any, *, seed: int) -> Targets:
    """Arrays from what the caller gave: an array, a spec, a dict of those, a function of the seed.

    Raises:
        InvalidArgument: not an array, not finite, not a spec.
    """
    given = targets(seed) if callable(targets) and not hasattr(targets, "shape") else targets
    if given is None:
        return None
    try:
        if isinstance(given, Mapping):
            # Their own stream of random numbers: an input may have the same name.
            made = make_inputs({f"target {name}": v for name, v in given.items()}, seed=seed)
            return {name.removeprefix("target "): array for name, array in made.items()}
        return make_inputs({"target": given}, seed=seed)["target"]
    except InvalidArgument as error:
        raise InvalidArgument(f"targets: {error}".replace("input `", "`")) from error.__cause__


def resolve(
    loss: Loss, outputs: Outputs, targets: Targets, *, classes_at: int
) -> tuple[Resolved, ...]:  # noqa: E501
    """The terms of a named loss on the reference's outputs.

    Args:
        outputs: of the reference, in the order of its results.
        classes_at: the axis of the classes where shapes leave it open and the framework has a
            convention: 1, or -1.

    Raises:
        InvalidArgument: an output that is not there; targets that are missing or do not fit.
    """
    floats = [site for site, value in outputs.items() if is_float(value)]
    found = []
    for term in loss.terms:
        sites = tuple(_site(loss, name, outputs, floats) for name in term.outputs)
        target = _chosen(loss, term, sites[0], targets)
        resolved = Resolved(term.name, dict(term.options), term.factor, sites, target)
        found.append(_fitted(resolved, outputs, classes_at))
    return tuple(found)


def _site(loss: Loss, name: str, outputs: Outputs, floats: list[str]) -> str:
    if name.startswith("#"):
        place = int(name[1:])
        if place >= len(floats):
            needed = {name for term in loss.terms for name in term.outputs}
            raise InvalidArgument(
                f"loss={loss.name!r} reads {len(needed)} floating-point outputs; the reference has "
                f"{capped(floats) or 'none'}"
            )
        return floats[place]
    if name in outputs:
        return name
    raise InvalidArgument(f"loss: the reference has no output `{name}`; it has {capped(outputs)}")


def _chosen(loss: Loss, term: Term, site: str, targets: Targets) -> Targets:
    if term.target is None:
        return None
    if targets is None:
        raise InvalidArgument(
            f"loss={loss.name!r} needs targets: {_WANTED.get(term.name, _WANTED[''])}"
        )
    if loss.several:
        if not isinstance(targets, Mapping) or term.target not in targets:
            there = capped(targets) if isinstance(targets, Mapping) else "one array"
            raise InvalidArgument(
                f"targets: the loss of output `{term.target}` needs one under that name; "
                f"there is {there}"
            )
        return targets[term.target]
    if isinstance(targets, Mapping) and term.name != "ctc":
        if len(targets) != 1 and site not in targets:
            raise InvalidArgument(
                f"targets: `{term.name}` takes one; there are {capped(targets)}. Give the array, "
                f"or one under the output's name `{site}`"
            )
        return targets[site] if site in targets else next(iter(targets.values()))
    return targets


_WANTED = {
    "": 'an array of the output\'s shape, or a spec such as "float32[8,3]"',
    "cross_entropy": 'class indices, such as targets="int64[8] 0..10" for a batch of 8 and 10 '
    "classes, or probabilities in the output's shape",
    "nll": 'class indices, such as targets="int64[8] 0..10" for a batch of 8 and 10 classes',
    "ctc": 'labels, such as targets="int64[4,5] 1..20" for 4 sequences of 5 labels, or a dict of '
    "labels, lengths and steps",
}


def _fitted(term: Resolved, outputs: Outputs, classes_at: int) -> Resolved:
    output = outputs[term.outputs[0]]
    where = f"for `{term.name}` at `{term.outputs[0]}`"
    if term.name in ("cross_entropy", "nll"):
        return _classes(term, output, where, classes_at)
    if term.name == "ctc":
        return _sequences(term, output, where)
    if term.name == "gaussian_kl":
        shapes = [outputs[site].shape for site in term.outputs]
        if shapes[0] != shapes[1]:
            raise InvalidArgument(f"loss: mean {shapes[0]} and logvar {shapes[1]} differ in shape")
        return term
    if term.target.shape != output.shape:
        raise InvalidArgument(
            f"targets {where} have shape {term.target.shape}, the output {output.shape}: they must "
            "be equal, since broadcasting would compare every element with every other"
        )
    if term.target.dtype.kind == "c":
        raise InvalidArgument(f"targets {where} are {term.target.dtype}: give real numbers")
    weight = term.options.get("pos_weight")
    if weight is not None:
        _broadcast("pos_weight", np.asarray(weight).shape, output.shape)
    if term.name == "bce_with_logits" or (
        term.name == "kl_div" and not term.options.get("log_target")
    ):
        _probabilities(term.target, where)
    return replace(term, target=term.target.astype(np.result_type(output.dtype, np.float32)))


def _broadcast(name: str, shape: tuple[int, ...], output: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(shape, output) == output
    except ValueError:
        fits = False
    if not fits:
        raise InvalidArgument(f"loss: {name} of shape {shape} does not fit the output {output}")


def _probabilities(target: np.ndarray, where: str) -> None:
    outside = (target < 0) | (target > 1)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InvalidArgument(
            f"targets {where} must be probabilities from 0 to 1; {target[place]} at {place}"
        )


def _classes(term: Resolved, output: np.ndarray, where: str, classes_at: int) -> Resolved:
    target = term.target
    dense = is_float(target)
    if dense and term.name == "nll":
        raise InvalidArgument(f"targets {where} are {target.dtype}: give class indices (integers)")
    if dense and target.shape != output.shape:
        hint = (
            ""
            if target.shape == () or target.ndim >= output.ndim
            else ("; for class indices give integers: targets.astype(int)")
        )
        raise InvalidArgument(
            f"targets {where} are {target.dtype}{target.shape}: probabilities must have the "
            f"output's shape {output.shape}{hint}"
        )
    axis = _class_axis(term, output.shape, target.shape, dense, where, classes_at)
    classes = output.shape[axis]
    weight = term.options.get("weight")
    if weight is not None and np.asarray(weight).shape != (classes,):
        raise InvalidArgument(
            f"loss `{term.name}`: weight has shape {np.asarray(weight).shape}; there are {classes} "
            f"classes (axis {axis} of the output {output.shape})"
        )
    if dense:
        _probabilities(target, where)
        target = target.astype(np.result_type(output.dtype, np.float32))
    else:
        _in_range(target, classes, term.options.get("ignore_index", -100), where)
    return replace(term, options={**term.options, "axis": axis}, target=target)


def _class_axis(
    term: Resolved,
    output: tuple[int, ...],
    target: tuple[int, ...],
    dense: bool,
    where: str,
    classes_at: int,
) -> int:
    """The axis of the classes: as given, or the only one that the target's shape leaves."""
    if not output:
        raise InvalidArgument(f"loss {where}: the output is a scalar; it has no classes")
    if "axis" in term.options:
        axes = [int(term.options["axis"])]
        if not -len(output) <= axes[0] < len(output):
            raise InvalidArgument(f"loss {where}: axis {axes[0]} is not one of {output}")
        axes = [axes[0] % len(output)]
    else:
        axes = list(dict.fromkeys((1 % len(output), len(output) - 1)))
    if dense:
        return axes[0] if len(axes) == 1 else classes_at % len(output)
    fitting = [a for a in axes if (*output[:a], *output[a + 1 :]) == target]
    if not fitting:
        raise InvalidArgument(
            f"targets {where} have shape {target}; the output {output} without its axis of "
            f"classes is {' or '.join(str((*output[:a], *output[a + 1 :])) for a in axes)}"
        )
    if len(fitting) > 1:
        raise InvalidArgument(
            f"loss {where}: the classes of the output {output} may lie on axis 1 or on the last "
            f'one. Say which: "{term.name}(axis=1)" or "{term.name}(axis=-1)"'
        )
    return fitting[0]


def _in_range(target: np.ndarray, classes: int, ignored: int, where: str) -> None:
    if target.dtype.kind not in "iu":
        raise InvalidArgument(f"targets {where} are {target.dtype}: give class indices (integers)")
    wrong = ((target < 0) | (target >= classes)) & (target != ignored)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InvalidArgument(
            f"targets {where}: label {target[place]} at {place} is not one of the {classes} "
            f"classes (0 to {classes - 1}); positions to leave out hold ignore_index ({ignored})"
        )
    if target.size and (target == ignored).all():
        raise InvalidArgument(f"targets {where}: every label is ignore_index ({ignored})")


def _sequences(term: Resolved, output: np.ndarray, where: str) -> Resolved:
    """Labels (N, S) with their lengths, and the steps of the output that count."""
    given = term.target if isinstance(term.target, Mapping) else {"labels": term.target}
    unknown = set(given) - {"labels", "lengths", "steps"}
    if "labels" not in given or unknown:
        raise InvalidArgument(
            f"targets {where}: give labels (N, S), or a dict of labels, lengths (N,) of them and "
            f"steps (N,) of the output; there is {capped(given)}"
        )
    labels = given["labels"]
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or output.ndim != 3:
        raise InvalidArgument(
            f"targets {where}: labels are {labels.dtype}{labels.shape} and the output has shape "
            f"{output.shape}; give integer labels (N, S) for an output (N, T, K) or (T, N, K)"
        )
    axes = [a for a in (0, 1) if output.shape[a] == len(labels)]
    axes = [term.options["batch_axis"]] if "batch_axis" in term.options else axes
    if len(axes) != 1 or axes[0] not in (0, 1) or output.shape[axes[0]] != len(labels):
        raise InvalidArgument(
            f"loss {where}: labels are for {len(labels)} sequences; which axis of the output "
            f'{output.shape} holds them? Say "ctc(batch_axis=0)" for (N, T, K), 1 for (T, N, K)'
        )
    steps = output.shape[1 - axes[0]]
    blank = term.options.get("blank", 0)
    target = {
        "labels": labels,
        "lengths": given.get("lengths", np.full(len(labels), labels.shape[1])),
        "steps": given.get("steps", np.full(len(labels), steps)),
    }
    for n, (length, used) in enumerate(zip(target["lengths"], target["steps"], strict=True)):
        _sequence(labels[n, :length], int(used), steps, blank, output.shape[2], f"{where}, row {n}")
    return replace(term, options={**term.options, "batch_axis": axes[0]}, target=target)


def _sequence(
    labels: np.ndarray, used: int, steps: int, blank: int, classes: int, where: str
) -> None:
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    if wrong.any():
        raise InvalidArgument(
            f"targets {where}: label {labels[wrong][0]} must be one of the {classes} classes "
            f"(0 to {classes - 1}) and not the blank ({blank})"
        )
    needed = len(labels) + int((labels[1:] == labels[:-1]).sum())
    if used > steps or needed > used:
        raise InvalidArgument(
            f"targets {where}: {len(labels)} labels need {needed} steps; {used} of {steps} count"
        )


# -- the candidate's side --------------------------------------------------------------------------


def for_candidate(terms: tuple[Resolved, ...], places: Places) -> tuple[Resolved, ...]:
    """The same terms in the candidate's output names and layouts."""
    return tuple(_moved(term, places) for term in terms)


def _moved(term: Resolved, places: Places) -> Resolved:
    sites = tuple(places[site][0] for site in term.outputs)
    layout = places[term.outputs[0]][1]
    if layout.axes is None:
        return replace(term, outputs=sites)
    options, target = dict(term.options), term.target
    if isinstance(target, np.ndarray) and target.ndim == len(layout.axes):
        target = layout.to_candidate(target)
    elif isinstance(target, np.ndarray):
        target = _without_axis(target, layout.axes, options["axis"])
    if "axis" in options:
        options["axis"] = layout.axes[options["axis"]]
    return replace(term, outputs=sites, options=options, target=target)


def _without_axis(target: np.ndarray, axes: tuple[int, ...], classes: int) -> np.ndarray:
    """Indices follow the other axes of their output: ``axes[r]`` is the candidate's axis for r."""
    ours = [a for a in range(len(axes)) if a != classes]
    order = sorted(range(len(ours)), key=lambda i: axes[ours[i]])
    return target.transpose(order)


def own_for_candidate(targets: Targets, outputs: Outputs, places: Places) -> Targets:
    """Targets of the caller's own loss: an array of the shape of an output has its layout."""
    layouts: dict[tuple[int, ...], Layout] = {
        outputs[site].shape: layout for site, (_, layout) in places.items()
    }

    def moved(array: Any) -> Any:
        return layouts.get(array.shape, SAME).to_candidate(array)

    if isinstance(targets, Mapping):
        return {name: moved(array) for name, array in targets.items()}
    return None if targets is None else moved(targets)
