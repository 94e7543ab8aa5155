"""The loss: what it is at first, whether it can be learnt, whether it adds up over a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import is_mask
from crosscheck.auditing.registry import NO_GRADIENT, NO_LOSS, Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.stepping import Learnt, floor_of, learn, learning
from crosscheck.auditing.subject import EXAMPLES, Arrays, Subject
from crosscheck.losses.targets import Targets

__all__: list[str] = []

FALLEN = 0.2  # of the loss that learning a handful of examples must leave at most
NOTHING = 0.95  # so much left is nothing learnt
BATCH, STEPS = 16, 150
RATES = (0.01, 0.001, 0.1)
MICRO = 1e-3
GAIN = 1e-3  # of the first loss, that the inputs must be good for
MOST = 32  # parts of a batch
SURE = 2.0  # times a guess: logits of deviation one, alike for all of few examples, reach 1.6
CLEAR = 0.1  # so much needs no further steps


@check("wrong", needs_loss=True)
def loss_depends_on_the_model(subject: Subject) -> Outcome:
    """The loss is not the same whatever the model computes (a softmax over a single logit)."""
    values = [subject.run().loss]
    if _is_nan(values[0]):
        return Skip(NO_LOSS)
    for seed in (1, 2, 3):
        outputs = subject.outputs_at(subject.noise(seed))
        values.append(float(subject.loss_of(outputs).value))
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) == len(values) and max(known) - min(known) <= 1e-12 * max(abs(known[0]), 1.0):
        always = "zero" if known[0] == 0 else f"{known[0]:.6g}"
        return Failure(
            f"the loss is always {always}, whatever the parameters are (a softmax over a single "
            "logit?)",
            "loss",
            known[0],
        )
    if known and known[0] == 0.0:
        return Failure("the loss is exactly zero", "loss", 0.0, severity="suspicious")
    return Looked(f"the loss is {values[0]:.4g} and moves with the parameters", values[0])


def _is_nan(loss: float | None) -> bool:
    return loss is not None and math.isnan(loss)


@check("suspicious", needs_loss=True)
def initial_loss(subject: Subject) -> Outcome:
    """At initialisation the loss is that of a random guess: ln C for C classes, ln 2 for bits."""
    if subject.options.get("trained"):
        return Skip("trained=True: the model is not at its initialisation")
    logits = {"cross_entropy", "bce_with_logits", "nll"}
    assert subject.loss is not None
    if subject.loss.own is not None or not {t.name for t in subject.loss.terms} & logits:
        return Skip("only classification losses have a guess to compare with")
    step = subject.run()
    if _is_nan(step.loss):
        return Skip(NO_LOSS)
    guess = float(subject.loss_of(_undecided(subject, step.outputs)).value)
    assert step.loss is not None
    text = f"the loss starts at {step.loss:.4g}; a random guess has {guess:.4g}"
    if step.loss > SURE * guess:
        return Failure(f"{text}: the first outputs are too sure of themselves", "loss", step.loss)
    if step.loss < 0.5 * guess:
        return Failure(
            f"{text}: is the model trained (trained=True), or does the target leak into the input?",
            "loss",
            step.loss,
            severity="note",
        )
    return Looked(text, step.loss)


def _undecided(subject: Subject, outputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs that know nothing: zeros, and where log-probabilities are meant those of a guess."""
    made = {site: np.zeros_like(value) for site, value in outputs.items()}
    for term in subject.terms(outputs):
        if term.name == "nll":
            site = term.outputs[0]
            made[site] -= made[site].dtype.type(math.log(made[site].shape[term.options["axis"]]))
    return made


