"""Train and eval mode, and what is random."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import ROUNDING, alike, apart, relative, same
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.stepping import model_of, snapshot
from crosscheck.auditing.subject import Step, Subject, matches

__all__: list[str] = []

BATCH_NORM = re.compile(r"^_?(Lazy|Sync)?Batch_?Norm", re.IGNORECASE)
DROPOUT = re.compile(r"Drop(out|path|_path)|StochasticDepth", re.IGNORECASE)
RATES = ("p", "rate", "drop_prob", "drop_rate", "prob")
SEEDS = 6


def _layers(subject: Subject, pattern: re.Pattern[str], step: Step) -> list[str]:
    """Sites of the layers whose type, or a type that theirs is derived from, is called so."""
    found = []
    for site, kind in step.trace.info.layers.items():
        layer = layer_at(subject, site)
        bases = [cls.__name__ for cls in type(layer).__mro__] if layer is not None else []
        if "#" not in site and any(map(pattern.search, [kind, *bases])):
            found.append(site)
    return found


@check("wrong")
def eval_is_repeatable(subject: Subject) -> Outcome:
    """In eval mode nothing is random: another seed gives the same outputs."""
    first, second = subject.run(), subject.run(seed=subject.seed + 1, backward=False)
    for site, value in first.trace.activations().items():
        other = second.trace.values.get(("activation", site))
        if not alike(value, other):
            known = any(site.partition(":")[0] == s for s in _layers(subject, DROPOUT, first))
            return Failure(
                f"in eval mode `{site}` changes from run to run: something random is left on"
                + ("" if known else " (a model that samples on purpose: skip this check)"),
                site,
                None if other is None else apart(value, other),
                severity="wrong" if known else "suspicious",
            )
    return Looked("the same outputs under two seeds")


@check("wrong")
def dropout_is_on_in_training(subject: Subject) -> Outcome:
    """In train mode every dropout drops: another seed gives other values."""
    if not subject.adapter.capabilities.train:
        return Skip("the model has no train mode")
    first = subject.run(train=True)
    layers = [s for s in _layers(subject, DROPOUT, first) if _in_use(first, s)]
    rates = {site: layer_setting(subject, site, RATES) for site in layers}
    dropping = [site for site in layers if rates[site] != 0]
    if not dropping:
        return Skip("no dropout with a rate above 0" if layers else "no dropout layer in use")
    for site in dropping:
        given, ours = (first.trace.values.get((k, site)) for k in ("input", "activation"))  # type: ignore[call-overload]
        assert ours is not None
        if given is not None and given.shape == ours.shape and np.array_equal(ours, given):
            return Failure(
                f"`{site}` passes its input on in train mode: it is switched off",
                site,
                severity="suspicious" if rates[site] is None else "wrong",  # None: may be 0
            )
        seeds = range(subject.seed + 1, subject.seed + SEEDS)
        if all(same(ours, _dropped(subject, site, seed)) for seed in seeds):
            return Failure(f"`{site}` drops the same elements under every seed", site)
    return Looked(f"{len(dropping)} dropouts drop in train mode", len(dropping))


def _dropped(subject: Subject, site: str, seed: int) -> np.ndarray | None:
    """A layer's output in train mode under another seed."""
    step = subject.run(train=True, seed=seed, backward=False)
    return step.trace.values.get(("activation", site))


def _in_use(step: Step, site: str) -> bool:
    """Whether it sees numbers; zeros stay zeros, whatever is dropped of them."""
    value = step.trace.values.get(("input", site))
    return value is not None and is_float(value) and bool(np.any(value))


def layer_setting(subject: Subject, site: str, names: tuple[str, ...]) -> float | None:
    """A number that the layer at a site keeps under one of these names; None: nobody knows."""
    layer = layer_at(subject, site)
    found = (getattr(layer, name, None) for name in names)
    return next((float(v) for v in found if isinstance(v, (int, float))), None)


def layer_at(subject: Subject, site: str) -> Any:
    """The layer itself; None where its path does not lead to it."""
    layer: Any = model_of(subject.adapter)
    for part in filter(None, site.split(subject.adapter.separator)):
        layer = _child(layer, part)
    return layer


def _child(layer: Any, name: str) -> Any:
    if isinstance(layer, (list, tuple)) and name.isdigit() and int(name) < len(layer):
        return layer[int(name)]
    if isinstance(layer, dict):
        return layer.get(name)
    of_keras = getattr(layer, "layers", None)
    if isinstance(of_keras, list) and (named := [x for x in of_keras if _name(x) == name]):
        return named[0]
    return getattr(layer, name, None)


def _name(layer: Any) -> str:
    return str(getattr(layer, "name", ""))


