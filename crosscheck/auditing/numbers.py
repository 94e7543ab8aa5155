"""Magnitudes of gradients and updates, dead units, initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.arrays import is_float
from crosscheck.auditing.registry import NO_GRADIENT, Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.results import Severity
from crosscheck.auditing.subject import Subject

__all__: list[str] = []

BINS = 24
DEAD, SATURATED = 0.6, 0.5
UNLIKELY = 0.01


@check("suspicious")
def updates_are_of_a_sane_size(subject: Subject) -> Outcome:
    """One step of the optimizer changes weights by about a thousandth of their size."""
    if subject.optimizer is None:
        return Skip("no optimizer= to take a step with")
    from crosscheck.optimizers.definition import Definition
    from crosscheck.optimizers.parse import parse

    step = subject.run(train=True)
    values = {
        p.name: p.value
        for p in subject.trainable()
        if is_float(p.value) and np.any(step.gradients.get(p.name, 0.0))
    }
    if not all(np.isfinite(step.gradients[n].astype(np.float64)).all() for n in values):
        return Skip(NO_GRADIENT)
    made = Definition(parse(subject.optimizer)).step(
        values, [{n: step.gradients[n] for n in values}]
    )
    ratios = {}
    for name, value in values.items():
        size = float(np.linalg.norm(value.astype(np.float64)))
        if value.ndim > 1 and size > 0:
            change = np.linalg.norm(made[name].astype(np.float64) - value.astype(np.float64))
            ratios[name] = float(change) / size
    if not ratios:
        return Skip("no weight matrix")
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if ratios[high] > 0.1:
        return Failure(
            f"one step changes `{high}` by {ratios[high]:.2g} of its size (about 1e-3 is usual)",
            high,
            ratios[high],
            details=ratios,
        )
    if ratios[low] < 1e-6:
        return Failure(
            f"one step changes `{low}` by only {ratios[low]:.2g} of its size", low, ratios[low],
            details=ratios,
        )  # fmt: skip
    text = f"updates of {ratios[low]:.1g} to {ratios[high]:.1g} of the weights"
    return Looked(text, ratios[high], ratios)


@check("suspicious")
def gradients_neither_vanish_nor_explode(subject: Subject) -> Outcome:
    """From the last layer to the first, gradients stay within a few orders of magnitude."""
    step = subject.run(train=True)
    sizes = {
        site: float(np.sqrt(np.mean(value.astype(np.float64) ** 2)))
        for (kind, site), value in step.trace.values.items()
        if kind == "cotangent" and is_float(value) and value.size
    }
    sizes = {site: size for site, size in sizes.items() if np.isfinite(size) and size > 0}
    if len(sizes) < 2:
        return Skip("fewer than two gradients to compare")
    outputs = [sizes[s] for s in step.outputs if s in sizes]
    last = max(outputs) if outputs else next(iter(sizes.values()))
    low, high = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[low] < 1e-6 * last:
        return Failure(
            f"gradients vanish: {sizes[low]:.2g} at `{low}`, {last:.2g} at the output",
            low,
            sizes[low] / last,
        )
    if sizes[high] > 1e4 * last:
        return Failure(
            f"gradients explode: {sizes[high]:.2g} at `{high}`, {last:.2g} at the output",
            high,
            sizes[high] / last,
        )
    span = sizes[high] / sizes[low]
    return Looked(f"{len(sizes)} gradients within a factor of {span:.3g}", span, {"rms": sizes})


@check("suspicious")
def units_are_alive(subject: Subject) -> Outcome:
    """No unit is zero for every example (dead), and few are where they saturate."""
    step = subject.run()
    seen: dict[str, dict[str, Any]] = {}
    for site in step.trace.info.layers:
        y, x = (step.trace.values.get((k, site)) for k in ("activation", "input"))  # type: ignore[call-overload]
        if x is None or y is None or x.shape != y.shape or not is_float(y) or y.ndim < 2:
            continue
        wide = x.astype(np.float64)
        kind = _activation(wide, y.astype(np.float64))
        if not kind or not x.size:
            continue
        found: dict[str, Any] = {"kind": kind, "input": histogram(wide)}
        if kind == "relu":
            given = _by_unit(subject, wide)
            off = np.all(given <= 0, axis=0)
            found |= {"share": float(off.mean()), "chance": _by_chance(given, off)}
        else:
            found["share"] = _saturated(y, kind)
        seen[site] = found
    return _lively(subject, seen)


def _lively(subject: Subject, seen: dict[str, dict[str, Any]]) -> Outcome:
    for site, found in seen.items():
        kind, share, given = found["kind"], found["share"], found["input"]
        spread = f"(its input: mean {given['mean']:.3g}, deviation {given['std']:.3g})"
        if kind == "relu" and share > DEAD:
            text = f"{share:.0%} of the units of `{site}` are zero for all "
            text += f"{subject.batch} examples {spread}"
            severity: Severity | None = "note" if found["chance"] else None
            return Failure(text, site, share, severity, {"inputs": seen})
        if kind != "relu" and share > SATURATED:
            text = f"`{site}` saturates: {share:.0%} of it within 1% of its limits {spread}"
            return Failure(text, site, share, details={"inputs": seen})
    if not seen:
        return Skip("no ReLU, tanh or sigmoid layer is seen")
    return Looked(f"{len(seen)} activations are alive", len(seen), {"inputs": seen})


def _by_unit(subject: Subject, x: np.ndarray) -> np.ndarray:
    """(examples and places, units): channels are units."""
    axis = 1 if x.ndim == 4 and subject.adapter.framework in ("torch", "numpy") else x.ndim - 1
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def _by_chance(x: np.ndarray, off: Any) -> bool:
    """Whether so many units may be off because of a few draws: where a layer is given nearly the
    same for every example (squeezed images, say), each unit is on or off for all of them."""
    if off.all() or not off.any():
        return False
    size = np.abs(x).mean(axis=0)
    alike = float(x.std(axis=0).mean()) < float(size.mean())
    far = float(size[off].mean()) > 3 * float(size[~off].mean())
    n, k = len(off), int(off.sum())
    tail = sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n
    return alike and not far and tail > UNLIKELY


def _saturated(y: np.ndarray, kind: str) -> float:
    return float(np.mean(np.abs(y if kind == "tanh" else 2 * y - 1) > 0.99))


def _activation(x: np.ndarray, y: np.ndarray) -> str:
    if (x < 0).any() and np.array_equal(y, np.where(x > 0, x, 0)):
        return "relu"
    with np.errstate(all="ignore"):
        if np.allclose(y, np.tanh(x), atol=1e-5):
            return "tanh"
        return "sigmoid" if np.allclose(y, 1 / (1 + np.exp(-x)), atol=1e-5) else ""


@check("wrong")
def weights_are_initialised(subject: Subject) -> Outcome:
    """No weight matrix is constant (all units would learn the same), none holds NaN."""
    pictures: dict[str, Any] = {}
    for p in subject.parameters():
        if not is_float(p.value) or not p.value.size:
            continue
        value = p.value.astype(np.float64)
        if not np.isfinite(value).all():
            return Failure(f"`{p.name}` holds NaN or Inf", p.name)
        pictures[p.name] = histogram(value)
        of_units = p.role not in ("bias", "mean", "variance") and p.kind != "norm"
        if p.buffer or not of_units or sum(n > 1 for n in value.shape) < 2:
            continue  # a token, a gain: one unit has nobody to be the same as
        if np.ptp(value) == 0 and (failure := _constant(subject, p, float(value.flat[0]))):
            return failure
        if np.ptp(value) > 0 and _equal_units(p, value):
            return Failure(f"all units of `{p.name}` are the same", p.name)
    step = subject.run(train=True)
    details = {"parameters": pictures, **_histograms(step)}
    return Looked(f"{len(pictures)} tensors vary", len(pictures), details)


def _constant(subject: Subject, parameter: Parameter, value: float) -> Failure | None:
    """A weight of one value: wrong if its gradient does not tell its units apart either."""
    name = parameter.name
    gradient = subject.run(train=True).gradients.get(name)
    if gradient is None:  # frozen, or no backward pass
        return None
    wide = gradient.astype(np.float64)
    if np.ptp(wide) == 0 or _equal_units(parameter, wide):
        text = f"every element of `{name}` is {value:g}: its units are all the same, and will "
        return Failure(text + "learn the same", name, value)
    if value == 0:
        text = f"`{name}` is all zeros: right for a layer that shall add nothing at first"
        return Failure(text, name, value, severity="note")
    of_layer = parameter.kind in ("dense", "conv", "lstm", "gru", "rnn")
    text = f"every element of `{name}` is {value:g}: " + (
        "its units start the same" if of_layer else "right for a gain"
    )
    return Failure(text, name, value, severity="suspicious" if of_layer else "note")


def _equal_units(parameter: Parameter, value: np.ndarray) -> bool:
    if parameter.axes is None or "out" not in parameter.axes:
        return False
    units = np.moveaxis(value, parameter.axes.index("out"), 0)
    return len(units) > 1 and all(np.array_equal(units[0], u) for u in units[1:])


def histogram(value: np.ndarray) -> dict[str, Any]:
    """Counts over `BINS` equal bins."""
    counts, _ = np.histogram(value, bins=BINS)
    return {
        "counts": [int(c) for c in counts],
        "from": float(value.min()),
        "to": float(value.max()),
        "mean": float(value.mean()),
        "std": float(value.std()),
    }


def _histograms(step: Any) -> Mapping[str, Any]:
    made: dict[str, Any] = {"activations": {}, "gradients": {}}
    for site, value in step.trace.activations().items():
        if is_float(value) and value.size and np.isfinite(value.astype(np.float64)).all():
            made["activations"][site] = histogram(value.astype(np.float64))
    for name, gradient in step.gradients.items():
        if gradient.size and np.isfinite(gradient.astype(np.float64)).all():
            made["gradients"][name] = histogram(gradient.astype(np.float64))
    return made