@check("wrong", needs_loss=True)
def gradient_is_clipped_not_the_loss(subject: Subject) -> Outcome:
    """However large the loss of an example grows, its gradient does not vanish."""
    step = subject.run()
    assert step.loss is not None and subject.loss is not None
    if _is_nan(step.loss):
        return Skip(NO_LOSS)
    for factor in (10.0, 100.0, 1000.0):
        far = {k: (v * -factor if v.dtype.kind == "f" else v) for k, v in step.outputs.items()}
        found = subject.loss_of(far)
        value = float(found.value)
        gone = all(not np.any(g) for g in found.gradients.values())
        if math.isfinite(value) and value > max(step.loss, 0.0) and gone:
            return Failure(
                f"where the loss is {value:.4g} its gradient is zero: is the loss clipped? Clip "
                "the gradient instead",
                "loss",
                value,
            )
    return Looked("the gradient stays where the loss is large")


@check("wrong", needs_loss=True)
def overfits_a_few_examples(subject: Subject) -> Outcome:
    """A handful of examples can be learnt by heart."""
    inputs, targets = _some(subject, EXAMPLES)
    examples = next((len(v) for v in inputs.values() if v.ndim), 1)
    floor = subject.options.get("lowest_loss")
    best, left = Learnt(), math.inf
    for rate in _rates(subject):
        found = learn(subject, inputs, targets, steps=_steps(subject), lr=rate)
        first, last = found.losses[0], found.lowest
        if (last - (floor or 0.0)) > FALLEN * (first - (floor or 0.0)) and floor is None:
            floor = min(floor_of(subject, inputs, targets), last)
        low = float(floor or 0.0)
        share = (last - low) / (first - low) if first > low else 0.0
        if share < left or not best.losses:
            best, left = found, share
        if left <= FALLEN:
            break
    details = {"losses": best.losses, "predictions": best.watched, "lr": best.lr}
    text = (
        f"the loss of {examples} examples went from {best.losses[0]:.4g} to {best.lowest:.4g} "
        f"in {len(best.losses) - 1} steps of Adam (lr {best.lr:g})"
    )
    if not math.isfinite(best.lowest):
        return Failure(f"{text}: it is not finite", "loss", best.lowest, details=details)
    if left > NOTHING:
        return Failure(f"{text}: nothing is learnt", "loss", left, details=details)
    if left > FALLEN:
        return Failure(
            f"{text}: less than {1 - FALLEN:.0%} of it can be learnt (lowest_loss= where the loss "
            "has a floor)",
            "loss",
            left,
            "suspicious",
            details,
        )
    return Looked(text, left, details)


def _some(subject: Subject, n: int) -> tuple[Arrays, Targets]:
    """So many examples, or the whole batch where it cannot be taken apart."""
    if subject.batch <= n or subject.separable():
        return subject.inputs, subject.targets
    return subject.part(slice(0, n))


def _rates(subject: Subject) -> tuple[float, ...]:
    """Learning rates to try, one after the other."""
    given = subject.options.get("overfit_lr")
    return RATES if given is None else (float(given),)


def _constant(targets: Targets) -> bool:
    """Whether every example shall give the same: nobody needs an input for that."""
    arrays = list(targets.values()) if isinstance(targets, Mapping) else [targets]
    return all(a is None or not a.ndim or bool((a == a[:1]).all()) for a in arrays)


def _steps(subject: Subject) -> int:
    return int(subject.options.get("overfit_steps", STEPS))


@check("suspicious", needs_loss=True)
def inputs_matter(subject: Subject) -> Outcome:
    """Learning with the real inputs goes further than with inputs of zeros."""
    given = {k: v for k, v in subject.inputs.items() if v.size > 1 and not is_mask(v)}
    floats = [k for k, v in given.items() if is_float(v)]
    if not floats:
        return Skip("no floating-point input to leave out")
    if subject.batch < 2:
        return Skip("a single example can be learnt without looking at it: give a batch")
    inputs, targets = _some(subject, BATCH)
    blank = {k: np.zeros_like(v) if k in floats else v for k, v in inputs.items()}
    steps = _steps(subject) // 2
    real, blind = Learnt(), Learnt()
    for real, blind in zip(
        *(
            learning(subject, given, targets, steps=steps, lr=_rates(subject)[0])
            for given in (inputs, blank)
        ),
        strict=False,  # the one that has learnt everything stops
    ):
        if real.lowest < blind.lowest - CLEAR * abs(blind.losses[0]):
            break
    if _is_nan(real.losses[0]) or _is_nan(blind.losses[0]):
        return Skip(NO_LOSS)
    text = f"after {len(real.losses) - 1} steps the loss is {real.lowest:.4g} with the inputs"
    text += f", {blind.lowest:.4g} with zeros"
    if _constant(targets) or blind.losses[0] == 0:
        return Skip(f"{text}: the targets are all the same")
    if not real.lowest < blind.lowest - GAIN * abs(blind.losses[0]):
        return Failure(
            f"{text}: the model does not use its input",
            "loss",
            real.lowest,
            severity=None if len(floats) == len(given) else "note",  # it may learn from the others
        )
    return Looked(text, real.lowest / blind.lowest if blind.lowest else None)