@check("wrong")
def batchnorm_uses_the_batch_in_training(subject: Subject) -> Outcome:
    """In train mode a BatchNorm normalises by the batch, and its running statistics follow."""
    if not subject.adapter.capabilities.train:
        return Skip("the model has no train mode")
    step = subject.run(train=True)
    found = _layers(subject, BATCH_NORM, step)
    layers = [site for site in found if not _is_frozen(subject, site)]
    if not layers:
        return Skip("all are frozen" if found else "no BatchNorm")
    if subject.batch < 2:
        return Skip("a single example has no statistics: give a batch")
    buffers = [p for p in subject.parameters() if p.buffer and is_float(p.value)]
    for site in layers:
        own = [p for p in buffers if p.layer == site]
        if own and all(same(p.value, step.trace.info.buffers.get(p.name)) for p in own):
            return _in_inference(site, own[0].name, "while training")
        off = _from_normal(subject, step, site)
        if off is not None and off[0] > 0.05:
            return Failure(
                f"`{site}` does not normalise in train mode: channel means up to {off[1]:.3g}, "
                f"variances from {off[2]:.3g} to {off[3]:.3g}, before its own scale and shift",
                site,
                off[0],
            )
    if subject.step is not None:
        before, after = snapshot(subject)
        for site in layers:
            own = [p for p in buffers if p.layer == site and p.name in after]
            if own and all(same(before[p.name], after[p.name]) for p in own):
                return _in_inference(site, own[0].name, "in your training step")
    return Looked(f"{len(layers)} BatchNorms normalise by the batch", len(layers))


def _in_inference(site: str, name: str, when: str) -> Failure:
    text = f"`{site}` is in inference mode {when}: `{name}` does not follow the batch"
    return Failure(text, name)


def _is_frozen(subject: Subject, site: str) -> bool:
    """A frozen BatchNorm uses its running statistics on purpose."""
    own = [p for p in subject.parameters() if p.layer == site and not p.buffer]
    training = {p.name for p in subject.trainable()}
    if own:
        return not any(p.name in training for p in own)
    return matches(site, subject.frozen)


def _from_normal(
    subject: Subject, step: Step, site: str
) -> tuple[float, float, float, float] | None:
    """How far a norm's output, without scale and shift, is from mean 0 and variance 1."""
    value = step.trace.values.get(("activation", site))
    given = step.trace.values.get(("input", site))
    owned = {p.role: p.value for p in subject.parameters() if p.layer == site and not p.buffer}
    if value is None or given is None or value.ndim < 2:
        return None
    channels = next((len(v) for v in owned.values() if v.ndim == 1), None)
    if channels is None or "weight" not in owned:
        return None
    axes = [a for a in (1, value.ndim - 1) if value.shape[a] == channels]
    if len(set(axes)) != 1:
        return None
    x, y = (np.moveaxis(v.astype(np.float64), axes[0], -1) for v in (given, value))
    x, y = x.reshape(-1, channels), y.reshape(-1, channels)
    gain = owned["weight"].astype(np.float64)
    varied = (np.abs(gain) > 1e-3) & (x.var(axis=0) > 0.1)  # else eps decides
    if not varied.any() or len(y) < 4:
        return None
    y = ((y - owned.get("bias", 0.0)) / np.where(varied, gain, 1.0))[:, varied]
    means, variances = np.abs(y.mean(axis=0)), y.var(axis=0)
    worst = max(float(means.max()), float(np.abs(variances - 1).max()))
    return worst, float(means.max()), float(variances.min()), float(variances.max())


@check("suspicious")
def runs_are_deterministic(subject: Subject) -> Outcome:
    """The same seed gives the same outputs and gradients, bit for bit, in train mode."""
    first, second = subject.run(train=True), subject.run(train=True, seed=subject.seed)
    distances = _apart(first, second)
    moved = [name for name, distance in distances.items() if distance > 0]
    far = [name for name in moved if distances[name] > ROUNDING]
    if far:
        return Failure(f"`{far[0]}` differs between two runs of the same seed", far[0])
    if moved:
        text = f"`{moved[0]}` differs by rounding between two runs of the same seed: sums over "
        return Failure(text + "threads are made in another order", moved[0], severity="note")
    return Looked("two runs of one seed are equal bit for bit")


def _apart(first: Step, second: Step) -> dict[str, float]:
    """How far activations and gradients lie apart: of their own largest element, and of that of all
    gradients (a bias in front of a norm has rounding alone)."""
    seen, again = first.trace.activations(), second.trace.activations()
    found = {}
    for site, value in seen.items():
        other = again.get(site)
        distance = math.inf if other is None else relative(value, other)
        found[site] = 0.0 if same(value, other) else distance
    largest = max((float(np.abs(g).max(initial=0.0)) for g in first.gradients.values()), default=0)
    for name, gradient in first.gradients.items():
        back = second.gradients[name]
        distance = 0.0 if same(gradient, back) else apart(gradient, back) / (largest or 1.0)
        found[f"the gradient of {name}"] = distance
    return found
