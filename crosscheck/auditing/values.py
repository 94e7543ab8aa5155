"""What comes out: finite, in range, of the right shape, and made of the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import others, same
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.subject import Arrays, Step, Subject
from crosscheck.errors import SideFailed

__all__: list[str] = []

HUGE = 1e4


@check("wrong")
def values_are_finite(subject: Subject) -> Outcome:
    """No NaN and no Inf, forward or backward; the first layer that makes one is named."""
    for train in (False, True):
        step = subject.run(train=train)
        mode = "train" if train else "eval"
        bad = _first_nonfinite(step)
        if bad is not None:
            return Failure(
                f"`{bad[0]}` is the first to hold {bad[1]} ({mode} mode, forward)", bad[0]
            )
        if step.loss is not None and not np.isfinite(step.loss):
            return Failure(f"the loss is {step.loss} ({mode} mode)", "loss", step.loss)
        for (kind, site), value in step.trace.values.items():
            if kind == "cotangent" and _nonfinite(value):
                return Failure(
                    f"the gradient at `{site}` is the first to hold {_nonfinite(value)} ({mode} "
                    "mode, backward): look at what reads it",
                    site,
                )
    return Looked("all activations and gradients are finite")


def _first_nonfinite(step: Step) -> tuple[str, str] | None:
    """The first site that made one; masks of −inf that no output shows are left alone."""
    outputs = step.outputs.values()
    if all(not _nonfinite(v) for v in outputs):
        return None
    for site, value in step.trace.activations().items():
        if text := _nonfinite(value):
            return site, text
    return None


def _nonfinite(value: np.ndarray) -> str:
    if not is_float(value):
        return ""
    x = value.astype(np.float64)
    return "NaN" if np.isnan(x).any() else "Inf" if np.isinf(x).any() else ""


@check("suspicious")
def outputs_are_in_range(subject: Subject) -> Outcome:
    """Outputs stay in ``output_range`` where it is given; activations stay within reason."""
    wanted: Any = subject.options.get("output_range")
    step = subject.run()
    ranges = {}
    for site, value in step.trace.activations().items():
        if not is_float(value) or not value.size:
            continue
        x = value.astype(np.float64)
        x = x[np.isfinite(x)]
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
        # What stands for minus infinity (masked scores) is large on purpose: the median is not.
        size = max(high, float(np.median(np.abs(x)))) if x.size else 0.0
        ranges[site] = [low, high]
        if wanted is not None and site in step.outputs and (low < wanted[0] or high > wanted[1]):
            return Failure(
                f"`{site}` runs from {low:.4g} to {high:.4g}, outside {wanted[0]:g} to "
                f"{wanted[1]:g}",
                site,
                high if high > wanted[1] else low,
                severity="wrong",
            )
        if size > HUGE and not site.startswith("input:"):
            return Failure(f"`{site}` reaches {size:.3g}", site, size)
    return Looked(f"{len(ranges)} activations within ±{HUGE:g}", details={"ranges": ranges})


@check("wrong")
def output_depends_on_input(subject: Subject) -> Outcome:
    """Other inputs give other outputs."""
    rng = np.random.default_rng(subject.seed + 1)
    changed = {k: others(v, rng) for k, v in subject.inputs.items()}
    if all(same(v, changed[k]) for k, v in subject.inputs.items()):
        return Skip("the inputs hold masks or a single value: there are no others")
    try:
        stuck = _stuck(subject, changed, None)
    except SideFailed as error:
        return Skip(f"the model does not take other inputs: {type(error.__cause__).__name__}")
    if stuck is None:
        return Looked("other inputs give other outputs")
    site, constant = stuck
    if _stuck(subject, changed, subject.noise(subject.seed)) is None:
        return Failure(
            f"`{site}` is the same for other inputs, since its last layer starts at zero",
            site,
            constant,
            severity="note",
        )
    return Failure(
        f"`{site}` is the same for other inputs ({constant:.4g} first): nothing of the input "
        "reaches it (a softmax or a norm over a single element?)",
        site,
        constant,
    )


def _stuck(subject: Subject, changed: Arrays, overrides: Arrays | None) -> tuple[str, float] | None:
    """The first output that does not change with the inputs, and its first element."""
    before = subject.run(overrides=overrides, backward=False)
    after = subject.run(inputs=changed, overrides=overrides, backward=False)
    for site, value in before.outputs.items():
        if is_float(value) and value.size and same(value, after.outputs.get(site)):
            return site, float(np.ravel(value)[0])
    return None


@check("wrong")
def shapes_hold(subject: Subject) -> Outcome:
    """Outputs have one shape in both modes and for one example; parameters are as many as said."""
    eval_, train = subject.run(), subject.run(train=True)
    for site, value in eval_.outputs.items():
        other = train.outputs.get(site)
        if other is None or other.shape != value.shape:
            shape = "missing" if other is None else list(other.shape)
            return Failure(
                f"`{site}` is {list(value.shape)} in eval mode, {shape} in training",
                site,
                severity="suspicious",
            )
    parameters = [p for p in subject.parameters() if not p.buffer]
    count = sum(p.value.size for p in parameters)
    training = sum(p.value.size for p in subject.trainable())
    expected = subject.options.get("parameters")
    text = f"{count:,} parameters in {len(parameters)} variables, {training:,} train; " + ", ".join(
        f"`{site}` {list(v.shape)}" for site, v in eval_.outputs.items()
    )
    if expected is not None and expected != count:
        return Failure(f"{text}; expected {expected:,} parameters", number=count)
    one = _of_one_example(subject, eval_)
    return one or Looked(text, count)


def _of_one_example(subject: Subject, whole: Step) -> Failure | None:
    n = subject.batch
    graph = subject.options.get("one_example") or any(
        v.shape[:2] == (n, n) for v in subject.inputs.values()
    )
    if n < 2 or graph or not all(v.ndim and v.shape[0] == n for v in subject.inputs.values()):
        return None
    first, _ = subject.part(slice(0, 1))
    try:
        single = subject.run(inputs=first, backward=False)
    except SideFailed as error:
        if subject.separable():
            text = f"the model takes batches of {n} alone: {error.__cause__}"
            return Failure(text, number=n, severity="note")
        return Failure(f"a batch of one raises: {error.__cause__}", severity="suspicious")
    for site, value in whole.outputs.items():
        got = single.outputs.get(site)
        if not value.ndim or value.shape[0] != n:
            continue
        if got is None or got.shape != (1, *value.shape[1:]):
            shape = "missing" if got is None else list(got.shape)
            return Failure(f"`{site}` is {shape} for one example of {list(value.shape)}", site)
    return None