@check("suspicious", needs_loss=True)
def accumulation_equals_the_large_batch(subject: Subject) -> Outcome:
    """Gradients of parts of the batch add up to the gradient of the whole."""
    if why := subject.separable():
        return Skip(why)
    whole = subject.run()
    windows, overlap = _windows(subject.batch)
    parts = []
    for rows in windows:
        inputs, targets = subject.part(rows)
        parts.append(subject.evaluate({}, inputs=inputs, targets=targets).gradients)
    names = [k for k in whole.gradients if all(k in p for p in parts)]
    scale = max((float(np.linalg.norm(whole.gradients[k].astype(float))) for k in names), default=0)
    if scale == 0:
        return Skip("all gradients are zero, and zeros add up to anything")
    if not math.isfinite(scale):
        return Skip(NO_GRADIENT)
    shares = [len(rows) / sum(map(len, windows)) for rows in windows]
    off = {}
    for rule, factors in (("mean", shares), ("sum", [1 / overlap] * len(parts))):
        off[rule] = max(
            (_distance(whole.gradients[k], parts, factors, k) / scale, k) for k in names
        )
    rule, (error, name) = min(off.items(), key=lambda item: item[1][0])
    if error > MICRO:
        return Failure(
            f"the gradient of `{name}` is neither the mean nor the sum over parts of the batch "
            f"(off by {error:.2g}): {_divisor(subject)}",
            name,
            error,
            "note" if _weighted(subject) else "suspicious",
        )
    return Looked(f"the {rule} over parts of the batch is the gradient of the whole", error)


def _weighted(subject: Subject) -> bool:
    """Whether the loss is known to divide by something that differs from part to part."""
    assert subject.loss is not None
    targets = subject.targets
    arrays = targets.values() if isinstance(targets, Mapping) else [targets]
    for term in subject.loss.terms:
        ignored = term.options.get("ignore_index", -100)
        if "weight" in term.options or any(
            a is not None and a.dtype.kind in "iu" and bool(np.any(a == ignored)) for a in arrays
        ):
            return True
    return False


def _divisor(subject: Subject) -> str:
    if _weighted(subject):
        return (
            "the loss divides by the weight of what counts (ignore_index, class weights), which "
            "differs from part to part; when accumulating, divide by that of the whole"
        )
    return (
        "the loss divides by something else than the batch (padding?), or examples depend on each "
        "other"
    )


def _windows(n: int) -> tuple[list[list[int]], int]:
    """(rows of every part, in how many parts each row is). All parts are of the size that is
    learnt by heart, for which the model is compiled anyway."""
    size = min(EXAMPLES, n - 1)
    stride = math.gcd(n, size)
    windows = [[(start + i) % n for i in range(size)] for start in range(0, n, stride)]
    if len(windows) > MOST:  # a large batch that the size does not divide
        return [list(range(size)), list(range(size, n))], 1
    return windows, size // stride


def _distance(
    whole: np.ndarray, parts: list[Mapping[str, np.ndarray]], factors: list[float], name: str
) -> float:
    total: Any = sum(f * p[name].astype(np.float64) for f, p in zip(factors, parts, strict=True))
    return float(np.linalg.norm(total - whole))
